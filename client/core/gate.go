package core

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// One asks, the others follow.
//
// While it is not known who leads a range, its gate is closed: the first
// request that comes is the probe, which looks for the leader, and all others
// follow it: they wait until it has found one and go there together. So what a
// range without a leader costs does not depend on how many requests wait.
//
// A probe asks every healthy replica once, at once, and goes after a hint at
// once. Then it pauses: 2 ms at first, doubling, jittered, up to fastPause for
// the first second (an election is over then, or there will be none soon) and
// up to BackoffMax afterwards. With very many gates the pauses are longer, so
// that their probes together stay below one per probeSpacing.
//
// A gate blames a node that is lost or suspect while its replicas name just
// that node as the leader. They all do so until their promise to it ends, which
// ends for all ranges at the same time: so of all gates that blame one node
// only one, the scout, keeps asking at that pace, and when it hears something
// else all of them ask at once. The others ask slowly meanwhile, in case their
// range is a special one.

const (
	// probeFirst is the first pause of a probe.
	probeFirst = 2 * time.Millisecond
	// fastPause bounds the pauses of the first fastFor, and with them how much
	// later than the servers a client notices the end of an election.
	fastPause = 20 * time.Millisecond
	fastFor   = 1 * time.Second
	// probeSpacing bounds the probes of all gates together.
	probeSpacing = 50 * time.Microsecond
	// slowPause bounds the pauses of gates that leave the asking to a scout.
	slowPause = 100 * time.Millisecond
	// probePatience is how long a probe waits for an answer before it asks the
	// next replica as well.
	probePatience = 50 * time.Millisecond
	// refreshPauses is after how many pauses the range is looked up again.
	refreshPauses = 8
)

// gate is a range of which it is not known who leads it.
type gate struct {
	entry      *entry
	prev, next *gate // of all gates, the oldest first
	closed     bool  // it is no more
	probe      *leg  // never nil while the gate is there
	followers  legQueue

	since  time.Duration // when it closed, or when there was news last
	pause  time.Duration // the last one
	pauses int
	due    time.Duration // end of the pause
	blamed ids.NodeID    // an unhealthy node that the replicas name; 0: none
	other  bool          // in this round some replica did not name it
}

// gateList is all gates, the oldest first.
type gateList struct {
	first, last *gate
	size        int
}

// openGate makes a leg the probe of a range.
func (c *Core) openGate(now time.Duration, e *entry, l *leg) *gate {
	g := &gate{entry: e, probe: l, since: now, prev: c.gates.last}
	if g.prev == nil {
		c.gates.first = g
	} else {
		g.prev.next = g
	}
	c.gates.last = g
	c.gates.size++
	e.gate, l.gate, l.entry = g, g, e
	l.hops = 0
	return g
}

// removeGate takes a gate out of everything but the legs that wait at it.
func (c *Core) removeGate(g *gate) {
	if g.closed {
		return
	}
	g.closed = true
	if g.prev == nil {
		c.gates.first = g.next
	} else {
		g.prev.next = g.next
	}
	if g.next == nil {
		c.gates.last = g.prev
	} else {
		g.next.prev = g.prev
	}
	c.gates.size--
	g.entry.gate = nil
	if g.blamed != 0 {
		c.replaceScout(c.link(g.blamed), g)
	}
}

// replaceScout lets another gate ask about a node when its scout ends.
func (c *Core) replaceScout(k *link, old *gate) {
	if k.scout != old {
		return
	}
	k.scout = nil
	for g := c.gates.first; g != nil; g = g.next {
		if g.blamed == k.node {
			k.scout = g
			if g.probe != nil && g.probe.state == legPaused && g.due > c.now+probeFirst {
				g.due = c.now + probeFirst
				c.setTimer(g.probe, g.due)
			}
			return
		}
	}
}

// follow lets a leg wait for what the probe finds.
func (c *Core) follow(l *leg, g *gate) {
	l.gate, l.entry, l.state = g, g.entry, legFollows
	g.followers.push(l)
	c.setTimer(l, 0)
}

// leaveGate takes a leg out of its gate. If it was the probe the next one
// becomes it, after a pause: when many calls end together each of them is the
// probe for a moment, and none may send for that.
func (c *Core) leaveGate(l *leg) {
	g := l.gate
	if g == nil {
		return
	}
	l.gate = nil
	if g.probe != l {
		l.unqueue()
		return
	}
	f := g.followers.pop()
	g.probe = f
	if f == nil {
		c.removeGate(g)
		return
	}
	f.turn, f.avoid, f.hops = l.turn, 0, 0
	if f.last == "" {
		f.last = l.last
	}
	f.state = legPaused
	g.due = max(g.due, c.now+probeFirst)
	c.setTimer(f, g.due)
}

// doubt takes a leg away from a node that is silent, without forgetting what
// was sent there.
func (c *Core) doubt(now time.Duration, l *leg, n ids.NodeID) {
	e := c.cache.find(l.routeKey(), l.reverse())
	l.avoid = n
	switch {
	case e == nil || e.suspect || e.leader != 0 || l.gate != nil:
		c.again(now, l)
	case e.gate != nil:
		c.follow(l, e.gate)
	default:
		g := c.openGate(now, e, l)
		g.blamed = n
		c.rest(now, g, 0)
	}
}

// rest lets a gate's probe pause.
func (c *Core) rest(now time.Duration, g *gate, atLeast time.Duration) {
	fast, slow := c.cfg.BackoffMax, c.cfg.BackoffMax
	if now-g.since >= fastFor && g.blamed != 0 && c.scouts(g) {
		fast = min(fast, slowPause) // it costs one probe for a whole node
	}
	if now-g.since < fastFor {
		fast = min(fast, max(fastPause, time.Duration(c.gates.size)*probeSpacing))
		slow = min(slow, max(slowPause, fast))
	}
	g.pause = min(max(2*g.pause, probeFirst), max(fast, probeFirst))
	d := g.pause
	if g.blamed != 0 && !g.other && !c.scouts(g) {
		d = min(max(4*g.pause, slowPause/2), slow)
	}
	d = max(c.jitter(d), min(atLeast, maxRetryAfter))
	l := g.probe
	l.hops, l.avoid = 0, 0
	g.other = false
	if g.pauses++; g.pauses%refreshPauses == 0 {
		c.refresh(l)
	}
	l.state = legPaused
	g.due = now + max(d, 1)
	c.setTimer(l, g.due)
}

// scouts says whether a gate is the one that asks about the node it blames.
func (c *Core) scouts(g *gate) bool {
	k := c.link(g.blamed)
	if s := k.scout; s == nil || s.closed || s.blamed != k.node {
		k.scout = g
	}
	return k.scout == g
}

// unled takes the answer of a replica that named no healthy leader: nobody, or
// a node that is suspect or lost.
func (c *Core) unled(now time.Duration, g *gate, named ids.NodeID) {
	if named != g.blamed {
		c.news(now, g)
	}
	switch {
	case named == 0:
		g.other = true
	case !g.other:
		g.blamed = named
	}
}

// news: a replica does not name the node that is blamed. Its promise is over,
// for all ranges, so all that blame it ask now.
func (c *Core) news(now time.Duration, g *gate) {
	n := g.blamed
	if n == 0 {
		return
	}
	c.link(n).scout = nil
	for o := c.gates.first; o != nil; o = o.next {
		if o.blamed != n {
			continue
		}
		o.blamed, o.since, o.pause = 0, now, 0
		if o != g {
			c.fire(now, o)
		}
	}
}

// revived: a node was heard that was missed. Who waits for it goes on there.
func (c *Core) revived(now time.Duration, n ids.NodeID) {
	c.link(n).scout = nil
	for g := c.gates.first; g != nil; {
		next := g.next
		if g.blamed == n {
			g.blamed, g.since, g.pause = 0, now, 0
			if g.entry.leader == 0 && !c.link(n).leaving && g.entry.holds(n) {
				g.entry.leader = n
			}
			c.fire(now, g)
		}
		g = next
	}
}

// fire ends a gate's pause. Only gates that rest are touched, and no leg ends
// here but the probe, so a walk over the gates may go on.
func (c *Core) fire(now time.Duration, g *gate) {
	if l := g.probe; !g.closed && l != nil && l.state == legPaused {
		c.dispatch(now, l)
	}
}

// led: a node served, or refused for a reason that only a leader has. Everybody
// goes there.
func (c *Core) led(now time.Duration, l *leg, by ids.NodeID) {
	e := l.entry
	if e == nil {
		return
	}
	e.leader = by
	g := e.gate
	if g == nil {
		return
	}
	if g.blamed != by {
		c.news(now, g)
	}
	if l.gate == g {
		l.gate = nil
		if g.probe == l {
			g.probe = nil
		} else {
			l.unqueue()
		}
	}
	c.release(now, g, by)
}

// release ends a gate: all that waits at it goes on, who has an attempt at the
// leader by waiting for its answer.
func (c *Core) release(now time.Duration, g *gate, leader ids.NodeID) {
	c.removeGate(g)
	probe := g.probe
	g.probe = nil
	if probe != nil {
		probe.gate = nil
		switch probe.state {
		case legSent:
			c.setTimer(probe, now+c.cfg.AttemptTimeout)
		case legPaused:
			c.dispatch(now, probe)
		}
	}
	for l := g.followers.pop(); l != nil; l = g.followers.pop() {
		l.gate, l.hops, l.avoid = nil, 0, 0
		if !c.resume(now, l, leader) {
			c.dispatch(now, l)
		}
	}
}

// resume lets a leg wait for an attempt that was sent before, instead of
// sending the same again. One that is as old as AttemptTimeout is sent again.
func (c *Core) resume(now time.Duration, l *leg, n ids.NodeID) bool {
	for i := len(l.attempts) - 1; i >= 0; i-- {
		a := &l.attempts[i]
		if a.node != n || now-a.at >= c.cfg.AttemptTimeout {
			continue
		}
		l.state, l.drives = legSent, a.id
		c.await(now, l)
		return true
	}
	return false
}

// await arms the timer of a leg that waits for an answer.
func (c *Core) await(now time.Duration, l *leg) {
	if l.gate != nil {
		c.setTimer(l, now+probePatience)
		return
	}
	c.setTimer(l, now+c.cfg.AttemptTimeout)
}

// impatient: a probe has no answer yet. If a hint led it there, the node leads
// most likely, and is slow: the others go there, too. Else the next is asked.
func (c *Core) impatient(now time.Duration, l *leg) {
	g, n := l.gate, l.attempt(l.drives).node
	if g.entry.leader == n && c.healthy(now, n) {
		c.release(now, g, n)
		return
	}
	c.elsewhere(now, l, n)
}
