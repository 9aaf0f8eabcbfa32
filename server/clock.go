package server

import "time"

// Time constants of the hybrid clock.
const (
	// boundWindow is how far the durable bound is kept ahead.
	boundWindow = 3 * time.Second
	// maxAhead is the largest lead of a remote timestamp that is adopted. A
	// restarted peer may be a window ahead; the rest is tolerated offset.
	maxAhead = boundWindow + 2*time.Second
	// boundEvery is how often the bound is looked at; half a window is left then.
	boundEvery = 250 * time.Millisecond
)
