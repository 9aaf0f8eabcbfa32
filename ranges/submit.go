package ranges

import (
	"bytes"
	"fmt"

	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Submit routes and runs a request; done is called exactly once, on any
// goroutine (also before Submit returns), and must not block. Submit never
// waits for another node or for a lock, but it may read a block from disk. The
// request must not change until done; the response may alias it.
func (t *Table) Submit(req *kv.Request, done func(*kv.Response)) {
	r := t.route(req, done)
	if r == nil {
		return
	}
	switch req.Verb {
	case kv.VerbGet, kv.VerbScan, kv.VerbReadTimestamp:
		r.submitRead(req, done)
	case kv.VerbDeleteRange:
		r.submitDeleteRange(req, done)
	default:
		r.submitWrite(req, done)
	}
}

// route returns the replica that a request is for. nil: it is answered.
func (t *Table) route(req *kv.Request, done func(*kv.Response)) *Replica {
	resp := t.validate(req)
	if resp == nil {
		key, r := routeKey(req), (*Replica)(nil)
		if req.Verb == kv.VerbScan && req.Flags&kv.FlagReverse != 0 {
			r = t.findBefore(req.End)
		} else {
			r = t.find(key)
		}
		if r != nil {
			return r
		}
		resp = t.wrongRange(key, req.End)
	}
	resp.ID = req.ID
	done(resp)
	return nil
}

// submitWrite does on the caller's goroutine what may read from disk.
func (r *Replica) submitWrite(req *kv.Request, done func(*kv.Response)) {
	defer r.clockOut(r.clockInAs(req.Identity.Sequence + req.ID))
	w := newWrite(r, req, done)
	if resp := r.admitWrite(req); resp != nil {
		w.answer(resp)
		return
	}
	if resp := r.checkKeys(w, r.descriptor()); resp != nil {
		w.answer(resp)
		return
	}
	if !r.recent.familiar.knows(w) {
		if err := w.prefetch(); err != nil {
			w.answer(internalError(err))
			return
		}
	}
	if err := r.enqueue(w, w.bytes()); err != nil {
		w.answer(r.enqueueError(err))
	}
}

// admitWrite refuses what this node cannot take now, and moves the clock above
// the identity's floor, so that the write's versions lie above it.
func (r *Replica) admitWrite(req *kv.Request) *kv.Response {
	s := r.state.Load()
	switch {
	case !s.leads():
		return r.notLeader(false)
	case r.table.cfg.Store.ReadOnly():
		return &kv.Response{
			Code:             kv.CodeReadOnly,
			RetryAfterMillis: retryMillis,
			Message:          "the node's disk is nearly full",
		}
	case r.table.cfg.Store.WriteStalled():
		return overloaded()
	}
	if err := r.table.cfg.Clock.Update(req.Identity.Floor); err != nil {
		return clockError(err)
	}
	return nil
}

// refuseWrite is the check on the shard, before and after waiting.
func (r *Replica) refuseWrite(w *write) *kv.Response {
	s := r.state.Load()
	if !s.leads() {
		return r.notLeader(false)
	}
	return r.checkKeys(w, s.desc)
}

// refuseFrozen refuses a write of a frozen range. While the merge is under way
// here the range is held, and what comes waits for its end like everybody; who
// was let in, or comes when nothing is held, is told to come back soon.
func (r *Replica) refuseFrozen(letIn bool) *kv.Response {
	if r.state.Load().frozen() && (letIn || r.latches.free()) {
		return r.notLeader(false)
	}
	return nil
}

// checkKeys says whether all keys lie in the range: none does (wrong range),
// or some do (they are in different ranges).
func (r *Replica) checkKeys(w *write, d *metapb.RangeDescriptor) *kv.Response {
	inside := 0
	for i := range w.ops {
		if holds(d, w.ops[i].key) {
			inside++
		}
	}
	switch inside {
	case len(w.ops):
		return nil
	case 0:
		return r.table.wrongRange(w.ops[0].key, nil)
	}
	return &kv.Response{
		Code:    kv.CodeCrossRange,
		Message: "the keys of an atomic batch must lie in one range",
	}
}

// routeKey is the key that a request is routed by.
func routeKey(req *kv.Request) []byte {
	if req.Verb == kv.VerbAtomic {
		return req.Ops[0].Key
	}
	return req.Key
}

// validate refuses what is wrong in itself, whatever the state of the range.
func (t *Table) validate(req *kv.Request) *kv.Response {
	switch req.Verb {
	case kv.VerbGet, kv.VerbDelete, kv.VerbReadTimestamp:
		return validateKey(req.Key)
	case kv.VerbPut:
		if resp := validateKey(req.Key); resp != nil {
			return resp
		}
		return t.validateValue(req.Value)
	case kv.VerbCompareAndSwap:
		if req.Expect == kv.ExpectNothing || req.Expect > kv.ExpectExists {
			return invalid("compare-and-swap names no known comparison")
		}
		if resp := validateKey(req.Key); resp != nil {
			return resp
		}
		return t.validateValue(req.Value)
	case kv.VerbScan:
		return validateSpan(req)
	case kv.VerbDeleteRange:
		switch {
		case req.Timestamp == 0:
			return invalid("a range deletion needs the timestamp that fixes what it deletes")
		case req.Identity.Client == 0:
			return invalid("a range deletion needs an identity")
		}
		return validateSpan(req)
	case kv.VerbAtomic:
		return t.validateAtomic(req)
	}
	return &kv.Response{Code: kv.CodeUnknownVerb, Message: "unknown verb"}
}

func validateKey(key []byte) *kv.Response {
	switch {
	case len(key) == 0 || key[0] < kv.SystemPrefix || key[0] >= kv.EndPrefix:
		return invalid("key outside the keyspace")
	case len(key) > kv.MaxKeyBytes+1: // the prefix
		return tooLarge("key above its limit")
	}
	return nil
}

func validateSpan(req *kv.Request) *kv.Response {
	if resp := validateKey(req.Key); resp != nil {
		return resp
	}
	if bytes.Compare(req.End, []byte{kv.EndPrefix}) > 0 || bytes.Compare(req.Key, req.End) >= 0 {
		return invalid("span is empty or ends outside the keyspace")
	}
	if len(req.End) > kv.MaxKeyBytes+2 { // the prefix, and the successor of a longest key
		return tooLarge("end of span above the limit of keys")
	}
	return nil
}

func (t *Table) validateValue(value []byte) *kv.Response {
	if len(value) > t.cfg.MaxValueBytes {
		return tooLarge(fmt.Sprintf("the value has %d bytes, the limit is %d "+
			"(--max-value-size of the nodes)", len(value), t.cfg.MaxValueBytes))
	}
	return nil
}

func (t *Table) validateAtomic(req *kv.Request) *kv.Response {
	if len(req.Ops) == 0 {
		return invalid("an atomic batch without operations")
	}
	if len(req.Ops) > kv.MaxAtomicOps {
		return tooLarge("an atomic batch above its limit of operations")
	}
	total := 0
	keys := make(map[string]struct{}, len(req.Ops))
	for i := range req.Ops {
		op := &req.Ops[i]
		if resp := validateKey(op.Key); resp != nil {
			return resp
		}
		if resp := t.validateValue(op.Value); resp != nil {
			return resp
		}
		if op.Expect > kv.ExpectExists {
			return invalid("an operation names no known comparison")
		}
		keys[string(op.Key)] = struct{}{}
		total += len(op.Key) + len(op.Value)
	}
	if len(keys) != len(req.Ops) {
		return invalid("an atomic batch names a key twice")
	}
	if total > max(maxAtomicBytes, t.cfg.MaxValueBytes) {
		return tooLarge("an atomic batch above its limit of bytes")
	}
	return nil
}
