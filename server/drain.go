package server

import (
	"context"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/ranges"
)

// How a node stops without anyone noticing.
//
//  1. It says that it is draining: health turns, and placement gives it no
//     leaders any more. It serves on.
//  2. It hands every leader over, some at a time (ranges.Handover). A request
//     that comes to a range on its way is told where it goes.
//  3. It stays for drainGrace: clients that still come are told who leads now.
//  4. It tells the clients to go. They send nothing more, get the answers to
//     what they have sent, and close their streams. So no request is cut off.
//
//  5. It says goodbye to the connections and waits for flushTime: what was
//     answered may still be in their buffers.
//
// Each step is bounded: a node that nobody can relieve stops all the same.

const (
	// drainEvery is how often a drain looks which transfers have ended.
	drainEvery = 2 * time.Millisecond
	// drainPatience ends a drain in which no range was handed over for so long:
	// leaders that nobody can take over are not waited for.
	drainPatience = 2 * time.Second
	// drainGrace is how long a node without leaders still redirects.
	drainGrace = 100 * time.Millisecond
	// leavePatience bounds the wait for clients to go.
	leavePatience = 500 * time.Millisecond
	// flushTime is what the connections get to write what they have buffered.
	flushTime = 50 * time.Millisecond
)

// drain is called once, when the node is to stop, and returns when it may.
func (n *node) drain(ctx context.Context) {
	n.draining.Store(true)
	wake(n.reporter.wake)
	n.health.Shutdown()
	began := time.Now()
	handing, cancel := context.WithTimeout(ctx, n.cfg.DrainTimeout)
	defer cancel()
	_, led := n.table.Counts()
	left := 0
	if len(n.registry.list()) > 1 { // else there is nobody to hand over to
		left = handOver(handing, n.table.NewHandover())
	}
	if left > 0 {
		n.cfg.Logger.Warn("stopping while still leading", "count", left)
	}
	handed := time.Since(began)
	n.kv.leave(ctx)
	n.flush(ctx)
	n.cfg.Logger.Info("drained", "leaders", led, "handed", handed, "took", time.Since(began))
}

// handOver steps until nothing has been left for drainGrace, nothing moves any
// more, or ctx ends. It returns how many ranges are still led.
func handOver(ctx context.Context, h *ranges.Handover) (left int) {
	began := time.Now()
	least, progress, empty := -1, began, time.Time{}
	for ctx.Err() == nil {
		now := time.Now()
		left = h.Step(now.Sub(began))
		switch {
		case left > 0:
			empty = time.Time{}
		case empty.IsZero():
			empty = now
		case now.Sub(empty) >= drainGrace:
			return 0
		}
		if least < 0 || left < least {
			least, progress = left, now
		}
		if now.Sub(progress) >= drainPatience {
			break
		}
		pause(ctx, drainEvery)
	}
	return left
}

// leave tells all clients to go, and waits until they have gone.
func (k *kvService) leave(ctx context.Context) {
	close(k.leaving)
	ctx, cancel := context.WithTimeout(ctx, leavePatience)
	defer cancel()
	for ctx.Err() == nil && k.metrics.streams.Load() > 0 {
		pause(ctx, drainEvery)
	}
}

// flush closes every connection without streams once its buffers are written,
// and the others, which other nodes have, after flushTime.
func (n *node) flush(ctx context.Context) {
	var closing sync.WaitGroup
	closing.Go(n.grpc.GracefulStop) // ends with Stop at the latest
	pause(ctx, flushTime)
	n.grpc.Stop()
	closing.Wait()
}
