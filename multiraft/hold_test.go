package multiraft

import (
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

func TestFollowersHearOfACommitWithTheNextEntryOrTheNextTick(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m, f := c.elect(7, 1), c.nodes[2].machines[7]
	c.agree(7, 1, 2, 3)
	before := c.nodes[1].host.Metrics().MessagesOut
	m.put("a")
	if !slices.Contains(m.log, "a") || slices.Contains(f.log, "a") {
		t.Fatalf("leader applied %q, follower %q", m.log, f.log)
	}
	if sent := c.nodes[1].host.Metrics().MessagesOut - before; sent != 2 {
		t.Fatalf("an entry cost the leader %d messages, want one to each follower", sent)
	}
	m.put("b")
	if !slices.Contains(f.log, "a") || slices.Contains(f.log, "b") {
		t.Fatalf("after the next append the follower applied %q", f.log)
	}
	c.tick(1)
	if !slices.Contains(f.log, "b") {
		t.Fatalf("after a tick the follower applied %q", f.log)
	}
}

func TestHastenTellsFollowersAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m, f := c.elect(7, 1), c.nodes[2].machines[7]
	m.put("a")
	m.do(m.g.Hasten)
	c.settle()
	if !slices.Contains(f.log, "a") {
		t.Fatalf("the follower applied %q", f.log)
	}
}

func TestARepeatedEmptyAppendIsAProbeAndLeavesAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	c.agree(7, 1, 2, 3)
	g := m.g
	p := g.peer(2)
	probe := &raftpb.Message{
		Type: raftpb.MsgApp.Enum(), Term: new(uint64(g.status.Term)), Commit: new(p.told),
	}
	if g.mayHold(p, probe) {
		t.Fatalf("held although the peer was told of index %d", p.told)
	}
	probe.Commit = new(p.told + 1)
	if !g.mayHold(p, probe) {
		t.Fatal("news of a commit is not held")
	}
	probe.Entries = []*raftpb.Entry{{}}
	if g.mayHold(p, probe) {
		t.Fatal("an append with entries is held")
	}
}
