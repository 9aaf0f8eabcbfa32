package ranges

import (
	"bytes"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// write is a put, delete, compare-and-swap or atomic batch on its way: a task
// on the shard, then the holder of latches, then part of a proposal.
type write struct {
	r        *Replica
	req      *kv.Request
	done     func(*kv.Response)
	ops      []op
	one      [1]op // room for ops
	hint     hint
	hold     hold
	oneKey   [1]string // room for hold.keys
	undo     []undo
	oneUndo  [1]undo // room for undo
	attached []*write
	resp     kv.Response

	announced []*stripe  // see inflight.go
	oneStripe [1]*stripe // room for announced
}

// hint says when the ops were looked up on disk, away from the shard.
type hint struct {
	term    ids.Term // 0: not looked up
	applied ids.Index
}

// op is one key of a write.
type op struct {
	key             []byte
	name            string // key
	value           []byte
	tombstone       bool
	expect          kv.Expect
	expected        []byte
	expectedVersion hlc.Timestamp
	identity        kv.Identity

	probe          mvcc.Probe
	foundBefore    bool         // with a duplicate: a value was there before it
	current        mvcc.Version // newest on disk, a copy; only if expect
	currentFound   bool
	newest         mvcc.Newest // as memory and disk together have it
	currentIsKnown bool
}

func newWrite(r *Replica, req *kv.Request, done func(*kv.Response)) *write {
	w := &write{r: r, req: req, done: done}
	w.ops, w.hold.keys, w.undo = w.one[:0], w.oneKey[:0], w.oneUndo[:0]
	conditional := false
	add := func(o op) {
		o.name = string(o.key)
		conditional = conditional || o.expect != kv.ExpectNothing
		w.ops = append(w.ops, o)
		w.hold.keys = append(w.hold.keys, o.name)
	}
	if req.Verb != kv.VerbAtomic {
		o := op{
			key: req.Key, value: req.Value, identity: req.Identity,
			tombstone: req.Verb == kv.VerbDelete,
		}
		if req.Verb == kv.VerbCompareAndSwap {
			o.tombstone = req.Flags&kv.FlagDelete != 0
			o.expect, o.expected = req.Expect, req.Expected
			o.expectedVersion = req.ExpectedVersion
		}
		add(o)
	}
	for i := range req.Ops {
		if req.Verb != kv.VerbAtomic {
			break
		}
		from := &req.Ops[i]
		id := req.Identity
		id.Operation = uint32(i)
		add(op{
			key: from.Key, value: from.Value, identity: id, tombstone: from.Delete,
			expect: from.Expect, expected: from.Expected, expectedVersion: from.ExpectedVersion,
		})
	}
	w.hold.exclusive = conditional && !canary.On(canary.NoLatchWait)
	return w
}

// bytes is what the write counts against the inbox.
func (w *write) bytes() int {
	n := 64
	for i := range w.ops {
		n += len(w.ops[i].key) + len(w.ops[i].value) + len(w.ops[i].expected)
	}
	return n
}

// span is the smallest span that holds all keys.
func (w *write) span() (lower, upper []byte) {
	lower, upper = w.ops[0].key, w.ops[0].key
	for i := range w.ops {
		if bytes.Compare(w.ops[i].key, lower) < 0 {
			lower = w.ops[i].key
		}
		if bytes.Compare(w.ops[i].key, upper) > 0 {
			upper = w.ops[i].key
		}
	}
	return lower, append(bytes.Clone(upper), 0)
}

// prefetch looks up on disk what evaluation must know. On the caller's
// goroutine before the shard sees the write; on the shard only if what was
// found is too old by then.
func (w *write) prefetch() error {
	// The state is read before the iterator opens, so the iterator sees at least
	// what is applied in it.
	s := w.r.state.Load()
	lower, upper := w.span()
	it, err := mvcc.NewIterator(w.r.table.cfg.Store.State().DB(), lower, upper)
	if err != nil {
		return err
	}
	for i := range w.ops {
		if err = w.ops[i].lookUp(it); err != nil {
			break
		}
	}
	if closeErr := it.Close(); err == nil {
		err = closeErr
	}
	if err == nil && s.leads() {
		w.hint = hint{term: s.lead.term, applied: s.applied}
	}
	return err
}

func (o *op) lookUp(it *mvcc.Iterator) (err error) {
	id := o.identity
	if canary.On(canary.RetryTwice) {
		id = kv.Identity{}
	}
	if o.probe, err = it.Probe(o.key, id); err != nil {
		return err
	}
	if o.probe.Duplicate {
		_, o.foundBefore, err = it.Get(o.key, o.probe.DuplicateAt-1)
		return err
	}
	if o.expect == kv.ExpectNothing {
		return nil
	}
	v, found, err := it.Get(o.key, hlc.MaxTimestamp)
	o.current, o.currentFound = v, found
	o.current.Value = bytes.Clone(v.Value)
	return err
}

// Run is the write's first step on the shard.
func (w *write) Run() {
	defer w.r.clockOut(w.r.clockIn())
	resp := w.r.refuseWrite(w)
	if resp == nil {
		resp = w.r.refuseFrozen(false)
	}
	if resp != nil {
		w.answer(resp)
		return
	}
	w.r.latches.acquire(&w.hold, w)
}

// granted goes on when no conflicting request is in the way. It may have
// waited, so it looks again who leads and where the bounds are.
func (w *write) granted() {
	resp := w.r.refuseWrite(w)
	if resp == nil {
		resp = w.r.refuseFrozen(true)
	}
	if resp != nil {
		w.end(resp)
		return
	}
	w.r.evaluate(w)
}

// aborted: leadership was lost before the write was evaluated.
func (w *write) aborted() { w.answer(w.r.notLeader(false)) }

// end releases the latches and answers; nothing was proposed.
func (w *write) end(resp *kv.Response) {
	w.retract()
	w.r.latches.release(&w.hold)
	w.answer(resp)
}

func (w *write) answer(resp *kv.Response) {
	resp.ID = w.req.ID
	done := w.done
	if done == nil {
		invariant.Failf("request %d is answered twice", w.req.ID)
	}
	w.done = nil
	done(resp)
}

// finished ends a write that was evaluated, and the retries that came while it
// was in flight.
func (w *write) finished(v verdict) {
	w.retract() // before the answer: who has it may read at once
	for _, a := range w.attached {
		resp := *w.outcome(v) // a copy: each has an ID of its own
		a.answer(&resp)
	}
	w.attached = nil
	w.answer(w.outcome(v))
}

func (w *write) outcome(v verdict) *kv.Response {
	switch v {
	case applied:
		return &w.resp
	case refused:
		return overloaded()
	default:
		return w.r.notLeader(v == lost)
	}
}
