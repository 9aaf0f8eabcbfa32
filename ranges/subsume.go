package ranges

import (
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// A replica that has missed a merge may get the merged range by a snapshot, while
// its right half is still here, frozen. The snapshot subsumes it: the two cannot
// stand side by side, and nobody else would take it away.
//
// What proves that a local replica of range R was absorbed is a descriptor of
// another range, of a higher generation, that holds R's first key. For who holds
// that key changes in two ways only: from R to the range that absorbs R (a split
// leaves the first key where it is), or, before R was born, to R; and the
// generation of a key only rises. A descriptor that holds some other key of R
// proves nothing: R may have been thawed and split, and the snapshot may be one
// of its right half.
//
// A replica that is not frozen yet, or that the left half here is absorbing by its
// log right now, is not subsumed. It will be frozen: before the
// absorb every replica of R had made sure that it would.
//
// The installation is one atomic step of the store: the merged range's data and
// records, the deletion of what R held outside of it, and R's highest tombstone.
// A crash before it leaves R and the old left half, after it a start removes R's
// records. From before it until the table has let R go, R applies nothing: its
// freeze may be that of an earlier, aborted merge, after which its log goes on
// with writes, which must not come over what the snapshot brought.

// subsumableLocked returns the replicas that a snapshot with descriptor d of
// range id would subsume, and one that stands in its way, if there is one. A frozen
// replica that the left half here is still to absorb by its log stands in the way
// of all but the left half's own snapshot: the merged range may have been split
// again, and the log that comes to the absorb must find the replica.
func (t *Table) subsumableLocked(
	id ids.RangeID, d *metapb.RangeDescriptor,
) (subsumed []*Replica, other *Replica) {
	t.mu.spans.visit(d.GetStart(), d.GetEnd(), func(x *Replica) bool {
		switch xd := x.descriptor(); {
		case x.id == id:
		case phaseOf(xd) == phaseFrozen && holds(d, xd.GetStart()) &&
			d.GetGeneration() > xd.GetGeneration() && t.mu.dying[x.id].next == 0 &&
			(uint64(id) == xd.GetMerge().GetRangeId() || !t.awaitsLocked(xd.GetMerge())):
			subsumed = append(subsumed, x)
		default:
			other = x
		}
		return other == nil
	})
	return subsumed, other
}

// subsumedLocked says whether a snapshot that is on its way subsumes a replica.
func (t *Table) subsumedLocked(r *Replica) bool {
	return !canary.On(canary.SubsumeApart) &&
		slices.ContainsFunc(t.mu.placeholders, func(p *Admission) bool {
			return slices.Contains(p.subsumed, r)
		})
}

// stopSubsumed has the subsumed replicas apply nothing any more, one after the
// other, each on its shard, and then calls next. Those that were absorbed by
// way of the log meanwhile are left out.
func (a *Admission) stopSubsumed(left []*Replica, next func(error)) {
	if len(left) == 0 {
		next(nil)
		return
	}
	x := left[0]
	x.onShard(func() {
		s := x.state.Load()
		switch {
		case s.destroyed:
		case phaseOf(s.desc) != phaseFrozen:
			next(refuseSnapshot(a.header, fmt.Sprintf("%v was thawed meanwhile", x.id)))
			return
		case canary.On(canary.SubsumeApart):
			a.table.destroy(x, ids.EveryReplica)
		case a.table.replica(x.id) == x:
			x.yields = true
			x.reads.replace()
			a.Incoming.Subsume(x.id, s.desc.GetStart(), s.desc.GetEnd())
		}
		a.stopSubsumed(left[1:], next)
	})
}

// takeSubsumedLocked takes the replicas that an installed snapshot of r subsumed
// out of the table. The caller dismisses them.
func (t *Table) takeSubsumedLocked(r *Replica) (taken []*Replica) {
	for _, p := range t.mu.placeholders {
		if p.replica != r {
			continue
		}
		for _, x := range p.subsumed {
			if t.takeLocked(x) {
				taken = append(taken, x)
			}
		}
	}
	return taken
}

// takeLocked takes an absorbed replica out of the table; false: it is not there.
func (t *Table) takeLocked(x *Replica) bool {
	if t.mu.byID[x.id] != x {
		return false
	}
	t.mu.spans.remove(x.descriptor().GetStart())
	delete(t.mu.byID, x.id)
	t.mu.dying[x.id] = dying{self: x.self, next: ids.EveryReplica}
	return true
}

// restoreSubsumed lets the replicas that were to be subsumed go on, if the
// installation did not happen. Whether it did the tombstone tells: the group that
// was to get the snapshot may have ended, or failed, after it.
func (a *Admission) restoreSubsumed() {
	t, into := a.table, a.replica.id
	for _, x := range a.subsumed {
		x.onShard(func() {
			if !x.yields || x.state.Load().destroyed {
				return
			}
			next, err := t.cfg.Store.Log().Tombstone(x.id)
			if err != nil {
				t.cfg.Logger.Error("read tombstone: a frozen range stays stopped until a restart",
					"range", x.id, "error", err)
				return
			}
			if next != ids.EveryReplica {
				x.yields = false
				x.reads.replaced()
				x.group().ResumeApply()
				return
			}
			t.mu.Lock()
			taken := t.takeLocked(x)
			t.mu.Unlock()
			if taken {
				t.dismiss(x, into)
			}
		})
	}
}
