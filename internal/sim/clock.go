package sim

import (
	"math/rand/v2"
	"time"
)

// epoch is the wall clock at virtual time 0, in milliseconds.
const epoch = int64(1_800_000_000_000)

// clock is a node's physical clock: it runs at its own rate and its wall part
// steps when the nemesis says so. It survives crashes of its node, as the
// clock of a machine does.
type clock struct {
	loop   *loop
	rate   float64 // 1 ± drift
	offset int64   // wall, milliseconds
}

func newClock(l *loop, r *rand.Rand) *clock {
	return &clock{
		loop:   l,
		rate:   1 + (r.Float64()-0.5)*0.04, // ±2 %
		offset: r.Int64N(400) - 200,
	}
}

// Wall returns milliseconds since the Unix epoch as this node believes.
func (c *clock) Wall() int64 {
	return epoch + c.offset + time.Duration(float64(c.loop.now)*c.rate).Milliseconds()
}

// Monotonic returns virtual time at this node's rate.
func (c *clock) Monotonic() time.Duration {
	return time.Duration(float64(c.loop.now) * c.rate)
}
