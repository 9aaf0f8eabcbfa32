package server

import (
	"errors"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

// A clock that is ahead of the wall clock and idle needs no higher bound. The
// record is written all the same, so that a disk that hangs is noticed.
func TestTheRecordIsWrittenNowAndThenOnANodeThatDoesNothing(t *testing.T) {
	t.Parallel()
	clock := hlc.NewHybrid(stillClock{wall: 1000}, hlc.New(1000+600_000, 0), maxAhead)
	var written []hlc.Timestamp
	b := newBoundKeeper(clock, func(ts hlc.Timestamp) error {
		written = append(written, ts)
		return nil
	})
	for i := range 20 {
		if i > 0 {
			b.synced = b.synced.Add(-boundEvery) // time passes, the clock stands
		}
		if err := b.step(); err != nil {
			t.Fatal(err)
		}
	}
	if len(written) < 3 || len(written) > 4 {
		t.Fatalf("written %d times in %v", len(written), 20*boundEvery)
	}
	for _, ts := range written {
		if ts != written[0] || ts != clock.Bound() {
			t.Fatalf("an idle clock's bound went from %d to %d, the clock has %d",
				written[0], ts, clock.Bound())
		}
	}
	if probeEvery+boundEvery+diskStall > 4*time.Second {
		t.Fatal("a disk that hangs is noticed too late on an idle node")
	}
}

// R9g and R9b: the next life begins where this one ended, above all that it has
// promised to pass; nothing is issued after that.
func TestACleanStopBeginsTheNextLifeWhereThisOneEnded(t *testing.T) {
	t.Parallel()
	for name, promised := range map[string]hlc.Timestamp{
		"no promise":            0,
		"a promise in force":    hlc.New(1000+250, 0),
		"a promise long passed": hlc.New(500, 0),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clock := hlc.NewHybrid(stillClock{wall: 1000}, 1, maxAhead)
			var durable hlc.Timestamp
			b := newBoundKeeper(clock, func(ts hlc.Timestamp) error { durable = ts; return nil })
			if err := b.step(); err != nil {
				t.Fatal(err)
			}
			last, err := clock.Now()
			if err != nil {
				t.Fatal(err)
			}
			err = b.finish(func() hlc.Timestamp {
				if _, err := clock.Now(); !errors.Is(err, hlc.ErrBound) {
					t.Error("the promises are looked at before the clock is sealed")
				}
				return promised
			}, func(ts hlc.Timestamp) error { durable = ts; return nil })
			if err != nil {
				t.Fatal(err)
			}
			if want := max(last, promised); durable != want {
				t.Fatalf("the next life begins at %d, want %d", durable, want)
			}
			if err := b.step(); err == nil && durable < last {
				t.Fatalf("bound %d below %d", durable, last)
			}
			if ts, err := clock.Now(); !errors.Is(err, hlc.ErrBound) {
				t.Fatalf("issued %d after the end", ts)
			}
		})
	}
}

func TestACleanStopThatCannotBeRecordedLeavesTheBound(t *testing.T) {
	t.Parallel()
	clock := hlc.NewHybrid(stillClock{wall: 1000}, 1, maxAhead)
	broken := errors.New("disk gone")
	b := newBoundKeeper(clock, func(hlc.Timestamp) error { return nil })
	err := b.finish(func() hlc.Timestamp { return 0 }, func(hlc.Timestamp) error { return broken })
	if !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
}
