package loadtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// ProbeConfig describes a run of probes: a reader and a writer for each range,
// each with at most one operation in flight.
type ProbeConfig struct {
	Ranges []Range
	// ReadRate and WriteRate are operations a second over all ranges that are not
	// dense, so each of n ranges is read every n/ReadRate seconds; 0: not at all.
	ReadRate, WriteRate float64
	// Dense is how many ranges are read and written every DenseEvery instead:
	// what these see is known that finely.
	Dense      int
	DenseEvery time.Duration
	// Victim is the node whose ranges (those that it leads at the start) are
	// reported apart; the dense ones are of them. 0: none.
	Victim ids.NodeID
	// Warmup is not measured. Calm and then Duration are, each by itself.
	Warmup, Calm, Duration time.Duration
	Timeout                time.Duration // of one operation
	ValueSize              int           // bytes
	Seed                   uint64
	ServerPIDs             []int
}

// Bounds of probes.
const (
	maxProbes = 1 << 18
	// probeTick is what starts of operations are rounded to: many together cost
	// far less than as many one by one.
	probeTick = 10 * time.Millisecond
)

// Validate says what is wrong with a configuration, by the names of its flags.
func (c *ProbeConfig) Validate() error {
	var problems []string
	refuse := func(wrong bool, format string, args ...any) {
		if wrong {
			problems = append(problems, fmt.Sprintf(format, args...))
		}
	}
	refuse(!(c.ReadRate >= 0 && c.ReadRate <= maxRate), "--read-rate %v", c.ReadRate)
	refuse(!(c.WriteRate >= 0 && c.WriteRate <= maxRate), "--write-rate %v", c.WriteRate)
	refuse(c.ReadRate == 0 && c.WriteRate == 0, "neither --read-rate nor --write-rate")
	refuse(c.Dense < 0, "--dense %d: at least 0", c.Dense)
	refuse(c.DenseEvery < time.Millisecond, "--dense-every %v: at least 1ms", c.DenseEvery)
	refuse(c.Warmup < 0 || c.Calm < 0, "a duration below 0")
	refuse(c.Duration <= 0, "--duration %v: above 0", c.Duration)
	refuse(c.Timeout <= 0, "--timeout %v: above 0", c.Timeout)
	refuse(c.ValueSize < 0 || c.ValueSize > maxValueSize, "--value-size %d: 0 to %d",
		c.ValueSize, maxValueSize)
	if len(problems) > 0 {
		return errors.New(strings.Join(problems, "; "))
	}
	return nil
}

// probePhase is a part of the run that is measured by itself.
type probePhase int

// The phases.
const (
	phaseWarm probePhase = iota
	phaseCalm
	phaseFault
	phaseCount
)

// probes is a run in progress.
type probes struct {
	config   ProbeConfig
	store    Store
	start    time.Time
	calm     time.Duration // when the calm phase begins
	fault    time.Duration
	end      time.Duration
	all      []*probe
	done     atomic.Int64
	outcomes [phaseCount][]*recorder
	examples struct {
		sync.Mutex
		text map[string]string // by kind: the first error
	}
}

// probe asks one range one kind of question again and again.
type probe struct {
	*probes
	of     int       // the range
	kind   Operation // Read or Update
	dense  bool
	key    []byte
	value  []byte
	random *rand.Rand
	every  time.Duration
	first  time.Duration // intended start of the first operation
	to     int           // which recorder

	// since is the intended start of the first operation that no success has
	// followed yet, below 0 if there is none; last the end of the latest success.
	since, last time.Duration
	seen        [phaseCount]outage
}

// outage is what one probe saw in one phase.
type outage struct {
	gap    time.Duration // longest time between two successes
	gapAt  time.Duration // where it began
	wait   time.Duration // longest time from the intended start of an operation to a success
	open   bool          // there was no success any more
	errors int64
	count  int64
}

// Probe runs probes over the ranges. The reporter is told when the calm phase
// is over: whoever listens may break something then. If ctx ends the run ends
// early. The error says that it could not begin.
func Probe(ctx context.Context, c ProbeConfig, s Store, out ProbeReporter) error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	r := &probes{config: c, store: s}
	r.examples.text = make(map[string]string)
	for p := range r.outcomes {
		for range maxRecorders {
			r.outcomes[p] = append(r.outcomes[p], &recorder{})
		}
	}
	r.calm = c.Warmup
	r.fault = r.calm + c.Calm
	r.end = r.fault + c.Duration
	if r.plan(); len(r.all) == 0 || len(r.all) > maxProbes {
		return fmt.Errorf("probe: %d probes of %d ranges: 1 to %d", len(r.all), len(c.Ranges),
			maxProbes)
	}
	r.execute(ctx, out)
	return nil
}

// plan makes the probes. Which range is asked when has nothing to do with where
// it lies.
func (r *probes) plan() {
	c := &r.config
	random := rand.New(rand.NewPCG(c.Seed, 0))
	order := random.Perm(len(c.Ranges))
	dense := make([]bool, len(c.Ranges))
	left := c.Dense
	for _, i := range order {
		if left > 0 && (c.Victim == 0 || c.Ranges[i].Leader == c.Victim) {
			dense[i] = true
			left--
		}
	}
	sparse := len(c.Ranges) - (c.Dense - left)
	for at, i := range order {
		for _, k := range []struct {
			kind Operation
			rate float64
		}{{Read, c.ReadRate}, {Update, c.WriteRate}} {
			if k.rate == 0 {
				continue
			}
			every := c.DenseEvery
			if !dense[i] {
				every = time.Duration(float64(sparse) / k.rate * float64(time.Second))
				every = max(every.Round(probeTick), probeTick)
			}
			r.all = append(r.all, &probe{
				probes: r, of: i, kind: k.kind, dense: dense[i], every: every,
				key: c.Ranges[i].probeKey(), value: make([]byte, c.ValueSize),
				random: rand.New(rand.NewPCG(c.Seed, uint64(len(r.all))+1)),
				first:  (every * time.Duration(at) / time.Duration(len(order))).Truncate(probeTick),
				to:     len(r.all) % maxRecorders, since: -1,
			})
		}
	}
}

func (r *probes) now() time.Duration { return time.Since(r.start) }

func (r *probes) phase(t time.Duration) probePhase {
	switch {
	case t < r.calm:
		return phaseWarm
	case t < r.fault:
		return phaseCalm
	default:
		return phaseFault
	}
}

// execute runs the probes and reports after each phase.
func (r *probes) execute(ctx context.Context, out ProbeReporter) {
	out.Begin(r.planned())
	r.start = time.Now()
	var group sync.WaitGroup
	for _, p := range r.all {
		group.Go(func() { p.run(ctx) })
	}
	alarm := pacer{start: r.start}
	alarm.waitUntil(ctx, r.calm)
	before := sampleCPU(r.config.ServerPIDs, r.done.Load())
	var used *CPU
	if alarm.waitUntil(ctx, r.fault); r.config.Calm > 0 {
		after := sampleCPU(r.config.ServerPIDs, r.done.Load())
		used = cpuBetween(r.config.ServerPIDs, before, after, r.config.Calm)
	}
	out.Ready()
	group.Wait()
	out.End(r.result(used))
}

// run asks until the run is over.
func (p *probe) run(ctx context.Context) {
	alarm := pacer{start: p.start}
	for next := p.first; next < p.end; {
		if !alarm.waitUntil(ctx, next) {
			break
		}
		p.ask(ctx, next)
		// What was due meanwhile was the same question: it was not asked twice.
		next += p.every
		if now := p.now(); next < now {
			next += (now - next).Truncate(p.every)
		}
	}
	if p.since >= 0 && ctx.Err() == nil { // the last one found no end
		o := &p.seen[phaseFault]
		o.open = true
		p.note(o, p.now())
	}
}

// ask runs one operation.
func (p *probe) ask(ctx context.Context, intended time.Duration) {
	if p.since < 0 {
		p.since = max(intended, p.last) // nobody waited before the last one had its answer
	}
	err := p.attempt(ctx)
	now := p.now()
	in := p.phase(now)
	o := outcome{operation: p.kind, latency: now - intended, inWindow: true}
	if err != nil {
		if ctx.Err() != nil {
			return
		}
		o.errorKind = p.store.ErrorKind(err)
		p.example(o.errorKind, err)
		p.seen[in].errors++
		p.outcomes[in][p.to].add(o)
		return
	}
	p.done.Add(1)
	p.outcomes[in][p.to].add(o)
	p.seen[in].count++
	p.note(&p.seen[in], now)
	p.since, p.last = -1, now
}

// note ends what was open: the gap since the last success, and the wait.
func (p *probe) note(o *outage, now time.Duration) {
	if gap := now - p.last; gap > o.gap {
		o.gap, o.gapAt = gap, p.last
	}
	o.wait = max(o.wait, now-p.since)
}

func (p *probe) attempt(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	if p.kind == Read {
		_, err := p.store.Get(ctx, p.key)
		return err
	}
	fillValue(p.random, p.value, 0)
	return p.store.Put(ctx, p.key, p.value)
}

// example keeps the first error of each kind.
func (r *probes) example(kind string, err error) {
	r.examples.Lock()
	defer r.examples.Unlock()
	if _, seen := r.examples.text[kind]; !seen && len(r.examples.text) < maxExamples {
		r.examples.text[kind] = err.Error()
	}
}
