package core

import (
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// How a node that says nothing is found out.
//
// A broken stream is told by the driver (Lost): everything sent there is asked
// elsewhere at once. A node behind a cut cable, or one that is stopped, breaks
// nothing: its stream just falls silent. While a node owes answers and nothing
// at all has come from it for PingAfter, it is sent a ping, which it answers
// from its stream's own goroutine, also while its shards are busy. If it stays
// silent as long again (or for two round trips, if that is more) it is
// suspect: other nodes are asked about its ranges, and whatever it still
// answers counts. Any frame from it ends the suspicion.
//
// A suspicion is weak evidence: the node may merely be busy, and then every
// request that others get because of it makes things worse. So it costs next
// to nothing: one range, the scout, asks the others (gate.go). As long as they
// name the suspect as the leader, everybody waits for it; when they do not,
// all its ranges are asked about.

const (
	// lostTime is how long a node whose stream broke is tried last.
	lostTime = 1 * time.Second
	// redialEvery is how often a lost node that others name as leader is tried.
	redialEvery = 50 * time.Millisecond
	// resetAfter is how long a stream may be silent before it is broken: what
	// TCP waits before it sends again grows and grows, a new connection is
	// there at once when the cut is healed.
	resetAfter = 2 * time.Second
	// lateWake: when a timer comes later than this, this process did not run,
	// and what was answered meanwhile may wait to be read.
	lateWake = 10 * time.Millisecond
)

// verbPing asks a node for nothing: an unknown verb fails its request and not
// the stream. The answer is a sign of life, and its frame carries the stamp
// that a write needs.
const verbPing kv.Verb = 0

// Resetter is an Effects that can break a stream which has been silent for
// long. It must report Lost for the node afterwards.
type Resetter interface {
	Reset(n ids.NodeID)
}

// link is what is known of the way to a node.
type link struct {
	alarm
	node    ids.NodeID
	owed    int           // attempts there without an answer, the ping included
	heard   time.Duration // the last sign of life, or when one began to be owed
	excused time.Duration // of the silence since then, what this process slept through
	ping    uint64        // id of the unanswered ping; 0: none
	pinged  time.Duration // when it was sent
	trip    time.Duration // the least that a ping took lately; 0: not known
	suspect bool
	leaving bool          // it said that it stops
	lost    time.Duration // tried last until then, because its stream broke
	redial  time.Duration // not tried before, although others name it
	scout   *gate         // of the gates that blame this node, the one that asks
}

// link returns what is known of a node. Nodes are few, so nothing is dropped.
func (c *Core) link(n ids.NodeID) *link {
	k := c.links[n]
	if k == nil {
		c.nextOrder++
		k = &link{node: n}
		k.alarm = alarm{order: c.nextOrder, index: -1, link: k}
		c.links[n] = k
	}
	return k
}

// healthy says whether a node is worth asking first.
func (c *Core) healthy(now time.Duration, n ids.NodeID) bool {
	k := c.links[n]
	return k == nil || !k.suspect && !k.leaving && k.lost <= now
}

// owes notes that one more answer of a node is awaited.
func (c *Core) owes(now time.Duration, k *link) {
	if k.owed == 0 {
		k.heard, k.excused = now, 0
	}
	k.owed++
	if k.index < 0 {
		c.arm(&k.alarm, now+c.cfg.PingAfter)
	}
}

// watch looks whether a node has been silent for too long.
func (c *Core) watch(now time.Duration, k *link, late time.Duration) {
	if k.owed == 0 {
		return // armed again by the next attempt
	}
	if late > lateWake && k.excused < c.cfg.PingAfter {
		// Time that does not count. In one silence this goes on for so long only: a
		// process that is always late would otherwise wait for ever.
		k.heard += late
		k.excused += late
		c.arm(&k.alarm, now+lateWake)
		return
	}
	quiet := k.heard + c.cfg.PingAfter
	patience := max(c.cfg.PingAfter, 2*k.trip)
	switch {
	case now < quiet:
		c.arm(&k.alarm, quiet)
	case k.ping == 0:
		c.sendPing(now, k)
		c.arm(&k.alarm, now+patience)
	case now < max(quiet, k.pinged)+patience:
		c.arm(&k.alarm, max(quiet, k.pinged)+patience)
	case !k.suspect:
		c.arm(&k.alarm, now+resetAfter)
		c.suspect(now, k)
	case now < k.heard+resetAfter:
		c.arm(&k.alarm, k.heard+resetAfter)
	default:
		k.heard = now // until the driver says Lost
		c.arm(&k.alarm, now+resetAfter)
		if r, ok := c.effects.(Resetter); ok {
			r.Reset(k.node)
			return
		}
		k.owed-- // this ping may be lost, if streams can lose something
		c.sendPing(now, k)
	}
}

func (c *Core) sendPing(now time.Duration, k *link) {
	c.nextID++
	k.ping, k.pinged = c.nextID, now
	k.owed++
	c.effects.Send(k.node, &kv.Request{ID: k.ping, Verb: verbPing, Key: []byte{kv.UserPrefix}})
}

// suspect: the node owes answers and says nothing. What waits for it waits on,
// and others are asked.
func (c *Core) suspect(now time.Duration, k *link) {
	k.suspect = true
	c.cache.forgetLeader(k.node)
	for _, id := range c.sentTo(k.node) {
		if l := c.attempts[id]; l != nil && l.current(id) {
			l.note(k.node, "is silent")
			c.doubt(now, l, k.node)
		}
	}
}

// alive notes a sign of life and says whether it was missed.
func (k *link) alive(now time.Duration) (missed bool) {
	missed = k.suspect || k.lost > now
	k.heard, k.excused, k.suspect, k.lost = now, 0, false, 0
	return missed
}

// Heard says that a frame came from a node. Drivers call it for frames without
// responses; Response implies it.
func (c *Core) Heard(now time.Duration, from ids.NodeID) {
	c.now = now
	if c.link(from).alive(now) {
		c.revived(now, from)
	}
	c.finish(now)
}

// Leaving says that a node stops: it answers what it has and gets nothing more.
// Its ranges are led elsewhere by now. Lost must follow.
func (c *Core) Leaving(now time.Duration, n ids.NodeID) {
	c.now = now
	c.link(n).leaving = true
	c.cache.forgetLeader(n)
	c.finish(now)
}

// ponged takes the answer to a ping.
func (c *Core) ponged(now time.Duration, k *link) {
	k.ping = 0
	k.owed--
	trip := now - k.pinged
	if k.trip > 0 {
		// Only the least tells the distance; what is above it is work.
		trip = min(trip, k.trip+k.trip/4+1)
	}
	k.trip = trip
}

// Lost says that a node's stream broke or could not be opened: everything sent
// to it is asked elsewhere at once, with the same identity. What certainly
// never left is reported by NotSent before.
func (c *Core) Lost(now time.Duration, n ids.NodeID) {
	c.now = now
	c.shun(now, n)
	k := c.link(n)
	k.leaving = false
	if k.ping != 0 {
		k.ping = 0
		k.owed--
	}
	for _, id := range c.sentTo(n) {
		if l := c.attempts[id]; l != nil {
			l.open = l.open || !l.attempt(id).ping
			c.gone(now, l, id, "the connection broke")
		}
	}
	c.finish(now)
}

// NotSent says that an attempt never left this process: it is retried
// elsewhere and leaves no doubt about the outcome.
func (c *Core) NotSent(now time.Duration, n ids.NodeID, id uint64) {
	c.now = now
	if k := c.link(n); k.ping == id {
		k.ping = 0
		k.owed--
		c.shun(now, n)
	} else if l := c.attempts[id]; l != nil && l.attempt(id).node == n {
		c.shun(now, n)
		c.gone(now, l, id, "cannot be reached")
	}
	c.finish(now)
}

// sentTo returns the unanswered attempts at a node, in the order of sending.
func (c *Core) sentTo(n ids.NodeID) (hit []uint64) {
	for id, l := range c.attempts {
		if l.attempt(id).node == n {
			hit = append(hit, id)
		}
	}
	slices.Sort(hit)
	return hit
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

// shun makes a node the last choice for a while; hints to it are dropped, those
// of all its ranges together.
func (c *Core) shun(now time.Duration, n ids.NodeID) {
	k := c.link(n)
	if k.lost <= now {
		c.cache.forgetLeader(n)
		k.redial = now + redialEvery
	}
	k.lost, k.suspect = now+lostTime, false // what is lost may be dialled
}
