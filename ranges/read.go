package ranges

import (
	"bytes"
	"sync"
	"sync/atomic"

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
// move the clock to it; make sure of leadership, by the lease (leaseread.go) or
// by a ReadIndex (the frames that do so carry a stamp at or above the timestamp,
// so any later leader writes above it); wait for what is committed and not
// applied; check the bounds; wait for writes in flight at or below the
// timestamp; open the iterator; check once more.
type read struct {
	r          *Replica
	req        *kv.Request
	done       func(*kv.Response)
	term       ids.Term // of the leadership under which ts was fixed
	ts         hlc.Timestamp
	start, end []byte // clipped to the range; end empty: the key start
	leased     bool   // the lease holds it, no ReadIndex was asked

	// On the caller's goroutine, see leaseread.go.
	gone  bool   // answered, or another goroutine's
	slow  bool   // the shard has to decide
	timed bool   // its part of the frame's time counts, see load.go
	hash  uint64 // of a get's key
	word  uint64 // of its stripe, before the timestamp was fixed
	state *state // under which the lease was found to hold
}

// submitRead begins a read on the caller's goroutine.
func (r *Replica) submitRead(req *kv.Request, done func(*kv.Response)) {
	b := &leaseReads{table: r.table}
	b.one[0] = read{r: r, req: req, done: done}
	b.list = b.one[:]
	b.begin()
}

// queue leaves the read to the shard.
func (rd *read) queue() {
	rd.gone = true // before the shard has it
	if err := rd.r.enqueue(rd, 64+len(rd.req.Key)+len(rd.req.End)); err != nil {
		rd.answer(rd.r.enqueueError(err))
	}
}

// Run makes sure of leadership, of the one under which the timestamp was fixed.
// Another one proves nothing for it: the caller's goroutine may have fixed it
// under a leadership that was over already, with a clock behind that of the
// next leader, which had acknowledged writes above it; and before it came here
// this replica may have been elected again. Confirmed in its own term, no later
// leader was elected before the read came, and what earlier ones acknowledged
// lies below the clock of the election.
//
// Under the lease nobody waits here until what is committed is applied: what
// this leader proposed in its term stands in the latches until it is applied,
// and what was committed before is applied where a leader is ready. But a
// question for a timestamp does not wait for latches, so it must not pass a
// split.
func (rd *read) Run() {
	r := rd.r
	s := r.state.Load()
	if s.lead.term != rd.term {
		rd.answer(r.notLeader(false))
		return
	}
	pass := rd.req.Verb == kv.VerbReadTimestamp && r.moving.splits.Load() > 0
	if !pass && s.leads() && r.holdsLease(rd.term, rd.ts) {
		rd.leased = true
		rd.granted()
		return
	}
	r.group().Read(rd)
}

// holdsLease says whether this replica holds the lease of a term for a read at
// ts, to which the clock was moved before (0: at no timestamp in particular).
func (r *Replica) holdsLease(term ids.Term, ts hlc.Timestamp) bool {
	return r.table.lease(r, term, ts) == multiraft.LeaseHeld
}

// groupLease is what Table.lease is outside of tests.
func groupLease(r *Replica, term ids.Term, ts hlc.Timestamp) multiraft.LeaseState {
	g := r.raft.Load()
	if g == nil || r.table.cfg.QuorumReads {
		return multiraft.LeaseNone // being born, or told to do without
	}
	return g.Lease(term, ts)
}

// confirm calls w back when it is sure that this replica leads now, and all that
// was committed then is applied or stands in the latches. ts is what the answer
// says something about, 0 if nothing. Shard only.
func (r *Replica) confirm(ts hlc.Timestamp, w multiraft.ReadWaiter) {
	if s := r.state.Load(); s.leads() && r.holdsLease(s.lead.term, ts) {
		w.ReadReady(nil)
		return
	}
	r.group().Read(w)
}

// ReadReady goes on when a ReadIndex has confirmed leadership.
func (rd *read) ReadReady(err error) {
	if err != nil {
		rd.answer(rd.r.readError(err))
		return
	}
	if canary.On(canary.ReadIndexLate) && rd.req.Timestamp == 0 {
		if rd.ts, err = rd.r.table.cfg.Clock.Now(); err != nil {
			rd.answer(clockError(err))
			return
		}
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
	if s.frozen() {
		// While the merge is on its way here, whoever comes waits for its end.
		rd.start, rd.end = s.desc.GetStart(), s.desc.GetEnd()
		if !r.latches.await(string(rd.start), string(rd.end), everyRead, rd) {
			rd.answer(r.notLeader(false))
		}
		return
	}
	if resp := rd.admit(s); resp != nil {
		rd.answer(resp)
		return
	}
	if !r.latches.idle() && r.latches.await(string(rd.start), string(rd.end), rd.ts, rd) {
		return
	}
	r.reads.push(rd, r)
}

// admit checks the bounds and cuts the span to them. It returns the answer if
// there is nothing to be read.
func (rd *read) admit(s *state) *kv.Response {
	if rd.fixesInstant() && !holdsSpan(s.desc, rd.req.Key, rd.spanEnd()) {
		return rd.r.table.wrongRange(rd.req.Key, rd.req.End)
	}
	if rd.req.Verb == kv.VerbReadTimestamp {
		rd.witness()
		rd.r.load.reads.add(1, 0) // no key to split at
		return &kv.Response{Timestamp: rd.ts}
	}
	return rd.clip(s.desc)
}

// witness tells the simulator, if it is there, of a read that is answered.
func (rd *read) witness() {
	if w := rd.r.table.cfg.Witness; w != nil {
		w.Read(rd.r.id, rd.term, rd.ts, rd.leased)
	}
}

// witnessWrite tells it of a write that was evaluated.
func (r *Replica) witnessWrite(ts hlc.Timestamp) {
	if w := r.table.cfg.Witness; w != nil {
		w.Write(r.id, r.state.Load().lead.term, ts)
	}
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
	// replacing is how many snapshots and splits are replacing the data: above 0,
	// data of the replica is about to change under the readers in a way that its
	// published state does not tell yet.
	replacing atomic.Int32
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

// replace comes before the data changes; replaced, when the state tells what
// there is now, or when nothing changed.
func (q *readQueue) replace()  { q.replacing.Add(1) }
func (q *readQueue) replaced() { q.replacing.Add(-1) }

func (q *readQueue) isReplacing() bool { return q.replacing.Load() > 0 }

// serveReads is a job off the shard: one iterator for all reads that are ready.
func (r *Replica) serveReads() {
	list, more := r.reads.take()
	defer r.clockOutReads(r.clockInReads(list))
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
	now, there := r.afterOpen()
	for _, rd := range list {
		resp := rd.checkAgain(now, before)
		switch {
		case !there:
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

// afterOpen returns the state with which to check reads once more, after their
// iterator was opened; there: the data was all there then.
//
// What the iterator sees is at most as old as this state. If the replica is
// there now, it was when the iterator opened, and the iterator pins what it
// saw; if the bounds hold now and held when the read was admitted, they held
// then (a split narrows them; whether a merge widened them meanwhile is asked,
// too), and the right half's group begins to
// write here only after they shrank. A range that froze since is as it was: the
// read was admitted before, hence its timestamp lies below all that comes after. The
// threshold is published before the first deletion under it is visible.
// Whether the data is being replaced is asked before the state is loaded:
// asked afterwards, an install that ended in between would show its data
// with the bounds and the threshold of before.
func (r *Replica) afterOpen() (now *state, there bool) {
	replacing := r.reads.isReplacing()
	now = r.state.Load()
	return now, !now.destroyed && !replacing
}

// checkAgain looks at what may have changed since the read passed the latches.
func (rd *read) checkAgain(now, before *state) *kv.Response {
	if rd.ts <= now.threshold {
		return belowThreshold()
	}
	if canary.On(canary.SkipBoundsRecheck) {
		return nil
	}
	if now.grown != before.grown {
		// Bounds that hold before and after held all the while only if they did not
		// widen in between.
		return rd.r.notLeader(false)
	}
	end := rd.end
	if len(end) == 0 {
		if !holds(now.desc, rd.start) || !holds(before.desc, rd.start) {
			return rd.r.table.wrongRange(rd.start, nil)
		}
		return nil
	}
	if !holdsSpan(now.desc, rd.start, end) || !holdsSpan(before.desc, rd.start, end) {
		return rd.r.table.wrongRange(rd.start, rd.end)
	}
	return nil
}

func (rd *read) serve(it *mvcc.Iterator) *kv.Response {
	rd.witness()
	if rd.req.Verb == kv.VerbScan {
		return rd.scan(it)
	}
	v, found, err := it.Get(rd.req.Key, rd.ts)
	rd.r.countRead(rd.req.Key, nil, len(rd.req.Key)+len(v.Value))
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
	rd.countScan(rows, resume, reverse)
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
