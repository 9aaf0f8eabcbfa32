package loadtest

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// gap watches the successes of something and finds the longest time without
// any. It is safe for concurrent use. Times are since the start of the run.
type gap struct {
	last  atomic.Int64 // end of the latest success
	count atomic.Int64
	mu    struct {
		sync.Mutex
		longest, at time.Duration // at: where it began
	}
}

// success notes a success that ended at t. Successes may come out of order:
// one that ended before the latest cannot lie in a gap after it, and the gap
// that it would have shortened was seen before it only if its client was held
// up in between, which is charged as a gap (too long rather than too short).
func (g *gap) success(t time.Duration) {
	g.count.Add(1)
	g.close(t)
}

// close ends the gap that is open at t.
func (g *gap) close(t time.Duration) {
	for {
		last := g.last.Load()
		if int64(t) <= last {
			return
		}
		if g.last.CompareAndSwap(last, int64(t)) {
			g.note(time.Duration(last), t)
			return
		}
	}
}

func (g *gap) note(from, to time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if to-from > g.mu.longest {
		g.mu.longest, g.mu.at = to-from, from
	}
}

// gaps is the availability of a run.
type gaps struct {
	begin      time.Duration
	overall    gap
	operations [operationCount]gap
	ranges     []Range // in order of keys
	byRange    []gap
}

// newGaps watches from begin on; ranges need not cover everything.
func newGaps(begin time.Duration, ranges []Range) *gaps {
	g := &gaps{begin: begin, ranges: slices.Clone(ranges), byRange: make([]gap, len(ranges))}
	slices.SortFunc(g.ranges, func(a, b Range) int { return bytes.Compare(a.Start, b.Start) })
	g.overall.last.Store(int64(begin))
	for i := range g.operations {
		g.operations[i].last.Store(int64(begin))
	}
	for i := range g.byRange {
		g.byRange[i].last.Store(int64(begin))
	}
	return g
}

func (g *gaps) success(o Operation, key []byte, t time.Duration) {
	if t < g.begin {
		return
	}
	g.overall.success(t)
	g.operations[o].success(t)
	if i, ok := g.locate(key); ok {
		g.byRange[i].success(t)
	}
}

// locate returns the position of the range that holds key.
func (g *gaps) locate(key []byte) (int, bool) {
	i, exact := slices.BinarySearchFunc(g.ranges, key, func(r Range, k []byte) int {
		return bytes.Compare(r.Start, k)
	})
	if !exact {
		i--
	}
	if i < 0 || (len(g.ranges[i].End) > 0 && bytes.Compare(key, g.ranges[i].End) >= 0) {
		return 0, false
	}
	return i, true
}

// Gap is the longest time without a success of something.
type Gap struct {
	Millis    float64 `json:"longest_gap_ms"`
	AtSecond  float64 `json:"at_s"` // where it began, from the start of the measurement
	Successes int64   `json:"successes"`
	// MeanMillis is the mean distance of two successes.
	MeanMillis float64 `json:"mean_distance_ms"`
}

// RangeGap is the gap of one range, or of one bucket of the key space.
type RangeGap struct {
	Gap
	Range ids.RangeID `json:"range"` // 0: a bucket
	Start string      `json:"start"` // quoted
	// Changed says that the range was split, merged or gone at the end.
	Changed bool `json:"changed,omitempty"`
}

// result closes a gap that is open at the end of the run and returns the longest.
func (g *gaps) result(w *gap, end time.Duration) Gap {
	w.close(end)
	w.mu.Lock()
	defer w.mu.Unlock()
	r := Gap{Millis: millis(w.mu.longest), Successes: w.count.Load()}
	if w.mu.longest > 0 {
		r.AtSecond = (w.mu.at - g.begin).Seconds()
	}
	r.MeanMillis = millis(end-g.begin) / float64(r.Successes+1)
	return r
}

// rangeResults returns the gaps of all ranges, longest first. atEnd are the
// ranges at the end of the run, nil if unknown.
func (g *gaps) rangeResults(end time.Duration, atEnd []Range) []RangeGap {
	all := make([]RangeGap, len(g.ranges))
	for i, r := range g.ranges {
		same := func(o Range) bool {
			return o.ID == r.ID && bytes.Equal(o.Start, r.Start) && bytes.Equal(o.End, r.End)
		}
		all[i] = RangeGap{
			Gap: g.result(&g.byRange[i], end), Range: r.ID, Start: quoted(r.Start),
			Changed: atEnd != nil && !slices.ContainsFunc(atEnd, same),
		}
	}
	slices.SortStableFunc(all, func(a, b RangeGap) int { return cmp.Compare(b.Millis, a.Millis) })
	return all
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
