package ranges

import (
	"errors"
	"fmt"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// mergePatience is how long a merge may take until the left half decides: above
// the round trips and syncs that it needs by far, below what a client waits. The
// right half serves nothing meanwhile. Maintenance looks, once a second.
const mergePatience = 3 * time.Second

// errMergeStuck ends a merge that takes too long: some replica does not answer.
var errMergeStuck = errors.New("the merge did not come to its decision")

// merge is one merge on its way, on the node that leads both halves: in turns on
// the left half's shard and on the right half's. What it knows is not needed for
// anything but to go on: whoever finds the marks without it undoes them (mark.go).
type merge struct {
	// Immutable after start.
	l, r  *Replica
	term  ids.Term // of the left half's leadership
	began time.Duration
	want  uint64 // generation of the right half as ordered; 0: any
	done  func(error)

	// Left half's shard.
	mark    *metapb.MergeMark
	hold    hold          // of the left half, for the absorb
	taken   time.Duration // when that began; 0: not yet
	decided bool          // the absorb is proposed: the log decides, nothing else
	over    bool

	freezing freezing // right half's shard
}

// merge begins a merge for Table.Order.
func (t *Table) merge(o *metapb.Order, done func(error)) {
	id := ids.RangeID(o.GetRangeId())
	l := t.replica(id)
	if l == nil {
		done(fmt.Errorf("merge %v: %w", id, ErrNoReplica))
		return
	}
	task := func() { l.startMerge(o, done) }
	if err := l.enqueue(multiraft.TaskFunc(task), 0); err != nil {
		done(fmt.Errorf("merge %v: %w", id, err))
	}
}

// startMerge begins on the left half's shard.
func (r *Replica) startMerge(o *metapb.Order, done func(error)) {
	if r.id == 1 || o.GetOtherRangeId() == 1 {
		done(fmt.Errorf("merge: %w: the system range is never merged", ErrRefused))
		return
	}
	if err := r.begin("merge", o.GetGeneration()); err != nil {
		done(fmt.Errorf("merge %v: %w", r.id, err))
		return
	}
	m := &merge{
		l: r, r: r.table.replica(ids.RangeID(o.GetOtherRangeId())),
		term: r.state.Load().lead.term, began: r.table.cfg.Physical.Monotonic(),
		want: o.GetOtherGeneration(), done: done,
	}
	m.freezing.m = m
	r.change.merge = m
	if err := m.checkLeft(o); err != nil {
		m.end(err)
		return
	}
	m.r.onShard(m.freezing.prepare)
}

// checkLeft refuses what can be refused without the right half's shard.
func (m *merge) checkLeft(o *metapb.Order) error {
	other := ids.RangeID(o.GetOtherRangeId())
	switch d := m.l.descriptor(); {
	case m.r == nil || m.r.descriptor() == nil:
		return fmt.Errorf("%w: %v has no replica on this node", ErrRefused, other)
	case string(m.r.descriptor().GetStart()) != string(d.GetEnd()):
		return fmt.Errorf("%w: %v is not its right neighbour", ErrRefused, other)
	case !aligned(d, m.r.descriptor()):
		return fmt.Errorf("%w: %v has its replicas on other nodes", ErrRefused, other)
	case !m.l.allCaughtUp():
		return fmt.Errorf("%w: not all replicas of the left half follow closely", ErrLagging)
	}
	return nil
}

// aligned says whether two ranges have voters on the same nodes and nothing else.
func aligned(a, b *metapb.RangeDescriptor) bool {
	if len(a.GetReplicas()) != len(b.GetReplicas()) {
		return false
	}
	for _, x := range a.GetReplicas() {
		y := replicaOn(b, ids.NodeID(x.GetNodeId()))
		if y == nil || x.GetRole() != roleVoter || y.GetRole() != roleVoter {
			return false
		}
	}
	return true
}

// allCaughtUp says whether every other replica lives and follows closely. A merge
// needs them all; one that is away would only cost the time until it is given up.
func (r *Replica) allCaughtUp() bool {
	applied := r.state.Load().applied
	for _, p := range r.group().Progress() {
		if p.Replica != r.self &&
			(p.State != "replicate" || !p.RecentActive || p.Match+maxLag < applied) {
			return false
		}
	}
	return true
}

// intend goes on, on the left half's shard, when the right half is claimed, at
// the given generation.
func (m *merge) intend(generation uint64) {
	if m.over {
		return
	}
	s := m.l.state.Load()
	if !m.l.leadsIn(m.term) {
		m.end(ErrNotLeader)
		return
	}
	m.mark = &metapb.MergeMark{
		Phase:           phaseIntended,
		RangeId:         uint64(m.r.id),
		Generation:      s.desc.GetGeneration() + 1,
		OtherGeneration: generation,
	}
	if err := m.l.proposeMark(m.mark, m.intended); err != nil {
		m.end(err)
	}
}

func (m *merge) intended(v verdict) {
	switch {
	case m.over:
	case v == applied:
		m.r.onShard(m.freezing.freeze)
	default:
		m.end(outcomeOf(v))
	}
}

// outcomeOf is what becomes of an order whose entry did not apply.
func outcomeOf(v verdict) error {
	if v == lost {
		return ErrUnknownOutcome
	}
	return ErrDropped
}

// absorb goes on, on the left half's shard, when the right half is frozen and
// every replica of it will be, whatever crashes. It takes the left half for
// itself, since entries under the old bounds must be applied before the new ones.
func (m *merge) absorb() {
	s := m.l.state.Load()
	switch {
	case m.over:
		return
	case !m.l.leadsIn(m.term):
		m.end(ErrNotLeader)
		return
	}
	m.hold.start, m.hold.end = string(s.desc.GetStart()), string(s.desc.GetEnd())
	m.hold.exclusive = true
	m.taken = m.l.table.cfg.Physical.Monotonic()
	m.l.latches.acquire(&m.hold, m)
}

// granted: every earlier write of the left half is applied, later ones wait.
func (m *merge) granted() {
	if m.over {
		return
	}
	s := m.l.state.Load()
	mark := s.desc.GetMerge()
	if !m.l.leadsIn(m.term) || mark.GetPhase() != phaseIntended ||
		mark.GetGeneration() != s.desc.GetGeneration() {
		m.end(ErrNotLeader)
		return
	}
	body, err := encodeAbsorb(absorbed(s.desc, m.freezing.desc), m.freezing.desc, m.freezing.at)
	if err != nil {
		m.end(err)
		return
	}
	m.decided = true
	if err := m.l.propose(m.l.headerFor(kindAbsorb), body, m.finished); err != nil {
		m.end(errors.Join(ErrDropped, err))
	}
}

func (m *merge) aborted() { m.end(ErrNotLeader) }

func (m *merge) finished(v verdict) {
	if v == applied {
		m.end(nil)
	} else {
		m.end(outcomeOf(v))
	}
}

// late says whether the merge should be given up. Not once the absorb is
// proposed: it is applied, or rejected, or this leadership ends; and what was
// held for it must not be let go before.
func (m *merge) late() bool {
	return !m.decided && m.l.table.cfg.Physical.Monotonic()-m.began >= mergePatience
}

// end finishes the merge one way or another, on the left half's shard.
func (m *merge) end(err error) {
	if m.over {
		return
	}
	m.over = true
	m.l.latches.release(&m.hold)
	m.l.change = nil
	t, now := m.l.table, m.l.table.cfg.Physical.Monotonic()
	if m.taken != 0 {
		t.dirty.leftFreezes.add(now - m.taken)
	}
	if m.r != nil {
		m.r.onShard(m.freezing.leave)
	}
	if err == nil {
		t.dirty.rightFreezes.add(now - m.freezing.taken)
		t.dirty.merges.Add(1)
		m.done(nil)
		return
	}
	m.done(fmt.Errorf("merge %v: %w", m.l.id, err))
	m.l.tend() // an intent that stands is aborted at once
}
