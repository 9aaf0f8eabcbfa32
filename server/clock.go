package server

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

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

// systemClock is the operating system's clocks.
type systemClock struct{}

var _ hlc.Clock = systemClock{}

// Wall returns milliseconds since the Unix epoch.
func (systemClock) Wall() int64 { return time.Now().UnixMilli() }

// Monotonic returns time that never steps.
func (systemClock) Monotonic() time.Duration { return monotonic() }
