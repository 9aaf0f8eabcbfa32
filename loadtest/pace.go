package loadtest

import (
	"context"
	"math"
	"sync/atomic"
	"time"
)

// pacer says when operations are meant to start. All times are since the
// start of the run. It is safe for concurrent use.
type pacer struct {
	start    time.Time
	interval float64       // nanoseconds between intended starts; 0: closed loop
	warmup   time.Duration // what is meant to start before is not measured
	end      time.Duration // nothing starts from here on; 0: no end
	limit    int64         // of measured operations; 0: no limit

	tickets  atomic.Int64 // open loop: handed out
	started  atomic.Int64 // open loop: started, warm-up included
	measured atomic.Int64 // closed loop with a limit
}

func (p *pacer) now() time.Duration { return time.Since(p.start) }

func (p *pacer) over(at time.Duration) bool { return p.end > 0 && at >= p.end }

// next waits for the start of the caller's next operation and returns its
// intended start; ok is false when the run is over.
func (p *pacer) next(ctx context.Context) (intended time.Duration, ok bool) {
	if ctx.Err() != nil {
		return 0, false
	}
	if p.interval == 0 {
		now := p.now()
		if p.over(now) {
			return 0, false
		}
		if p.limit > 0 && now >= p.warmup && p.measured.Add(1) > p.limit {
			return 0, false
		}
		return now, true
	}
	ticket := p.tickets.Add(1) - 1
	intended = p.intended(ticket)
	if p.over(intended) || (p.limit > 0 && ticket >= p.firstMeasured()+p.limit) {
		return 0, false
	}
	if !p.waitUntil(ctx, intended) || p.over(p.now()) {
		return 0, false // due, but no client came free in time: see neverStarted
	}
	p.started.Add(1)
	return intended, true
}

// intended is when an operation of the open loop is meant to start. The first
// waits for an interval too, so that a window of n intervals holds n starts
// less one, and none at its very end.
func (p *pacer) intended(ticket int64) time.Duration {
	return time.Duration(math.Round(float64(ticket+1) * p.interval))
}

// firstMeasured is the first ticket after the warm-up.
func (p *pacer) firstMeasured() int64 {
	n := int64(float64(p.warmup) / p.interval)
	for n > 0 && p.intended(n-1) >= p.warmup {
		n--
	}
	for p.intended(n) < p.warmup {
		n++
	}
	return n
}

// neverStarted is how many operations of the open loop were due before the run
// ended, at the given time, and did not start.
func (p *pacer) neverStarted(ended time.Duration) int64 {
	if p.interval == 0 {
		return 0
	}
	if p.end > 0 {
		ended = min(ended, p.end)
	}
	due := int64(float64(ended) / p.interval)
	for due > 0 && p.intended(due-1) >= ended {
		due--
	}
	if p.limit > 0 {
		due = min(due, p.firstMeasured()+p.limit)
	}
	return max(due-p.started.Load(), 0)
}

func (p *pacer) waitUntil(ctx context.Context, at time.Duration) bool {
	wait := at - p.now()
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
