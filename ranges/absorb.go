package ranges

import (
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// absorbed is the descriptor of a range that takes its frozen right neighbour in.
func absorbed(left, right *metapb.RangeDescriptor) *metapb.RangeDescriptor {
	d := cloneDescriptor(left)
	d.End = right.GetEnd()
	d.Merge = nil
	d.Generation = max(left.GetGeneration(), right.GetGeneration()) + 1
	return d
}

// The body of an absorb entry: the descriptor afterwards, the right half's as it
// froze, and an applied state of which only the index, that of the freeze, is
// set. The right half's statistics and fingerprint are not in it: each replica
// has its own copy's, of the same index, so that copies that differ stay visible.

func encodeAbsorb(after, right *metapb.RangeDescriptor, at ids.Index) ([]byte, error) {
	return encodeMessages(after, right, &metapb.AppliedState{Index: uint64(at)})
}

func decodeAbsorb(body []byte) (after, right *metapb.RangeDescriptor, at ids.Index, err error) {
	after, right = &metapb.RangeDescriptor{}, &metapb.RangeDescriptor{}
	a := &metapb.AppliedState{}
	if err := decodeMessages(body, after, right, a); err != nil {
		return nil, nil, 0, fmt.Errorf("absorb: %w", err)
	}
	return after, right, ids.Index(a.GetIndex()), nil
}

// stagedAbsorb is an absorb on its way from Apply to Applied.
type stagedAbsorb struct{ right *Replica }

// applyAbsorb stages the end of a merge in one batch: a crash leaves both halves,
// or the whole and the highest tombstone of the right half. Its records by range
// id stay until its group has ended; a start that finds them beside that tombstone
// removes them, and no more than them (Table.load). So nothing that the right
// half's shard may still write of them (the applied index over a new leader's
// empty entry, its log, a vote) can bring it back.
func (r *Replica) applyAbsorb(b *store.Batch, next *state, h header, body []byte) error {
	after, right, at, err := decodeAbsorb(body)
	if err != nil {
		return err
	}
	mark := next.desc.GetMerge()
	if mark.GetPhase() != phaseIntended || mark.GetRangeId() != right.GetRangeId() ||
		mark.GetGeneration() != uint64(h.generation) ||
		string(next.desc.GetEnd()) != string(right.GetStart()) ||
		string(after.GetEnd()) != string(right.GetEnd()) ||
		after.GetGeneration() != max(uint64(h.generation), right.GetGeneration())+1 {
		invariant.Failf("absorb of range %d by %v at generation %d does not tile it",
			right.GetRangeId(), r.id, h.generation)
	}
	x, err := r.table.claim(r.id, right, at)
	if err != nil {
		return err
	}
	xs := x.state.Load() // does not change any more but for its applied index
	r.table.shared.share(after)
	next.desc, next.bounds = after, boundsHash(after)
	next.data.Add(xs.data)
	next.threshold = max(next.threshold, xs.threshold)
	next.grown++
	r.staged.absorb = &stagedAbsorb{right: x}
	r.group().Hasten()
	st := r.table.cfg.Store
	if err := st.State().PutDescriptor(b, r.id, r.self, after); err != nil {
		return fmt.Errorf("stage absorb: %w", err)
	}
	if err := st.Log().PutTombstone(b, x.id, ids.EveryReplica); err != nil {
		return fmt.Errorf("stage absorb: %w", err)
	}
	return nil
}

// claim returns the right half's replica here, frozen for this merge, and makes
// sure that nothing gives it other data from now on. ErrNotYet: it has not
// applied the freeze (the two groups apply independently, after a start in any
// order), or is receiving a snapshot of itself, which would put the old data over
// what the left half writes after the merge, or a snapshot of the left half is on
// its way that subsumes it. Whoever ends that calls resumeLeft.
//
// It will freeze, and be here until then: the absorb is in the log, so every
// replica had the seal on disk (freezing.frozen).
func (t *Table) claim(
	left ids.RangeID, right *metapb.RangeDescriptor, at ids.Index,
) (*Replica, error) {
	id := ids.RangeID(right.GetRangeId())
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.mu.byID[id]
	if x == nil {
		return nil, fmt.Errorf("%v is to be absorbed and is not here", id)
	}
	for _, p := range t.mu.placeholders {
		if p.replica == x || slices.Contains(p.subsumed, x) {
			return nil, multiraft.ErrNotYet
		}
	}
	s := x.state.Load()
	m := s.desc.GetMerge()
	if m.GetPhase() != phaseFrozen || m.GetRangeId() != uint64(left) || s.applied < at ||
		s.desc.GetGeneration() != right.GetGeneration() {
		return nil, multiraft.ErrNotYet
	}
	t.mu.dying[id] = dying{self: x.self, next: ids.EveryReplica} // no snapshot any more
	return x, nil
}

// resumeLeft has the left neighbour of a frozen replica look again whether it can
// absorb it. Any goroutine.
func (t *Table) resumeLeft(r *Replica) {
	m := r.mergeMark()
	if m.GetPhase() != phaseFrozen {
		return
	}
	if left := t.replica(ids.RangeID(m.GetRangeId())); left != nil {
		if g := left.raft.Load(); g != nil {
			g.ResumeApply()
		}
	}
}

// publishAbsorb makes the merge visible: from one moment to the next the left
// half is larger and the right half is not there. On the left half's shard.
func (r *Replica) publishAbsorb(next *state, a *stagedAbsorb) {
	t, x := r.table, a.right
	// A read of the right half that was let in before it froze and opens its
	// iterator only now might find what this range did to the data.
	x.reads.replace()
	t.mu.Lock()
	t.mu.spans.remove(x.descriptor().GetStart())
	delete(t.mu.byID, x.id)
	if leaving, ok := t.mu.dying[r.id]; ok && t.mu.byID[r.id] != r {
		// This replica itself left the table between the commit and now. Its removal
		// takes the data of its span as it is then, so all of that stays reserved.
		leaving.end = next.desc.GetEnd()
		t.mu.dying[r.id] = leaving
	}
	r.publish(next)
	t.mu.Unlock()
	if next.lead.mine {
		// The identities of the right half's writes are on disk, not in memory. All
		// its versions lie below this clock: this leader proposed the absorb in its
		// term, hence led the right half, too; or it is not ready yet, and begins
		// its memory then.
		if !canary.On(canary.MergeKeepsFloor) {
			r.recent.forget(t.cfg.Clock.Peek(), next.applied)
		}
		r.takeLoad(x)
		// How far the right half's collection got is not known.
		r.upkeep.collected, r.upkeep.noSplit = 0, 0
		if c := r.upkeep.gc; c != nil {
			c.old = 0
		}
	}
	t.dismiss(x, r.id)
}

// dismiss ends the group of a replica whose range was absorbed by another one,
// and which has left the table. Its data stays, it is the other's. Any goroutine.
func (t *Table) dismiss(x *Replica, into ids.RangeID) {
	t.host.RemoveGroup(x.id, func() { t.dismissed(x, into) })
}

// dismissed runs on the replica's shard when its group is gone.
func (t *Table) dismissed(x *Replica, into ids.RangeID) {
	s := *x.state.Load()
	if s.lead.mine {
		t.leaders.Add(-1)
	}
	s.destroyed, s.into, s.lead = true, into, leadership{}
	x.publish(&s)
	x.abandon() // who waits for the merge is sent to the range that is here now
	x.back.close()
	if err := t.eraseRecords(x.id); err != nil {
		// A start tries again; until then they are in nobody's way.
		t.cfg.Logger.Error("remove records of an absorbed range", "range", x.id, "error", err)
	}
	t.mu.Lock()
	delete(t.mu.dying, x.id)
	t.mu.Unlock()
}

// eraseRecords removes what is stored of an absorbed range by its id. Its data
// and the tombstone stay.
func (t *Table) eraseRecords(id ids.RangeID) error {
	st := t.cfg.Store
	b := st.NewBatch()
	defer b.Close()
	if err := st.State().DestroyReplica(b, id, nil, nil); err != nil {
		return fmt.Errorf("erase records of %v: %w", id, err)
	}
	if err := st.CommitNoSync(b); err != nil {
		return fmt.Errorf("erase records of %v: %w", id, err)
	}
	return nil
}

// expendable says whether a replica whose range was absorbed, as somebody knows
// who did it, may go with its data: that nothing here still needs that. On the
// range's shard.
//
//   - All that it knows to be committed must be applied. Then, if it was one of the
//     range's replicas when that froze for the merge that took place, it is frozen
//     for it: the seal that let the merge take place made the commit of the freeze
//     known to each of them, durably. One that is not frozen was removed before, and
//     nobody told it while there was still somebody who could.
//   - The left half's replica here must not be still to absorb it, which it is
//     as long as its generation is not above that of the intent. If there is
//     none, or it has passed the absorb by a snapshot that does not cover this
//     range (or it would have subsumed it), nobody comes for the data any more.
func (r *Replica) expendable() bool {
	s := r.state.Load()
	if !s.initialised() {
		return true
	}
	m := s.desc.GetMerge()
	st := r.group().Status()
	if st.Commit != st.Applied {
		return false
	}
	return m.GetPhase() != phaseFrozen || !r.table.awaits(m) || canary.On(canary.GoneObeyed)
}

// awaits says whether a replica of the left half that a frozen range's mark names
// is here and still to absorb it.
func (t *Table) awaits(m *metapb.MergeMark) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.awaitsLocked(m)
}

func (t *Table) awaitsLocked(m *metapb.MergeMark) bool {
	left := t.mu.byID[ids.RangeID(m.GetRangeId())]
	return left != nil && left.state.Load().initialised() &&
		left.descriptor().GetGeneration() <= m.GetGeneration()
}
