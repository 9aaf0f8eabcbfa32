package ranges

import (
	"bytes"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// deleteRange is a page of a range deletion. It takes the span for itself,
// reads it away from the shard (nothing can change meanwhile), and writes a
// tombstone for each key whose newest version is a value at or below the
// timestamp that the client fixed before the first page. A key whose newest
// version is a tombstone of the same call was deleted by an earlier attempt,
// and counts.
type deleteRange struct {
	w    *write // carries answer, hold and undo; without ops
	term ids.Term
}

// newestKey is a key as the page's read found it.
type newestKey struct {
	key    []byte
	newest mvcc.Newest
}

// deletePage is what the page's read found.
type deletePage struct {
	keys    []newestKey
	already uint32
	resume  []byte // nil: the span is done
}

func (r *Replica) submitDeleteRange(req *kv.Request, done func(*kv.Response)) {
	d := &deleteRange{w: &write{r: r, req: req, done: done}}
	if resp := r.admitWrite(req); resp != nil {
		d.w.answer(resp)
		return
	}
	// The tombstones lie above the timestamp, since the clock does.
	if err := r.table.cfg.Clock.Update(req.Timestamp); err != nil {
		d.w.answer(clockError(err))
		return
	}
	if err := r.enqueue(d, 64+len(req.Key)+len(req.End)); err != nil {
		d.w.answer(r.enqueueError(err))
	}
}

// Run enters the latches with the part of the span that the range holds.
func (d *deleteRange) Run() {
	resp := d.refuse()
	if resp == nil {
		resp = d.w.r.refuseFrozen(false)
	}
	if resp != nil {
		d.w.answer(resp)
		return
	}
	end := d.w.req.End
	if e := d.w.r.descriptor().GetEnd(); bytes.Compare(end, e) > 0 {
		end = e
	}
	d.w.hold.start, d.w.hold.end = string(d.w.req.Key), string(end)
	d.w.hold.exclusive = true
	d.w.r.latches.acquire(&d.w.hold, d)
}

func (d *deleteRange) refuse() *kv.Response {
	r, req := d.w.r, d.w.req
	s := r.state.Load()
	switch {
	case !s.leads():
		return r.notLeader(false)
	case !holds(s.desc, req.Key):
		return r.table.wrongRange(req.Key, req.End)
	case req.Identity.Floor < s.threshold:
		return &kv.Response{
			Code:    kv.CodeUnknownOutcome,
			Message: "the deletion's floor is below the garbage collection threshold",
		}
	}
	return nil
}

// granted: nothing is in flight in the span and nothing will be. A split that
// passed while this waited has taken keys away; the bounds tell.
func (d *deleteRange) granted() {
	r := d.w.r
	s := r.state.Load()
	resp := d.refuse()
	if resp == nil {
		resp = r.refuseFrozen(true)
	}
	if resp != nil {
		d.w.end(resp)
		return
	}
	if e := s.desc.GetEnd(); d.w.hold.end > string(e) {
		d.w.hold.end = string(e)
	}
	d.term = s.lead.term
	r.offShard(func() func() {
		page, err := d.look()
		return func() { d.write(page, err) }
	})
}

func (d *deleteRange) aborted() { d.w.aborted() }

// look reads the page, away from the shard.
func (d *deleteRange) look() (p deletePage, err error) {
	start, end := []byte(d.w.hold.start), []byte(d.w.hold.end)
	it, err := d.w.r.table.cfg.Store.State().DB().NewIter(&pebble.IterOptions{
		LowerBound: mvcc.AppendKey(nil, start, 0),
		UpperBound: mvcc.AppendKey(nil, end, 0),
		KeyTypes:   pebble.IterKeyTypePointsOnly,
	})
	if err != nil {
		return p, fmt.Errorf("read span: %w", err)
	}
	err = p.fill(it, d.w.req)
	if closeErr := it.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return p, fmt.Errorf("read span: %w", err)
	}
	if p.resume == nil && !bytes.Equal(end, d.w.req.End) {
		p.resume = end
	}
	return p, nil
}

// fill visits the newest version of each key until the page is full.
func (p *deletePage) fill(it *pebble.Iterator, req *kv.Request) error {
	limit := int(req.Limit)
	if limit <= 0 || limit > deleteRangeKeys {
		limit = deleteRangeKeys
	}
	size := 0
	for visits, ok := 0, it.First(); ok; visits, ok = visits+1, it.NextPrefix() {
		key, ts, isVersion := mvcc.DecodeKey(it.Key())
		if !isVersion {
			return mvcc.ErrCorrupt
		}
		if len(p.keys) >= limit || visits >= deleteRangeVisits || size >= maxPayloadBytes {
			p.resume = bytes.Clone(key)
			return nil
		}
		raw, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		v, err := mvcc.DecodeValue(raw)
		if err != nil {
			return err
		}
		switch {
		case !v.Tombstone && ts <= req.Timestamp:
			p.keys = append(p.keys, newestKey{key: bytes.Clone(key), newest: mvcc.Newest{
				Found:      true,
				Timestamp:  ts,
				Identity:   v.Identity,
				KeyBytes:   int64(len(it.Key())),
				ValueBytes: int64(len(raw)),
			}})
			size += len(key) + 32
		case v.Tombstone && v.Identity.Client == req.Identity.Client &&
			v.Identity.Sequence == req.Identity.Sequence:
			p.already++
		}
	}
	return it.Error()
}

// write puts the page's tombstones into the entry under construction.
func (d *deleteRange) write(p deletePage, err error) {
	w, r := d.w, d.w.r
	switch {
	case w.hold.done: // leadership was lost and the hold dropped
		w.answer(r.notLeader(false))
		return
	case !r.leadsIn(d.term):
		w.end(r.notLeader(false))
		return
	case err != nil:
		w.end(internalError(err))
		return
	}
	for _, k := range p.keys {
		w.announce(k.key)
	}
	var ts hlc.Timestamp
	if ts, err = r.table.cfg.Clock.Now(); err != nil {
		w.end(unavailable(err.Error()))
		return
	}
	w.resp = kv.Response{
		Timestamp: ts,
		Count:     p.already + uint32(len(p.keys)),
		More:      p.resume != nil,
		ResumeKey: p.resume,
	}
	if len(p.keys) == 0 {
		// Nothing to write: the answer is a read.
		resp := w.resp
		r.latches.release(&w.hold)
		r.confirm(ts, &conflictAnswer{w: w, resp: &resp})
		return
	}
	r.seal() // a page stands alone
	for _, k := range p.keys {
		v := mvcc.Version{Timestamp: ts, Tombstone: true, Identity: w.req.Identity}
		if err := r.stageVersion(w, string(k.key), k.key, v, k.newest, nil); err != nil {
			w.end(internalError(r.dropStaged(w, err)))
			return
		}
	}
	w.hold.ts = ts
	r.open.writes = append(r.open.writes, w)
	r.countDeletion(p.keys)
	r.witnessWrite(ts)
}
