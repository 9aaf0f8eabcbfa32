package core

import (
	"bytes"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/proto/kv"
)

// How a span is read at one instant.
//
// The core asks the leader of every range of the span for its timestamp, and
// reads all pages at the maximum T. Claim: the rows are those of one instant,
// and no write that was acknowledged before the scan began is missing.
//
//  1. A leader's timestamp is at or above the version of every write that its
//     range acknowledged before the request came. So each write under the span
//     that was acknowledged before the scan began has a version at or below
//     the timestamp of the range that held its key when that range was asked,
//     hence at or below T.
//  2. A page at T notes T as read, and waits for writes in flight at or below
//     T: so what it returns for its keys is exactly the versions at or below
//     T, for ever.
//
// From 1 and 2 it does not matter which range serves a page. A range that was
// not asked, but serves a part of the span now, came from splits and merges of
// ranges that were asked: the writes that its keys had acknowledged before the
// scan began are bounded by (1) through those. So nothing is asked twice when
// the map of ranges changes meanwhile. What must hold is that the ranges asked
// covered the span, each piece by a leader that held that piece: a request is
// clipped to the range it is routed to, a leader refuses one that reaches
// beyond its range, and the refused piece is asked again, range by range.
//
// No bound on clock offsets is used: a leader whose clock is behind T adopts T
// from the frame before it serves the page.
//
// A span that lies in one range needs no collecting: its leader fixes T. A
// scan with a limit tries that first with the part of the span that is in the
// first range: if the limit is reached there, the rest of the span does not
// matter.

// shape cuts a leg's request to the range that it is routed to. False: the leg
// is not to be sent (something else happened instead).
func (c *Core) shape(now time.Duration, l *leg, e *entry) bool {
	op := l.op
	switch l.req.Verb {
	case kv.VerbReadTimestamp:
		l.req.End = minKey(l.want, e.end())
	case kv.VerbAtomic:
		return c.shapeAtomic(now, l, e)
	case kv.VerbDeleteRange:
		l.req.End = minKey(op.end, e.end())
	case kv.VerbScan:
		if l.reverse() {
			l.req.Key = maxKey(op.start, e.start())
		} else {
			l.req.End = minKey(op.end, e.end())
		}
		if op.fixed == 0 && l.req.Limit == 0 && op.clipped(l.req.Key, l.req.End) {
			c.collect(now, op)
			return false
		}
	}
	return true
}

// clipped says whether [key, end) is less than what is left of the span.
func (op *operation) clipped(key, end []byte) bool {
	return !bytes.Equal(key, op.start) || !bytes.Equal(end, op.end)
}

// shapeAtomic finds out early when an atomic batch spans ranges. The cache may
// be old, so before it refuses it looks the range up once; the leader has the
// last word on what passes.
func (c *Core) shapeAtomic(now time.Duration, l *leg, e *entry) bool {
	for i := range l.req.Ops {
		k := l.req.Ops[i].Key
		if bytes.Compare(k, e.start()) >= 0 && bytes.Compare(k, e.end()) < 0 {
			continue
		}
		if !l.checked {
			l.checked = true
			e.suspect = true
			c.lookup(now, l)
			return false
		}
		c.settle(now, l, attempt{node: e.leader}, &kv.Response{
			Code: kv.CodeCrossRange, Message: "the keys lie in more than one range",
		})
		return false
	}
	return true
}

// collect begins to ask every range of the span for its timestamp.
func (c *Core) collect(now time.Duration, op *operation) {
	c.drop(&op.page)
	op.collecting = true
	op.cursor = op.start
	c.askMore(now, op)
}

// askMore keeps the window of timestamp requests full. Where the cache knows
// the next range, its piece is asked in parallel; where it does not, one probe
// goes ahead and tells how far its range reaches.
func (c *Core) askMore(now time.Duration, op *operation) {
	for !op.ended && !op.probing && len(op.asking) < collectWindow &&
		bytes.Compare(op.cursor, op.end) < 0 {
		l := &leg{}
		c.initLeg(l, op, &kv.Request{Verb: kv.VerbReadTimestamp, Key: op.cursor})
		l.want = op.end
		if e := c.cache.find(op.cursor, false); e != nil && !e.suspect {
			l.want = minKey(op.end, e.end())
			op.cursor = l.want
		} else {
			op.probing, l.probe = true, true
		}
		op.asking = append(op.asking, l)
		c.dispatch(now, l)
	}
	if op.ended || op.probing || len(op.asking) > 0 || !op.collecting {
		return
	}
	op.collecting = false
	op.fixed = op.highest
	c.nextPage(now, op)
}

// collected takes the timestamp of one range.
func (c *Core) collected(now time.Duration, l *leg, a attempt, r *kv.Response) {
	op := l.op
	op.highest = max(op.highest, r.Timestamp)
	next := a.end
	c.drop(l)
	if l.probe {
		op.cursor, op.probing = next, false
	} else if bytes.Compare(next, l.want) < 0 {
		// The range was smaller than believed: go on with the rest of the piece.
		l.req.Key = next
		l.hops, l.pauses, l.avoid = 0, 0, 0
		c.dispatch(now, l)
		return
	}
	op.asking = slices.DeleteFunc(op.asking, func(o *leg) bool { return o == l })
	c.askMore(now, op)
}

// nextPage sends the page of what is left of the span. All pages of a range
// deletion share one sequence: a key that an earlier attempt has deleted, cut
// otherwise than this one, is recognised by it and counts.
func (c *Core) nextPage(now time.Duration, op *operation) {
	l := &op.page
	l.req.Timestamp = op.fixed
	l.req.Key, l.req.End = op.start, op.end
	l.open, l.avoid = false, 0
	l.hops, l.pauses = 0, 0
	if l.write() && l.req.Identity.Client != 0 {
		l.req.Identity = kv.Identity{} // dispatch makes it anew, with a fresh floor
	}
	c.dispatch(now, l)
}

// remains returns what a page leaves of the span.
func remains(l *leg, a attempt, r *kv.Response) (start, end []byte, more bool) {
	start, end = l.op.start, l.op.end
	switch {
	case l.reverse() && r.More:
		end = r.ResumeKey
	case l.reverse():
		end = a.key
	case r.More:
		start = r.ResumeKey
	default:
		start = a.end
	}
	return start, end, bytes.Compare(start, end) < 0
}

// scanned takes a page of a scan and answers the call with it.
func (c *Core) scanned(now time.Duration, l *leg, a attempt, r *kv.Response) {
	op := l.op
	if op.fixed == 0 && uint32(len(r.Rows)) < l.req.Limit && op.clipped(a.key, a.end) {
		// The first range alone did not reach the limit: its timestamp says
		// nothing about the others.
		c.collect(now, op)
		return
	}
	start, end, more := remains(l, a, r)
	r.More, r.ResumeKey = more, nil
	if more && l.reverse() {
		r.ResumeKey = end
	} else if more {
		r.ResumeKey = start
	}
	if op.fixed != 0 {
		r.Timestamp = op.fixed
	}
	c.end(op, r)
}

// deletedPage takes a page of a range deletion and sends the next.
func (c *Core) deletedPage(now time.Duration, l *leg, a attempt, r *kv.Response) {
	op := l.op
	op.deleted += uint64(r.Count)
	c.drop(l)
	start, _, more := remains(l, a, r)
	if !more {
		c.end(op, &kv.Response{
			Count: uint32(min(op.deleted, 1<<32-1)), Timestamp: op.fixed, Found: op.deleted > 0,
		})
		return
	}
	op.start = start
	c.nextPage(now, op)
}
