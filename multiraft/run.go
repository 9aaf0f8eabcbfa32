package multiraft

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Run starts workers, sync waiters, the ticker and the background pool, and
// blocks until ctx ends and all have stopped. Then the syncs in flight are
// waited for and what waits in the inboxes is failed with ErrStopped, so that
// the store may be closed afterwards. The error is nil unless the store failed.
func (h *Host) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range h.shards {
		group.Go(func() error { return h.work(ctx, i) })
		group.Go(func() error { return h.waitForSyncs(ctx, i) })
	}
	group.Go(func() error { return h.tickEvery(ctx, h.cfg.TickInterval) })
	for range backgroundWorkers {
		group.Go(func() error { return h.jobs.run(ctx) })
	}
	err := group.Wait()
	h.drain()
	return err
}

// work is a shard's worker.
func (h *Host) work(ctx context.Context, shard int) error {
	notify := h.shards[shard].inbox.notify
	for ctx.Err() == nil {
		if err := h.failure.Load(); err != nil {
			return *err
		}
		if h.Poll(shard) {
			continue
		}
		select {
		case <-notify:
		case <-ctx.Done():
		}
	}
	return nil
}

// waitForSyncs is a shard's waiter.
func (h *Host) waitForSyncs(ctx context.Context, shard int) error {
	notify := h.shards[shard].inbox.syncNotify
	for ctx.Err() == nil {
		if h.CompleteSync(shard) {
			continue
		}
		select {
		case <-notify:
		case <-ctx.Done():
		}
	}
	return nil
}

// tickEvery is the one place of this package that knows real time. While every
// group is at rest there is no tick either: logical time stands still.
func (h *Host) tickEvery(ctx context.Context, interval time.Duration) error {
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		if h.resting() {
			select {
			case <-h.stirred:
			case <-ctx.Done():
				return nil
			}
		} else {
			h.Tick()
		}
		timer.Reset(interval)
	}
}

// resting says whether no shard needs ticks. A shard that needs one again says so
// after it has set its mark, so none is missed.
func (h *Host) resting() bool {
	for _, s := range h.shards {
		if s.needsTicks.Load() {
			return false
		}
	}
	return true
}

// drain ends what the stopped goroutines left: jobs are run (a snapshot that
// was promised is installed or discarded), syncs completed, tasks run (their
// proposals fail), reads failed.
func (h *Host) drain() {
	h.groupsMu.Lock()
	h.stopped.Store(true)
	h.groupsMu.Unlock()
	for i, s := range h.shards {
		h.Poll(i) // may start a last install or sync
		h.jobs.runAll()
		for h.CompleteSync(i) {
		}
		h.Poll(i)
		for h.CompleteSync(i) {
		}
		s.stop()
	}
}

// A jobQueue hands jobs to the background pool. It is bounded by maxInstalls,
// which is checked before a snapshot is stepped.
type jobQueue struct {
	notify chan struct{}
	mu     sync.Mutex
	jobs   []func()
}

func (q *jobQueue) push(job func()) {
	q.mu.Lock()
	q.jobs = append(q.jobs, job)
	q.mu.Unlock()
	wake(q.notify)
}

func (q *jobQueue) pop() func() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.jobs) == 0 {
		return nil
	}
	job := q.jobs[0]
	q.jobs = q.jobs[1:]
	return job
}

func (q *jobQueue) runAll() {
	for job := q.pop(); job != nil; job = q.pop() {
		job()
	}
}

func (q *jobQueue) run(ctx context.Context) error {
	for {
		q.runAll()
		select {
		case <-q.notify:
		case <-ctx.Done():
			return nil
		}
	}
}
