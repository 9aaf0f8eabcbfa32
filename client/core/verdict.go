package core

import (
	"fmt"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// answered decides what an answer means: this is the one switch over codes.
func (c *Core) answered(now time.Duration, l *leg, from ids.NodeID, r *kv.Response) {
	a := l.attempt(r.ID)
	if k := a.link; k != nil {
		// Every answer tells the distance. Pings are rare, and one that waited in a
		// pause of the node would make the next silence look natural.
		k.trip = min(k.trip, now-a.at)
	}
	// An answer to an attempt that another has superseded may still settle the
	// leg, but it does not drive it.
	current := l.current(r.ID)
	c.forget(l, r.ID)
	c.learn(r.Descriptors)
	if a.ping {
		if current {
			c.again(now, l)
		}
		return
	}
	if r.MaybeApplied {
		l.open = true
	}
	switch r.Code {
	case kv.CodeOK, kv.CodeNotFound, kv.CodeConflict:
		c.led(now, l, from)
		c.settle(now, l, a, r)
	case kv.CodeNotLeader:
		c.notLeader(now, l, from, r, current)
	case kv.CodeWrongRange:
		c.wrongRange(now, l, from, current)
	case kv.CodeUnavailable:
		l.note(from, orElse(r.Message, "not available now"))
		if l.entry != nil && l.entry.leader == from {
			l.entry.leader = 0
		}
		c.yield(now, l, r, current)
	case kv.CodeOverloaded:
		l.note(from, orElse(r.Message, "overloaded"))
		c.led(now, l, from)
		c.yield(now, l, r, current)
	default:
		// CrossRange, Invalid, TooLarge, ReadOnly, BelowThreshold, Internal,
		// UnknownOutcome, UnknownVerb, and codes of the future.
		c.settle(now, l, a, r)
	}
}

// notLeader follows a hint at once, else tries the replicas in turn. A node
// that leads, but does not serve yet, names itself: it is asked again later. A
// hint to a node that is suspect or lost is no hint.
func (c *Core) notLeader(
	now time.Duration, l *leg, from ids.NodeID, r *kv.Response, current bool,
) {
	leader := r.Leader
	switch leader {
	case 0:
		l.note(from, "does not lead the range, which has no leader now")
	case from:
		l.note(from, "has just become the range's leader and does not serve yet")
	default:
		l.note(from, fmt.Sprintf("does not lead the range, node %v may", leader))
	}
	hint := leader != 0 && c.healthy(now, leader)
	e := l.entry
	if e != nil {
		c.hinted(now, l, from, leader, hint)
	}
	if !current {
		return
	}
	l.avoid = from
	round := c.round(now, l)
	switch {
	case e != nil && e.gate != nil && l.gate != e.gate:
		c.dispatch(now, l) // follows
	case leader != from && !(hint && r.RetryAfterMillis > 0) &&
		(l.hops < round || hint && l.hops < round+hintHops):
		c.dispatch(now, l)
	default:
		// Asked again later, by one for all: the round is over, or leadership is
		// on its way to the node that was named. The entry may have left the cache.
		if l.gate == nil && e != nil && c.cache.find(l.routeKey(), l.reverse()) == e {
			c.openGate(now, e, l)
		}
		c.yield(now, l, &kv.Response{}, true)
	}
}

// hintHops is how many steps after hints a round may have beside its replicas.
const hintHops = 2

// hinted takes what an answer says about the leader of a range, for all that
// wait for it.
func (c *Core) hinted(now time.Duration, l *leg, from, leader ids.NodeID, good bool) {
	e := l.entry
	switch {
	case good:
		e.leader = leader
	case e.leader == from:
		e.leader = 0
	}
	g := e.gate
	switch {
	case g == nil:
	case good:
		c.news(now, g)
		if l.gate != g || g.probe != l {
			c.fire(now, g)
		}
	case l.gate == g && g.probe == l:
		c.unled(now, g, leader)
	}
}

// wrongRange routes again: by the descriptors that came along if they changed
// the route, else by a lookup.
func (c *Core) wrongRange(now time.Duration, l *leg, from ids.NodeID, current bool) {
	l.note(from, "does not hold the range of the key")
	if !current {
		return
	}
	if e := c.cache.find(l.routeKey(), l.reverse()); e != nil && e == l.entry {
		e.suspect = true
	}
	c.elsewhere(now, l, from)
}

// yield pauses at least for what the node asked; a probe does so for all that
// follow it.
func (c *Core) yield(now time.Duration, l *leg, r *kv.Response, current bool) {
	wait := time.Duration(r.RetryAfterMillis) * time.Millisecond
	switch {
	case !current:
	case l.gate != nil && l.gate.probe == l:
		c.rest(now, l.gate, wait)
	default:
		c.pause(now, l, wait)
	}
}

// settle takes a final answer of a leg.
func (c *Core) settle(now time.Duration, l *leg, a attempt, r *kv.Response) {
	op := l.op
	if !settled(l, r) {
		c.end(op, &kv.Response{
			Code:  kv.CodeUnknownOutcome,
			Count: uint32(min(op.deleted, 1<<32-1)),
			Message: "an attempt was not answered, and a later one found nothing of it: " +
				"the first may still apply",
		})
		return
	}
	if r.Code != kv.CodeOK {
		if op.deleted > 0 {
			r = &kv.Response{
				Code: kv.CodeUnknownOutcome, Count: uint32(min(op.deleted, 1<<32-1)),
				Message: fmt.Sprintf("stopped by node %v: %s", a.node, r.Message),
			}
		}
		c.end(op, r)
		return
	}
	switch l.req.Verb {
	case kv.VerbReadTimestamp:
		c.collected(now, l, a, r)
	case kv.VerbScan:
		c.scanned(now, l, a, r)
	case kv.VerbDeleteRange:
		c.deletedPage(now, l, a, r)
	default:
		c.end(op, r)
	}
}

// settled says whether an answer holds whatever becomes of the leg's other
// attempts. It does for reads, and for writes that wrote: their versions carry
// the identity, so no other attempt writes again. It does not for an answer
// that no committed entry carries (a compare that failed, a deletion that
// found nothing, a refusal) while another attempt is unanswered: that one may
// be delivered late, to another leader, and find a state in which it succeeds.
// Exceptions, because no later state can let them succeed:
//   - a compare with a version: versions of a key only rise, so a version that
//     is not the newest now never is again;
//   - a page of a range deletion: it touches only versions at or below its
//     timestamp, and those are gone.
func settled(l *leg, r *kv.Response) bool {
	if r.Code == kv.CodeUnknownOutcome || !l.unsettled() {
		return true
	}
	switch r.Code {
	case kv.CodeOK:
		return r.Timestamp != 0 || l.req.Verb == kv.VerbDeleteRange
	case kv.CodeConflict:
		return comparesVersions(&l.req)
	default:
		return false
	}
}

// comparesVersions says whether all compares of a request are with versions.
func comparesVersions(r *kv.Request) bool {
	if r.Verb != kv.VerbAtomic {
		return r.Expect == kv.ExpectVersion
	}
	for i := range r.Ops {
		if e := r.Ops[i].Expect; e != kv.ExpectNothing && e != kv.ExpectVersion {
			return false
		}
	}
	return true
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
