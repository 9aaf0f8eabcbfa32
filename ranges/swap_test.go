package ranges

import (
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// swapWorld is a cluster of four: range 2 has voters on 1 (which leads), 2 and 3,
// and a learner on 4 that is caught up.
func swapWorld(t *testing.T) (w *world, order *metapb.Order) {
	t.Helper()
	w = newWorld(t, 4, nil)
	w.bootstrap()
	w.addVoter(2, 2)
	w.addVoter(2, 3)
	must(t, w.order(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_ADD_LEARNER, NodeId: 4,
	}))
	w.tick(10)
	if w.leader(2).id != 1 {
		w.transfer(2, 1)
	}
	d := w.descriptor(2)
	return w, &metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_PROMOTE, Generation: d.GetGeneration(),
		ReplicaId:       replicaOn(d, 4).GetReplicaId(),
		DemoteReplicaId: replicaOn(d, 3).GetReplicaId(),
	}
}

// wantOdd looks at the configuration of every replica: each half must have three
// voters.
func (w *world) wantOdd() {
	w.t.Helper()
	for _, n := range w.nodes[1:] {
		if n.down || n.table.replica(2) == nil {
			continue
		}
		c := n.table.replica(2).state.Load().conf
		in, out := len(c.GetVoters()), len(c.GetVotersOutgoing())
		if in != 3 && n.table.replica(2).state.Load().initialised() || out != 0 && out != 3 {
			w.t.Fatalf("%v counts %d and %d voters: %v", n.id, in, out, c)
		}
	}
}

func (w *world) wantSwapped() {
	w.t.Helper()
	d := w.descriptor(2)
	for node, role := range map[ids.NodeID]metapb.ReplicaRole{
		1: roleVoter, 2: roleVoter, 3: roleLearner, 4: roleVoter,
	} {
		if got := replicaOn(d, node).GetRole(); got != role {
			w.t.Errorf("on %v there is a %v, want a %v", node, got, role)
		}
	}
}

// settled ticks until no joint configuration is left and the range has a leader.
func (w *world) settled() {
	w.t.Helper()
	for range 100 {
		w.tick(1)
		w.wantOdd()
		if !isJoint(w.descriptor(2)) {
			w.tick(10) // everybody hears of it
			return
		}
	}
	w.t.Fatalf("the joint configuration stays: %v", w.descriptor(2))
}

func TestSwapIsOneChangeAndNeverCountsAnEvenNumber(t *testing.T) {
	t.Parallel()
	w, o := swapWorld(t)
	l := w.leader(2)
	l.put("k", "v")
	var result error
	called := false
	l.table.Order(o, func(err error) { result, called = err, true })
	joint := false
	for range 200 {
		w.once()
		w.wantOdd()
		joint = joint || isJoint(l.table.replica(2).descriptor())
	}
	if !called || result != nil || !joint {
		t.Fatalf("answered: %v, error: %v, joint: %v", called, result, joint)
	}
	w.settled()
	w.wantSwapped()
	if got := w.descriptor(2).GetGeneration(); got != o.GetGeneration()+2 {
		t.Errorf("generation %d after %d: enter and leave are one each", got, o.GetGeneration())
	}
	w.wantOrder(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_REMOVE_LEARNER, ReplicaId: o.DemoteReplicaId,
	}, nil)
	w.tick(20)
	if w.nodes[3].table.replica(2) != nil {
		t.Error("the replica that was given up is still there")
	}
	if l.get("k") != "v" {
		t.Error("data is gone")
	}
	w.check()
}

func TestSwapIsRefusedWithAReason(t *testing.T) {
	t.Parallel()
	w, o := swapWorld(t)
	d := w.descriptor(2)
	want := func(promote, demote uint64, kind error) {
		t.Helper()
		w.wantOrder(&metapb.Order{
			RangeId: 2, Kind: o.GetKind(), ReplicaId: promote, DemoteReplicaId: demote,
		}, kind)
		if r := w.leader(2).table.replica(2); r.change != nil {
			t.Error("a refused swap left something behind")
		}
	}
	leader := replicaOn(d, 1).GetReplicaId()
	want(o.ReplicaId, leader, ErrRefused)
	err := w.order(&metapb.Order{
		RangeId: 2, Kind: o.GetKind(), ReplicaId: o.ReplicaId, DemoteReplicaId: leader,
	})
	if err == nil || !strings.Contains(err.Error(), "transfer the leadership first") {
		t.Errorf("demoting the leader: %v", err)
	}
	want(o.ReplicaId, o.ReplicaId, ErrRefused) // for itself
	want(o.ReplicaId, 99, ErrRefused)
	want(o.DemoteReplicaId, leader, ErrRefused) // no learner
	w.nodes[4].down = true
	for range 2 * maxLag {
		w.nodes[1].put("k", "v")
	}
	w.tick(3)
	want(o.ReplicaId, o.DemoteReplicaId, ErrLagging)
	w.nodes[4].down = false
	w.tick(30)
	w.check()
}

// Repair does nothing else: the voter that is given up is gone.
func TestSwapReplacesAVoterThatIsAway(t *testing.T) {
	t.Parallel()
	w, o := swapWorld(t)
	w.nodes[3].down = true
	w.tick(3)
	must(t, w.order(o))
	w.settled()
	w.wantSwapped()
	w.wantOrder(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_REMOVE_LEARNER, ReplicaId: o.DemoteReplicaId,
	}, nil)
	w.nodes[1].put("k", "v")
	w.nodes[3].down = false
	w.tick(60)
	if w.nodes[3].table.replica(2) != nil {
		t.Error("the node that came back keeps its replica")
	}
	w.check()
}

// keepJoint drops the entry that leaves the joint configuration, whoever leads.
func (w *world) keepJoint() {
	w.drop = func(from, _ ids.NodeID, m *multiraft.Message) bool {
		r := w.nodes[from].table.replica(2)
		return m.Range == 2 && m.Raft != nil && r != nil && r.descriptor() != nil &&
			isJoint(r.descriptor()) && len(m.Raft.GetEntries()) > 0
	}
}

func TestSwapIsFinishedByTheNextLeader(t *testing.T) {
	t.Parallel()
	w, o := swapWorld(t)
	w.keepJoint()
	must(t, w.order(o))
	w.nodes[1].down = true
	w.drop = nil
	for range 100 {
		w.tick(1)
		if l := w.leader(2); l.id != 1 {
			break
		}
	}
	w.settled()
	w.wantSwapped()
	w.nodes[1].down = false
	w.tick(20)
	w.wantOdd()
	w.check()
}

// The voter that is being given up has a vote until the change is left, so it may
// lead. It must not leave it: it would step down with a log that may be longer than
// those of all who vote afterwards, who still need its vote and would not get it.
func TestSwapIsHandedOnByTheVoterThatItGivesUp(t *testing.T) {
	t.Parallel()
	w, o := swapWorld(t)
	w.keepJoint()
	must(t, w.order(o))
	w.tick(2) // everybody is joint
	w.nodes[1].down = true
	led, left := false, false
	w.drop = func(from, _ ids.NodeID, m *multiraft.Message) bool {
		if m.Range != 2 || m.Raft == nil {
			return false
		}
		if from == 3 {
			for _, e := range m.Raft.GetEntries() {
				left = left || e.GetType() == raftpb.EntryConfChangeV2
			}
			return false
		}
		switch m.Raft.GetType() {
		case raftpb.MsgVote, raftpb.MsgPreVote: // nobody else asks for votes before
			return !led
		}
		return false
	}
	for range 400 {
		w.once()
		w.tickOnly()
		w.maintain(1)
		led = led || w.nodes[3].table.Leads(2)
		if led && !isJoint(w.nodes[3].table.replica(2).descriptor()) {
			break
		}
	}
	if left {
		t.Fatal("it left the configuration that takes its vote")
	}
	if !led {
		t.Fatal("the voter that is given up was never elected")
	}
	w.drop = nil
	w.settled()
	w.wantSwapped()
	if l := w.leader(2); l.id == 3 {
		t.Error("a learner leads")
	}
	w.nodes[1].down = false
	w.tick(20)
	w.check()
}

func TestSwapSurvivesAPowerCutOfAllNodesInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, synced := range []bool{false, true} {
		w, o := swapWorld(t)
		w.nodes[1].put("k", "v")
		w.keepJoint()
		must(t, w.order(o))
		w.tick(2)
		for _, n := range w.nodes[1:] {
			if synced {
				must(t, n.store.Sync())
			}
			n.crash()
		}
		w.drop = nil
		for _, n := range w.nodes[1:] {
			n.restart()
		}
		w.settled()
		w.wantSwapped()
		if w.leader(2).get("k") != "v" {
			t.Error("data is gone")
		}
		w.check()
	}
}
