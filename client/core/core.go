package core

import (
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Defaults and bounds.
const (
	DefaultBackoffMin     = 5 * time.Millisecond
	DefaultBackoffMax     = 500 * time.Millisecond
	DefaultAttemptTimeout = 2 * time.Second

	// StampMaxAge is how old a server's stamp may be to serve as the floor of
	// a new write. An old floor costs the server a read of old versions and,
	// below the garbage collection threshold, the outcome.
	StampMaxAge = 30 * time.Second

	maxLookups      = 8               // in flight; further legs queue
	lookupRanges    = 64              // asked for per lookup: neighbours are wanted next
	collectWindow   = 64              // timestamp requests of one call in flight
	maxAttempts     = 8               // unanswered attempts remembered per leg
	maxCachedRanges = 1 << 16         // in the range cache
	shunTime        = 1 * time.Second // a node that was lost is tried last for so long
)

// verbPing asks a node for nothing: an unknown verb fails its request and not
// the stream, and the answer's frame carries the stamp that a write needs.
const verbPing kv.Verb = 0

// Config configures a core.
type Config struct {
	Client     uint64        // identity, random, not 0
	Random     func() uint64 // jitter
	BackoffMin time.Duration // first pause between rounds of attempts; default 5 ms
	BackoffMax time.Duration // longest pause; default 500 ms
	// AttemptTimeout re-sends a request (same identity) elsewhere when a node
	// says nothing for so long; default 2 s.
	AttemptTimeout time.Duration
}

// Effects is where the core puts what is to be done. Implementations are
// called from within the core's methods and must not call back into it.
type Effects interface {
	// Send sends a request on the stream to a node (0: any known endpoint).
	// The request is valid only during the call and must be copied; the byte
	// slices in it stay unchanged until its call is done and may be kept.
	Send(n ids.NodeID, r *kv.Request)
	// Lookup asks any endpoint's Admin service; the answer, or an error, must
	// come to LookupDone with the token, exactly once.
	Lookup(token uint64, r *adminpb.LookupRequest)
}

// Core is the step function. It is not safe for concurrent use (client guards
// it by a mutex).
type Core struct {
	cfg     Config
	effects Effects

	cache    rangeCache
	lookups  []*lookup // in flight, oldest first
	queued   []*leg    // wait for a free lookup
	attempts map[uint64]*leg
	timers   timerHeap
	shunned  map[ids.NodeID]time.Duration // until when

	stamp   hlc.Timestamp // highest received
	stampAt time.Duration // when it was received

	nextID       uint64 // of requests and lookups
	nextSequence uint64 // of writes
	nextOrder    uint64 // of legs, orders equal timers

	finished   []finishedCall
	delivering bool
}

// finishedCall is a verdict that is delivered when the core's state is whole
// again.
type finishedCall struct {
	call     *Call
	response *kv.Response
}

// New makes a core that knows no range yet.
func New(cfg Config, effects Effects) *Core {
	if cfg.BackoffMin <= 0 {
		cfg.BackoffMin = DefaultBackoffMin
	}
	if cfg.BackoffMax <= 0 {
		cfg.BackoffMax = DefaultBackoffMax
	}
	if cfg.AttemptTimeout <= 0 {
		cfg.AttemptTimeout = DefaultAttemptTimeout
	}
	return &Core{
		cfg: cfg, effects: effects,
		attempts: make(map[uint64]*leg),
		shunned:  make(map[ids.NodeID]time.Duration),
	}
}

// Start begins a call. Its Done may run before Start returns.
func (c *Core) Start(now time.Duration, call *Call) {
	c.begin(now, call)
	c.deliver()
}

// Cancel ends a call at once, with the verdict that its deadline would give.
// It does nothing if the call is done.
func (c *Core) Cancel(now time.Duration, call *Call) {
	if call.op.call == call && !call.op.ended {
		c.giveUp(&call.op)
	}
	c.deliver()
}

// Response is a node's answer to one attempt. The core takes the response.
// Answers to attempts that nobody waits for any more are ignored.
func (c *Core) Response(now time.Duration, from ids.NodeID, r *kv.Response) {
	if l := c.attempts[r.ID]; l != nil {
		delete(c.shunned, from)
		c.answered(now, l, from, r)
	}
	c.deliver()
}

// Stamp notes a server's stamp; drivers call it for every frame, before the
// frame's responses.
func (c *Core) Stamp(now time.Duration, ts hlc.Timestamp) {
	if ts >= c.stamp {
		c.stamp, c.stampAt = ts, now
	}
}

// HighestStamp returns the highest stamp received: frames to nodes carry it.
func (c *Core) HighestStamp() hlc.Timestamp { return c.stamp }

// Lost says that a node's stream broke or could not be opened: everything sent
// to it is retried elsewhere at once, with the same identity. What certainly
// never left is reported by NotSent before.
func (c *Core) Lost(now time.Duration, n ids.NodeID) {
	c.shun(now, n)
	var hit []uint64
	for id, l := range c.attempts {
		if l.attempt(id).node == n {
			hit = append(hit, id)
		}
	}
	slices.Sort(hit)
	for _, id := range hit {
		if l := c.attempts[id]; l != nil {
			l.open = l.open || !l.attempt(id).ping
			c.gone(now, l, id, "the connection broke")
		}
	}
	c.deliver()
}

// NotSent says that an attempt never left this process: it is retried
// elsewhere and leaves no doubt about the outcome.
func (c *Core) NotSent(now time.Duration, n ids.NodeID, id uint64) {
	if l := c.attempts[id]; l != nil && l.attempt(id).node == n {
		c.shun(now, n)
		c.gone(now, l, id, "cannot be reached")
	}
	c.deliver()
}

// gone forgets an attempt that will have no answer and, if it drove the leg,
// tries elsewhere.
func (c *Core) gone(now time.Duration, l *leg, id uint64, why string) {
	n, current := l.attempt(id).node, l.current(id)
	c.forget(l, id)
	l.note(n, why)
	if current {
		c.elsewhere(now, l, n)
	}
}

// shun makes a node the last choice for a while; hints to it are dropped.
func (c *Core) shun(now time.Duration, n ids.NodeID) {
	if until, ok := c.shunned[n]; !ok || until <= now {
		c.cache.forgetLeader(n)
	}
	c.shunned[n] = now + shunTime
}

// Tick runs what is due. It may be called early or late.
func (c *Core) Tick(now time.Duration) {
	for len(c.timers) > 0 && c.timers[0].due <= now {
		l := c.timers[0]
		c.stopTimer(l)
		c.timeUp(now, l)
	}
	c.deliver()
}

// Next says when Tick has something to do (0: nothing waits).
func (c *Core) Next() time.Duration {
	if len(c.timers) == 0 {
		return 0
	}
	return max(c.timers[0].due, 1)
}

// deliver hands out verdicts. A Done may start or cancel calls: those verdicts
// are delivered by the loop that is already running.
func (c *Core) deliver() {
	if c.delivering || len(c.finished) == 0 {
		return
	}
	c.delivering = true
	for i := 0; i < len(c.finished); i++ {
		f := c.finished[i]
		c.finished[i] = finishedCall{}
		f.call.Done(f.response)
	}
	c.finished = c.finished[:0]
	c.delivering = false
}
