package ranges

import (
	"bytes"
	"errors"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// evaluate decides what a write does and puts it into the entry under
// construction. REQUIRES: the shard, latches granted, ready leader, keys in
// bounds. It is the only place, with range deletions, that gives writes their
// meaning.
func (r *Replica) evaluate(w *write) {
	s := r.state.Load()
	if r.answerDuplicate(w) {
		return
	}
	if err := r.resolve(w, s); err != nil {
		w.end(internalError(err))
		return
	}
	first := &w.ops[0]
	if first.probe.Duplicate {
		// Committed and applied: what happened once is answered once more.
		w.end(&kv.Response{Timestamp: first.probe.DuplicateAt, Found: first.foundBefore})
		return
	}
	if id := first.identity; id.Client != 0 && id.Floor < s.threshold {
		// The version that would show the first attempt may be collected.
		w.end(&kv.Response{
			Code:    kv.CodeUnknownOutcome,
			Message: "the write's floor is below the garbage collection threshold",
		})
		return
	}
	for i := range w.ops {
		if o := &w.ops[i]; !o.holdsExpectation() {
			w.conflict(o)
			return
		}
	}
	for i := range w.ops {
		w.announce(w.ops[i].key)
	}
	ts, err := r.writeTimestamp(w)
	if err != nil {
		w.end(unavailable(err.Error()))
		return
	}
	if err := r.stageWrite(w, ts); err != nil {
		w.end(internalError(err))
	}
}

// writeTimestamp takes the timestamp of a write that is announced: above the
// low water of the term and above every read that was noted (R9i), since both
// are of the same clock.
func (r *Replica) writeTimestamp(w *write) (hlc.Timestamp, error) {
	if canary.On(canary.WriteBelowClock) {
		above := hlc.Timestamp(0)
		for i := range w.ops {
			above = max(above, w.ops[i].newest.Timestamp)
		}
		if above != 0 {
			return above + 1, nil
		}
	}
	return r.table.cfg.Clock.Now()
}

// answerDuplicate answers a write that this leader remembers, or attaches it
// to the attempt that is in flight.
func (r *Replica) answerDuplicate(w *write) bool {
	id := w.ops[0].identity
	if id.Client == 0 || canary.On(canary.RetryTwice) {
		return false
	}
	rec := r.recent.ident(identityOf(id))
	if rec == nil {
		return false
	}
	if rec.flight != nil {
		rec.flight.attached = append(rec.flight.attached, w)
		r.latches.release(&w.hold)
		return true
	}
	w.end(&kv.Response{Timestamp: rec.at, Found: rec.found})
	return true
}

// resolve finds the newest version of each key.
//
// Memory has it, or else it was applied at or below recent.floorIndex; so the
// look at the disk counts if it began with at least that much applied, under
// this very leadership. The identity needs the disk only for a floor below
// memFloor: all above is in memory (answerDuplicate came before).
func (r *Replica) resolve(w *write, s *state) error {
	fresh := w.hint.term == s.lead.term && r.recent.trusts(w.hint.applied)
	for i := range w.ops {
		o := &w.ops[i]
		rec := r.recent.key(o.name)
		old := o.identity.Client != 0 && o.identity.Floor < r.recent.memFloor
		if (rec == nil || old) && !fresh {
			if err := w.prefetch(); err != nil {
				return err
			}
			fresh = true
		}
		o.newest = o.probe.Newest
		if rec != nil {
			o.newest = rec.newest
		}
	}
	if w.ops[0].probe.Duplicate {
		return nil // the answer is known, nothing is compared
	}
	for i := range w.ops {
		o := &w.ops[i]
		if o.expect == kv.ExpectNothing || o.current.Timestamp == o.newest.Timestamp {
			continue
		}
		// The value that the caller's goroutine saw is not the newest any more.
		// Nothing is in flight for the key, so the disk has the newest.
		if err := w.prefetch(); err != nil {
			return err
		}
		if o.current.Timestamp != o.newest.Timestamp && !canary.On(canary.NoLatchWait) {
			invariant.Failf("newest version of a latched key is %d on disk and %d in memory",
				o.current.Timestamp, o.newest.Timestamp)
		}
	}
	return nil
}

func (o *op) holdsExpectation() bool {
	switch o.expect {
	case kv.ExpectNothing:
		return true
	case kv.ExpectAbsent:
		return !o.currentFound
	case kv.ExpectExists:
		return o.currentFound
	case kv.ExpectValue:
		return o.currentFound && bytes.Equal(o.current.Value, o.expected)
	case kv.ExpectVersion:
		return o.currentFound && o.current.Timestamp == o.expectedVersion
	default:
		return false // refused by validate
	}
}

// conflict answers a failed comparison. No committed entry carries that
// answer, so it is a read: leadership is confirmed now, after the comparison, by
// the lease or by a ReadIndex. If it still holds then, no other leader wrote
// before the comparison. The answer names no timestamp at which it would have to
// stay true, so the lease need not reach one.
func (w *write) conflict(o *op) {
	resp := &kv.Response{Code: kv.CodeConflict, Found: o.currentFound}
	if o.currentFound {
		resp.Value, resp.Timestamp = o.current.Value, o.current.Timestamp
	}
	w.r.latches.release(&w.hold)
	w.r.confirm(0, &conflictAnswer{w: w, resp: resp})
}

type conflictAnswer struct {
	w    *write
	resp *kv.Response
}

// ReadReady answers the conflict once leadership is confirmed.
func (c *conflictAnswer) ReadReady(err error) {
	if err != nil {
		c.w.answer(c.w.r.readError(err))
		return
	}
	c.w.answer(c.resp)
}

// stageWrite writes all ops into the entry under construction at ts. After an
// error nothing of the write is left in it.
func (r *Replica) stageWrite(w *write, ts hlc.Timestamp) error {
	if r.open.full() {
		r.seal()
	}
	flight := &identRecord{at: ts, flight: w, found: w.ops[0].found()}
	for i := range w.ops {
		o := &w.ops[i]
		v := mvcc.Version{
			Timestamp: ts, Tombstone: o.tombstone, Identity: o.identity, Value: o.value,
		}
		rec := flight
		if i > 0 {
			rec = nil // a retry is recognised by its first operation
		}
		if err := r.stageVersion(w, o.name, o.key, v, o.newest, rec); err != nil {
			return r.dropStaged(w, err)
		}
	}
	w.resp = kv.Response{Timestamp: ts, Found: flight.found}
	w.hold.ts = ts
	r.open.writes = append(r.open.writes, w)
	r.countWrite(w.ops)
	r.witnessWrite(ts)
	return nil
}

func (o *op) found() bool { return o.newest.Found && !o.newest.Tombstone }

// stageVersion writes one version and remembers it.
func (r *Replica) stageVersion(
	w *write, name string, key []byte, v mvcc.Version, newest mvcc.Newest, rec *identRecord,
) error {
	if newest.Found && v.Timestamp <= newest.Timestamp {
		invariant.Failf("%v writes at %d, not above the key's newest version %d",
			r.id, v.Timestamp, newest.Timestamp)
	}
	b := r.open.target(r.table.cfg.Store)
	delta, now, err := mvcc.Put(b.Pebble(), key, v, newest)
	if err != nil {
		return err
	}
	r.open.delta.Add(delta)
	w.undo = append(w.undo, r.recent.note(name, now, identityOf(v.Identity), rec))
	return nil
}

// dropStaged handles a version that could not be written into the batch, which
// no input should bring about: the whole entry under construction is given up,
// since a batch cannot be cut back.
func (r *Replica) dropStaged(w *write, err error) error {
	writes := append(r.open.writes, w)
	r.open.writes = nil
	r.open.drop()
	p := &proposal{writes: writes}
	r.takeBack(p)
	p.writes = writes[:len(writes)-1] // w is answered by the caller
	r.finish(p, refused, 0)
	return errors.Join(errors.New("write a version into a batch"), err)
}
