package client

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/client/core"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Client is a connection to a cluster. It is safe for concurrent use.
type Client struct {
	// immutable
	options options
	started time.Time
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	waiters sync.Pool

	stamp   atomic.Uint64 // highest received; a copy of the core's, for the writers
	running sync.WaitGroup

	// mu guards the core and what its effects touch. It is held for steps
	// only, never across a send or a wait. Order: mu, then a peer's own.
	mu struct {
		sync.Mutex
		core    *core.Core
		peers   map[ids.NodeID]*peer
		refused []refusal // attempts that could not even be queued
		timer   *time.Timer
		timerAt time.Duration // when timer fires; 0: not armed
		closed  bool
	}

	directory directory
}

// refusal is an attempt that never left.
type refusal struct {
	node ids.NodeID
	id   uint64
}

// Open connects to a cluster through any of its nodes ("host:port"). It waits
// until one answers, until ctx ends, or for DefaultOpenTimeout if ctx has no
// deadline. The error names every endpoint that was tried, and why it failed;
// it is an ErrUnavailable. ctx does not bound the client's life: Close does.
func Open(ctx context.Context, endpoints []string, opts ...Option) (*Client, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	endpoints, err := checkEndpoints(endpoints)
	if err != nil {
		return nil, err
	}
	if _, bounded := ctx.Deadline(); !bounded && o.openTimeout == 0 {
		o.openTimeout = DefaultOpenTimeout
	}
	c := newClient(o, endpoints)
	if err := c.awaitEndpoint(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// newClient makes a client that knows its endpoints and nothing else.
func newClient(o options, endpoints []string) *Client {
	c := &Client{options: o, started: time.Now()}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.waiters.New = func() any {
		w := &waiter{done: make(chan *kv.Response, oneResponse)}
		w.call.Done = func(r *kv.Response) { w.done <- r }
		return w
	}
	c.mu.peers = make(map[ids.NodeID]*peer)
	c.mu.core = core.New(core.Config{
		Client: randomID(), Random: mathrand.Uint64, AttemptTimeout: o.attemptTimeout,
		PingAfter: o.pingAfter,
	}, (*effects)(c))
	c.mu.timer = time.AfterFunc(time.Hour, c.tick)
	c.mu.timer.Stop()
	c.directory.init(endpoints)
	return c
}

// randomID draws the identity under which this client's writes are known for
// all time: it must not repeat, so it comes from the system's randomness.
func randomID() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:]) //nolint:errcheck // never fails
		if id := binary.LittleEndian.Uint64(b[:]); id != 0 {
			return id
		}
	}
}

// Close ends the client: calls in flight end at once as their deadline would
// end them, and all connections and goroutines are gone when it returns. It is
// safe to call twice.
func (c *Client) Close() error {
	c.mu.Lock()
	c.mu.closed = true
	c.mu.timer.Stop()
	c.mu.Unlock()
	c.cancel()
	c.running.Wait()
	return c.directory.close()
}

// now is the time of the core: monotonic, since Open, never 0.
func (c *Client) now() time.Duration { return time.Since(c.started) + 1 }

// step runs one step of the core and what follows from it.
func (c *Client) step(f func(k *core.Core, now time.Duration)) {
	now := c.now()
	c.mu.Lock()
	f(c.mu.core, now)
	c.settleLocked(now)
	c.mu.Unlock()
}

// settleLocked hands back what could not be queued and arms the timer. It
// ends: the core sends a refused request only so often before it pauses.
// REQUIRES: mu is held.
func (c *Client) settleLocked(now time.Duration) {
	for len(c.mu.refused) > 0 {
		r := c.mu.refused[0]
		c.mu.refused = c.mu.refused[1:]
		c.mu.core.NotSent(now, r.node, r.id)
	}
	c.mu.refused = nil
	next := c.mu.core.Next()
	if next == 0 || c.mu.closed || (c.mu.timerAt != 0 && c.mu.timerAt <= next) {
		return
	}
	c.mu.timerAt = next
	c.mu.timer.Reset(max(next-now, 0))
}

// tick is the timer's function.
func (c *Client) tick() {
	c.step(func(k *core.Core, now time.Duration) {
		c.mu.timerAt = 0
		k.Tick(now)
	})
}

// waiter is a caller in wait. Pooled: the core forgets a call before Done.
type waiter struct {
	call core.Call
	done chan *kv.Response
}

// oneResponse lets Done, which runs under the mutex, leave without waiting.
const oneResponse = 1

// do runs one call and waits for its verdict. The cause is the error of ctx,
// or ErrClosed, if that ended the call.
func (c *Client) do(ctx context.Context, request *kv.Request) (r *kv.Response, cause error) {
	w := c.waiters.Get().(*waiter)
	defer c.waiters.Put(w)
	w.call.Request = *request
	if cause = c.start(ctx, &w.call); cause != nil {
		return &kv.Response{Code: kv.CodeUnavailable, Message: "nothing was sent"}, cause
	}
	select {
	case r = <-w.done:
		return r, nil
	case <-ctx.Done():
		cause = ctx.Err()
	case <-c.ctx.Done():
		cause = ErrClosed
	}
	c.step(func(k *core.Core, now time.Duration) { k.Cancel(now, &w.call) })
	r = <-w.done
	if r.Code != kv.CodeUnavailable && r.Code != kv.CodeUnknownOutcome {
		cause = nil // the verdict came first
	}
	return r, cause
}

// start begins calls, all in one step, unless it is too late already.
func (c *Client) start(ctx context.Context, calls ...*core.Call) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	closed := false
	c.step(func(k *core.Core, now time.Duration) {
		if closed = c.mu.closed; closed {
			return
		}
		for _, call := range calls {
			k.Start(now, call)
		}
	})
	if closed {
		return ErrClosed
	}
	return nil
}

func causeText(cause error) string {
	switch {
	case errors.Is(cause, context.DeadlineExceeded):
		return "the deadline passed"
	case errors.Is(cause, context.Canceled):
		return "the call was cancelled"
	default:
		return cause.Error()
	}
}

// effects is the client as the core sees it. Its methods run under mu.
type effects Client

// Send queues a request for a node.
func (e *effects) Send(n ids.NodeID, r *kv.Request) {
	c := (*Client)(e)
	if p := c.peerLocked(n); p == nil || !p.enqueue(r) {
		c.mu.refused = append(c.mu.refused, refusal{node: n, id: r.ID})
	}
}

// Lookup asks in the background.
func (e *effects) Lookup(token uint64, r *adminpb.LookupRequest) {
	c := (*Client)(e)
	if c.mu.closed {
		return // nobody waits: callers cancel their calls when the client ends
	}
	c.running.Go(func() {
		reply, err := c.lookup(r)
		c.step(func(k *core.Core, now time.Duration) { k.LookupDone(now, token, reply, err) })
	})
}

// Reset breaks a stream that has been silent for long.
func (e *effects) Reset(n ids.NodeID) {
	if p := (*Client)(e).mu.peers[n]; p != nil {
		p.reset()
	}
}

// received takes a frame from a node.
func (c *Client) received(from ids.NodeID, f *kv.Frame) {
	c.step(func(k *core.Core, now time.Duration) {
		c.noteStampLocked(now, f.Stamp)
		k.Heard(now, from)
		if f.Kind == kv.FrameLeaving {
			k.Leaving(now, from)
		}
		for i := range f.Responses {
			k.Response(now, from, &f.Responses[i])
		}
	})
}

// noteStampLocked takes a node's stamp. REQUIRES: mu is held.
func (c *Client) noteStampLocked(now time.Duration, ts hlc.Timestamp) {
	c.mu.core.Stamp(now, ts)
	c.stamp.Store(uint64(c.mu.core.HighestStamp()))
}

// peerLocked returns the peer of a node, and starts its writer when it is first
// used; nil if the client is closed. REQUIRES: mu is held.
func (c *Client) peerLocked(n ids.NodeID) *peer {
	if p := c.mu.peers[n]; p != nil || c.mu.closed {
		return p
	}
	p := newPeer(c, n)
	c.mu.peers[n] = p
	c.running.Go(p.run)
	return p
}

var (
	_ core.Effects  = (*effects)(nil)
	_ core.Resetter = (*effects)(nil)
)
