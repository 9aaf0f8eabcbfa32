package multiraft

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

const (
	simple = raftpb.ConfChangeTransitionAuto
	joint  = raftpb.ConfChangeTransitionJointExplicit
)

func TestAJointChangeReplacesAReplica(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	m.put("a")
	if err := m.change(simple, "l4"); err != nil {
		t.Fatal(err)
	}
	// The learner had nothing: it was told of by a rejection, got a snapshot.
	c.tick(4)
	c.agree(7, 1, 2, 3, 4)
	if n := c.nodes[4].machines[7]; n.restored != 1 {
		t.Fatalf("restored %d times", n.restored)
	}
	if err := m.change(joint, "v4 r3"); err != nil {
		t.Fatal(err)
	}
	if got := m.conf; !slices.Equal(got.Voters, []uint64{1, 2, 4}) ||
		!slices.Equal(got.VotersOutgoing, []uint64{1, 2, 3}) {
		t.Fatalf("joint configuration %v", got)
	}
	// A second change is refused while the first is not over, and says so.
	if err := m.change(simple, "l5"); !errors.Is(err, ErrDropped) {
		t.Fatalf("change inside a joint configuration: %v", err)
	}
	if err := m.leave(); err != nil {
		t.Fatal(err)
	}
	if got := m.conf; !slices.Equal(got.Voters, []uint64{1, 2, 4}) || len(got.VotersOutgoing) != 0 {
		t.Fatalf("configuration %v", got)
	}
	// Without node 2 the new one is needed for a quorum.
	c.nodes[2].down = true
	m.put("b")
	c.agree(7, 1, 4)
}

func TestARefusedChangeLeavesTheConfigurationAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	before := m.g.conf
	m.do(func() {
		zero := &raftpb.ConfChangeV2{}
		if m.g.ApplyConfChange(nil) != before || m.g.ApplyConfChange(zero) != before {
			t.Error("changed")
		}
	})
	if err := m.change(joint, "r3"); err != nil {
		t.Fatal(err)
	}
	m.do(func() {
		// In a joint configuration a change without content would leave it; only
		// one with a context means that.
		if m.g.ApplyConfChange(&raftpb.ConfChangeV2{}); len(m.g.conf.VotersOutgoing) == 0 {
			t.Error("left the joint configuration")
		}
	})
}

func TestALearnerIsOfferedASnapshotOnceAndFollowsTheLog(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	if err := m.change(simple, "l4"); err != nil {
		t.Fatal(err)
	}
	c.tick(4)
	for i := range 20 {
		m.put(fmt.Sprint(i))
	}
	c.agree(7, 1, 2, 3, 4)
	got := c.nodes[1].host.Metrics()
	if got.SnapshotsSent != 1 || got.SnapshotsFailed != 0 || got.SnapshotsOut != 0 {
		t.Fatalf("snapshots: %+v", got)
	}
	p := m.g.Progress()
	if len(p) != 4 || p[3].State != "replicate" || !p[3].Learner || p[3].Match != m.index {
		t.Fatalf("progress %+v", p)
	}
	// Leadership never goes to a learner.
	m.do(func() { m.g.TransferLeader(4) })
	c.settle()
	if !m.status().IsLeader {
		t.Fatal("transferred to a learner")
	}
}

func TestARightHalfThatIsNotBornYetWaitsForItsSplit(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	// The split is applied at nodes 1 and 2 only.
	for _, v := range []uint64{1, 2} {
		n := c.nodes[ids.NodeID(v)]
		n.addReplica(n.stage(7, ids.ReplicaID(v), 1, 2, 3), false)
	}
	m := c.elect(7, 1)
	m.put("a")
	c.tick(3)
	if held := c.nodes[3].host.Metrics().MessagesHeld; held == 0 {
		t.Fatal("nothing was held")
	}
	n := c.nodes[3]
	n.addReplica(n.stage(7, 3, 1, 2, 3), false)
	c.settle()
	c.tick(2)
	c.agree(7, 1, 2, 3)
	if sent := c.nodes[1].host.Metrics().SnapshotsSent; sent != 0 {
		t.Fatalf("%d snapshots of a range that the split creates", sent)
	}
	if len(n.host.shards[1].unborn.order) != 0 {
		t.Fatal("the record stays")
	}
}

func TestAnUnbornReplicaIsGivenUpAfterTheHoldTime(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	for _, v := range []uint64{1, 2} {
		n := c.nodes[ids.NodeID(v)]
		n.addReplica(n.stage(7, ids.ReplicaID(v), 1, 2, 3), false)
	}
	m := c.elect(7, 1)
	m.put("a")
	c.tick(unbornHoldTicks - 5)
	if sent := c.nodes[1].host.Metrics().SnapshotsSent; sent != 0 {
		t.Fatal("snapshot before the hold time was over")
	}
	c.tick(15)
	c.agree(7, 1, 2, 3)
	if sent := c.nodes[1].host.Metrics().SnapshotsSent; sent != 1 {
		t.Fatalf("%d snapshots, want 1", sent)
	}
}

func TestUnbornMessagesStayWithinTheirBounds(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *Config) { cfg.Shards = 1 })
	n := c.nodes[1]
	beat := func(r ids.RangeID, size int) Message {
		return Message{Range: r, Raft: &raftpb.Message{
			Type: raftpb.MsgApp.Enum(),
			From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(6)),
			Entries: []*raftpb.Entry{{Data: make([]byte, size)}}}}
	}
	for range 2 * maxUnbornMessages {
		n.host.Receive(Frame{From: 2, Messages: []Message{beat(1, 10)}})
	}
	n.host.Receive(Frame{From: 2, Messages: []Message{beat(2, maxUnbornBytes)}})
	for r := range ids.RangeID(2 * maxUnbornRanges) {
		n.host.Receive(Frame{From: 2, Messages: []Message{beat(r+10, 10)}})
	}
	n.poll()
	u := &n.host.shards[0].unborn
	if got := len(u.byRange[1].messages); got != maxUnbornMessages {
		t.Fatalf("%d messages of a range, the bound is %d", got, maxUnbornMessages)
	}
	if got := len(u.byRange[2].messages); got != 0 {
		t.Fatal("over the byte bound")
	}
	if len(u.order) != maxUnbornRanges || len(u.byRange) != maxUnbornRanges {
		t.Fatalf("%d ranges, the bound is %d", len(u.order), maxUnbornRanges)
	}
	c.tick((unbornForgetFactor + 1) * unbornHoldTicks)
	if len(u.order) != 0 || len(u.byRange) != 0 {
		t.Fatal("never forgotten")
	}
	if got := n.host.Metrics().InboxBytes; got != 0 {
		t.Fatalf("%d bytes leaked from the inbox budget", got)
	}
}

func TestAStatelessAnswerConfirmsNoRead(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	n := c.nodes[1]
	beat := &raftpb.Message{
		Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), To: new(uint64(1)),
		Term: new(uint64(6)), Context: []byte("12345678"),
	}
	n.host.Receive(Frame{From: 2, Messages: []Message{{Range: 7, ToLearner: true, Raft: beat}}})
	n.poll()
	if len(c.wire) != 1 {
		t.Fatalf("%d answers", len(c.wire))
	}
	m := c.wire[0].messages[0].Raft
	if m.GetType() != raftpb.MsgHeartbeatResp || len(m.GetContext()) != 0 || m.GetTerm() != 6 {
		t.Fatalf("answer %v", m)
	}
}

func TestARemovedReplicaHearsThatItIsGone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	c.nodes[3].down = true // it misses its removal
	if err := m.change(joint, "r3"); err != nil {
		t.Fatal(err)
	}
	if err := m.leave(); err != nil {
		t.Fatal(err)
	}
	c.gone[7] = 4
	c.nodes[1].host.cfg.Gone = func(r ids.RangeID, id ids.ReplicaID) (ids.ReplicaID, bool) {
		return 4, id == 3
	}
	c.nodes[2].host.cfg.Gone = c.nodes[1].host.cfg.Gone
	c.nodes[3].host.cfg.Gone = func(ids.RangeID, ids.ReplicaID) (ids.ReplicaID, bool) {
		return 0, false
	}
	c.nodes[3].down = false
	c.tick(25) // it campaigns
	if got := c.nodes[3].goneSeen; len(got) == 0 || got[0] != "range 7 below 4" {
		t.Fatalf("node 3 heard %q", got)
	}
	if !m.status().IsLeader || m.status().Term != m.ts.Term {
		t.Fatal("the removed replica disturbed the leader")
	}
}

func TestMessagesForAnotherIncarnationChangeNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	m.put("a")
	n := c.nodes[2]
	f := n.machines[7]
	before := f.status()
	send := func(to uint64) {
		n.host.Receive(Frame{From: 3, Messages: []Message{{Range: 7, Raft: &raftpb.Message{
			Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(3)), To: new(to),
			Term: new(uint64(99)), Commit: new(uint64(0)),
		}}}})
		n.poll()
	}
	c.gone[7] = 0
	send(202) // a newer replica on this node: this one must be gone
	if got := n.goneSeen; !slices.Equal(got, []string{"range 7 below 202"}) {
		t.Fatalf("heard %q", got)
	}
	// An older one. Its sender may be well: no notice may kill it.
	n.host.cfg.Gone = func(_ ids.RangeID, id ids.ReplicaID) (ids.ReplicaID, bool) {
		return 9, id < 2
	}
	c.wire = nil
	send(1)
	if len(c.wire) != 0 {
		t.Fatalf("answer %+v", c.wire)
	}
	if f.status() != before {
		t.Fatalf("status %+v, was %+v", f.status(), before)
	}
}

// Seed 5022 of the simulation: all replicas that a removed learner knew had moved, and
// their nodes held newer ones, to which it did not speak. It asked for ever.
func TestARemovedReplicaThatKnowsOnlyReplacedOnesIsTold(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	n := c.nodes[2] // holds replica 2; replica 1 was there before
	n.host.cfg.Gone = func(_ ids.RangeID, id ids.ReplicaID) (ids.ReplicaID, bool) {
		return id + 1, id == 205
	}
	for _, sender := range []uint64{205, 206} { // 206 is well, and only late
		n.host.Receive(Frame{From: 3, Messages: []Message{{Range: 7, Raft: &raftpb.Message{
			Type: raftpb.MsgPreVote.Enum(), From: new(sender), To: new(uint64(1)),
			Term: new(uint64(99)),
		}}}})
	}
	n.poll()
	var told []ids.ReplicaID
	for _, p := range c.wire {
		for _, m := range p.messages {
			if p.to == 3 && m.Gone != 0 {
				told = append(told, m.Gone)
			}
		}
	}
	if !slices.Equal(told, []ids.ReplicaID{206}) {
		t.Fatalf("told %v, want that all below 206 are gone", told)
	}
}

func TestANoticeSparesANewerReplicaOfTheNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	n := c.nodes[1]
	// A late message of replica 202 arrives, which node 2 had before; by the
	// descriptor the next id to be given out is 900.
	n.host.cfg.Gone = func(_ ids.RangeID, id ids.ReplicaID) (ids.ReplicaID, bool) {
		return 900, id == 202
	}
	for _, r := range []ids.RangeID{7, 8} { // with and without a group here
		n.host.Receive(Frame{From: 2, Messages: []Message{{Range: r, Raft: &raftpb.Message{
			Type: raftpb.MsgPreVote.Enum(), From: new(uint64(202)), To: new(uint64(1)),
			Term: new(uint64(99)),
		}}}})
	}
	n.poll()
	for _, p := range c.wire {
		for _, m := range p.messages {
			if p.to != 2 || m.Raft != nil || m.Gone != 203 {
				t.Fatalf("sent %+v to node %d", m, p.to)
			}
		}
	}
	if got := n.host.Metrics().GoneNotices; got != 2 {
		t.Fatalf("%d notices", got)
	}
}

func TestOnlyMessagesBetweenReplicasAreStepped(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	c.elect(7, 1)
	n := c.nodes[2]
	before := n.machines[7].status()
	dropped := n.host.Metrics().MessagesDropped
	bad := []raftpb.MessageType{
		raftpb.MsgHup, raftpb.MsgBeat, raftpb.MsgProp, raftpb.MsgUnreachable, raftpb.MsgSnapStatus,
		raftpb.MsgCheckQuorum, raftpb.MsgTransferLeader,
		raftpb.MsgReadIndex, raftpb.MsgReadIndexResp,
		raftpb.MsgStorageAppend, raftpb.MsgStorageAppendResp, raftpb.MsgStorageApply,
		raftpb.MsgStorageApplyResp, raftpb.MsgForgetLeader, raftpb.MsgSnap,
	}
	for _, typ := range bad {
		n.host.Receive(Frame{From: 1, Messages: []Message{{Range: 7, Raft: &raftpb.Message{
			Type: typ.Enum(), From: new(uint64(1)), To: new(uint64(2)),
			Term: new(uint64(before.Term)),
		}}}})
	}
	// A response that claims to come from the storage, and one without a term.
	for _, m := range []*raftpb.Message{
		{Type: raftpb.MsgAppResp.Enum(), From: new(^uint64(0)), To: new(uint64(2)),
			Term: new(uint64(99))},
		{Type: raftpb.MsgAppResp.Enum(), From: new(uint64(1)), To: new(uint64(2))},
	} {
		n.host.Receive(Frame{From: 1, Messages: []Message{{Range: 7, Raft: m}}})
	}
	n.poll()
	if got := n.host.Metrics().MessagesDropped - dropped; got != uint64(len(bad)+2) {
		t.Fatalf("%d dropped of %d", got, len(bad)+2)
	}
	if n.machines[7].status() != before {
		t.Fatal("something got through")
	}
}

func TestALaggardVotesForAReplicaItDoesNotKnow(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	// Node 3 hears nothing of the change that makes 4 a voter.
	c.drop = func(_, to ids.NodeID, _ *Message) bool { return to == 3 }
	if err := m.change(simple, "l4"); err != nil {
		t.Fatal(err)
	}
	c.tick(4)
	if err := m.change(simple, "v4"); err != nil {
		t.Fatal(err)
	}
	c.drop = nil
	c.nodes[1].down = true
	m4 := c.elect(7, 4) // needs 2 and 3 of 1 2 3 4
	m4.put("b")
	c.agree(7, 2, 3, 4)
}

func TestAReplicaThatLostAcknowledgedEntriesHalts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	m.put("a")
	n := c.nodes[2]
	n.host.Receive(Frame{From: 1, Messages: []Message{{Range: 7, Raft: &raftpb.Message{
		Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(1)), To: new(uint64(2)),
		Term: new(uint64(m.ts.Term)), Commit: new(uint64(m.index) + 5),
	}}}})
	n.poll()
	if !n.machines[7].status().Halted {
		t.Fatal("goes on with a log that lost entries")
	}
	m.put("b") // the others go on
	c.agree(7, 1, 3)
}
