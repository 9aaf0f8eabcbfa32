package osclock

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

var _ hlc.Clock = (*Clock)(nil)

// machine is a fake computer with three clocks.
type machine struct {
	wall, mono, boot time.Duration
	noBoot           bool
}

func (m *machine) clock() *Clock {
	return newClock(
		func() reading { return reading{wall: m.wall, mono: m.mono} },
		func() (time.Duration, error) {
			if m.noBoot {
				return 0, errors.New("no such clock")
			}
			return m.boot, nil
		})
}

// run lets time pass while somebody reads the wall clock every 20 ms; what is
// called for each reading may be nil.
func (m *machine) run(c *Clock, d time.Duration, each func(wall int64)) {
	for range d / (20 * time.Millisecond) {
		m.pass(20 * time.Millisecond)
		wall := c.Wall()
		if each != nil {
			each(wall)
		}
	}
}

func (m *machine) pass(d time.Duration)    { m.wall += d; m.mono += d; m.boot += d }
func (m *machine) suspend(d time.Duration) { m.wall += d; m.boot += d }

func newMachine() *machine {
	return &machine{wall: 1_780_000_000 * time.Second, mono: time.Hour, boot: 3 * time.Hour}
}

func TestWallIsTheRealClockWhileThatBehaves(t *testing.T) {
	t.Parallel()
	m := newMachine()
	c := m.clock()
	m.run(c, time.Minute, func(wall int64) {
		if wall != m.wall.Milliseconds() {
			t.Fatalf("wall %d, real %d", wall, m.wall.Milliseconds())
		}
	})
}

func TestAStepByMinutesNeitherStallsNorJumpsTheClock(t *testing.T) {
	t.Parallel()
	for _, step := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		m := newMachine()
		c := m.clock()
		start := c.Wall()
		m.wall += step
		var passed int64
		m.run(c, time.Minute, func(wall int64) {
			passed += 20
			if wall-start != passed {
				t.Fatalf("step %v: %d ms passed, the clock says %d", step, passed, wall-start)
			}
		})
		if c.Step() != step {
			t.Fatalf("step %v is reported as %v", step, c.Step())
		}
	}
}

func TestAStepThatIsTakenBackExactlyIsNoStepAnyMore(t *testing.T) {
	t.Parallel()
	m := newMachine()
	c := m.clock()
	m.wall += 10 * time.Minute
	m.run(c, time.Second, nil)
	m.wall -= 10 * time.Minute
	m.run(c, time.Second, nil)
	if c.Step() != 0 {
		t.Fatalf("step %v after it was taken back", c.Step())
	}
}

func TestAStepThatPeersAgreeOnIsAdopted(t *testing.T) {
	t.Parallel()
	for _, step := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		m := newMachine()
		c := m.clock()
		m.wall += step
		m.run(c, time.Second, nil)
		c.Adopt(c.Step())
		if c.Step() != 0 || c.Wall() != m.wall.Milliseconds() {
			t.Fatalf("step %v: left %v, wall %d, real %d",
				step, c.Step(), c.Wall(), m.wall.Milliseconds())
		}
	}
}

func TestASmallDeviationIsSlewedAtTheRate(t *testing.T) {
	t.Parallel()
	for _, step := range []time.Duration{-300 * time.Millisecond, 300 * time.Millisecond} {
		m := newMachine()
		c := m.clock()
		m.wall += step
		last, began := c.Wall(), m.mono
		m.run(c, 5*time.Minute, func(wall int64) {
			// 20 ms pass, at most 20 µs are slewed; milliseconds are cut off.
			if wall < last+19 || wall > last+21 {
				t.Fatalf("deviation %v: %d ms after %d", step, wall, last)
			}
			last = wall
			off := m.wall.Milliseconds() - wall
			expected := max(0, step.Abs()-(m.mono-began)/SlewRate).Milliseconds()
			if got := max(off, -off); got < expected-2 || got > expected+2 {
				t.Fatalf("deviation %v: %v later off by %d ms, want %d ms",
					step, m.mono-began, off, expected)
			}
		})
		if off := m.wall.Milliseconds() - c.Wall(); off < -1 || off > 1 || c.Step() != 0 {
			t.Fatalf("deviation %v: still off by %d ms, step %v", step, off, c.Step())
		}
	}
}

func TestAClockThatNobodyReadForLongSlewsNoMoreThanAMillisecondAtOnce(t *testing.T) {
	t.Parallel()
	m := newMachine()
	c := m.clock()
	m.wall -= 900 * time.Millisecond
	before := c.Wall()
	m.pass(time.Hour)
	if passed := c.Wall() - before; passed < time.Hour.Milliseconds()-1 {
		t.Fatalf("%d ms passed in an hour", passed)
	}
}

func TestSuspendCountsInBothClocks(t *testing.T) {
	t.Parallel()
	m := newMachine()
	c := m.clock()
	m.run(c, time.Second, nil)
	m.suspend(8 * time.Hour)
	m.run(c, time.Second, nil)
	if got, want := c.Monotonic(), 8*time.Hour+2*time.Second; got != want {
		t.Fatalf("monotonic %v, want %v", got, want)
	}
	if c.Wall() != m.wall.Milliseconds() || c.Step() != 0 {
		t.Fatalf("wall %d, real %d, step %v", c.Wall(), m.wall.Milliseconds(), c.Step())
	}
}

func TestASuspendBehindASetBackWallClockStillCounts(t *testing.T) {
	t.Parallel()
	m := newMachine()
	c := m.clock()
	m.suspend(time.Hour)
	m.wall -= time.Hour // as if no time had passed
	m.run(c, time.Second, nil)
	if got, want := c.Monotonic(), time.Hour+time.Second; got != want {
		t.Fatalf("monotonic %v, want %v", got, want)
	}
}

func TestWithoutABootClockTheMonotonicClockIsUsed(t *testing.T) {
	t.Parallel()
	m := newMachine()
	m.noBoot = true
	c := m.clock()
	m.run(c, 3*time.Second, nil)
	if c.Monotonic() != 3*time.Second {
		t.Fatalf("monotonic %v", c.Monotonic())
	}
}

func TestTheLargerOfTheTwoMonotonicClocksCounts(t *testing.T) {
	t.Parallel()
	m := newMachine()
	c := m.clock()
	m.mono += 5 * time.Second
	m.boot += 4 * time.Second
	if c.Monotonic() != 5*time.Second {
		t.Fatalf("monotonic %v", c.Monotonic())
	}
}

func TestAHybridClockKeepsThePaceWhenTheWallClockSteps(t *testing.T) {
	t.Parallel()
	m := newMachine()
	c := m.clock()
	h := hlc.NewHybrid(c, 0, time.Second)
	h.SetBound(hlc.MaxTimestamp)
	first, err := h.Now()
	if err != nil {
		t.Fatal(err)
	}
	m.wall -= 5 * time.Minute
	m.run(c, 10*time.Second, nil)
	now, err := h.Now()
	if err != nil || now.Wall()-first.Wall() != 10_000 {
		t.Fatalf("in ten seconds the hybrid clock moved by %d ms (%v)", now.Wall()-first.Wall(), err)
	}
}

func TestTheSystemsClocksDoNotGoBack(t *testing.T) {
	t.Parallel()
	c := New()
	lastWall, lastMono := c.Wall(), c.Monotonic()
	for range 10_000 {
		wall, mono := c.Wall(), c.Monotonic()
		if wall < lastWall-1 || mono < lastMono {
			t.Fatalf("wall %d after %d, monotonic %v after %v", wall, lastWall, mono, lastMono)
		}
		lastWall, lastMono = wall, mono
	}
}

// A machine frozen by its hypervisor: no monotonic clock moves, and then the wall
// clock is set right. Peers may have ended their promises meanwhile, so nothing
// that happens later may bring the deviation back to what it was before.
func TestAFreezeShowsInTheDeviationAndAdoptingTheTimeDoesNotHideIt(t *testing.T) {
	t.Parallel()
	m := newMachine()
	c := m.clock()
	m.run(c, time.Second, nil)
	if d := c.Deviation(); d != 0 {
		t.Fatalf("deviation %v although nothing happened", d)
	}
	m.wall += 10 * time.Minute
	if d := c.Deviation(); d != 10*time.Minute {
		t.Fatalf("deviation %v right after the freeze, nobody having read the wall clock", d)
	}
	m.run(c, 20*time.Millisecond, nil)
	c.Adopt(c.Step())
	m.run(c, time.Minute, nil)
	if d := c.Deviation(); d != 10*time.Minute || c.Wall() != m.wall.Milliseconds() {
		t.Fatalf("after adopting: deviation %v, wall %d, real %d", d, c.Wall(), m.wall.Milliseconds())
	}
}

func TestSlewingDoesNotMoveTheDeviation(t *testing.T) {
	t.Parallel()
	m := newMachine()
	c := m.clock()
	m.wall += 300 * time.Millisecond
	for range 20 {
		m.run(c, time.Minute, nil)
		if d := c.Deviation(); d != 300*time.Millisecond {
			t.Fatalf("deviation %v", d)
		}
	}
}

func TestAShiftedClockJumpsInItsRealTimeOnly(t *testing.T) {
	t.Parallel()
	var shift atomic.Int64
	c := NewShifted(func() time.Duration { return time.Duration(shift.Load()) })
	wall, real := c.Wall(), c.Real()
	shift.Store(int64(-10 * time.Minute))
	if jumped := real - c.Real(); jumped < 9*60_000 || jumped > 10*60_000 {
		t.Fatalf("the real clock went back by %d ms", jumped)
	}
	if c.Wall() < wall-1 {
		t.Fatalf("wall %d after %d", c.Wall(), wall)
	}
}

func BenchmarkDeviation(b *testing.B) {
	c := New()
	for b.Loop() {
		_ = c.Deviation()
	}
}

func BenchmarkWall(b *testing.B) {
	c := New()
	for b.Loop() {
		_ = c.Wall()
	}
}

func BenchmarkMonotonic(b *testing.B) {
	c := New()
	for b.Loop() {
		_ = c.Monotonic()
	}
}
