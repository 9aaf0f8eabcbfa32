package ranges

import (
	"bytes"
	"sync"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// read is a get, a scan or a question for a timestamp on its way.
//
// The order of its steps is what makes it linearizable: fix the timestamp and
// move the clock to it; confirm leadership (the frames that do so carry a
// stamp at or above the timestamp, so any later leader writes above it); wait
// until all that was committed is applied; check the bounds; wait for writes
// in flight at or below the timestamp; open the iterator; check once more.
type read struct {
	r          *Replica
	req        *kv.Request
	done       func(*kv.Response)
	term       ids.Term // of the leadership under which ts was fixed
	ts         hlc.Timestamp
	start, end []byte // clipped to the range; end empty: the key start
}

// submitRead begins a read on the caller's goroutine.
func (r *Replica) submitRead(req *kv.Request, done func(*kv.Response)) {
	rd := &read{r: r, req: req, done: done}
	if resp := rd.fix(); resp != nil {
		rd.answer(resp)
		return
	}
	r.load.read()
	if err := r.enqueue(rd, 64+len(req.Key)+len(req.End)); err != nil {
		rd.answer(r.enqueueError(err))
	}
}

// fix fixes the timestamp, after it has looked in which term this replica leads.
func (rd *read) fix() *kv.Response {
	r, clock := rd.r, rd.r.table.cfg.Clock
	s := r.state.Load()
	if !s.lead.mine || s.destroyed {
		return r.notLeader(false)
	}
	rd.term, rd.ts = s.lead.term, rd.req.Timestamp
	if rd.ts != 0 {
		if err := clock.Update(rd.ts); err != nil {
			return clockError(err)
		}
		return nil
	}
	ts, err := clock.Now()
	if err != nil {
		return clockError(err)
	}
	rd.ts = ts
	return nil
}

// Run asks for confirmation of leadership, of the one under which the timestamp
// was fixed. Another one proves nothing for it: this goroutine may have fixed
// it under a leadership that was over already, with a clock behind that of the
// next leader, which had acknowledged writes above it; and before it came here
// this replica may have been elected again. Confirmed in its own term, no later
// leader was elected before the read came, and what earlier ones acknowledged
// lies below the clock of the election.
func (rd *read) Run() {
	if rd.r.state.Load().lead.term != rd.term {
		rd.answer(rd.r.notLeader(false))
		return
	}
	rd.r.confirm(rd)
}

// confirm calls w back when a quorum has confirmed, after this call, that this
// replica leads, and all that was committed then is applied. A lease will
// answer here without a round trip.
func (r *Replica) confirm(w multiraft.ReadWaiter) { r.group().Read(w) }

// ReadReady goes on when leadership is confirmed.
func (rd *read) ReadReady(err error) {
	if err != nil {
		rd.answer(rd.r.readError(err))
		return
	}
	rd.granted()
}

// granted goes on when the range may be read: bounds as they are now, nothing
// in flight at or below the timestamp. Called again after each wait, because a
// split may have passed meanwhile.
func (rd *read) granted() {
	r := rd.r
	s := r.state.Load()
	if !s.lead.mine || s.destroyed || !s.initialised() {
		rd.answer(r.notLeader(false))
		return
	}
	if rd.fixesInstant() && !holdsSpan(s.desc, rd.req.Key, rd.spanEnd()) {
		rd.answer(r.table.wrongRange(rd.req.Key, rd.req.End))
		return
	}
	if rd.req.Verb == kv.VerbReadTimestamp {
		rd.answer(&kv.Response{Timestamp: rd.ts})
		return
	}
	if resp := rd.clip(s.desc); resp != nil {
		rd.answer(resp)
		return
	}
	if !r.latches.idle() && r.latches.await(string(rd.start), string(rd.end), rd.ts, rd) {
		return
	}
	r.reads.push(rd, r)
}

// fixesInstant says that this read's timestamp is to become the instant of a
// whole span. Such a span must lie in this range: one that was clipped to it
// would leave the client believing that the rest was asked, too, and a write
// acknowledged by the rest's leader may lie above this leader's clock.
func (rd *read) fixesInstant() bool {
	return rd.req.Verb == kv.VerbReadTimestamp ||
		rd.req.Verb == kv.VerbScan && rd.req.Timestamp == 0
}

// spanEnd is the end of the span that the request names, one key at least.
func (rd *read) spanEnd() []byte {
	if len(rd.req.End) > 0 {
		return rd.req.End
	}
	return append(bytes.Clone(rd.req.Key), 0)
}

// aborted: leadership was lost while the read waited.
func (rd *read) aborted() { rd.answer(rd.r.notLeader(false)) }

// clip cuts the span to the range, or says that the range does not hold where
// the read begins.
func (rd *read) clip(d *metapb.RangeDescriptor) *kv.Response {
	req := rd.req
	rd.start, rd.end = req.Key, nil
	if req.Verb == kv.VerbGet {
		if !holds(d, req.Key) && !canary.On(canary.SkipBoundsRecheck) {
			return rd.r.table.wrongRange(req.Key, nil)
		}
		return nil
	}
	rd.end = req.End
	if canary.On(canary.SkipBoundsRecheck) {
		return nil
	}
	if req.Flags&kv.FlagReverse != 0 {
		if bytes.Compare(d.GetStart(), req.End) >= 0 || bytes.Compare(req.End, d.GetEnd()) > 0 {
			return rd.r.table.wrongRange(req.Key, req.End)
		}
		if bytes.Compare(rd.start, d.GetStart()) < 0 {
			rd.start = d.GetStart()
		}
		return nil
	}
	if !holds(d, req.Key) {
		return rd.r.table.wrongRange(req.Key, req.End)
	}
	if bytes.Compare(rd.end, d.GetEnd()) > 0 {
		rd.end = d.GetEnd()
	}
	return nil
}

func (rd *read) answer(resp *kv.Response) {
	resp.ID = rd.req.ID
	rd.done(resp)
}

// readQueue holds reads that wait for a reader. All that become ready until
// the reader comes share its iterator.
type readQueue struct {
	mu        sync.Mutex
	list      []*read
	scheduled bool
	replacing int // how many snapshots and splits are replacing the data
}

func (q *readQueue) push(rd *read, r *Replica) {
	q.mu.Lock()
	q.list = append(q.list, rd)
	start := !q.scheduled
	q.scheduled = true
	q.mu.Unlock()
	if start {
		r.table.cfg.Execute(r.serveReads)
	}
}

func (q *readQueue) take() (list []*read, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.list), maxReadsPerJob)
	list, q.list = q.list[:n:n], q.list[n:]
	if len(q.list) == 0 {
		q.list = nil
	}
	q.scheduled = len(q.list) > 0
	return list, q.scheduled
}

// replace says that data of the replica is about to change under the readers
// in a way that its published state does not tell yet; replaced, that it tells
// now, or that nothing changed.
func (q *readQueue) replace() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.replacing++
}

func (q *readQueue) replaced() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.replacing--
}

func (q *readQueue) isReplacing() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.replacing > 0
}

// serveReads is a job off the shard: one iterator for all reads that are ready.
func (r *Replica) serveReads() {
	list, more := r.reads.take()
	if more {
		defer r.table.cfg.Execute(r.serveReads)
	}
	before := r.state.Load()
	d := before.desc
	lower, upper := d.GetStart(), d.GetEnd()
	if canary.On(canary.SkipBoundsRecheck) {
		lower, upper = []byte{kv.SystemPrefix}, []byte{kv.EndPrefix}
	}
	it, err := mvcc.NewIterator(r.table.cfg.Store.State().DB(), lower, upper)
	if err != nil {
		for _, rd := range list {
			rd.answer(internalError(err))
		}
		return
	}
	// What the iterator sees is at most as old as this state. If the replica is
	// there now, it was when the iterator opened, and the iterator pins what it
	// saw; if the bounds hold now, they held then (they only shrink), and the
	// right half's group begins to write here only after they shrank. The
	// threshold is published before the first deletion under it is visible.
	// Whether the data is being replaced is asked before the state is loaded:
	// asked afterwards, an install that ended in between would show its data
	// with the bounds and the threshold of before.
	replacing := r.reads.isReplacing()
	now := r.state.Load()
	gone := now.destroyed || replacing
	for _, rd := range list {
		resp := rd.checkAgain(now, before)
		switch {
		case gone:
			resp = r.notLeader(false)
		case resp == nil:
			resp = rd.serve(it)
		}
		rd.answer(resp)
	}
	if err := it.Close(); err != nil {
		r.table.cfg.Logger.Error("close iterator", "range", r.id, "error", err)
	}
}

// checkAgain looks at what may have changed since the read passed the latches.
func (rd *read) checkAgain(now, before *state) *kv.Response {
	if rd.ts <= now.threshold {
		return belowThreshold()
	}
	if canary.On(canary.SkipBoundsRecheck) {
		return nil
	}
	end := rd.end
	if len(end) == 0 {
		end = append(bytes.Clone(rd.start), 0)
	}
	if !holdsSpan(now.desc, rd.start, end) || !holdsSpan(before.desc, rd.start, end) {
		return rd.r.table.wrongRange(rd.start, rd.end)
	}
	return nil
}

func (rd *read) serve(it *mvcc.Iterator) *kv.Response {
	if rd.req.Verb == kv.VerbScan {
		return rd.scan(it)
	}
	v, found, err := it.Get(rd.req.Key, rd.ts)
	switch {
	case err != nil:
		return internalError(err)
	case !found:
		return &kv.Response{Code: kv.CodeNotFound, Timestamp: rd.ts}
	}
	return &kv.Response{Found: true, Timestamp: v.Timestamp, Value: bytes.Clone(v.Value)}
}

// scan reads a page; at the end of the range it says where to go on.
func (rd *read) scan(it *mvcc.Iterator) *kv.Response {
	req := rd.req
	limit := int(req.Limit)
	if limit <= 0 || limit > kv.MaxScanLimit {
		limit = kv.MaxScanLimit
	}
	reverse := req.Flags&kv.FlagReverse != 0
	rows, resume, err := it.Scan(mvcc.ScanOptions{
		Start:     rd.start,
		End:       rd.end,
		Timestamp: rd.ts,
		Limit:     limit,
		MaxBytes:  kv.MaxScanBytes,
		Reverse:   reverse,
		KeysOnly:  req.Flags&kv.FlagKeysOnly != 0,
	})
	if err != nil {
		return internalError(err)
	}
	if resume == nil && !reverse && !bytes.Equal(rd.end, req.End) {
		resume = rd.end
	}
	if resume == nil && reverse && !bytes.Equal(rd.start, req.Key) {
		resume = rd.start
	}
	return &kv.Response{
		Timestamp: rd.ts, Rows: rows, More: resume != nil, ResumeKey: bytes.Clone(resume),
	}
}
