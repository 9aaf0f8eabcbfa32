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
	wall   func() int64
	extend func(hlc.Timestamp) error // makes a bound durable: Identity.ExtendBound

	bound atomic.Uint64 // durable
	asked atomic.Uint64 // highest stamp heard above it
	kick  chan struct{}
}

func newBoundKeeper(
	clock *hlc.Hybrid, wall func() int64, extend func(hlc.Timestamp) error,
) *boundKeeper {
	return &boundKeeper{
		clock: clock, wall: wall, extend: extend, kick: make(chan struct{}, wakeSlots),
	}
}

// startOfClock returns where a clock begins that may have issued timestamps up
// to the recorded bound.
func startOfClock(wall int64, recorded hlc.Timestamp) hlc.Timestamp {
	return max(hlc.New(wall, 0), recorded, 1)
}

// heard notes a remote stamp before it is adopted. A stamp above the bound
// cannot be adopted and its frame is lost; the bound is raised at once, so that
// the next one is heard. Any goroutine.
func (b *boundKeeper) heard(stamp hlc.Timestamp) {
	if uint64(stamp) <= b.bound.Load() {
		return
	}
	for old := b.asked.Load(); old < uint64(stamp); old = b.asked.Load() {
		if b.asked.CompareAndSwap(old, uint64(stamp)) {
			break
		}
	}
	wake(b.kick)
}

// step extends the bound if it is due. It blocks for two fsyncs.
func (b *boundKeeper) step() error {
	next, due := b.clock.NextBound(boundWindow)
	asked := hlc.Timestamp(b.asked.Load())
	// A stamp too far ahead is refused by the clock anyway: it must not pull
	// the bound along.
	tolerable := asked.Wall() <= b.wall()+maxAhead.Milliseconds()
	if uint64(asked) > b.bound.Load() && tolerable {
		next, due = max(next, asked+hlc.New(boundWindow.Milliseconds()/2, 0)), true
	}
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
