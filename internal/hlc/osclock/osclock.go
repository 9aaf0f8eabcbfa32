// Package osclock reads the clocks of the operating system for hlc.Clock.
//
// # Monotonic time counts suspend
//
// A lease holder that was suspended must not believe that no time has passed.
// Go's monotonic clock stops during suspend on Linux, so Monotonic asks for
// CLOCK_BOOTTIME and takes the larger of the two, each measured from the start.
// That is a system call; a caller on a hot path asks once for each batch of
// work. Other systems fall back to Go's clock, which is not promised to count
// suspend: see boottime_other.go.
//
// # Wall time is extrapolated
//
// A wall clock that is set forward by minutes would take the cluster's
// timestamps along; one that is set back would make all peers look too far
// ahead, and cut the node off. So Wall is the wall clock as read at the start
// plus the monotonic time since, and a later deviation of the real wall clock
// is treated by its size:
//
//   - up to MaxSlew it is followed at one part in SlewRate of the time that
//     passes, so that intervals stay right within that rate;
//   - beyond MaxSlew it is not followed. Step reports it, and Adopt takes it
//     over: that is the hook for a caller that has asked the peers, because
//     most of them can tell a corrected clock from a broken one, and a single
//     node cannot. A clock that is wrong when the process starts is the same
//     case: the caller compares with the peers it meets first.
//
// Until somebody calls Adopt the timestamps keep the pace and the offset that
// the node started with. That harms nothing but their likeness to the time of
// day.
//
// # Deviation is evidence, and nothing takes it back
//
// Deviation compares what the real wall clock has counted since the start with
// what Go's monotonic clock has. A hypervisor can freeze a machine and every
// monotonic clock in it; the wall clock, set right afterwards, is then the only
// witness. So the lease asks whether Deviation moved since a promise was asked
// for. It must not be the distance from Wall: Adopt (or the suspend that Wall
// makes up for) would bring that distance back to what it was before the
// freeze, and with it the lease of before the freeze, which peers may have
// ended long ago.
//
// All methods may be called on any goroutine; none blocks.
package osclock

import (
	"sync"
	"sync/atomic"
	"time"
)

// How a deviation of the real wall clock is followed.
const (
	// MaxSlew is the largest deviation that is followed without asking. It
	// covers what a time daemon corrects by itself in normal operation.
	MaxSlew = time.Second
	// SlewRate is the reciprocal of the pace: 1 ms a second, twice the
	// fastest pace at which the kernel itself slews.
	SlewRate = 1000

	adjustEvery = 10 * time.Millisecond // of monotonic time, at most so often
	adjustSpan  = time.Second           // one adjustment makes up for at most so much
	ignored     = time.Millisecond      // the resolution of Wall
)

// Clock implements hlc.Clock.
type Clock struct {
	read func() reading                // immutable
	boot func() (time.Duration, error) // immutable; time since boot, suspend included

	startWall time.Duration // immutable; real
	startMono time.Duration // immutable
	startBoot time.Duration // immutable
	hasBoot   bool          // immutable

	// offset is what is added to the monotonic reading to get the wall clock:
	// all of suspend, slewing and adopted steps.
	offset atomic.Int64
	// deviation is the real wall clock's, in nanoseconds, when last looked at.
	deviation atomic.Int64

	mu struct {
		sync.Mutex
		adjusted  time.Duration // monotonic reading at the last adjustment
		suspended time.Duration // part of offset that suspend made
	}
}

// reading is one look at the wall clock and Go's monotonic clock at once.
type reading struct {
	wall time.Duration // since the Unix epoch
	mono time.Duration // since an arbitrary start
}

// New returns the operating system's clock, beginning at its present wall time.
func New() *Clock { return NewShifted(wallFault()) }

// NewShifted returns a clock whose real wall clock is the operating system's and
// what shift returns: for tests of clocks that are wrong or jump. shift is called
// at every reading, on the reader's goroutine; nil shifts nothing.
func NewShifted(shift func() time.Duration) *Clock {
	//lint:allow clock this package is the one place that turns the system's clocks into hlc.Clock
	start := time.Now()
	read := func() reading {
		now := time.Now() //lint:allow clock as above
		return reading{wall: time.Duration(now.UnixNano()), mono: now.Sub(start)}
	}
	if shift == nil {
		return newClock(read, sinceBoot)
	}
	return newClock(func() reading {
		r := read()
		r.wall += shift()
		return r
	}, sinceBoot)
}

func newClock(read func() reading, boot func() (time.Duration, error)) *Clock {
	c := &Clock{read: read, boot: boot}
	now := read()
	c.startWall, c.startMono, c.mu.adjusted = now.wall, now.mono, now.mono
	c.offset.Store(int64(now.wall - now.mono))
	if b, err := boot(); err == nil {
		c.startBoot, c.hasBoot = b, true
	}
	return c
}

// Monotonic returns the time since the clock was made, suspend included.
func (c *Clock) Monotonic() time.Duration { return c.elapsed(c.read().mono) }

// elapsed is the larger of what the two monotonic clocks say. Each of them
// never goes back, so their maximum does not either.
func (c *Clock) elapsed(mono time.Duration) time.Duration {
	passed := mono - c.startMono
	if c.hasBoot {
		if b, err := c.boot(); err == nil {
			passed = max(passed, b-c.startBoot)
		}
	}
	return passed
}

// Wall returns the smoothed wall clock in milliseconds since the Unix epoch.
func (c *Clock) Wall() int64 {
	now := c.read()
	wall := now.mono + time.Duration(c.offset.Load())
	// A step that was taken back exactly must be noticed, too.
	if deviation := now.wall - wall; deviation.Abs() >= ignored || c.Step() != 0 {
		c.adjust(now)
		wall = now.mono + time.Duration(c.offset.Load())
	}
	return wall.Milliseconds()
}

// Real returns the real wall clock, steps and all, in milliseconds since the
// Unix epoch. It is what a node compares with its peers' and with Wall; nothing
// else may be built on it.
func (c *Clock) Real() int64 { return c.read().wall.Milliseconds() }

// Deviation returns by how much more the real wall clock has counted since the
// start than Go's monotonic clock, read now. Only its changes mean something: by
// as much the wall clock was set, or the machine slept or stood still without
// the monotonic clock noticing. Neither slewing nor Adopt changes it. It costs
// one reading of both clocks (below 100 ns, no system call).
func (c *Clock) Deviation() time.Duration {
	now := c.read()
	return now.wall - c.startWall - (now.mono - c.startMono)
}

// adjust takes suspend into account and slews, at most every adjustEvery. Only
// one goroutine does so at a time; the others go on with the offset as it is.
func (c *Clock) adjust(now reading) {
	if !c.mu.TryLock() {
		return
	}
	defer c.mu.Unlock()
	passed := now.mono - c.mu.adjusted
	if passed < adjustEvery {
		return
	}
	c.mu.adjusted = now.mono

	if grown := c.suspended() - c.mu.suspended; grown >= ignored {
		c.mu.suspended += grown
		c.offset.Add(int64(grown))
	}

	deviation := now.wall - now.mono - time.Duration(c.offset.Load())
	c.deviation.Store(int64(deviation))
	if deviation.Abs() > MaxSlew {
		return
	}
	most := min(passed, adjustSpan) / SlewRate
	c.offset.Add(int64(min(max(deviation, -most), most)))
}

// suspended returns how long the machine has slept since the start. The
// monotonic clock is read last, so that a delay between the two readings makes
// the answer too small, to be made up next time, and never too large.
func (c *Clock) suspended() time.Duration {
	if !c.hasBoot {
		return 0
	}
	boot, err := c.boot()
	if err != nil {
		return 0
	}
	return max(0, boot-c.startBoot-(c.read().mono-c.startMono))
}

// Step returns by how much the real wall clock differs from this one when that
// is too much to be followed without asking the peers, else 0. It is as of the
// last call of Wall.
func (c *Clock) Step() time.Duration {
	if d := time.Duration(c.deviation.Load()); d.Abs() > MaxSlew {
		return d
	}
	return 0
}

// Adopt moves the clock by step at once. The caller has found that most of the
// peers' clocks agree with it. A hybrid clock on top does not go back: it
// counts logically until the wall clock has caught up.
func (c *Clock) Adopt(step time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset.Add(int64(step))
	c.deviation.Add(-int64(step))
}
