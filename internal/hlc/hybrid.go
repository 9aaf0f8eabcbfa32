package hlc

import (
	"sync"
	"time"
)

// Hybrid is a node's hybrid logical clock over its physical clocks. It is safe
// for concurrent use.
type Hybrid struct {
	clock    Clock
	maxAhead time.Duration // a remote timestamp further ahead of Wall is refused

	mu struct {
		sync.Mutex
		last  Timestamp // highest issued or adopted
		bound Timestamp // durable; nothing above it is issued
	}
}

// NewHybrid returns a clock that issues only timestamps above start and at
// most the bound set by SetBound (none at first: start is the bound).
func NewHybrid(clock Clock, start Timestamp, maxAhead time.Duration) *Hybrid {
	h := &Hybrid{clock: clock, maxAhead: maxAhead}
	h.mu.last, h.mu.bound = start, start
	return h
}

// Now issues a timestamp above every earlier one and at most the bound.
func (h *Hybrid) Now() (Timestamp, error) {
	wall := New(h.clock.Wall(), 0)
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
// above the durable bound.
func (h *Hybrid) Update(remote Timestamp) error {
	wall := h.clock.Wall()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case remote <= h.mu.last:
		return nil
	case remote.Wall() > wall+h.maxAhead.Milliseconds():
		return ErrTooFarAhead
	case remote > h.mu.bound:
		return ErrBound
	}
	h.mu.last = remote
	return nil
}

// NextBound returns the bound that the store should make durable next, a
// window ahead of the clock, and whether that is due (less than half a window
// is left).
func (h *Hybrid) NextBound(window time.Duration) (Timestamp, bool) {
	wall := New(h.clock.Wall()+window.Milliseconds(), 0)
	h.mu.Lock()
	defer h.mu.Unlock()
	next := max(wall, h.mu.last+New(window.Milliseconds(), 0))
	return next, h.mu.bound < next-New(window.Milliseconds()/2, 0)
}

// SetBound raises the bound. The caller has made it durable.
func (h *Hybrid) SetBound(bound Timestamp) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.bound = max(h.mu.bound, bound)
}
