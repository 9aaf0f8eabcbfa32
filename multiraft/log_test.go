package multiraft

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

func TestTruncationKeepsWhatALiveFollowerNeeds(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *Config) { cfg.TruncateEntries = 8 })
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	// Node 3 answers heartbeats but takes no entries.
	c.drop = func(_, to ids.NodeID, msg *Message) bool {
		return to == 3 && msg.Raft.GetType() == raftpb.MsgApp
	}
	for i := range 40 {
		m.put(fmt.Sprint(i))
		c.tick(1)
	}
	for _, id := range c.order[:2] {
		if first := c.nodes[id].machines[7].status().FirstIndex; first > startIndex+3 {
			t.Fatalf("node %d cut its log to %d, which node 3 needs", id, first)
		}
	}
	c.drop = nil
	c.tick(4)
	c.agree(7, 1, 2, 3)
	if n := c.nodes[1].host.Metrics().SnapshotsSent; n != 0 {
		t.Fatalf("%d snapshots for a live follower", n)
	}
	for i := range 20 {
		m.put(fmt.Sprint("more", i))
	}
	for _, id := range c.order {
		st := c.nodes[id].machines[7].status()
		if st.Applied-st.FirstIndex > 24 {
			t.Fatalf("node %d kept %d..%d", id, st.FirstIndex, st.Applied)
		}
	}
}

func TestASilentFollowerIsCutOffAndComesBackBySnapshot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *Config) { cfg.TruncateEntries = 8 })
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	c.nodes[3].down = true
	c.tick(activeElections*defaultElectionTicks + 2)
	for i := range 30 {
		m.put(fmt.Sprint(i))
	}
	if st := m.status(); st.FirstIndex < st.Applied-16 {
		t.Fatalf("the dead follower keeps the log: %+v", st)
	}
	c.nodes[3].down = false
	c.tick(10)
	c.agree(7, 1, 2, 3)
	if got := c.nodes[3].machines[7].restored; got != 1 {
		t.Fatalf("restored %d times", got)
	}
}

func TestANewLeaderCutsNothingBeforeItHeardOfAll(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *Config) { cfg.TruncateEntries = 8 })
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	c.drop = func(_, to ids.NodeID, _ *Message) bool { return to == 3 }
	for i := range 20 {
		m.put(fmt.Sprint(i))
	}
	m.do(func() { m.g.TransferLeader(2) })
	m2 := c.elect(7, 2)
	for i := range 20 {
		m2.put(fmt.Sprint("n", i))
	}
	if st := m2.status(); st.FirstIndex > startIndex+3 {
		t.Fatalf("log cut to %d by a leader that has not heard of node 3", st.FirstIndex)
	}
	c.drop = nil
	c.tick(30)
	c.agree(7, 1, 2, 3)
	for _, id := range c.order {
		if n := c.nodes[id].host.Metrics().SnapshotsSent; n != 0 {
			t.Fatalf("node %d sent %d snapshots", id, n)
		}
	}
}

func TestALogThatGrowsTooLongIsCutRegardless(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *Config) { cfg.MaxLogBytes = 16 << 10 })
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	c.drop = func(_, to ids.NodeID, msg *Message) bool {
		return to == 3 && msg.Raft.GetType() == raftpb.MsgApp
	}
	for i := range 40 {
		m.put(strings.Repeat("x", 1000) + fmt.Sprint(i))
		c.tick(1)
	}
	for _, id := range c.order[:2] {
		if size := c.nodes[id].machines[7].g.log.Bytes(); size > followerLogFactor*16<<10+2000 {
			t.Fatalf("node %d keeps %d bytes of log", id, size)
		}
	}
	c.drop = nil
	c.tick(10)
	c.agree(7, 1, 2, 3)
	if n := c.nodes[1].host.Metrics(); n.SnapshotsSent != 1 || n.ForcedTruncations == 0 {
		t.Fatalf("metrics %+v", n)
	}
}

func TestACutSurvivesACrashOnlyWithItsAppliedState(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *Config) { cfg.TruncateEntries = 4 })
	c.bootstrap(7, 1)
	m := c.elect(7, 1)
	for round := range 10 {
		for i := range 7 {
			m.put(fmt.Sprint(round, " ", i))
		}
		n := c.nodes[1]
		n.crash()
		n.restart()
		c.settle()
		m = n.machines[7]
		st := m.status()
		if st.Halted || st.FirstIndex > st.Applied+1 {
			t.Fatalf("round %d: log starts at %d, applied %d", round, st.FirstIndex, st.Applied)
		}
		m = c.elect(7, 1)
	}
	if want := ids.Index(startIndex + 70 + 11); m.status().Applied != want {
		t.Fatalf("applied %d, want %d", m.status().Applied, want)
	}
}

func TestAnInstallHoldsAllOfItsGroup(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, nil)
	c.bootstrap(7, 1, 2, 3)
	c.bootstrap(9, 1, 4)
	m := c.elect(7, 1)
	m9 := c.elect(9, 1)
	n := c.nodes[4]
	n.holdJobs = true
	if err := m.change(simple, "l4"); err != nil {
		t.Fatal(err)
	}
	c.tick(4)
	if len(n.jobs) != 1 {
		t.Fatalf("%d installs wait", len(n.jobs))
	}
	m.put("meanwhile")
	m9.put("another group of the shard") // needs node 4
	f := n.machines[7]
	// A change of term would be written to the log, beside the install.
	heard := len(f.changes)
	m.do(func() { m.g.TransferLeader(2) })
	c.tick(2 * defaultHeartbeatTicks) // the new leader's append is refused, its heartbeat is not
	if len(f.changes) != heard {
		t.Fatalf("node 4 heard of %q during its install", f.changes[heard:])
	}
	if st := f.status(); f.applies != 0 || f.restored != 0 || st.LastIndex != 0 {
		t.Fatalf("the group went on during the install: %+v", st)
	}
	n.holdJobs = false
	c.settle()
	c.tick(4)
	c.agree(7, 1, 2, 3, 4)
	if !slices.Equal(f.installs, []string{"true <nil>"}) {
		t.Fatalf("installs %q", f.installs)
	}
}

func TestARemovedGroupIsDoneWhenItsInstallIs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	n := c.nodes[4]
	n.holdJobs = true
	if err := m.change(simple, "l4"); err != nil {
		t.Fatal(err)
	}
	c.tick(4)
	removed := false
	n.host.RemoveGroup(7, func() { removed = true })
	n.poll()
	if removed {
		t.Fatal("done while the install writes")
	}
	// A successor is born only when that is over.
	next := n.addGroup(GroupConfig{Range: 7, Replica: 104, Peers: peersOf(m.conf)})
	n.poll()
	if next.g.rn != nil {
		t.Fatal("born beside an install of its predecessor")
	}
	n.holdJobs = false
	c.settle()
	if !removed || next.g.rn == nil {
		t.Fatalf("removed %v, successor born %v", removed, next.g.rn != nil)
	}
	if n.host.installs.Load() != 0 || len(n.host.shards[1].closing) != 0 {
		t.Fatal("leaked")
	}
}

func TestASnapshotThatRaftDoesNotWantIsDiscarded(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	if err := m.change(simple, "l4"); err != nil {
		t.Fatal(err)
	}
	c.tick(4)
	if len(c.snapshots) != 1 {
		t.Fatalf("%d snapshots sent", len(c.snapshots))
	}
	m.put("a")
	c.snapshots[0]() // the network delivers it once more
	c.settle()
	f := c.nodes[4].machines[7]
	if want := []string{"true <nil>", "false <nil>"}; !slices.Equal(f.installs, want) {
		t.Fatalf("installs %q, want %q", f.installs, want)
	}
	c.agree(7, 1, 2, 3, 4)
	if c.nodes[4].host.installs.Load() != 0 {
		t.Fatal("an install is leaked")
	}
}

func TestSnapshotsWaitForTokens(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, func(cfg *Config) { cfg.SnapshotsOut = 1 })
	var leaders []*machine
	for r := ids.RangeID(1); r <= 4; r++ {
		c.bootstrap(r, 1, 2, 3)
		leaders = append(leaders, c.elect(r, 1))
	}
	for _, m := range leaders {
		if err := m.change(simple, "l4"); err != nil {
			t.Fatal(err)
		}
	}
	c.tick(20)
	for r := ids.RangeID(1); r <= 4; r++ {
		c.agree(r, 1, 2, 3, 4)
	}
	if n := c.nodes[1].host.Metrics(); n.SnapshotsSent < 4 || n.SnapshotsOut != 0 {
		t.Fatalf("metrics %+v", n)
	}
}

func TestOverloadDropsDataButNotHeartbeats(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *Config) { cfg.InboxBytes = 10_000 })
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	n := c.nodes[2]
	// Tasks fill the inbox of node 2 up to its bound.
	f := n.machines[7]
	ran, accepted := 0, 0
	for range 1000 {
		err := f.g.Enqueue(TaskFunc(func() { ran++ }), 100)
		if errors.Is(err, ErrOverloaded) {
			break
		}
		accepted++
	}
	if accepted == 0 || accepted == 1000 {
		t.Fatalf("%d tasks accepted", accepted)
	}
	dropped := n.host.Metrics().MessagesDropped
	n.host.Receive(Frame{From: 1, Messages: []Message{{Range: 7, Raft: &raftpb.Message{
		Type: raftpb.MsgApp.Enum(), From: new(uint64(1)), To: new(uint64(2)),
		Term: new(uint64(m.ts.Term)), Entries: []*raftpb.Entry{{Data: make([]byte, 100)}},
	}}}})
	if got := n.host.Metrics().MessagesDropped - dropped; got != 1 {
		t.Fatal("an append got in over the budget")
	}
	in := n.host.Metrics().MessagesIn
	n.host.Receive(Frame{From: 1, Messages: []Message{{Range: 7, Raft: &raftpb.Message{
		Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(1)), To: new(uint64(2)),
		Term: new(uint64(m.ts.Term)), Commit: new(uint64(0)),
	}}}})
	c.settle()
	if n.host.Metrics().MessagesIn != in+1 {
		t.Fatal("a heartbeat was dropped")
	}
	if ran != accepted || n.host.Metrics().InboxBytes != 0 {
		t.Fatalf("ran %d of %d, %d bytes left", ran, accepted, n.host.Metrics().InboxBytes)
	}
	m.put("a")
	c.agree(7, 1, 2, 3)
}

func TestAnUnreachableNodeIsProbedGroupByGroup(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *Config) { cfg.Shards = 1 })
	for r := ids.RangeID(1); r <= 3; r++ {
		c.bootstrap(r, 1, 2, 3)
		c.elect(r, 1)
	}
	n := c.nodes[1]
	n.host.Unreachable(2)
	n.poll()
	for r := ids.RangeID(1); r <= 3; r++ {
		if p := n.machines[r].g.Progress(); p[1].State != "probe" || p[2].State != "replicate" {
			t.Fatalf("range %d: %+v", r, p)
		}
	}
	if len(n.host.shards[0].walks) != 0 {
		t.Fatal("the walk does not end")
	}
	c.tick(4)
	for r := ids.RangeID(1); r <= 3; r++ {
		if p := n.machines[r].g.Progress(); p[1].State != "replicate" {
			t.Fatalf("range %d stays in probe: %+v", r, p)
		}
	}
}

func TestOneTickAPassAndNoBurst(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *Config) { cfg.Shards = 1 })
	c.bootstrap(7, 1)
	h := c.nodes[1].host
	c.settle()
	start := h.shards[0].now
	for range 50 {
		h.Tick()
	}
	if h.Poll(0); h.shards[0].now != start+1 {
		t.Fatalf("%d ticks in a pass", h.shards[0].now-start)
	}
	c.settle()
	if got := h.shards[0].now - start; got != maxPendingTicks {
		t.Fatalf("%d ticks after a stall, want %d", got, maxPendingTicks)
	}
}

func TestALogIsKeptForASnapshotInFlight(t *testing.T) {
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
	if len(m.g.sending) != 1 {
		t.Fatalf("%d snapshots in flight", len(m.g.sending))
	}
	at := m.g.sending[0].index
	// The receiver falls silent for longer than a follower may.
	c.drop = func(from, to ids.NodeID, _ *Message) bool { return from == 4 || to == 4 }
	c.tick(activeElections*defaultElectionTicks + 5)
	for i := range 40 {
		m.put(fmt.Sprint(i))
	}
	if first := m.status().FirstIndex; first > at+1 {
		t.Fatalf("log cut to %d, the snapshot in flight is at %d", first, at)
	}
	c.drop, n.holdJobs = nil, false
	c.settle()
	c.tick(6)
	c.agree(7, 1, 2, 3, 4)
	if sent := c.nodes[1].host.Metrics().SnapshotsSent; sent != 1 {
		t.Fatalf("%d snapshots", sent)
	}
}
