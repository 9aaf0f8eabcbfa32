package ranges

import (
	"errors"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func (w *world) wantOrder(o *metapb.Order, kind error) {
	w.t.Helper()
	if err := w.order(o); !errors.Is(err, kind) {
		w.t.Errorf("order %v: got %v, want %v", o, err, kind)
	}
}

func TestRemovedReplicaLeavesATombstoneThatOutlivesACrash(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("k", "v")
	if l.id == 3 {
		w.transfer(2, 1)
		l = w.nodes[1]
	}
	old := w.nodes[3].table.replica(2)
	w.removeReplica(2, old.self)
	w.tick(30)
	gone := func() {
		t.Helper()
		if w.nodes[3].table.replica(2) != nil {
			t.Fatal("the removed replica is still there")
		}
		next, err := w.nodes[3].store.Log().Tombstone(2)
		must(t, err)
		if next <= old.self {
			t.Fatalf("tombstone %d of replica %d", next, old.self)
		}
	}
	gone()
	must(t, w.nodes[3].store.Sync())
	w.nodes[3].crash()
	w.nodes[3].restart()
	w.tick(20)
	gone()
	_, err := w.nodes[3].table.AdmitSnapshot(&metapb.SnapshotHeader{
		RangeId: 2, ToReplica: uint64(old.self), Applied: &metapb.AppliedState{},
		Descriptor_: &metapb.RangeDescriptor{
			RangeId: 2, Start: key(""), End: key("z"),
			Replicas: []*metapb.Replica{{NodeId: 3, ReplicaId: uint64(old.self)}},
		},
	})
	if !errors.Is(err, ErrSnapshotRefused) {
		t.Fatalf("a snapshot for the dead replica: %v", err)
	}
	// A new replica with a new id may come.
	if id := w.addVoter(2, 3); id <= old.self {
		t.Fatalf("replica id %d after %d", id, old.self)
	}
	w.tick(5)
	w.check()
	l.put("k", "w")
}

// Bug classes 5, 8 and 19: a replica that was removed while its node was away,
// and added again under a new id.
func TestReplicaThatMissedItsRemovalIsReplacedByItsSuccessor(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	if l.id == 3 {
		w.transfer(2, 1)
		l = w.nodes[1]
	}
	old := w.nodes[3].table.replica(2).self
	w.nodes[3].down = true
	w.removeReplica(2, old)
	l.put("k", "while away")
	w.split(2, "m")
	w.nodes[3].down = false
	must(t, w.order(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_ADD_LEARNER, NodeId: 3,
	}))
	w.tick(60)
	now := w.nodes[3].table.replica(2)
	if now == nil || now.self <= old || !now.state.Load().initialised() {
		t.Fatalf("no successor of replica %d: %+v", old, now)
	}
	w.check()
}

func TestReplicaThatNobodyTellsOfItsRemovalIsTold(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	if l.id == 3 {
		w.transfer(2, 1)
	}
	old := w.nodes[3].table.replica(2).self
	w.nodes[3].down = true
	w.removeReplica(2, old)
	w.nodes[3].down = false
	w.tick(60) // it campaigns and hears that it is gone
	if w.nodes[3].table.replica(2) != nil {
		t.Fatal("the removed replica is still there")
	}
	d, err := w.nodes[3].store.State().Replica(2)
	must(t, err)
	if d != nil {
		t.Fatal("its data is still there")
	}
}

func TestOrdersAreRefusedWithAReason(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	d := w.descriptor(2)
	self := uint64(replicaOn(d, l.id).GetReplicaId())
	const (
		add      = metapb.OrderKind_ORDER_KIND_ADD_LEARNER
		promote  = metapb.OrderKind_ORDER_KIND_PROMOTE
		demote   = metapb.OrderKind_ORDER_KIND_DEMOTE
		remove   = metapb.OrderKind_ORDER_KIND_REMOVE_LEARNER
		transfer = metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER
	)
	w.wantOrder(&metapb.Order{RangeId: 2, Kind: add, NodeId: 2, Generation: 1}, ErrStaleGeneration)
	w.wantOrder(&metapb.Order{RangeId: 2, Kind: add, NodeId: 2}, ErrRefused)
	w.wantOrder(&metapb.Order{RangeId: 2, Kind: demote, ReplicaId: self}, ErrRefused)
	w.wantOrder(&metapb.Order{RangeId: 2, Kind: remove, ReplicaId: self}, ErrRefused)
	w.wantOrder(&metapb.Order{RangeId: 2, Kind: promote, ReplicaId: self}, ErrRefused)
	w.wantOrder(&metapb.Order{RangeId: 2, Kind: transfer, ReplicaId: 99}, ErrRefused)
	w.wantOrder(&metapb.Order{RangeId: 2}, ErrRefused)
	w.wantOrder(&metapb.Order{RangeId: 2, Kind: transfer, ReplicaId: self}, nil)
	l.put("k", "still works")
}

// Bug class 18: leadership goes to no replica that lags or needs a snapshot.
func TestTransferToALaggingReplicaIsRefused(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	lag := w.nodes[l.id%3+1]
	lag.down = true
	for range 2 * maxLag {
		l.put("k", "v")
	}
	w.tick(3)
	w.wantOrder(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER, NodeId: uint64(lag.id),
	}, ErrLagging)
	lag.down = false
	w.tick(20)
	w.transfer(2, lag.id)
}

// A joint configuration whose leader went away is left by the next leader.
func TestNextLeaderLeavesTheJointConfiguration(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4, nil)
	w.bootstrap()
	w.addVoter(2, 2)
	w.addVoter(2, 3)
	must(t, w.order(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_ADD_LEARNER, NodeId: 4,
	}))
	w.tick(10)
	l := w.leader(2)
	// The entry that leaves is never sent.
	w.drop = func(from, _ ids.NodeID, m *multiraft.Message) bool {
		return from == l.id && m.Range == 2 && isJoint(l.table.replica(2).descriptor()) &&
			len(m.Raft.GetEntries()) > 0
	}
	id := replicaOn(w.descriptor(2), 4).GetReplicaId()
	must(t, w.order(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_PROMOTE, ReplicaId: id,
	}))
	w.tick(2)
	l.down = true
	w.drop = nil
	for range 100 {
		w.tick(1)
		if n := w.leader(2); n != l && !isJoint(w.descriptor(2)) {
			break
		}
	}
	if isJoint(w.descriptor(2)) || replicaOn(w.descriptor(2), 4).GetRole() != roleVoter {
		t.Fatalf("descriptor %v", w.descriptor(2))
	}
	l.down = false
	w.tick(20)
	w.check()
}

// Bug classes 5 and 21: a snapshot of the right half before, during and after
// the local split.
func TestSnapshotOfTheRightHalfWaitsForTheLocalSplit(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	slow := w.nodes[l.id%3+1]
	for _, k := range []string{"a", "b", "y", "z"} {
		l.put(k, "v")
	}
	w.drop = func(_, to ids.NodeID, m *multiraft.Message) bool {
		return to == slow.id && m.Range == 2
	}
	_, right := w.split(2, "m")
	id := ids.RangeID(right.GetRangeId())
	rs, err := l.store.State().Replica(id)
	must(t, err)
	h := &metapb.SnapshotHeader{
		RangeId: uint64(id), FromNode: uint64(l.id), RaftTerm: 9,
		ToReplica:   replicaOn(right, slow.id).GetReplicaId(),
		Descriptor_: rs.Descriptor, Applied: rs.Applied,
	}
	if _, err := slow.table.AdmitSnapshot(h); !errors.Is(err, ErrSnapshotRefused) {
		t.Fatalf("before the split: %v", err)
	}
	if slow.table.replica(id) != nil {
		t.Fatal("a refused snapshot made a replica")
	}
	l.put("y", "w")
	w.drop = nil
	w.tick(30)
	if slow.table.replica(id) == nil {
		t.Fatal("the right half was not born")
	}
	a, err := slow.table.AdmitSnapshot(h) // after it: admitted, raft decides
	must(t, err)
	if _, err := slow.table.AdmitSnapshot(h); !errors.Is(err, ErrSnapshotRefused) {
		t.Fatalf("a second one for the same range: %v", err)
	}
	a.Abandon()
	if slow.table.replica(id) == nil {
		t.Fatal("an abandoned snapshot took the replica with it")
	}
	w.check()
}

func TestAbandonedSnapshotLeavesNoReplica(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2, nil)
	w.bootstrap()
	w.noSnaps = true
	must(t, w.order(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_ADD_LEARNER, NodeId: 2,
	}))
	rs, err := w.nodes[1].store.State().Replica(2)
	must(t, err)
	a, err := w.nodes[2].table.AdmitSnapshot(&metapb.SnapshotHeader{
		RangeId: 2, ToReplica: 2, Descriptor_: rs.Descriptor, Applied: rs.Applied,
	})
	must(t, err)
	a.Abandon()
	w.settle()
	if n, _ := w.nodes[2].table.Counts(); n != 0 {
		t.Fatalf("%d replicas", n)
	}
	w.noSnaps = false
	w.tick(60)
	if n, _ := w.nodes[2].table.Counts(); n != 1 {
		t.Fatal("the learner never came")
	}
	w.maintain(2)
	f := w.nodes[1].lastFact(2)
	if len(f.GetCaughtUp()) != 1 {
		t.Fatalf("placement was not told that the learner caught up: %v", f)
	}
	w.check()
}

// Bug class 6: a read that is on its way when its replica is destroyed.
func TestReadOfADestroyedReplicaFails(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("k", "v")
	l.holdJobs = true
	get := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")})
	w.settle()
	held := l.jobs
	l.jobs = nil
	l.table.OnGone(2, 99)
	w.settle()
	for _, job := range held {
		job()
	}
	wantCode(t, get.resp, kv.CodeNotLeader)
	wantCode(t, l.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")}).resp, kv.CodeWrongRange)
}
