package hlc

import (
	"sync"
	"time"
)

// maxWall is the highest wall clock that a Timestamp can hold, in
// milliseconds; it lies in the year 4199.
const maxWall = 1<<(64-LogicalBits) - 1

// aheadPart is the part of a window that NextBound keeps ahead of a clock that
// is ahead of the wall clock: still more than the time between two looks.
const aheadPart = 4

// Hybrid is a node's hybrid logical clock over its physical clocks. It is safe
// for concurrent use and does not allocate. Its lock is held for a few
// instructions and never while a physical clock is read.
//
// A version with atomics instead was measured and dropped: 9 ns a Now against
// 13 ns alone, but 34 ns against 17 ns with two goroutines that contend.
type Hybrid struct {
	clock    Clock         // immutable
	maxAhead time.Duration // immutable; a remote timestamp further ahead of Wall is refused

	// Invariant: last <= bound, and none of the three ever falls, but for Seal:
	// it lowers the bound to last for good.
	mu struct {
		sync.Mutex
		last   Timestamp // highest issued or adopted
		bound  Timestamp // durable; nothing above it is issued or adopted
		wanted Timestamp // highest remote timestamp that only the bound refused
		sealed bool      // see Seal
	}
}

// NewHybrid returns a clock that issues only timestamps above start and at
// most the bound set by SetBound (none at first: start is the bound). A node
// starts at the bound that it made durable last, so that it never goes back.
//
// maxAhead must exceed the window given to NextBound, by as much as the clocks
// of the cluster may differ: a node that restarts at once begins one window
// ahead of its wall clock, and its peers must not refuse it for that.
func NewHybrid(clock Clock, start Timestamp, maxAhead time.Duration) *Hybrid {
	h := &Hybrid{clock: clock, maxAhead: maxAhead}
	h.mu.last, h.mu.bound = start, start
	return h
}

// Now issues a timestamp above every earlier one and at most the bound. It
// follows the wall clock; where that stands still or went back, and where it
// is beyond the bound, it counts logically. ErrBound: nothing is left below
// the bound.
func (h *Hybrid) Now() (Timestamp, error) {
	wall := New(h.wall(), 0)
	h.mu.Lock()
	defer h.mu.Unlock()
	next := max(wall, h.mu.last+1)
	if next > h.mu.bound {
		next = h.mu.last + 1
	}
	if next > h.mu.bound {
		return 0, ErrBound
	}
	h.mu.last = next
	return next, nil
}

// Peek returns the highest timestamp issued or adopted so far, the stamp that
// a frame carries.
func (h *Hybrid) Peek() Timestamp {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.last
}

// Update adopts a remote timestamp: later ones of this clock are above it. It
// returns ErrTooFarAhead (nothing adopted) beyond the tolerated lead, ErrBound
// above the durable bound (nothing adopted; the next bound will include it).
func (h *Hybrid) Update(remote Timestamp) error {
	wall := h.wall()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case remote <= h.mu.last:
		return nil
	case remote.Wall() > wall+h.maxAhead.Milliseconds():
		return ErrTooFarAhead
	case remote > h.mu.bound:
		h.mu.wanted = max(h.mu.wanted, remote)
		return ErrBound
	}
	h.mu.last = remote
	return nil
}

// NextBound returns the bound that the store should make durable next, and
// whether that is due (less than half of what it adds is left). It lies a window
// ahead of the wall clock, and a part of a window ahead of this clock, where that
// is ahead of the wall clock. The window is at least aheadPart milliseconds.
//
// A whole window there would drive the clocks away: a restart begins at the
// bound, and the stamps of one node move all others. With a few crashes within a
// window, or one of each node in turn, every restart would add a window to the
// lead of the cluster's clocks, until peers refuse frames as too far ahead.
func (h *Hybrid) NextBound(window time.Duration) (Timestamp, bool) {
	wall := h.wall()
	h.mu.Lock()
	defer h.mu.Unlock()
	// A peer's clock may be ahead by more than a window and still be
	// tolerated. Without wanted its frames would be refused for ever.
	ahead := max(h.mu.last, h.mu.wanted)
	whole, part := window.Milliseconds(), window.Milliseconds()/aheadPart
	next := max(New(wall+whole, 0), ahead+New(part, 0))
	return next, h.mu.bound < max(New(wall+whole-whole/2, 0), ahead+New(part-part/2, 0))
}

// SetBound raises the bound. The caller has made it durable. A sealed clock
// keeps its own.
func (h *Hybrid) SetBound(bound Timestamp) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.mu.sealed {
		h.mu.bound = max(h.mu.bound, bound)
	}
}

// Bound returns the durable bound: the most that a ceiling may promise, because a
// restart of this node begins there.
func (h *Hybrid) Bound() Timestamp {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.bound
}

// Tolerated returns the highest remote timestamp that is not too far ahead now.
// It says nothing about the bound.
func (h *Hybrid) Tolerated() Timestamp {
	return New(min(h.wall()+h.maxAhead.Milliseconds(), maxWall), 1<<LogicalBits-1)
}

// Advance moves the clock to ts if it is behind: later timestamps are above it.
// It is for timestamps that this node has promised to pass (ceilings), so no
// lead is too large; whoever promised has looked at Tolerated. ErrBound, with
// nothing moved, if ts is above the durable bound: then the promise was wrong.
func (h *Hybrid) Advance(ts Timestamp) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ts > h.mu.bound {
		return ErrBound
	}
	h.mu.last = max(h.mu.last, ts)
	return nil
}

// wall returns the wall clock within what a Timestamp can hold: one set before
// 1970 would otherwise wrap to the end of time, and be made durable.
func (h *Hybrid) wall() int64 { return min(max(h.clock.Wall(), 0), maxWall) }
