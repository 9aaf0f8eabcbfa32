package server

import "time"

// Time constants of the hybrid clock.
const (
	// boundWindow is how far the durable bound is kept ahead.
	boundWindow = 3 * time.Second
	// wallOffset is how far apart the wall clocks of two nodes may be before they
	// refuse one another's frames.
	wallOffset = 2 * time.Second
	// maxAhead is the largest lead of a remote timestamp that is adopted (R9k in
	// docs/LEASES.md). A restarted peer may be a window ahead of its wall clock, and
	// one that passed a ceiling the longest promise, maxSupport.
	maxAhead = boundWindow + wallOffset
	// boundEvery is how often the bound is looked at; half a window is left then.
	boundEvery = 250 * time.Millisecond
)
