package ranges

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// A range that is hot is split where that halves its load, so that placement has
// pieces which it can move. Its own leader decides, so splits go on while
// placement is away. Hot means: above a limit of time or of operations, for
// hotFor.
//
// While it is hot a part of its requests is compared with a few keys of other
// requests, the candidates: how much of the load would come to lie left of each,
// how much right. Candidates are drawn so that each request is one with the same
// probability in proportion to what it costs; a new one begins to count anew. So
// a candidate near the middle of the load shows that by its own counts, whatever
// the order of the requests. It also shows why there is none: if one key gets the
// load it is a candidate itself, and if the load moves through the keys, all
// requests lie on the same side of all earlier ones.
//
// A load that no split halves is reported in words, and the range is left alone:
// splitting it would only add ranges. The same goes for scans that both halves
// would serve: two ranges with all of the operations each would be split again,
// and so on. If it is time that they take, and not their number, halves do help.
const (
	// defaultLoadSplitCPU is the time on a range, per second, from which it is
	// split: a tenth of a core. It stands for dear requests, mostly scans; what
	// point requests cost lies outside of what is measured (load.go).
	defaultLoadSplitCPU = 100 * time.Millisecond
	// defaultLoadSplitOps is for point requests: about 5 % of what a small node
	// serves. Pieces of that size can be spread evenly over a few nodes. Smaller
	// ones would cost: operations of one range share entries of its log, those
	// of two do not, and at 2,500 writes a second entries are a quarter of it.
	defaultLoadSplitOps = 2500

	// hotFor is how long a range must be hot, and its keys be sampled.
	hotFor = 5 * time.Second
	// loadSplitPause is the least time between two load splits of a range, and of
	// its halves.
	loadSplitPause = 10 * time.Second
	// coolPart of a limit is where a hot range is hot no more.
	coolPart = 0.75

	maxCandidates = 20
	// sampledPerSecond is how many requests are compared with the candidates.
	sampledPerSecond = 200
	// minCompared is how many a candidate must have been compared with.
	minCompared = 100
	// maxImbalance is |left - right| / (left + right) of a split that helps.
	maxImbalance = 0.25
	// popularPart of the load on one key explains why nothing halves it.
	popularPart = 0.25
	// directedPart of the load on one side of earlier requests is a movement.
	directedPart = 0.8
	// straddlePart of requests that both halves would serve makes a split useless.
	straddlePart = 0.5
	// minMiddleSplit is the size from which a range is split in its middle
	// because of scans that read all of it.
	minMiddleSplit = 1 << 20

	// A request costs 1, and 1 more for each costBytes; a write, which is
	// replicated, writeCost times as much.
	costBytes = 512
	writeCost = 4
)

func costOf(bytes int) float64 { return 1 + float64(bytes)/costBytes }

// Why a hot range is not split, in words.
const (
	becauseSystem   = "the system range is never split"
	becauseMoves    = "the load moves through the keys in one direction"
	becauseStraddle = "most requests are scans that both halves would serve"
	becauseUneven   = "no key halves the load"
	becauseNoID     = "no range id is at hand"
	becauseRefused  = "the split was refused"
)

func becausePopular(part float64) string {
	const step = 5 // percent: what is said is not to change every few seconds
	return fmt.Sprintf("one key gets %d %% of the load", step*int(math.Round(part*100/step)))
}

// heat is what is known of a range that is hot. Part of an immutable watch.
type heat struct {
	hot     bool
	since   time.Duration // hot since
	quiet   time.Duration // no load split before
	keys    *keySamples   // nil: not wanted
	because string        // not split
}

// loadSplit is a split that was decided.
type loadSplit struct {
	key        []byte // nil: in the middle of the bytes
	generation uint64
}

// limits are the configured ones, in the units of rates; +Inf: none.
func (c *Config) limits() (cpu, operations float64) {
	cpu, operations = math.Inf(1), math.Inf(1)
	if c.LoadSplitCPU >= 0 {
		cpu = float64(c.LoadSplitCPU) / float64(time.Microsecond)
	}
	if c.LoadSplitOps >= 0 {
		operations = c.LoadSplitOps
	}
	return cpu, operations
}

// warm brings the heat of a new sample up to date. A split is returned at most
// once in loadSplitPause; maintenance's goroutine.
func (r *Replica) warm(w *watch, s *state) *loadSplit {
	h, load := &w.heat, w.load()
	cpu, operations := r.table.cfg.limits()
	if h.hot {
		cpu, operations = coolPart*cpu, coolPart*operations
	}
	byCPU := load.cpu > cpu
	switch {
	case !byCPU && load.operations() <= operations:
		*h = heat{quiet: h.quiet}
		return nil
	case !h.hot:
		h.hot, h.since = true, w.at
		if r.id == 1 {
			h.because = becauseSystem
			return nil
		}
		h.keys = newKeySamples(r.id, w.at, load)
		return nil
	case h.keys == nil || w.at-h.keys.began < hotFor || w.at < h.quiet:
		return nil
	}
	c := h.keys.choose(s.desc, byCPU)
	if c.undecided {
		return nil
	}
	h.keys = newKeySamples(r.id, w.at, load)
	if c.middle && s.size() < minMiddleSplit {
		c.because = becauseStraddle
	}
	if c.because != "" {
		h.because = c.because
		return nil
	}
	h.quiet = w.at + loadSplitPause
	return &loadSplit{key: c.key, generation: s.desc.GetGeneration()}
}

// beginLoadSplit hands a split to the shard. If the shard has no room, or the
// range changed meanwhile, the next samples decide again.
func (r *Replica) beginLoadSplit(l *loadSplit) {
	_ = r.enqueue(multiraft.TaskFunc(func() {
		r.startSplit(l.key, l.generation, 0, r.loadSplitEnded(r.load.watch.Load().load()))
	}), len(l.key))
}

func (r *Replica) loadSplitEnded(load rates) func(_, _ *metapb.RangeDescriptor, _ error) {
	log := r.table.cfg.Logger
	return func(_, right *metapb.RangeDescriptor, err error) {
		if err == nil {
			r.table.dirty.loadSplits.Add(1)
			log.Info("range was split because of its load", "range", r.id,
				"right", ids.RangeID(right.GetRangeId()), "operations", int64(load.operations()),
				"cpu", time.Duration(load.cpu*float64(time.Microsecond)))
			return
		}
		because := ""
		switch {
		case errors.Is(err, ErrNoID):
			because = becauseNoID
		case errors.Is(err, ErrNoSplitKey), errors.Is(err, ErrRefused):
			because = becauseRefused
		}
		r.replaceBecause(because)
		log.Debug("range with much load was not split", "range", r.id, "error", err)
	}
}

// replaceBecause notes why a split failed, if the range is still hot.
func (r *Replica) replaceBecause(because string) {
	for {
		w := r.load.watch.Load()
		if w == nil || !w.heat.hot {
			return
		}
		next := *w
		next.heat.because = because
		if r.load.watch.CompareAndSwap(w, &next) {
			return
		}
	}
}

// LoadSplits returns how many ranges this node has split because of their load.
// Any goroutine.
func (t *Table) LoadSplits() uint64 { return t.dirty.loadSplits.Load() }

// Merges returns how many ranges that this node led have absorbed their right
// neighbours. Any goroutine.
func (t *Table) Merges() uint64 { return t.dirty.merges.Load() }

// keySamples compares requests of a hot range with one another. Any goroutine.
type keySamples struct {
	began time.Duration // immutable
	below uint64        // immutable; of the hashes of counts: which requests are wanted

	mu         sync.Mutex
	random     uint64
	requests   int
	straddling int     // requests for spans
	cost       float64 // of all requests
	candidates []candidate
}

// candidate is a key of a request, and what came after it. A key that is the
// candidate lies to its right, as in a split there.
type candidate struct {
	key               []byte
	left, right, same float64 // costs; same is part of right
	requests          int
	straddling        int // for spans that both halves would serve
}

// newKeySamples makes samples for a range with the given load.
func newKeySamples(id ids.RangeID, now time.Duration, load rates) *keySamples {
	every := max(1, load.operations()/sampledPerSecond)
	k := &keySamples{began: now, below: math.MaxUint64, random: uint64(id)*golden ^ uint64(now)}
	if every > 1 {
		k.below = uint64(math.MaxUint64 / every)
	}
	return k
}

// wants says whether the request is to be recorded that was counted as word.
func (k *keySamples) wants(word uint64) bool { return word*golden <= k.below }

// record compares a request for [start, end), or for the key start if end is
// empty, with the candidates, and may make it one. The keys are not kept.
func (k *keySamples) record(start, end []byte, cost float64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	point := len(end) == 0
	k.requests++
	if !point {
		k.straddling++
	}
	k.cost += cost
	key := start
	if !point && k.draw() < 0.5 {
		key = end
	}
	known := false
	for i := range k.candidates {
		c := &k.candidates[i]
		c.compare(start, end, cost)
		known = known || bytes.Equal(c.key, key)
	}
	if known {
		return // more keys say more than one key often
	}
	if len(k.candidates) < maxCandidates {
		k.candidates = append(k.candidates, candidate{key: bytes.Clone(key)})
	} else if k.draw() < maxCandidates*cost/k.cost {
		at := int(k.draw() * maxCandidates)
		k.candidates[at] = candidate{key: bytes.Clone(key)}
	}
}

// compare counts a request. Of a span half counts where it starts and half
// where it ends.
func (c *candidate) compare(start, end []byte, cost float64) {
	c.requests++
	order := bytes.Compare(start, c.key)
	switch {
	case len(end) == 0 && order == 0:
		c.same += cost
		c.right += cost
	case order >= 0:
		c.right += cost
	case len(end) == 0 || bytes.Compare(end, c.key) <= 0:
		c.left += cost
	default:
		c.left += cost / 2
		c.right += cost / 2
		c.straddling++
	}
}

// imbalance is 0 for a key that halves the load and 1 for one that leaves it on
// one side.
func (c *candidate) imbalance() float64 {
	return math.Abs(c.left-c.right) / (c.left + c.right)
}

// draw returns a number in [0, 1) of a fixed sequence (a mixed counter).
func (k *keySamples) draw() float64 {
	k.random += golden
	z := k.random
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	const mantissa = 53
	return float64((z^z>>31)>>(64-mantissa)) / (1 << mantissa)
}

// choice is where to split, or why not.
type choice struct {
	key       []byte
	middle    bool // where half of the bytes are
	because   string
	undecided bool // too few requests yet
}

// choose looks for the key that halves the load. byCPU: it is time that makes the
// range hot, not the number of its operations alone.
func (k *keySamples) choose(d *metapb.RangeDescriptor, byCPU bool) choice {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.requests < minCompared {
		return choice{undecided: true}
	}
	var best *candidate
	straddled, compared := false, 0
	popular, left, right := 0.0, 0.0, 0.0
	for i := range k.candidates {
		c := &k.candidates[i]
		if c.requests < minCompared {
			continue
		}
		compared++
		popular = max(popular, c.same/(c.left+c.right))
		left, right = left+c.left, right+c.right
		inside := holds(d, c.key) && !bytes.Equal(c.key, d.GetStart())
		if !inside || c.imbalance() >= maxImbalance {
			continue
		}
		if !byCPU && float64(c.straddling) > straddlePart*float64(c.requests) {
			straddled = true
			continue
		}
		if best == nil || c.imbalance() < best.imbalance() {
			best = c
		}
	}
	scans := float64(k.straddling) > straddlePart*float64(k.requests)
	switch {
	case best != nil:
		return choice{key: best.key}
	case compared == 0:
		return choice{undecided: true}
	case straddled || scans && !byCPU:
		return choice{because: becauseStraddle}
	case scans:
		return choice{middle: true}
	case popular >= popularPart:
		return choice{because: becausePopular(popular)}
	case math.Abs(left-right) > directedPart*(left+right):
		return choice{because: becauseMoves}
	}
	return choice{because: becauseUneven}
}
