package server

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

// probeEvery is the longest time between two writes of the record. It is a little
// more than the pace at which a clock that keeps up with the wall clock needs them.
const probeEvery = boundWindow/2 + boundEvery

// wakeSlots is the size of channels that only say "look": one mark is enough.
const wakeSlots = 1

// wake leaves a mark; a mark already there is enough.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// boundKeeper keeps the clock's durable bound ahead of the clock. Everything
// that the clock issues or adopts, so every stamp that leaves this node and
// every version that it writes, lies at or below a bound that is on disk: that
// is what lets a restart begin above all of it.
type boundKeeper struct {
	clock  *hlc.Hybrid
	extend func(hlc.Timestamp) error // makes a bound durable: Identity.ExtendBound
	bound  atomic.Uint64             // durable
	kick   chan struct{}
	synced time.Time // when the record was written last; of the one caller of step
}

func newBoundKeeper(clock *hlc.Hybrid, extend func(hlc.Timestamp) error) *boundKeeper {
	return &boundKeeper{clock: clock, extend: extend, kick: make(chan struct{}, wakeSlots)}
}

// startOfClock returns where a clock begins that may have issued timestamps up
// to the recorded bound.
func startOfClock(wall int64, recorded hlc.Timestamp) hlc.Timestamp {
	return max(hlc.New(wall, 0), recorded, 1)
}

// heard is told of a remote stamp after the clock was. A stamp above the bound
// was not adopted, and its frame is lost; the clock remembers it if it is
// tolerable, and the bound is raised at once so that the next one is heard. Any
// goroutine.
func (b *boundKeeper) heard(stamp hlc.Timestamp) {
	if uint64(stamp) > b.bound.Load() {
		wake(b.kick)
	}
}

// step extends the bound if it is due. It blocks for two fsyncs.
//
// It writes the record now and then even if it is not due, because the clock is
// ahead of the wall clock and idle: a disk that hangs shows itself only to
// somebody who waits for it, and on a node without writes that is this goroutine.
func (b *boundKeeper) step() error {
	next, due := b.clock.NextBound(boundWindow)
	if due = due && uint64(next) > b.bound.Load(); !due {
		if time.Since(b.synced) < probeEvery {
			return nil
		}
		next = hlc.Timestamp(b.bound.Load())
	}
	if err := b.extend(next); err != nil {
		return fmt.Errorf("extend the clock's durable bound: %w", err)
	}
	b.synced = time.Now()
	if due {
		b.bound.Store(uint64(next))
		b.clock.SetBound(next)
	}
	return nil
}

// finish is R9g for a clean stop: it records where the clock ended, so that the
// next life begins there and not a window ahead, which would move the clocks of
// all others along. It blocks for two fsyncs; after it the clock is over.
//
// Safe whatever still runs: the clock is sealed first, so nothing is issued,
// adopted or stamped above h from then on, by anybody. What this life has
// promised beyond h are the ceilings of promises in force (R9b): peers may still
// serve reads up to them, and the next life must begin above. They are read after
// the seal; one that is granted later is at or below the sealed bound, which is h.
func (b *boundKeeper) finish(
	ceiling func() hlc.Timestamp, end func(hlc.Timestamp) error,
) error {
	h := b.clock.Seal()
	if err := end(max(h, ceiling())); err != nil {
		return fmt.Errorf("record where the clock ended: %w", err)
	}
	return nil
}

// endBound ends the clock of a node that has stopped as asked.
func (n *node) endBound() error {
	return n.bound.finish(n.support.Ceiling, n.store.Identity().EndBound)
}

// run extends until ctx ends. A failure ends the node: without a bound its
// clock stops, and a disk that refuses an fsync cannot be trusted again.
func (b *boundKeeper) run(ctx context.Context) error {
	ticker := time.NewTicker(boundEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-b.kick:
		}
		if err := b.step(); err != nil {
			return err
		}
	}
}
