package sim

import (
	"math/rand/v2"
	"time"
)

// epoch is the wall clock at virtual time 0, in milliseconds.
const epoch = int64(1_800_000_000_000)

// What package osclock does with a wall clock that was set, approximated here.
const (
	maxSlew     = time.Second           // a larger deviation is not followed
	slewRate    = 1000                  // 1 ms a second
	adjustEvery = 10 * time.Millisecond // at most so often
	adjustSpan  = time.Second           // one adjustment makes up for at most so much
)

// maxDrift is how far a lease clock's rate is from 1 at most; the margin of a
// promise must cover two clocks of it.
const maxDrift = 0.025

// clock is a machine's pair of clocks: a lease clock that drifts, and a wall
// clock that has the right pace and is set by the nemesis. Wall smooths it as
// package osclock does. Both survive a crash of the process, but what a process
// had smoothed away is gone with it. A frozen machine's clocks stand still.
type clock struct {
	loop  *loop
	rate  float64       // of the lease clock
	base  time.Duration // what the lease clock showed
	since time.Duration // when the rate was set, in machine time

	lost     time.Duration // time that the machine was frozen
	frozenAt time.Duration // virtual time, -1: it is not frozen

	set      time.Duration // by how much the machine's wall clock is off
	offset   time.Duration // by how much the process's smoothed one is
	adjusted time.Duration // machine time of the last adjustment
}

func newClock(l *loop, r *rand.Rand, drift float64) *clock {
	c := &clock{loop: l, frozenAt: -1}
	c.rate = 1 + (2*r.Float64()-1)*drift
	c.set = time.Duration(r.Int64N(400)-200) * time.Millisecond
	c.restart()
	return c
}

// machine is the time that has passed for this machine.
func (c *clock) machine() time.Duration {
	if c.frozenAt >= 0 {
		return c.frozenAt - c.lost
	}
	return c.loop.now - c.lost
}

// restart is what a new process makes of the wall clock: it believes it.
func (c *clock) restart() { c.offset, c.adjusted = c.set, c.machine() }

// Wall returns milliseconds since the Unix epoch as this node believes.
func (c *clock) Wall() int64 {
	now := c.machine()
	if passed := now - c.adjusted; passed >= adjustEvery {
		c.adjusted = now
		if d := c.set - c.offset; d.Abs() <= maxSlew {
			most := min(passed, adjustSpan) / slewRate
			c.offset += min(max(d, -most), most)
		}
	}
	return epoch + (now + c.offset).Milliseconds()
}

// real is the machine's wall clock, steps and all.
func (c *clock) real() int64 { return epoch + (c.machine() + c.set).Milliseconds() }

// Monotonic is the lease clock: machine time at this machine's rate.
func (c *clock) Monotonic() time.Duration {
	return c.base + time.Duration(float64(c.machine()-c.since)*c.rate)
}

// deviation is how far the machine's wall clock is from its lease clock; only
// changes mean something.
func (c *clock) deviation() time.Duration { return c.machine() + c.set - c.Monotonic() }

// adopt moves the smoothed clock at once, when the peers say so.
func (c *clock) adopt(step time.Duration) { c.offset += step }

// setRate changes the lease clock's rate; it does not step.
func (c *clock) setRate(rate float64) {
	c.base, c.since, c.rate = c.Monotonic(), c.machine(), rate
}

// step sets the machine's wall clock.
func (c *clock) step(d time.Duration) { c.set += d }

// right sets the machine's wall clock to what it is outside: a machine that was
// frozen makes up for that, too.
func (c *clock) right() { c.set = c.lost }

// freeze stops the machine's clocks, as a hypervisor does with a guest's.
func (c *clock) freeze() {
	if c.frozenAt < 0 {
		c.frozenAt = c.loop.now
	}
}

// thaw lets them go on. The hypervisor sets the wall clock right at once: that
// is all by which a guest can tell.
func (c *clock) thaw() {
	if c.frozenAt < 0 {
		return
	}
	d := c.loop.now - c.frozenAt
	c.lost += d
	c.set += d
	c.frozenAt = -1
}
