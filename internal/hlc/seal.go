package hlc

import "github.com/flotilla-kv/flotilla/internal/canary"

// Seal ends the clock at what it has issued or adopted, and returns that: from
// now on Now, Update and Advance give ErrBound instead of anything above it, and
// no bound is taken any more. So the node may record this timestamp, and no
// window ahead of it, as where its next life begins, whichever goroutines of this
// one are still running (R9g: docs/LEASES.md).
func (h *Hybrid) Seal() Timestamp {
	h.mu.Lock()
	defer h.mu.Unlock()
	if canary.On(canary.ClockUnsealed) {
		return h.mu.last
	}
	h.mu.bound, h.mu.sealed = h.mu.last, true
	return h.mu.last
}
