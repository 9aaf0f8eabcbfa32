package server

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

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
func (b *boundKeeper) step() error {
	next, due := b.clock.NextBound(boundWindow)
	if !due || uint64(next) <= b.bound.Load() {
		return nil
	}
	if err := b.extend(next); err != nil {
		return fmt.Errorf("extend the clock's durable bound: %w", err)
	}
	b.bound.Store(uint64(next))
	b.clock.SetBound(next)
	return nil
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
