package core

import (
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
	DefaultPingAfter      = 100 * time.Millisecond

	// StampMaxAge is how old a server's stamp may be to serve as the floor of
	// a new write. An old floor costs the server a read of old versions and,
	// below the garbage collection threshold, the outcome.
	StampMaxAge = 30 * time.Second

	maxLookups      = 8       // in flight; further legs queue
	lookupRanges    = 64      // asked for per lookup: neighbours are wanted next
	collectWindow   = 64      // timestamp requests of one call in flight
	maxAttempts     = 8       // unanswered attempts remembered per leg
	maxCachedRanges = 1 << 16 // in the range cache
)

// Config configures a core.
type Config struct {
	Client     uint64        // identity, random, not 0
	Random     func() uint64 // jitter
	BackoffMin time.Duration // first pause between rounds of attempts; default 5 ms
	BackoffMax time.Duration // longest pause; default 500 ms
	// AttemptTimeout re-sends a request (same identity) elsewhere when a node
	// that lives does not answer it for so long; default 2 s.
	AttemptTimeout time.Duration
	// PingAfter is after what silence a node that owes answers is asked for a
	// sign of life; after as long again, others are asked as well. Default
	// 100 ms.
	PingAfter time.Duration
}

// Effects is where the core puts what is to be done. Implementations are
// called from within the core's methods and must not call back into it. They
// may implement Resetter, too.
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

	now      time.Duration // of the step that runs
	cache    rangeCache
	gates    gateList
	links    map[ids.NodeID]*link
	lookups  []*lookup // in flight, oldest first
	queued   legQueue  // wait for a free lookup
	attempts map[uint64]*leg
	timers   timerHeap

	stamp   hlc.Timestamp // highest received
	stampAt time.Duration // when it was received

	nextID       uint64 // of requests and lookups
	nextSequence uint64 // of writes
	nextOrder    uint64 // of legs and links, orders equal timers

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
	if cfg.PingAfter <= 0 {
		cfg.PingAfter = DefaultPingAfter
	}
	return &Core{
		cfg: cfg, effects: effects,
		attempts: make(map[uint64]*leg),
		links:    make(map[ids.NodeID]*link),
	}
}

// Start begins a call. Its Done may run before Start returns.
func (c *Core) Start(now time.Duration, call *Call) {
	c.now = now
	c.begin(now, call)
	c.finish(now)
}

// Cancel ends a call at once, with the verdict that its deadline would give.
// It does nothing if the call is done.
func (c *Core) Cancel(now time.Duration, call *Call) {
	c.now = now
	if call.op.call == call && !call.op.ended {
		c.giveUp(&call.op)
	}
	c.finish(now)
}

// Response is a node's answer to one attempt. The core takes the response.
// Answers to attempts that nobody waits for any more are ignored.
func (c *Core) Response(now time.Duration, from ids.NodeID, r *kv.Response) {
	c.now = now
	k := c.link(from)
	missed := k.alive(now)
	if k.ping != 0 && k.ping == r.ID {
		c.ponged(now, k)
	} else if l := c.attempts[r.ID]; l != nil {
		c.answered(now, l, from, r)
	}
	if missed {
		c.revived(now, from)
	}
	c.finish(now)
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

// Tick runs what is due. It may be called early or late.
func (c *Core) Tick(now time.Duration) {
	c.now = now
	for len(c.timers) > 0 && c.timers[0].due <= now {
		a := c.timers[0]
		c.disarm(a)
		if a.link != nil {
			c.watch(now, a.link, now-a.due)
		} else {
			c.timeUp(now, a.leg)
		}
	}
	c.finish(now)
}

// Next says when Tick has something to do (0: nothing waits).
func (c *Core) Next() time.Duration {
	if len(c.timers) == 0 {
		return 0
	}
	return max(c.timers[0].due, 1)
}

// finish ends a step: what waited at ranges that are no more goes on, and
// verdicts are handed out.
func (c *Core) finish(now time.Duration) {
	for len(c.cache.orphans) > 0 {
		g := c.cache.orphans[0]
		c.cache.orphans = c.cache.orphans[1:]
		if !g.closed {
			c.release(now, g, 0)
		}
	}
	c.cache.orphans = nil
	c.deliver()
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
