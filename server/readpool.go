package server

import (
	"context"
	"sync"
)

// Bounds of the read pool.
const (
	// maxQueuedReads is above what all streams may have in flight in ordinary
	// use. Beyond, whoever submits runs the job itself: that slows the source of
	// the load, and no read is lost.
	maxQueuedReads = 1 << 16
	// maxReadBatch is how many jobs a worker takes at once at most.
	maxReadBatch = 64
)

// readPool runs read jobs on a fixed number of goroutines. A goroutine per read
// would cost more than most reads.
type readPool struct {
	workers int

	mu      sync.Mutex
	ready   sync.Cond // something is queued, or the pool ends
	queue   []func()
	head    int // queue[:head] is taken
	stopped bool
}

func newReadPool(workers int) *readPool {
	p := &readPool{workers: workers}
	p.ready.L = &p.mu
	return p
}

// execute queues a job; any goroutine. After the pool has ended it runs the job
// at once, so that no request is left without its answer.
func (p *readPool) execute(job func()) {
	p.mu.Lock()
	if p.stopped || len(p.queue)-p.head >= maxQueuedReads {
		p.mu.Unlock()
		job()
		return
	}
	p.queue = append(p.queue, job)
	p.mu.Unlock()
	p.ready.Signal()
}

// run runs the workers until ctx ends and the queue is empty.
func (p *readPool) run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range p.workers {
		wg.Go(p.work)
	}
	<-ctx.Done()
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	p.ready.Broadcast()
	wg.Wait()
	return nil
}

func (p *readPool) work() {
	batch := make([]func(), 0, maxReadBatch)
	for {
		batch = p.take(batch[:0])
		if len(batch) == 0 {
			return
		}
		for i, job := range batch {
			job()
			batch[i] = nil
		}
	}
}

// take waits for jobs and takes a fair share of them; none: the pool has ended.
func (p *readPool) take(batch []func()) []func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.head == len(p.queue) {
		if p.stopped {
			return nil
		}
		p.ready.Wait()
	}
	// A share, not all: the jobs behind a slow one must find another worker.
	n := min(1+(len(p.queue)-p.head)/p.workers, maxReadBatch, len(p.queue)-p.head)
	batch = append(batch, p.queue[p.head:p.head+n]...)
	clear(p.queue[p.head : p.head+n])
	if p.head += n; p.head == len(p.queue) {
		p.queue, p.head = p.queue[:0], 0
	}
	return batch
}
