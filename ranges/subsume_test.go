package ranges

import (
	"errors"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// Bug class 7: a node lags in the left half only, it has not heard of the absorb. The
// merged range was split again where it had been merged. A snapshot of the new right
// part comes first; it must not take the frozen old right half, which the left half
// here is still to absorb by its log.
func TestSnapshotOfAPartLeavesWhatTheLogIsToAbsorb(t *testing.T) {
	t.Parallel()
	w, _, behind, right := misses(t)
	before := w.snaps
	_, d := w.split(2, "m")
	part := ids.RangeID(d.GetRangeId())
	w.tick(120)
	if w.snaps == before || w.leader(part) == behind {
		t.Fatal("no snapshot of the part was sent: the story is not told")
	}
	if x := behind.table.replica(right); x == nil || phaseOf(x.descriptor()) != phaseFrozen {
		w.dump()
		t.Fatal("what the left half is to absorb was taken")
	}
	w.drop = nil
	w.tick(60)
	if behind.table.replica(2).group().Status().Halted {
		t.Fatal("the left half's log came to the absorb, and the right half was gone")
	}
	w.clean()
	w.tiles()
	if x := behind.table.replica(part); x == nil || !x.state.Load().initialised() {
		t.Fatal("the part did not come")
	}
}

// Bug class 32: a replica of the left half that was removed and added again leaves the
// table (a snapshot for its successor came) between the commit of its absorb and the
// moment at which that is published. Its removal takes the right half's data, too, so
// a snapshot that would bring such data must not fit in between.
func TestRemovalReservesWhatItsLastAbsorbBrought(t *testing.T) {
	t.Parallel()
	w, l, right := halves(t, nil)
	behind := w.nodes[l.id%3+1]
	x := behind.table.replica(right)
	must(t, x.enqueue(multiraft.TaskFunc(func() { x.yields = true }), 0))
	w.merge(2, right)
	w.tick(2)
	old := behind.table.replica(2)
	part, d := w.splitUnheard(behind, right)
	w.removeReplica(2, old.self)
	w.drop = func(from, to ids.NodeID, m *multiraft.Message) bool {
		return (from == behind.id || to == behind.id) && m.Range != 1
	}
	must(t, w.order(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_ADD_LEARNER, NodeId: uint64(behind.id),
	}))
	w.settle()
	if behind.table.replica(2) != old || behind.table.replica(part) != nil {
		t.Fatal("the story is not told: the node heard of what happened")
	}
	next := ids.ReplicaID(replicaOn(w.descriptor(2), behind.id).GetReplicaId())
	successor, _ := w.leader(2).copyOf(2, next)
	self := ids.ReplicaID(replicaOn(d, behind.id).GetReplicaId())
	header, _ := w.leader(part).copyOf(part, self)

	told := false
	behind.committed = func() {
		behind.table.mu.RLock()
		claimed := behind.table.mu.dying[right].next == ids.EveryReplica
		behind.table.mu.RUnlock()
		if claimed && !told {
			told = true
			_, err := behind.table.AdmitSnapshot(successor)
			if !errors.Is(err, ErrSnapshotRefused) {
				t.Errorf("a snapshot for the successor: %v", err)
			}
		}
	}
	must(t, x.enqueue(multiraft.TaskFunc(func() { x.yields = false; x.group().ResumeApply() }), 0))
	for i := 0; i < 10 && !told; i++ {
		behind.host.Poll(1) // the right half's shard
		behind.host.Poll(0) // the left half's
	}
	behind.committed = nil
	if !told || string(old.descriptor().GetEnd()) != string(d.GetEnd()) {
		t.Fatalf("the story is not told: %v, %v", told, old.descriptor())
	}
	if _, err := behind.table.AdmitSnapshot(header); !errors.Is(err, ErrSnapshotRefused) {
		t.Fatalf("a snapshot of %v while a removal is about to take its data: %v", part, err)
	}
	w.drop, w.noSnaps = nil, false
	w.tick(60)
	w.clean()
	w.tiles()
}

// splitUnheard splits range 2 where it was merged, into a part whose shard is the one
// of the right half, and of which a node hears nothing. Snapshots are off afterwards.
func (w *world) splitUnheard(n *node, right ids.RangeID) (ids.RangeID, *metapb.RangeDescriptor) {
	w.nextID += (w.nextID + 1 - right) % 2 // the next id that is given out is of that shard
	w.noSnaps = true
	w.drop = func(from, to ids.NodeID, m *multiraft.Message) bool {
		return to == n.id && (m.Range > right || m.Range == 2 && m.Raft == nil)
	}
	_, d := w.split(2, "m")
	w.tick(2)
	part := ids.RangeID(d.GetRangeId())
	if part%2 != right%2 {
		w.t.Fatalf("the story is not told: %v and %v are of two shards", part, right)
	}
	return part, d
}

// A replica is removed in the moment between the installation of its snapshot and the
// publication. What the snapshot subsumed must go all the same, and all its data.
func TestSnapshotThatSubsumesIsInstalledForAReplicaThatIsRemoved(t *testing.T) {
	t.Parallel()
	w, _, behind, right := jumps(t)
	old, d := behind.table.replica(2), w.descriptor(2)
	behind.down, behind.holdJobs = false, true
	for i := 0; i < 60 && len(behind.jobs) == 0; i++ {
		w.tick(1)
	}
	if len(behind.jobs) == 0 || !behind.table.replica(right).yields {
		t.Fatal("no snapshot that subsumes is being installed: the story is not told")
	}
	jobs := behind.jobs
	behind.jobs, behind.holdJobs, w.noSnaps = nil, false, true
	for _, job := range jobs {
		job()
	}
	behind.table.OnGone(2, old.self+1)
	w.settle()
	if x := behind.table.replica(right); x != nil || behind.table.replica(2) != nil {
		t.Fatalf("what the snapshot subsumed is still there, and applies nothing: %v", x)
	}
	left, err := mvcc.Compute(behind.store.State().DB(), d.GetStart(), d.GetEnd())
	must(t, err)
	if left.Stats != (mvcc.Stats{}) || len(behind.table.mu.dying) > 0 {
		t.Fatalf("%+v is left; still dying: %v", left.Stats, behind.table.mu.dying)
	}
	w.noSnaps = false
	w.removeReplica(2, old.self)
	w.addVoter(2, behind.id)
	w.clean()
	w.tiles()
}
