package ranges

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// A new group's log starts here on every replica: as if that much had been
// applied and cut. Not at 0, so that a replica without a state always gets a
// snapshot and can never be brought up from an empty log.
const (
	firstIndex = ids.Index(10)
	firstTerm  = ids.Term(5)
)

// change is the structural change of a range that is in progress; there is one
// at a time.
type change struct {
	op    string
	merge *merge // of which this range is the left half, if it is one
}

// begin claims the range for a change. Shard only.
func (r *Replica) begin(op string, generation uint64) error {
	s := r.state.Load()
	switch {
	case !s.leads():
		return fmt.Errorf("%s: %w", op, ErrNotLeader)
	case generation != 0 && generation != s.desc.GetGeneration():
		return fmt.Errorf("%s: %w: %d, not %d", op, ErrStaleGeneration,
			s.desc.GetGeneration(), generation)
	case r.change != nil:
		return fmt.Errorf("%s: %w: %s", op, ErrBusy, r.change.op)
	case isJoint(s.desc):
		return fmt.Errorf("%s: %w: replica change", op, ErrBusy)
	case s.desc.GetMerge() != nil:
		return fmt.Errorf("%s: %w: merge with %v", op, ErrBusy,
			ids.RangeID(s.desc.GetMerge().GetRangeId()))
	}
	r.change = &change{op: op}
	return nil
}

// split is one split on its way: choose a key, take the whole range, work out
// the right half's statistics while nothing changes, propose.
type split struct {
	r           *Replica
	key         []byte
	term        ids.Term
	hold        hold
	left, right *metapb.RangeDescriptor
	sticky      int64 // RangeDescriptor.sticky_until of the right half
	marked      bool  // in moving.splits
	done        func(left, right *metapb.RangeDescriptor, err error)
}

// Split splits a range at key (nil: where its middle is). For placement and
// tests; done is called once, on any goroutine.
func (t *Table) Split(
	id ids.RangeID, key []byte, done func(left, right *metapb.RangeDescriptor, err error),
) {
	t.SplitSticky(id, key, 0, done)
}

// SplitSticky is Split for who wants the halves to stay apart: until then, in
// milliseconds of the wall clock (math.MaxInt64: for ever, 0: not at all), placement
// does not merge them because they are small. It stands in the right half's
// descriptor and goes with that half's start: with a merge. Nothing here looks at it.
func (t *Table) SplitSticky(id ids.RangeID, key []byte, until int64,
	done func(left, right *metapb.RangeDescriptor, err error),
) {
	t.split(id, key, 0, until, done)
}

func (t *Table) split(id ids.RangeID, key []byte, generation uint64, sticky int64,
	done func(left, right *metapb.RangeDescriptor, err error),
) {
	r := t.replica(id)
	if r == nil {
		done(nil, nil, fmt.Errorf("split %v: %w", id, ErrNoReplica))
		return
	}
	task := func() { r.startSplit(key, generation, sticky, done) }
	if err := r.enqueue(multiraft.TaskFunc(task), len(key)); err != nil {
		done(nil, nil, fmt.Errorf("split %v: %w", id, err))
	}
}

// startSplit begins on the shard.
func (r *Replica) startSplit(key []byte, generation uint64, sticky int64,
	done func(left, right *metapb.RangeDescriptor, err error),
) {
	if r.id == 1 {
		done(nil, nil, fmt.Errorf("split: %w: the system range is never split", ErrRefused))
		return
	}
	if err := r.begin("split", generation); err != nil {
		done(nil, nil, err)
		return
	}
	s := r.state.Load()
	sp := &split{r: r, term: s.lead.term, sticky: sticky, done: done}
	if key != nil {
		sp.enter(key, nil)
		return
	}
	d, db := s.desc, r.table.cfg.Store.State().DB()
	r.offShard(func() func() {
		key, err := middleKey(db, d.GetStart(), d.GetEnd(), s.size())
		return func() { sp.enter(key, err) }
	})
}

// end finishes the split one way or another.
func (sp *split) end(err error) {
	sp.r.latches.release(&sp.hold)
	sp.r.change = nil
	if sp.marked {
		// Both halves are published, or nothing was proposed, or the state says
		// that this replica leads no more.
		sp.marked = false
		sp.r.moving.splits.Add(-1)
	}
	if err != nil {
		sp.done(nil, nil, fmt.Errorf("split %v: %w", sp.r.id, err))
		return
	}
	sp.done(sp.left, sp.right, nil)
}

// enter checks the key and waits for the whole range.
func (sp *split) enter(key []byte, err error) {
	r := sp.r
	s := r.state.Load()
	switch {
	case err != nil:
		sp.end(err)
		return
	case !r.leadsIn(sp.term):
		sp.end(ErrNotLeader)
		return
	case !holds(s.desc, key) || bytes.Equal(key, s.desc.GetStart()) || validateKey(key) != nil:
		sp.end(fmt.Errorf("%w: the key must lie inside the range", ErrNoSplitKey))
		return
	}
	sp.key = bytes.Clone(key)
	sp.hold.start, sp.hold.end = string(s.desc.GetStart()), string(s.desc.GetEnd())
	sp.hold.exclusive = true
	r.latches.acquire(&sp.hold, sp)
}

// granted: every earlier write of the range is applied, later ones wait. What
// is read now away from the shard is therefore exact.
func (sp *split) granted() {
	r := sp.r
	if !r.leadsIn(sp.term) {
		sp.end(ErrNotLeader)
		return
	}
	end, db := r.descriptor().GetEnd(), r.table.cfg.Store.State().DB()
	r.offShard(func() func() {
		right, err := mvcc.Compute(db, sp.key, end)
		return func() { sp.propose(right, err) }
	})
}

func (sp *split) aborted() { sp.end(ErrNotLeader) }

func (sp *split) propose(right mvcc.Delta, err error) {
	r := sp.r
	switch {
	case err != nil:
		sp.end(err)
		return
	case sp.hold.done || !r.leadsIn(sp.term):
		sp.end(ErrNotLeader)
		return
	}
	id, ok := r.table.cfg.NextRangeID()
	if !ok {
		sp.end(ErrNoID)
		return
	}
	s := r.state.Load()
	sp.left, sp.right = splitDescriptor(s.desc, sp.key, id)
	sp.right.StickyUntil = sp.sticky
	body, err := encodeSplit(sp.left, sp.right, right)
	if err != nil {
		sp.end(err)
		return
	}
	// From here every read waits: a right half that is elected elsewhere may
	// take writes before this replica has applied the split.
	sp.hold.ts = everyRead
	sp.marked = true
	r.moving.splits.Add(1)
	if err := r.propose(r.headerFor(kindSplit), body, sp.finished); err != nil {
		sp.end(errors.Join(ErrDropped, err))
	}
}

func (sp *split) finished(v verdict) {
	switch v {
	case applied:
		sp.end(nil)
	case lost:
		sp.end(ErrUnknownOutcome)
	default:
		sp.end(ErrDropped)
	}
}

// The body of a split entry: left descriptor, right descriptor, and the right
// half's applied state of which only statistics and fingerprint are set; each
// with its length before it.

func encodeSplit(left, right *metapb.RangeDescriptor, data mvcc.Delta) ([]byte, error) {
	return encodeMessages(left, right, &metapb.AppliedState{
		Stats: data.Stats.Proto(), Fingerprint: data.Fingerprint,
	})
}

// encodeMessages returns messages one after the other, each with its length
// before it.
func encodeMessages(list ...proto.Message) ([]byte, error) {
	var body []byte
	for _, m := range list {
		raw, err := proto.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("encode body: %w", err)
		}
		body = append(binary.AppendUvarint(body, uint64(len(raw))), raw...)
	}
	return body, nil
}

func decodeMessages(body []byte, list ...proto.Message) error {
	for _, m := range list {
		n, used := binary.Uvarint(body)
		if used <= 0 || n > uint64(len(body)-used) {
			return fmt.Errorf("%w: body is cut", errUnknownEntry)
		}
		raw := body[used : used+int(n)]
		body = body[used+int(n):]
		if err := proto.Unmarshal(raw, m); err != nil {
			return fmt.Errorf("decode body: %w", err)
		}
	}
	return nil
}

func decodeSplit(body []byte) (left, right *metapb.RangeDescriptor, data mvcc.Delta, err error) {
	left, right = &metapb.RangeDescriptor{}, &metapb.RangeDescriptor{}
	a := &metapb.AppliedState{}
	if err := decodeMessages(body, left, right, a); err != nil {
		return nil, nil, data, fmt.Errorf("split: %w", err)
	}
	data = mvcc.Delta{
		Stats: mvcc.StatsFromProto(a.GetStats()), Fingerprint: a.GetFingerprint(),
	}
	return left, right, data, nil
}

// stagedSplit is a split on its way from Apply to Applied.
type stagedSplit struct {
	right    *state // nil: this node must not have the right half
	id       ids.RangeID
	self     ids.ReplicaID
	campaign bool
	late     *store.Batch // canary: the right half, to be committed afterwards
}

// applySplit stages both halves into one batch: a crash leaves the whole or
// the halves.
func (r *Replica) applySplit(b *store.Batch, next *state, h header, body []byte) error {
	left, right, data, err := decodeSplit(body)
	if err != nil {
		return err
	}
	if left.GetGeneration() != uint64(h.generation)+1 ||
		!bytes.Equal(left.GetEnd(), right.GetStart()) ||
		!bytes.Equal(right.GetEnd(), next.desc.GetEnd()) {
		invariant.Failf("split of %v does not tile it", r.id)
	}
	if r.table.ending(ids.RangeID(right.GetRangeId())) {
		return multiraft.ErrNotYet // Admission.released
	}
	r.table.shared.share(left)
	r.table.shared.share(right)
	parent := *next
	next.desc, next.bounds = left, boundsHash(left)
	next.data.Sub(data)
	if err := r.table.cfg.Store.State().PutDescriptor(b, r.id, r.self, left); err != nil {
		return fmt.Errorf("stage left half: %w", err)
	}
	sp := &stagedSplit{
		id:   ids.RangeID(right.GetRangeId()),
		self: r.self, // both halves have the parent's replicas
		right: &state{
			desc:      right,
			bounds:    boundsHash(right),
			applied:   firstIndex,
			term:      firstTerm,
			data:      data,
			threshold: parent.threshold,
			conf:      parent.conf,
		},
		campaign: parent.lead.mine,
	}
	r.staged.split = sp
	if err := r.table.stageRight(b, sp); err != nil {
		return err
	}
	if sp.right == nil {
		// The batch deletes what a reader that has passed the latches may still
		// look for under the old bounds. Until the new ones are published
		// (publishSplit) nobody is told that it is not there.
		r.reads.replace()
	}
	return nil
}

// ending says whether a group of range id that had no data is still to end here. It
// may be raising the range's hard state just now, of which InitialGroup would keep an
// older one: the right half could vote again in a term in which it has voted.
func (t *Table) ending(id ids.RangeID) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	d, ok := t.mu.dying[id]
	return ok && d.self == 0
}

// stageRight stages the right half, unless this node's replica of it was
// removed before it was born; then its data goes.
func (t *Table) stageRight(b *store.Batch, sp *stagedSplit) error {
	t.mu.RLock()
	existing, leaving := t.mu.byID[sp.id], t.mu.dying[sp.id].next
	t.mu.RUnlock()
	next, err := t.cfg.Store.Log().Tombstone(sp.id)
	if err != nil {
		return fmt.Errorf("stage right half: %w", err)
	}
	if existing != nil && existing.self <= sp.self {
		// Nothing but this split makes that replica here.
		return fmt.Errorf("right half %v exists before its split", sp.id)
	}
	if existing != nil || sp.self < max(next, leaving) {
		d := sp.right.desc
		sp.right = nil
		from, to := mvcc.AppendKey(nil, d.GetStart(), 0), mvcc.AppendKey(nil, d.GetEnd(), 0)
		return b.Pebble().DeleteRange(from, to, nil)
	}
	if canary.On(canary.SplitNotAtomic) {
		b = t.cfg.Store.NewBatch()
		sp.late = b
	}
	st := t.cfg.Store
	if err := st.State().PutDescriptor(b, sp.id, sp.self, sp.right.desc); err != nil {
		return fmt.Errorf("stage right half: %w", err)
	}
	if err := st.State().PutApplied(b, sp.id, sp.right.appliedState()); err != nil {
		return fmt.Errorf("stage right half: %w", err)
	}
	if err := st.Log().InitialGroup(b, sp.id, firstIndex, firstTerm); err != nil {
		return fmt.Errorf("stage right half: %w", err)
	}
	return nil
}

// publishSplit makes both halves visible at once: from one moment to the next
// the left half is smaller and the right half is there. Then the right half's
// group is born; it campaigns where the left half leads.
func (t *Table) publishSplit(left *Replica, next *state, sp *stagedSplit) {
	if sp.late != nil {
		if err := t.cfg.Store.CommitNoSync(sp.late); err != nil {
			t.cfg.Logger.Error("write right half", "range", sp.id, "error", err)
		}
		sp.late.Close()
	}
	var right *Replica
	t.mu.Lock()
	left.publish(next)
	if sp.right == nil {
		left.reads.replaced()
	}
	if sp.right != nil && t.mu.byID[sp.id] == nil {
		right = newReplica(t, sp.id, sp.self, sp.right)
		t.mu.byID[sp.id] = right
		t.mu.spans.set(right)
	}
	t.mu.Unlock()
	if right == nil {
		return
	}
	left.shareLoad(right)
	if err := t.addGroup(right, sp.campaign); err != nil {
		t.cfg.Logger.Error("start right half", "range", sp.id, "error", err)
	}
}

// middleKey finds the key at which about half of the bytes lie to the left.
// Away from the shard. It never cuts between the versions of a key.
func middleKey(db mvcc.Reader, start, end []byte, size int64) ([]byte, error) {
	var key []byte
	var seen, best int64
	err := eachVersion(db, start, end, func(k []byte, n int64, first bool) bool {
		if first && seen > 0 {
			// The nearest boundary to the middle so far.
			if d := distance(seen, size/2); key == nil || d < best {
				key, best = bytes.Clone(k), d
			}
			if seen >= size/2 {
				return false
			}
		}
		seen += n
		return true
	})
	if err == nil && key == nil {
		err = fmt.Errorf("%w: the range has fewer than two keys", ErrNoSplitKey)
	}
	return key, err
}

// eachVersion visits the versions of [start, end) with their sizes; first says
// that it is the first of its key. It stops when visit returns false.
func eachVersion(
	db mvcc.Reader, start, end []byte, visit func(key []byte, n int64, first bool) bool,
) error {
	it, err := db.NewIter(&pebble.IterOptions{
		LowerBound: mvcc.AppendKey(nil, start, 0),
		UpperBound: mvcc.AppendKey(nil, end, 0),
		KeyTypes:   pebble.IterKeyTypePointsOnly,
	})
	if err != nil {
		return fmt.Errorf("read span: %w", err)
	}
	var previous []byte
	for ok := it.First(); ok; ok = it.Next() {
		key, _, isVersion := mvcc.DecodeKey(it.Key())
		value, err := it.ValueAndErr()
		if err == nil && !isVersion {
			err = mvcc.ErrCorrupt
		}
		if err != nil {
			return errors.Join(fmt.Errorf("read span: %w", err), it.Close())
		}
		first := !bytes.Equal(key, previous)
		previous = append(previous[:0], key...)
		if !visit(key, int64(len(it.Key())+len(value)), first) {
			break
		}
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return fmt.Errorf("read span: %w", err)
	}
	return nil
}

func distance(a, b int64) int64 { return max(a-b, b-a) }
