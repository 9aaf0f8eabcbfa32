package hlc

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// fakeClock is a wall clock that tests set. Safe for concurrent use.
type fakeClock struct{ wall atomic.Int64 }

func (c *fakeClock) Wall() int64              { return c.wall.Load() }
func (c *fakeClock) Monotonic() time.Duration { return time.Duration(c.wall.Load()) }

const (
	testNoon     = int64(1_780_000_000_000) // a wall clock in milliseconds
	testWindow   = 400 * time.Millisecond
	testMaxAhead = 2 * time.Second
)

func newTestHybrid(t testing.TB) (*Hybrid, *fakeClock) {
	t.Helper()
	clock := &fakeClock{}
	clock.wall.Store(testNoon)
	h := NewHybrid(clock, 0, testMaxAhead)
	extend(h)
	return h, clock
}

// extend does what the store does: it makes the next bound durable if due.
func extend(h *Hybrid) {
	if next, due := h.NextBound(testWindow); due {
		h.SetBound(next)
	}
}

func mustNow(t testing.TB, h *Hybrid) Timestamp {
	t.Helper()
	ts, err := h.Now()
	if err != nil {
		t.Fatalf("Now after %d: %v", h.Peek(), err)
	}
	return ts
}

func TestTimestampHoldsWallAndLogical(t *testing.T) {
	t.Parallel()
	ts := New(testNoon, 77)
	if ts.Wall() != testNoon || ts.Logical() != 77 {
		t.Fatalf("got wall %d logical %d", ts.Wall(), ts.Logical())
	}
	if overflowed := New(testNoon, 1<<LogicalBits-1) + 1; overflowed != New(testNoon+1, 0) {
		t.Fatalf("a full logical count does not carry into the milliseconds: %d", overflowed)
	}
}

func TestNothingIsIssuedBeforeTheFirstBound(t *testing.T) {
	t.Parallel()
	h := NewHybrid(&fakeClock{}, 5, testMaxAhead)
	if ts, err := h.Now(); !errors.Is(err, ErrBound) {
		t.Fatalf("issued %d (%v) although nothing is durable", ts, err)
	}
}

func TestTimestampZeroIsNeverIssued(t *testing.T) {
	t.Parallel()
	h := NewHybrid(&fakeClock{}, 0, testMaxAhead) // a wall clock at the epoch
	h.SetBound(10)
	if ts := mustNow(t, h); ts == 0 {
		t.Fatal("issued timestamp 0")
	}
}

func TestNowFollowsTheWallClock(t *testing.T) {
	t.Parallel()
	h, clock := newTestHybrid(t)
	for range 100 {
		clock.wall.Add(50)
		extend(h)
		if ts := mustNow(t, h); ts != New(clock.Wall(), 0) {
			t.Fatalf("at wall %d issued %d/%d", clock.Wall(), ts.Wall(), ts.Logical())
		}
	}
}

func TestAWallClockThatGoesBackOrStandsStillIsCountedOn(t *testing.T) {
	t.Parallel()
	h, clock := newTestHybrid(t)
	last := mustNow(t, h)
	for i := range 1000 {
		if i == 500 {
			clock.wall.Add(-10 * 60 * 1000)
		}
		ts := mustNow(t, h)
		if ts != last+1 {
			t.Fatalf("step %d: %d after %d", i, ts, last)
		}
		last = ts
	}
}

func TestTheClockCreepsUpToTheBoundAndThenRefuses(t *testing.T) {
	t.Parallel()
	clock := &fakeClock{}
	clock.wall.Store(testNoon)
	h := NewHybrid(clock, 100, testMaxAhead)
	h.SetBound(103) // far below the wall clock: the disk is slow
	for want := Timestamp(101); want <= 103; want++ {
		if ts := mustNow(t, h); ts != want {
			t.Fatalf("issued %d, want %d", ts, want)
		}
	}
	for range 3 {
		if ts, err := h.Now(); !errors.Is(err, ErrBound) {
			t.Fatalf("issued %d (%v) above the bound", ts, err)
		}
	}
	h.SetBound(90) // a bound never falls
	extend(h)
	if ts := mustNow(t, h); ts != New(testNoon, 0) {
		t.Fatalf("after the bound was extended issued %d", ts)
	}
}

func TestANewBoundIsDueWhenHalfTheWindowIsUsed(t *testing.T) {
	t.Parallel()
	h, clock := newTestHybrid(t)
	bound, due := h.NextBound(testWindow)
	if due || bound != New(testNoon+400, 0) {
		t.Fatalf("right after extending: bound %d, due %v", bound.Wall()-testNoon, due)
	}
	clock.wall.Add(200)
	if _, due := h.NextBound(testWindow); due {
		t.Fatal("due although exactly half of the window is left")
	}
	clock.wall.Add(1)
	if bound, due := h.NextBound(testWindow); !due || bound != New(testNoon+601, 0) {
		t.Fatalf("bound %d, due %v", bound.Wall()-testNoon, due)
	}
}

func TestARemoteTimestampTooFarAheadIsNotAdopted(t *testing.T) {
	t.Parallel()
	h, clock := newTestHybrid(t)
	h.SetBound(MaxTimestamp)
	before := h.Peek()
	far := New(clock.Wall()+testMaxAhead.Milliseconds()+1, 0)
	if err := h.Update(far); !errors.Is(err, ErrTooFarAhead) || h.Peek() != before {
		t.Fatalf("err %v, clock moved from %d to %d", err, before, h.Peek())
	}
	near := New(clock.Wall()+testMaxAhead.Milliseconds(), 9)
	if err := h.Update(near); err != nil || h.Peek() != near {
		t.Fatalf("err %v, clock at %d, want %d", err, h.Peek(), near)
	}
	if ts := mustNow(t, h); ts <= near {
		t.Fatalf("issued %d at or below the adopted %d", ts, near)
	}
	if err := h.Update(before); err != nil || h.Peek() <= near {
		t.Fatalf("an old remote timestamp moved the clock: %v, %d", err, h.Peek())
	}
}

func TestAPeerAheadByMoreThanAWindowIsAdoptedAfterTheNextBound(t *testing.T) {
	t.Parallel()
	h, clock := newTestHybrid(t)
	remote := New(clock.Wall()+testMaxAhead.Milliseconds()/2, 0)
	if err := h.Update(remote); !errors.Is(err, ErrBound) {
		t.Fatalf("adopted above the durable bound: %v", err)
	}
	extend(h)
	if err := h.Update(remote); err != nil {
		t.Fatalf("still refused after the bound was extended: %v", err)
	}
}

func TestARestartBeginsAboveAllThatWasIssued(t *testing.T) {
	t.Parallel()
	h, clock := newTestHybrid(t)
	var durable, last Timestamp
	for range 500 {
		clock.wall.Add(7)
		if next, due := h.NextBound(testWindow); due {
			durable = next
			h.SetBound(next)
		}
		last = mustNow(t, h)
	}
	clock.wall.Add(-60_000) // the wall clock goes back across the restart
	again := NewHybrid(clock, durable, testMaxAhead)
	extend(again)
	if ts := mustNow(t, again); ts <= last {
		t.Fatalf("issued %d after a restart, %d before", ts, last)
	}
}

// A process that crashes again and again begins each time at its bound. Its
// clock, which moves those of all others, must not run away from the wall clock.
func TestRestartsDoNotDriveTheClockAhead(t *testing.T) {
	t.Parallel()
	clock := &fakeClock{}
	clock.wall.Store(testNoon)
	durable := New(testNoon, 0)
	for range 50 {
		h := NewHybrid(clock, max(durable, New(clock.Wall(), 0)), testMaxAhead)
		bound, due := h.NextBound(testWindow)
		if !due {
			t.Fatal("no bound is due at the start")
		}
		durable = bound
		h.SetBound(bound)
		if lead := mustNow(t, h).Wall() - clock.Wall(); lead > testWindow.Milliseconds() {
			t.Fatalf("the clock is %d ms ahead", lead)
		}
		clock.wall.Add(testWindow.Milliseconds() / aheadPart)
	}
}

func TestAWallClockBeforeTheEpochDoesNotWrapToTheEndOfTime(t *testing.T) {
	t.Parallel()
	clock := &fakeClock{}
	clock.wall.Store(-5000)
	h := NewHybrid(clock, 0, testMaxAhead)
	if next, _ := h.NextBound(testWindow); next.Wall() != testWindow.Milliseconds() {
		t.Fatalf("next bound %d ms", next.Wall())
	}
}

// twin is the slow, obviously right clock: one mutex, one rule at a time.
type twin struct {
	clock    Clock
	maxAhead time.Duration
	mu       struct {
		sync.Mutex
		last, bound Timestamp
	}
}

func (w *twin) now() (Timestamp, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wall := New(w.clock.Wall(), 0)
	switch {
	case wall > w.mu.last && wall <= w.mu.bound:
		w.mu.last = wall
	case w.mu.last < w.mu.bound:
		w.mu.last++
	default:
		return 0, ErrBound
	}
	return w.mu.last, nil
}

func (w *twin) update(remote Timestamp) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case remote <= w.mu.last:
		return nil
	case remote.Wall()-w.clock.Wall() > w.maxAhead.Milliseconds():
		return ErrTooFarAhead
	case remote > w.mu.bound:
		return ErrBound
	}
	w.mu.last = remote
	return nil
}

func (w *twin) setBound(b Timestamp) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.bound = max(w.mu.bound, b)
}

func TestTheClockAgreesWithItsObviousTwin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		clock := &fakeClock{}
		clock.wall.Store(testNoon)
		h := NewHybrid(clock, 3, testMaxAhead)
		w := &twin{clock: clock, maxAhead: testMaxAhead}
		w.mu.last, w.mu.bound = 3, 3
		var issued Timestamp
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				a, errA := h.Now()
				b, errB := w.now()
				if a != b || !errors.Is(errA, errB) {
					t.Fatalf("Now: %d %v, twin %d %v", a, errA, b, errB)
				}
				if errA == nil && a <= issued {
					t.Fatalf("issued %d after %d", a, issued)
				}
				issued = max(issued, a)
			case 2:
				clock.wall.Add(int64(rapid.IntRange(-5000, 5000).Draw(t, "step")))
			case 3:
				ahead := int64(rapid.IntRange(-3000, 3000).Draw(t, "ahead"))
				r := New(clock.Wall()+ahead, uint32(rapid.IntRange(0, 3).Draw(t, "logical")))
				if errA, errB := h.Update(r), w.update(r); !errors.Is(errA, errB) {
					t.Fatalf("Update: %v, twin %v", errA, errB)
				}
			case 4:
				if next, due := h.NextBound(testWindow); due {
					h.SetBound(next)
					w.setBound(next)
				}
			}
		}
	})
}

func TestConcurrentCallersNeverShareATimestamp(t *testing.T) {
	t.Parallel()
	const callers, each = 8, 4000
	h, clock := newTestHybrid(t)
	h.SetBound(MaxTimestamp)
	got := make([][]Timestamp, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for n := range each {
				switch {
				case n%97 == 0:
					clock.wall.Add(int64(n%3) - 1) // forward, back or not at all
				case n%31 == 0:
					_ = h.Update(h.Peek() + 5)
				}
				before := h.Peek()
				ts, err := h.Now()
				if err != nil || ts <= before {
					t.Errorf("caller %d: %d (%v), and before it was seen %d", i, ts, err, before)
					return
				}
				got[i] = append(got[i], ts)
			}
		})
	}
	wg.Wait()
	seen := make(map[Timestamp]bool, callers*each)
	for i, list := range got {
		for n, ts := range list {
			if seen[ts] || n > 0 && ts <= list[n-1] {
				t.Fatalf("caller %d got %d twice or out of order", i, ts)
			}
			seen[ts] = true
		}
	}
}

func TestConcurrentCallersNeverPassTheBound(t *testing.T) {
	t.Parallel()
	const callers, room = 8, 1000
	clock := &fakeClock{}
	h := NewHybrid(clock, 0, testMaxAhead)
	h.SetBound(room)
	var issued atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for {
				ts, err := h.Now()
				if err != nil {
					return
				}
				if ts > room {
					t.Errorf("issued %d above the bound %d", ts, room)
				}
				issued.Add(1)
			}
		})
	}
	wg.Wait()
	if issued.Load() != room {
		t.Fatalf("issued %d timestamps below a bound of %d", issued.Load(), room)
	}
}

func TestNowDoesNotAllocate(t *testing.T) {
	h, _ := newTestHybrid(t)
	h.SetBound(MaxTimestamp)
	if n := testing.AllocsPerRun(100, func() { _, _ = h.Now() }); n != 0 {
		t.Fatalf("%v allocations per Now", n)
	}
}

func BenchmarkNow(b *testing.B) {
	h, _ := newTestHybrid(b)
	h.SetBound(MaxTimestamp)
	b.Run("alone", func(b *testing.B) {
		for b.Loop() {
			_, _ = h.Now()
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				_, _ = h.Now()
			}
		})
	})
}
