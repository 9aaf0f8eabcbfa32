package core

import (
	"bytes"
	"fmt"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// legState says what a leg waits for.
type legState uint8

const (
	legIdle    legState = iota
	legLookup           // its range is being looked up
	legSent             // an answer
	legPaused           // the end of a pause
	legFollows          // what the probe of its range finds
)

// leg is one request of one range, with its attempts.
type leg struct {
	alarm
	op    *operation
	req   kv.Request // as sent last
	state legState

	gate       *gate     // at which it waits, or of which it is the probe
	queue      *legQueue // of those who follow there, or who wait for a lookup
	prev, next *leg      // in that queue

	entry    *entry    // the route of the last attempt
	drives   uint64    // the attempt that legSent waits for
	attempts []attempt // sent and unanswered, oldest first
	inline   [2]attempt
	open     bool // an attempt that is no longer in attempts may have applied, or may yet

	hops   int        // steps since the last pause
	pauses int        // pauses since the last success
	turn   int        // which replica is next
	avoid  ids.NodeID // the node that disappointed last
	last   string     // what went wrong last, for people

	want    []byte // timestamp requests: the end of the piece asked for
	probe   bool   // timestamp requests: want is not known to be in one range
	checked bool   // atomic: the range was looked up because its keys seemed to cross
}

// attempt is one send of a leg.
type attempt struct {
	id   uint64
	node ids.NodeID
	link *link         // of node
	at   time.Duration // when it was sent
	ping bool          // carried verbPing instead of the request

	// The span that this attempt asked for: a later attempt may be cut
	// otherwise, and still this one's answer may come first.
	key, end []byte
}

func (c *Core) initLeg(l *leg, op *operation, r *kv.Request) {
	c.nextOrder++
	*l = leg{op: op, req: *r}
	l.alarm = alarm{order: c.nextOrder, index: -1, leg: l}
	l.attempts = l.inline[:0]
}

// write says whether the leg's request changes anything.
func (l *leg) write() bool { return !reads(l.req.Verb) }

// reverse says whether the leg is routed by the keys just below its end.
func (l *leg) reverse() bool {
	return l.req.Verb == kv.VerbScan && l.req.Flags&kv.FlagReverse != 0
}

// routeKey is the key by which the leg finds its range.
func (l *leg) routeKey() []byte {
	if l.reverse() {
		return l.req.End
	}
	return l.req.Key
}

// attempt returns the unanswered attempt of an id.
func (l *leg) attempt(id uint64) attempt {
	for _, a := range l.attempts {
		if a.id == id {
			return a
		}
	}
	return attempt{}
}

// current says whether an attempt drives the leg: the leg waits for it.
func (l *leg) current(id uint64) bool { return l.state == legSent && l.drives == id }

// unsettled says whether some attempt of a write may have applied, or may yet.
func (l *leg) unsettled() bool {
	if !l.write() {
		return false
	}
	for _, a := range l.attempts {
		if !a.ping {
			return true
		}
	}
	return l.open
}

// note remembers what went wrong last.
func (l *leg) note(n ids.NodeID, what string) { l.last = fmt.Sprintf("node %v: %s", n, what) }

// forget drops one attempt.
func (c *Core) forget(l *leg, id uint64) {
	delete(c.attempts, id)
	for i, a := range l.attempts {
		if a.id == id {
			a.link.owed--
			l.attempts = append(l.attempts[:i], l.attempts[i+1:]...)
			return
		}
	}
}

// drop forgets a leg: nothing will reach it any more.
func (c *Core) drop(l *leg) {
	for _, a := range l.attempts {
		delete(c.attempts, a.id)
		a.link.owed--
	}
	l.attempts = l.attempts[:0]
	c.leaveGate(l)
	c.leaveLookup(l)
	c.disarm(&l.alarm)
	l.state = legIdle
}

// dispatch sends a leg where its range is believed to be led, lets it follow who
// asks for that, or looks the range up.
func (c *Core) dispatch(now time.Duration, l *leg) {
	e := c.cache.find(l.routeKey(), l.reverse())
	if e == nil || e.suspect {
		if e != nil {
			c.cache.orphan(e) // all that wait there look it up
		}
		c.lookup(now, l)
		return
	}
	if l.gate != nil && l.gate != e.gate {
		c.leaveGate(l)
	}
	if e.gate != nil && l.gate == nil {
		c.follow(l, e.gate)
		return
	}
	if !c.shape(now, l, e) {
		return
	}
	if e.leader == 0 && e.gate == nil {
		c.openGate(now, e, l)
	}
	l.entry = e
	l.req.Range = ids.RangeID(e.desc.RangeId)
	l.req.Generation = ids.Generation(e.desc.Generation)
	n := c.target(now, l, e)
	if l.gate != nil && c.resume(now, l, n) {
		l.hops++
		return
	}
	if !l.write() || l.req.Identity.Client != 0 {
		c.send(now, l, n, false)
		return
	}
	if c.stamp == 0 || now-c.stampAt > StampMaxAge {
		c.send(now, l, n, true)
		return
	}
	// The floor must have been received before the first attempt is sent, and
	// no attempt may ever carry another one: versions of this write lie above
	// it, so a server need not look below it for an earlier attempt.
	l.req.Identity = kv.Identity{
		Client: c.cfg.Client, Sequence: l.op.sequence, Floor: c.stamp,
	}
	c.send(now, l, n, false)
}

// target picks the node for the next attempt: the leader as far as known, else
// the replicas in turn; nodes that are lost or suspect come last. But one that
// is lost and still named by others is tried now and then: it may be back.
func (c *Core) target(now time.Duration, l *leg, e *entry) ids.NodeID {
	if e.leader != 0 && e.leader != l.avoid && c.healthy(now, e.leader) {
		return e.leader
	}
	if g := l.gate; g != nil && g.blamed != 0 && g.blamed != l.avoid && e.holds(g.blamed) {
		if k := c.link(g.blamed); !k.suspect && !k.leaving && k.redial <= now {
			k.redial = now + redialEvery
			return k.node
		}
	}
	replicas := e.desc.Replicas
	for pass := range 2 {
		for range replicas {
			n := ids.NodeID(replicas[l.turn%len(replicas)].NodeId)
			l.turn++
			if n != l.avoid && (pass > 0 || c.healthy(now, n)) {
				return n
			}
		}
	}
	return ids.NodeID(replicas[0].NodeId)
}

// send makes one attempt.
func (c *Core) send(now time.Duration, l *leg, n ids.NodeID, ping bool) {
	if len(l.attempts) >= maxAttempts {
		oldest := l.attempts[0]
		l.open = l.open || !oldest.ping
		c.forget(l, oldest.id)
	}
	c.nextID++
	k := c.link(n)
	l.attempts = append(l.attempts, attempt{
		id: c.nextID, node: n, link: k, at: now, ping: ping, key: l.req.Key, end: l.req.End,
	})
	c.attempts[c.nextID] = l
	l.state, l.drives = legSent, c.nextID
	l.hops++
	c.owes(now, k)
	c.await(now, l)
	if ping {
		c.effects.Send(n, &kv.Request{
			ID: c.nextID, Verb: verbPing, Range: l.req.Range, Key: l.req.Key,
		})
		return
	}
	l.req.ID = c.nextID
	c.effects.Send(n, &l.req)
}

// elsewhere retries a leg at another node, at once while the round lasts.
func (c *Core) elsewhere(now time.Duration, l *leg, avoid ids.NodeID) {
	l.avoid = avoid
	c.again(now, l)
}

// again retries a leg at once, or after a pause when it has been around.
func (c *Core) again(now time.Duration, l *leg) {
	switch {
	case l.hops < c.round(now, l):
		c.dispatch(now, l)
	case l.gate != nil:
		c.rest(now, l.gate, 0)
	default:
		c.pause(now, l, 0)
	}
}

// round is how many steps a leg makes without a pause.
func (c *Core) round(now time.Duration, l *leg) int {
	if l.entry == nil {
		return minRound
	}
	replicas := l.entry.desc.Replicas
	if l.gate == nil {
		return max(minRound, len(replicas)+1)
	}
	healthy := 0
	for _, r := range replicas {
		if c.healthy(now, ids.NodeID(r.NodeId)) {
			healthy++
		}
	}
	return max(1, healthy)
}

// minRound is the least number of steps in a round of a leg that is no probe:
// to a node, after its hint, and once more.
const minRound = 3

// pause lets a leg rest: exponentially longer from pause to pause, jittered,
// at least for what a node asked. Every second pause looks the range up anew, on
// the side: if all its replicas disappoint it may have moved.
func (c *Core) pause(now time.Duration, l *leg, atLeast time.Duration) {
	d := c.cfg.BackoffMax
	if shift := min(l.pauses, 16); c.cfg.BackoffMin<<shift < d {
		d = c.cfg.BackoffMin << shift
	}
	d = max(c.jitter(d), min(atLeast, maxRetryAfter)+c.jitter(atLeast/4))
	l.pauses++
	l.hops, l.avoid = 0, 0
	if l.pauses%2 == 0 {
		c.refresh(l)
	}
	l.state = legPaused
	c.setTimer(l, now+d)
}

// maxRetryAfter bounds the pause that a node may ask for.
const maxRetryAfter = 10 * time.Second

// jitter returns a random time between d/2 and d.
func (c *Core) jitter(d time.Duration) time.Duration {
	if d <= 1 {
		return d
	}
	return d/2 + time.Duration(c.cfg.Random()%uint64(d/2+1))
}

// timeUp runs when a leg's timer fires.
func (c *Core) timeUp(now time.Duration, l *leg) {
	if d := l.op.call.Deadline; d != 0 && now >= d {
		c.giveUp(l.op)
		return
	}
	switch l.state {
	case legSent:
		// The attempt is not forgotten: its late answer is as good as any.
		if l.gate != nil {
			c.impatient(now, l)
			return
		}
		// Its node is not shunned for it: whether it lives is another question,
		// and this request may be the only one that is slow.
		n := l.attempt(l.drives).node
		l.note(n, "no answer for "+c.cfg.AttemptTimeout.String())
		c.elsewhere(now, l, n)
	case legPaused:
		c.dispatch(now, l)
	case legLookup, legFollows, legIdle: // only the deadline matters to these
	}
}

// minKey returns the smaller of two keys.
func minKey(a, b []byte) []byte {
	if bytes.Compare(a, b) <= 0 {
		return a
	}
	return b
}

// maxKey returns the larger of two keys.
func maxKey(a, b []byte) []byte {
	if bytes.Compare(a, b) >= 0 {
		return a
	}
	return b
}
