package loadtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	reportEvery = time.Second
	// rangesTimeout bounds asking the store for its ranges.
	rangesTimeout = 10 * time.Second
	// loadPause is between two attempts to insert a record.
	loadPause = 50 * time.Millisecond
	// maxExamples bounds the kinds of errors of which the text is kept.
	maxExamples = 32
	// interrupted is the kind of what was in flight when the run was stopped.
	interrupted = "interrupted"
)

// run is a run in progress.
type run struct {
	config    Config
	store     Store
	load      bool // insert each record until it is in
	pace      *pacer
	recorders []*recorder
	inserts   *inserts
	gaps      *gaps
	done      atomic.Int64 // successes, warm-up included
	examples  struct {
		sync.Mutex
		text map[string]string // by kind: the first error
	}
}

// Run runs a workload over records that have been loaded, and tells the
// reporter of every second and of the result. If ctx ends the run ends early,
// with a result. The error says that it could not begin.
func Run(ctx context.Context, c Config, s Store, out Reporter) (*Result, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("load test: %w", err)
	}
	r := newRun(c, s)
	r.inserts = newInserts(c.Records)
	return r.execute(ctx, out), nil
}

// Load inserts the records from the given one on; each is tried until it is in
// or ctx ends. It returns the first record that may be missing, with which an
// interrupted load is resumed; it is c.Records when all are in.
func Load(
	ctx context.Context, c Config, from uint64, s Store, out Reporter,
) (*Result, uint64, error) {
	c.Workload, c.Distribution = loading(), Uniform
	c.Duration, c.Warmup = 0, 0
	if from >= c.Records {
		return nil, 0, fmt.Errorf("load: --from %d leaves none of %d records", from, c.Records)
	}
	c.Operations = int64(c.Records - from)
	if err := c.Validate(); err != nil {
		return nil, 0, fmt.Errorf("load: %w", err)
	}
	r := newRun(c, s)
	r.inserts, r.load = newInserts(from), true
	result := r.execute(ctx, out)
	return result, r.inserts.contiguous(), nil
}

func newRun(c Config, s Store) *run {
	r := &run{config: c, store: s, pace: &pacer{warmup: c.Warmup, limit: c.Operations}}
	if c.Duration > 0 {
		r.pace.end = c.Warmup + c.Duration
	}
	if c.Rate > 0 {
		r.pace.interval = float64(time.Second) / c.Rate
	}
	for range min(c.Clients, maxRecorders) {
		r.recorders = append(r.recorders, &recorder{})
	}
	r.examples.text = make(map[string]string)
	return r
}

// execute runs the clients and reports until they have ended.
func (r *run) execute(ctx context.Context, out Reporter) *Result {
	listed, known := r.ranges(ctx)
	begin := listed
	if !known {
		begin = r.config.keys().buckets(r.config.Records)
	}
	r.gaps = newGaps(r.config.Warmup, begin)
	out.Begin(&r.config)

	r.pace.start = time.Now()
	var clients, waiter sync.WaitGroup
	for i := range r.config.Clients {
		clients.Go(func() { r.client(ctx, i) })
	}
	ended := make(chan struct{})
	waiter.Go(func() {
		clients.Wait()
		close(ended)
	})
	w := watch{run: r, out: out}
	w.until(ended)
	waiter.Wait()

	// The context may be over; the final look at the ranges has its own time.
	atEnd, _ := r.ranges(context.WithoutCancel(ctx))
	result := w.result(listed, atEnd)
	out.End(result)
	return result
}

// ranges asks the store for its ranges; ok is false if it has none or does not
// say.
func (r *run) ranges(ctx context.Context) (all []Range, ok bool) {
	lister, ok := r.store.(RangeLister)
	if !ok {
		return nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, rangesTimeout)
	defer cancel()
	all, err := lister.Ranges(ctx)
	if err != nil {
		r.example("ranges-unknown", err)
		return nil, false
	}
	return all, len(all) > 0
}

// worker is one client: an operation after the other until the run is over.
type worker struct {
	*run
	random  *rand.Rand
	records chooser
	key     []byte
	value   []byte
	to      *recorder
}

func (r *run) client(ctx context.Context, i int) {
	w := worker{
		run:     r,
		random:  rand.New(rand.NewPCG(r.config.Seed, uint64(i)+1)),
		records: newChooser(r.config.distribution(), r.config.Records, r.inserts),
		value:   make([]byte, r.config.ValueSize),
		to:      r.recorders[i%len(r.recorders)],
	}
	for {
		intended, ok := r.pace.next(ctx)
		if !ok {
			return
		}
		w.operate(ctx, intended)
	}
}

// operate runs one operation and records what came of it.
func (w *worker) operate(ctx context.Context, intended time.Duration) {
	o := outcome{operation: w.config.Workload.draw(w.random), warm: intended < w.config.Warmup}
	var index uint64
	if o.operation == Insert {
		index = w.inserts.take()
	} else {
		index = w.records.next(w.random)
	}
	w.key = w.config.keys().append(w.key[:0], index)
	for {
		err := w.attempt(ctx, &o)
		now := w.pace.now()
		o.latency = now - intended
		o.inWindow = !w.pace.over(now)
		if err == nil {
			w.done.Add(1)
			w.gaps.success(o.operation, w.key, now)
			break
		}
		o.errorKind = w.kind(ctx, err)
		if !w.load || ctx.Err() != nil {
			break
		}
		w.to.add(o) // and once more
		o.errorKind = ""
		w.pace.waitUntil(ctx, now+loadPause)
	}
	if o.operation == Insert && (o.errorKind == "" || !w.load) {
		w.inserts.finished(index)
	}
	w.to.add(o)
}

// attempt calls the store.
func (w *worker) attempt(ctx context.Context, o *outcome) (err error) {
	ctx, cancel := context.WithTimeout(ctx, w.config.Timeout)
	defer cancel()
	found := true
	switch o.operation {
	case Read:
		found, err = w.store.Get(ctx, w.key)
	case Scan:
		o.rows, err = w.store.Scan(ctx, w.key, 1+w.random.IntN(maxScanRows))
		found = o.rows > 0
	case ReadModifyWrite:
		fillValue(w.random, w.value, w.config.Compressible)
		found, err = w.store.ReadModifyWrite(ctx, w.key, w.value)
	default:
		fillValue(w.random, w.value, w.config.Compressible)
		err = w.store.Put(ctx, w.key, w.value)
	}
	o.missing = err == nil && !found
	return err
}

// kind names an error. What was in flight when the run was stopped is named
// for that; it counts like any other error.
func (w *worker) kind(ctx context.Context, err error) string {
	if errors.Is(ctx.Err(), context.Canceled) {
		return interrupted
	}
	kind := w.store.ErrorKind(err)
	w.example(kind, err)
	return kind
}

// example keeps the first error of each kind.
func (r *run) example(kind string, err error) {
	r.examples.Lock()
	defer r.examples.Unlock()
	if _, seen := r.examples.text[kind]; !seen && len(r.examples.text) < maxExamples {
		r.examples.text[kind] = err.Error()
	}
}
