package core

import (
	"bytes"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// lookup is one question about ranges, with the legs that wait for it.
type lookup struct {
	token   uint64
	key     []byte
	reverse bool
	suspect *entry // the cached range that is doubted; nil: the key is not cached
	waiters legQueue
}

// lookup lets a leg wait until its range has been looked up. Legs that ask for
// the same key, or doubt the same range, share one question; when maxLookups
// are out, legs queue, and look into the cache again when it is their turn.
func (c *Core) lookup(now time.Duration, l *leg) {
	c.leaveGate(l)
	key, reverse := l.routeKey(), l.reverse()
	doubted := c.cache.find(key, reverse)
	l.state = legLookup
	c.setTimer(l, 0)
	for _, q := range c.lookups {
		same := bytes.Equal(q.key, key) && q.reverse == reverse
		if same || (doubted != nil && q.suspect == doubted) {
			l.hops++
			q.waiters.push(l)
			return
		}
	}
	if len(c.lookups) >= maxLookups {
		c.queued.push(l)
		return
	}
	l.hops++
	c.ask(key, reverse, doubted).waiters.push(l)
}

// refresh asks for a leg's range again while the leg goes on with what is
// cached: when a leader is lost the ranges mostly stay where they are, and a
// new leader answers sooner than a directory that may have been lost with it.
func (c *Core) refresh(l *leg) {
	e := c.cache.find(l.routeKey(), l.reverse())
	asked := slices.ContainsFunc(c.lookups, func(q *lookup) bool { return q.suspect == e })
	if e != nil && !asked && len(c.lookups) < maxLookups {
		c.ask(l.routeKey(), l.reverse(), e)
	}
}

// ask begins a lookup.
func (c *Core) ask(key []byte, reverse bool, doubted *entry) *lookup {
	c.nextID++
	q := &lookup{token: c.nextID, key: key, reverse: reverse, suspect: doubted}
	c.lookups = append(c.lookups, q)
	r := &adminpb.LookupRequest{Start: key, Reverse: reverse, Limit: 1}
	if !reverse {
		r.End, r.Limit = []byte{kv.EndPrefix}, lookupRanges
	}
	c.effects.Lookup(q.token, r)
	return q
}

// leaveLookup takes a leg out of whatever lookup it waits for.
func (c *Core) leaveLookup(l *leg) {
	if l.state == legLookup {
		l.unqueue()
	}
}

// LookupDone is the answer to a lookup, or why there is none.
func (c *Core) LookupDone(
	now time.Duration, token uint64, r *adminpb.LookupReply, err error,
) {
	c.now = now
	i := slices.IndexFunc(c.lookups, func(q *lookup) bool { return q.token == token })
	if i < 0 {
		return
	}
	q := c.lookups[i]
	c.lookups = slices.Delete(c.lookups, i, i+1)
	for _, info := range r.GetRanges() {
		// The directory learns of a loss later than who was there.
		leader := ids.NodeID(info.GetLeaderNode())
		if !c.healthy(now, leader) {
			leader = 0
		}
		c.cache.merge(info.GetDescriptor_(), leader)
	}
	// A directory that lags may know less than the cache: then the newer
	// descriptor that was doubted is tried again.
	if e := c.cache.find(q.key, q.reverse); e != nil {
		e.suspect = false
	}
	for l := q.waiters.pop(); l != nil; l = q.waiters.pop() {
		l.state = legIdle
		if err != nil {
			l.last = "looking up the range: " + err.Error()
			c.pause(now, l, 0)
			continue
		}
		if len(r.GetRanges()) == 0 {
			l.last = "looking up the range: no node knows it"
		}
		c.again(now, l)
	}
	c.dequeue(now)
	c.finish(now)
}

// dequeue lets legs go on that waited for a free lookup, until none is free: a leg
// whose range was learned meanwhile needs none. Who stays in the queue is not
// looked at, so what an answer costs does not grow with how many wait.
func (c *Core) dequeue(now time.Duration) {
	for len(c.lookups) < maxLookups {
		l := c.queued.pop()
		if l == nil {
			return
		}
		l.state = legIdle
		c.dispatch(now, l)
	}
}

// learn merges descriptors that came with a response.
func (c *Core) learn(marshalled [][]byte) {
	for _, b := range marshalled {
		d := &metapb.RangeDescriptor{}
		if proto.Unmarshal(b, d) == nil {
			c.cache.merge(d, 0)
		}
	}
}
