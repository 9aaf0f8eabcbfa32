package ranges

import (
	"github.com/tidwall/btree"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

// latches order the requests of a range that conflict. Shard only.
//
// A write takes a hold when it arrives and keeps it until it is applied or has
// failed. Blind writes (puts and deletes without a condition) do not conflict
// with one another: they pipeline, in order of evaluation. Whatever must see
// the newest value (conditional writes, pages of range deletions, splits,
// garbage collection) takes an exclusive hold, which conflicts with every
// other. A request waits only for conflicting holds that were there when it
// came, so nobody starves and nobody deadlocks.
//
// A read takes no hold. Once confirmed it waits for the holds of writes that
// are evaluated at or below its timestamp; a hold that is not evaluated yet
// will get a later one.
type latches struct {
	points   *points // nil: none, and an idle range has no more than that
	spans    []*hold // few: range deletions, splits, garbage collection
	runnable []latched
	draining bool
}

// points are holds by key, in order of arrival.
type points = btree.Map[string, []*hold]

// latched is what waits for latches.
type latched interface {
	// granted is called once when nothing stands in the way any more.
	granted()
	// aborted is called instead when leadership is lost.
	aborted()
}

// waiter counts what somebody still waits for.
type waiter struct {
	blockers int
	op       latched
}

// hold is what a request holds: keys, or one span.
type hold struct {
	waiter
	keys       []string
	start, end string // span if end is not empty
	exclusive  bool
	// ts is the timestamp of the evaluated write; 0 while it is not evaluated.
	// Structural entries use 1: every read waits for them.
	ts      hlc.Timestamp
	waiters []*waiter
	done    bool
	alone   [1]*hold // room for the list of a key that nobody else holds
}

const everyRead = hlc.Timestamp(1)

// acquire enters h and calls op.granted when it may go on, perhaps at once.
func (l *latches) acquire(h *hold, op latched) {
	h.op = op
	block := func(o *hold) {
		if o.exclusive || h.exclusive {
			o.waiters = append(o.waiters, &h.waiter)
			h.blockers++
		}
	}
	if h.end != "" {
		l.overSpan(h.start, h.end, block)
		l.spans = append(l.spans, h)
	} else {
		if l.points == nil {
			l.points = new(points)
		}
		for i, k := range h.keys {
			held := l.overKey(k, block)
			if i == 0 && len(held) == 0 {
				h.alone[0] = h
				held = h.alone[:0:1] // full with h in it: the next one moves it
			}
			l.points.Set(k, append(held, h))
		}
	}
	if h.blockers == 0 {
		op.granted()
	}
}

// overKey visits the holds over one key and returns those that name it.
func (l *latches) overKey(k string, visit func(*hold)) []*hold {
	var held []*hold
	if l.points != nil {
		held, _ = l.points.Get(k)
	}
	for _, o := range held {
		visit(o)
	}
	for _, o := range l.spans {
		if o.start <= k && k < o.end {
			visit(o)
		}
	}
	return held
}

func (l *latches) overSpan(start, end string, visit func(*hold)) {
	if l.points != nil {
		l.points.Ascend(start, func(k string, held []*hold) bool {
			if k >= end {
				return false
			}
			for _, o := range held {
				visit(o)
			}
			return true
		})
	}
	for _, o := range l.spans {
		if o.start < end && start < o.end {
			visit(o)
		}
	}
}

// await lets a read of [start, end) (end empty: of the key start) wait for the
// evaluated writes at or below ts. It returns false if there are none; then op
// is not called.
func (l *latches) await(start, end string, ts hlc.Timestamp, op latched) bool {
	if l.free() {
		return false
	}
	w := &waiter{op: op}
	block := func(o *hold) {
		if o.ts != 0 && o.ts <= ts {
			o.waiters = append(o.waiters, w)
			w.blockers++
		}
	}
	if end == "" {
		l.overKey(start, block)
	} else {
		l.overSpan(start, end, block)
	}
	return w.blockers > 0
}

// release ends a hold. Who can go on then runs in the next drain. A hold that
// is released already, or was dropped by reset, is ignored.
func (l *latches) release(h *hold) {
	if h.done {
		return
	}
	h.done = true
	if h.end != "" {
		l.spans = without(l.spans, h)
	}
	for _, k := range h.keys {
		held, _ := l.points.Get(k)
		if held = without(held, h); len(held) == 0 {
			l.points.Delete(k)
		} else {
			l.points.Set(k, held)
		}
	}
	for _, w := range h.waiters {
		if w.blockers--; w.blockers == 0 {
			l.runnable = append(l.runnable, w.op)
		}
	}
	h.waiters = nil
}

func without(held []*hold, h *hold) []*hold {
	for i, o := range held {
		switch {
		case o != h:
		case len(held) == 1:
			return nil // an empty slice would keep h, and all that it is part of
		default:
			return append(held[:i:i], held[i+1:]...)
		}
	}
	return held
}

// drain runs what became runnable, in order, also what becomes so meanwhile.
func (l *latches) drain() {
	if l.draining {
		return
	}
	l.draining = true
	for len(l.runnable) > 0 {
		op := l.runnable[0]
		l.runnable = l.runnable[1:]
		op.granted()
	}
	l.runnable = nil
	l.draining = false
}

// reset drops every hold, because leadership is lost, and aborts who waits.
func (l *latches) reset() {
	var dropped []*hold
	if l.points != nil {
		l.points.Scan(func(_ string, held []*hold) bool {
			dropped = append(dropped, held...)
			return true
		})
	}
	dropped = append(dropped, l.spans...)
	waiting := l.runnable
	*l = latches{draining: l.draining}
	for _, h := range dropped {
		h.done = true
		for _, w := range h.waiters {
			if w.blockers > 0 {
				w.blockers = 0
				waiting = append(waiting, w.op)
			}
		}
		h.waiters = nil
	}
	for _, op := range waiting {
		op.aborted()
	}
}

// free says whether nothing is held.
func (l *latches) free() bool {
	return (l.points == nil || l.points.Len() == 0) && len(l.spans) == 0
}

// idle says whether nothing holds or waits.
func (l *latches) idle() bool { return l.free() && len(l.runnable) == 0 }

// shrink gives back what idle latches need no more.
func (l *latches) shrink() {
	if l.idle() {
		l.points = nil
	}
}
