package ranges

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// The marks of merges: how they come into a descriptor, and how those of a merge
// that came to nothing go again. See "Merges" in doc.go; merge.go has the way
// that ends well.
//
// A range with a mark is in the table's dirty set on every node until the mark is
// gone, so whoever leads it finds out; and when the mark of one half changes the
// other half on the same node is told at once. Nothing looks at unmarked ranges.

// Short names of the phases.
const (
	phaseNone     = metapb.MergePhase_MERGE_PHASE_UNSPECIFIED
	phaseIntended = metapb.MergePhase_MERGE_PHASE_INTENDED
	phaseAborted  = metapb.MergePhase_MERGE_PHASE_ABORTED
	phaseFrozen   = metapb.MergePhase_MERGE_PHASE_FROZEN
)

func phaseOf(d *metapb.RangeDescriptor) metapb.MergePhase { return d.GetMerge().GetPhase() }

// proposeMark proposes a descriptor with another mark (nil: none). finish is
// called once, on the shard; not if an error is returned.
func (r *Replica) proposeMark(mark *metapb.MergeMark, finish func(verdict)) error {
	var body []byte
	if mark != nil {
		var err error
		if body, err = proto.Marshal(mark); err != nil {
			return fmt.Errorf("encode merge mark: %w", err)
		}
	}
	if err := r.propose(r.headerFor(kindMark), body, finish); err != nil {
		return errors.Join(ErrDropped, err)
	}
	return nil
}

// applyMark gives the descriptor another mark, and the next generation. That the
// entry names the generation before (header.accepts) is what makes each change
// of a mark happen once, and to the mark that its leader saw.
func (r *Replica) applyMark(b *store.Batch, next *state, body []byte) error {
	var mark *metapb.MergeMark
	if len(body) > 0 {
		mark = &metapb.MergeMark{}
		if err := proto.Unmarshal(body, mark); err != nil {
			return fmt.Errorf("decode merge mark: %w", err)
		}
	}
	from, to := phaseOf(next.desc), mark.GetPhase()
	if !mayFollow(from, to) {
		invariant.Failf("merge mark of %v goes from %v to %v", r.id, from, to)
	}
	r.group().Hasten() // the other half, on each node, may wait for it
	d := cloneDescriptor(next.desc)
	d.Merge = mark
	d.Generation++
	r.table.shared.share(d)
	next.desc = d
	r.staged.marked = true
	return r.table.cfg.Store.State().PutDescriptor(b, r.id, r.self, d)
}

// mayFollow says which phase may follow which. Unmarked to unmarked only raises
// the generation: a freeze that is still to come finds it changed.
func mayFollow(from, to metapb.MergePhase) bool {
	switch from {
	case phaseNone:
		return to != phaseAborted
	case phaseIntended:
		return to == phaseAborted
	default:
		return to == phaseNone
	}
}

// markChanged passes on that the mark of this replica's descriptor may have
// changed. Shard only, after the state is published.
func (r *Replica) markChanged() {
	t, s := r.table, r.state.Load()
	if s.desc.GetMerge() != nil {
		t.mark(r.id)
	}
	t.resumeLeft(r)
	r.thawed()
	r.tend()
	if left := t.leftOf(s.desc); left != nil && left.descriptor().GetMerge() != nil {
		left.onShard(left.tend)
	}
}

// leftOf returns the initialised replica that ends where d begins, nil if none.
func (t *Table) leftOf(d *metapb.RangeDescriptor) *Replica {
	t.mu.RLock()
	defer t.mu.RUnlock()
	left := t.mu.spans.floor(d.GetStart(), true)
	if left == nil || string(left.descriptor().GetEnd()) != string(d.GetStart()) {
		return nil
	}
	return left
}

// tend takes the next step that a marked range owes when no merge is under way:
// called when the mark changed, when this replica became leader, and by
// maintenance. Shard only.
func (r *Replica) tend() {
	s := r.state.Load()
	m := s.desc.GetMerge()
	if s.destroyed || m == nil {
		return
	}
	r.table.mark(r.id)
	switch m.GetPhase() {
	case phaseIntended:
		r.abortMerge(s)
	case phaseAborted:
		r.endAbort(s, m)
	case phaseFrozen:
		r.heed()
	}
}

// abortMerge ends a merge of which nobody here knows how far it is: its leader
// was another one, or this one in another term or life, or it gave up, or its
// time is over. What counts is which comes first in this log, the abort or the
// absorb: both name the generation of the intent, so the second is rejected.
func (r *Replica) abortMerge(s *state) {
	if c := r.change; c != nil {
		if c.merge != nil && c.merge.late() {
			c.merge.end(fmt.Errorf("%w within %v", errMergeStuck, mergePatience))
		}
		return
	}
	if !s.leads() {
		return
	}
	mark := proto.Clone(s.desc.GetMerge()).(*metapb.MergeMark)
	mark.Phase = phaseAborted
	r.changeMark("abort merge", mark)
}

// changeMark proposes a mark as a change of its own. If it fails, maintenance
// comes again.
func (r *Replica) changeMark(op string, mark *metapb.MergeMark) {
	r.change = &change{op: op}
	err := r.proposeMark(mark, func(verdict) { r.change = nil })
	if err != nil {
		r.change = nil
	}
}

// endAbort takes the mark of an aborted merge off when the right half cannot
// freeze for it any more: its generation has passed the one that the freeze
// names, and it is not frozen. The replica of this node is asked; what it has
// applied is committed, so all others come there by themselves.
//
// If there is none here any more, the right half's replicas have changed since.
// There was one when the merge began: both halves had the same nodes then, all
// of them followed closely, and this half's have not changed, being marked. So
// the generation has risen, and not by the freeze, under which nothing changes.
func (r *Replica) endAbort(s *state, m *metapb.MergeMark) {
	if x := r.table.replica(ids.RangeID(m.GetRangeId())); x != nil {
		d := x.descriptor()
		if d != nil && (d.GetGeneration() <= m.GetOtherGeneration() || phaseOf(d) == phaseFrozen) {
			x.onShard(x.heed)
			return
		}
	}
	if s.leads() && r.change == nil {
		r.changeMark("end aborted merge", nil)
	}
}

// heed thaws the right half of an aborted merge, or, if it never froze, raises
// its generation so that it never will. It needs the left half's replica on this
// node to show the abort of this very merge: then absorb entries of it are dead.
// Nothing less will do. A left half that has moved on (a higher generation, other
// bounds) may have absorbed this range, and a part of its keys may belong to a
// third one by now. The left half keeps the mark until its leader sees the thaw
// applied (endAbort), so a right half that owes one always finds the mark.
func (r *Replica) heed() {
	s := r.state.Load()
	if !s.leads() || r.change != nil {
		return
	}
	m := s.desc.GetMerge()
	var left *Replica
	if m == nil {
		left = r.table.leftOf(s.desc)
	} else {
		left = r.table.replica(ids.RangeID(m.GetRangeId()))
	}
	aborted := left.mergeMark()
	told := aborted.GetPhase() == phaseAborted && aborted.GetRangeId() == uint64(r.id)
	switch {
	case m == nil:
		told = told && aborted.GetOtherGeneration() == s.desc.GetGeneration()
	case m.GetPhase() != phaseFrozen:
		told = false
	default:
		told = told && aborted.GetGeneration() == m.GetGeneration() || canary.On(canary.ThawUnasked)
	}
	if told {
		r.changeMark("thaw", nil)
	}
}

// mergeMark is the mark of a replica's descriptor, nil if there is none.
func (r *Replica) mergeMark() *metapb.MergeMark {
	if r == nil {
		return nil
	}
	return r.descriptor().GetMerge()
}
