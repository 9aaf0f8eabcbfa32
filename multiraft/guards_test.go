package multiraft

import (
	"fmt"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Bug class 17: what keeps the log for a snapshot in flight must not be known
// to its sender alone. The leadership moves while a learner installs; it
// catches up by the log of the next leader, without a second snapshot.
func TestLeadershipMovesWhileASnapshotIsInstalled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, func(cfg *Config) { cfg.TruncateEntries = 8 })
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	n := c.nodes[4]
	n.holdJobs = true
	if err := m.change(simple, "l4"); err != nil {
		t.Fatal(err)
	}
	c.tick(4)
	if len(n.jobs) != 1 {
		t.Fatalf("%d installs wait", len(n.jobs))
	}
	c.tick(activeElections * defaultElectionTicks) // so long that it was silent for the others
	m.do(func() { m.g.TransferLeader(2) })
	m2 := c.elect(7, 2)
	for i := range 40 {
		m2.put(fmt.Sprint(i))
	}
	n.holdJobs = false
	c.settle()
	c.tick(6)
	c.agree(7, 1, 2, 3, 4)
	sent := uint64(0)
	for _, id := range c.order {
		sent += c.nodes[id].host.Metrics().SnapshotsSent
	}
	if sent != 1 {
		t.Fatalf("%d snapshots, the log was to be kept", sent)
	}
}

// Bug class 41: one pair of nodes cannot talk for minutes. The one that hears no
// leader must not raise the term for the others, neither meanwhile nor after.
func TestPartialPartitionLeavesTheTermAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	term := m.status().Term
	c.drop = func(from, to ids.NodeID, _ *Message) bool {
		return from == 1 && to == 3 || from == 3 && to == 1
	}
	for i := range 60 {
		c.tick(20)
		m.put(fmt.Sprint(i))
	}
	c.drop = nil
	c.tick(40)
	for _, id := range c.order {
		if st := c.nodes[id].machines[7].status(); st.Term > term+1 {
			t.Fatalf("term %d after two minutes of a cut pair, %d before", st.Term, term)
		}
	}
	c.agree(7, 1, 2, 3)
}

// Bug class 42: the disk of a follower hangs for long, longer than the log is
// kept for it. When it is released the follower catches up by itself.
func TestFollowerWhoseDiskHungCatchesUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *Config) { cfg.TruncateEntries, cfg.MaxLogBytes = 8, 4<<10 })
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	n := c.nodes[3]
	n.holdSync, n.holdJobs = true, true
	for i := range 300 {
		m.put(fmt.Sprintf("%0100d", i))
		c.tick(1)
	}
	behind := n.machines[7].index
	if first := m.status().FirstIndex; behind+1 >= first {
		t.Fatalf("the log was kept: it begins at %d, the follower has %d", first, behind)
	}
	n.holdSync, n.holdJobs = false, false
	c.settle()
	c.tick(20)
	m.put("after")
	c.tick(4) // followers may hear of a commit with the next heartbeat only
	c.agree(7, 1, 2, 3)
	if n.machines[7].status().Halted {
		t.Fatal("halted")
	}
}

// Bug class 8: a message to a replica that was removed from this node. No answer
// may make its sender, who missed the removal, believe that the replica lives.
func TestMessagesToARemovedReplicaAreNotAnswered(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	n := c.nodes[1]
	b := n.store.NewBatch()
	if err := n.store.Log().PutTombstone(b, 7, 4); err != nil {
		t.Fatal(err)
	}
	if err := n.store.CommitNoSync(b); err != nil {
		t.Fatal(err)
	}
	b.Close()
	for _, to := range []uint64{3, 4} {
		for _, typ := range []raftpb.MessageType{raftpb.MsgHeartbeat, raftpb.MsgApp} {
			n.host.Receive(Frame{From: 2, Messages: []Message{{
				Range: 7, ToLearner: true, Raft: &raftpb.Message{
					Type: typ.Enum(), From: new(uint64(2)), To: new(to), Term: new(uint64(6)),
				},
			}}})
		}
		n.poll()
		answers := 0
		for _, p := range c.wire {
			answers += len(p.messages)
		}
		c.wire = nil
		if want := 2 * int(to-3); answers != want {
			t.Errorf("%d answers for replica %d, tombstone 4, want %d", answers, to, want)
		}
	}
}
