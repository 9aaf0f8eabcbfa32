package multiraft

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store"
)

func TestOneKeyGoesThroughThreeHosts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	m.put("a")
	m.put("b", "c")
	c.agree(7, 1, 2, 3)
	if got := c.nodes[3].machines[7].log; !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Fatalf("node 3 applied %q", got)
	}
	st := m.status()
	if !st.IsLeader || st.Leader != 1 || st.Applied != st.LastIndex || st.Commit != st.Applied {
		t.Fatalf("status %+v", st)
	}
	// One entry each for the election, "a", "b" and "c".
	if st.Applied != startIndex+4 {
		t.Fatalf("applied %d", st.Applied)
	}
}

func TestEntriesOfOneFlushShareAProposalAndASync(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	c.bootstrap(7, 1)
	c.bootstrap(9, 1) // the same shard
	m7, m9 := c.elect(7, 1), c.elect(9, 1)
	before := c.nodes[1].host.Metrics()
	for _, m := range []*machine{m7, m9} {
		for i := range 5 {
			if err := m.g.Enqueue(TaskFunc(func() {
				m.pending = append(m.pending, fmt.Append(nil, i))
			}), 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.settle()
	after := c.nodes[1].host.Metrics()
	if p, s := after.Proposals-before.Proposals, after.Syncs-before.Syncs; p != 2 || s != 1 {
		t.Fatalf("%d proposals and %d syncs for two groups, want 2 and 1", p, s)
	}
	if len(m7.log) != 5 || len(m9.log) != 5 {
		t.Fatalf("applied %v and %v", m7.log, m9.log)
	}
}

func TestLeadersAppendLeavesBeforeItsOwnSync(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	c.nodes[1].holdSync = true
	m.propose("a")
	if len(c.wire) != 2 {
		t.Fatalf("%d packets left before the sync, want 2", len(c.wire))
	}
	c.settle()
	c.tick(1) // tells followers that it is committed
	// Both followers have it on disk, so it is committed and they applied it; the
	// leader may not: its own log is not stable.
	if f := c.nodes[2].machines[7]; !slices.Contains(f.log, "a") {
		t.Fatal("the quorum of followers did not commit")
	}
	if slices.Contains(m.log, "a") {
		t.Fatal("the leader applied an entry that its own disk does not have")
	}
	c.nodes[1].holdSync = false
	c.settle()
	c.agree(7, 1, 2, 3)
}

// typesOnWire lists what a node has on the wire.
func (c *cluster) typesOnWire(from ids.NodeID) []string {
	var types []string
	for _, p := range c.wire {
		for _, m := range p.messages {
			if p.from == from && m.Raft != nil {
				types = append(types, fmt.Sprintf("%v %d", m.Raft.GetType(), m.Raft.GetIndex()))
			}
		}
	}
	return types
}

func TestAResponseWithoutAWriteQueuesBehindTheSyncsInFlight(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	f := c.nodes[2]
	f.holdSync = true
	m.propose("a")
	c.settle() // the follower has "a" written, not synced; it also hears of the commit
	if got := c.typesOnWire(2); len(got) != 0 {
		t.Fatalf("the follower sent %q before its sync", got)
	}
	if _, syncs := f.host.PendingWork(1); syncs == 0 {
		t.Fatal("no sync in flight")
	}
	// A commit-only append needs no sync, but its answer names the last index.
	m.do(func() {
		m.g.route(&raftpb.Message{
			Type: raftpb.MsgApp.Enum(), From: new(uint64(1)), To: new(uint64(2)),
			Term: new(uint64(m.ts.Term)), Index: new(uint64(startIndex + 2)),
			LogTerm: new(uint64(m.ts.Term)), Commit: new(uint64(startIndex + 2)),
		})
	})
	c.deliver()
	f.poll()
	if got := c.typesOnWire(2); len(got) != 0 {
		t.Fatalf("a response overtook the sync: %q", got)
	}
	f.sync()
	got := c.typesOnWire(2)
	if len(got) < 2 {
		t.Fatalf("after the sync: %q", got)
	}
	for _, r := range got {
		if r != fmt.Sprint("MsgAppResp ", startIndex+2) {
			t.Fatalf("after the sync: %q", got)
		}
	}
}

func TestResponsesKeepTheirOrderAcrossTheInbox(t *testing.T) {
	t.Parallel()
	var in inbox
	in.init()
	g := &Group{}
	r := func(i uint64) []response { return []response{{g, &raftpb.Message{Index: new(i)}}} }
	in.launch(flight{responses: r(1)})
	if !in.queueBehind(r(2)) {
		t.Fatal("delivered past a sync in flight")
	}
	in.land(true)
	// Nothing flies any more, but 1 and 2 are still in the inbox.
	if !in.queueBehind(r(3)) {
		t.Fatal("delivered past a completion in the inbox")
	}
	items, _ := in.take(nil)
	var order []uint64
	for _, it := range items {
		in.handled()
		for _, r := range it.responses {
			order = append(order, r.msg.GetIndex())
		}
	}
	if !slices.Equal(order, []uint64{1, 2, 3}) {
		t.Fatalf("order %v", order)
	}
	if in.queueBehind(r(4)) {
		t.Fatal("queued behind nothing")
	}
}

func TestAtTheSyncBoundWritesAreOwedALaterSync(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	c.bootstrap(7, 1)
	m := c.elect(7, 1)
	n := c.nodes[1]
	n.holdSync = true
	const writes = maxSyncs + 10
	for i := range writes {
		m.propose(fmt.Sprint(i))
	}
	if _, syncs := n.host.PendingWork(1); syncs != maxSyncs {
		t.Fatalf("%d syncs in flight, the bound is %d", syncs, maxSyncs)
	}
	if d := n.host.Metrics().SyncsDeferred; d != 10 {
		t.Fatalf("%d writes deferred, want 10", d)
	}
	// The first sync that ends makes room for one that covers all that is owed.
	n.host.CompleteSync(1)
	n.poll()
	s := n.host.shards[1]
	if len(s.owed) != 0 || s.owedBytes != 0 {
		t.Fatalf("still owed: %d responses, %d bytes", len(s.owed), s.owedBytes)
	}
	if len(m.log) >= writes {
		t.Fatal("acknowledged before the sync")
	}
	n.holdSync = false
	c.settle()
	if len(m.log) != writes {
		t.Fatalf("applied %d of %d", len(m.log), writes)
	}
}

// A write that is owed a sync may have no response of its own; what rests on it
// must wait all the same, not only for the syncs that were begun before it.
func TestAResponseWaitsForAnOwedWriteThatNobodyAskedFor(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *Config) { cfg.Shards = 1 })
	c.bootstrap(7, 1)
	c.bootstrap(9, 1, 2, 3)
	m := c.elect(7, 1)
	n := c.nodes[1]
	for i := range maxSyncs {
		m.propose(fmt.Sprint(i))
	}
	receive := func(msg *raftpb.Message) {
		msg.From, msg.To, msg.Term = new(uint64(2)), new(uint64(1)), new(uint64(99))
		n.host.Receive(Frame{From: 2, Messages: []Message{{Range: 9, Raft: msg}}})
		n.poll()
	}
	// A higher term is a hard state to write, and no response waits for it.
	receive(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum()})
	if s := n.host.shards[0]; s.owedBytes == 0 || len(s.owed) != 0 {
		t.Fatalf("owed: %d bytes, %d responses", s.owedBytes, len(s.owed))
	}
	c.wire = nil
	receive(&raftpb.Message{Type: raftpb.MsgApp.Enum(),
		Index: new(uint64(50)), LogTerm: new(uint64(50))}) // rejected in term 99
	for range maxSyncs {
		n.host.CompleteSync(0)
		n.poll()
	}
	if got := c.typesOnWire(1); len(got) != 0 {
		t.Fatalf("%q left before its term was on disk", got)
	}
	n.sync()
	if got := c.typesOnWire(1); len(got) != 1 {
		t.Fatalf("after the sync: %q", got)
	}
}

func TestACrashKeepsWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	m.put("kept")
	for _, id := range c.order {
		c.nodes[id].holdSync = true
	}
	m.propose("lost")
	c.settle()
	for _, id := range c.order {
		if slices.Contains(c.nodes[id].machines[7].log, "lost") {
			t.Fatalf("node %d applied what no disk has", id)
		}
	}
	c.wire = nil
	for _, id := range c.order {
		c.nodes[id].holdSync = false
		c.nodes[id].crash()
	}
	for _, id := range c.order {
		c.nodes[id].restart()
	}
	m = c.elect(7, 2)
	m.put("later")
	c.agree(7, 1, 2, 3)
	for _, id := range c.order {
		if last := c.nodes[id].machines[7].status().LastIndex; last != startIndex+4 {
			t.Fatalf("node %d: log ends at %d: \"lost\" came back or \"kept\" is missing", id, last)
		}
	}
}

func TestALoneReplicaAcknowledgesNothingBeforeItsSync(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	c.bootstrap(7, 1)
	m := c.elect(7, 1)
	c.nodes[1].holdSync = true
	m.propose("a")
	if len(m.log) != 0 {
		t.Fatal("applied before the sync")
	}
	c.nodes[1].sync()
	if len(m.log) != 1 {
		t.Fatal("not applied after the sync")
	}
}

func TestATermChangeIsPublishedBeforeAnyMessageLeaves(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	var events []string
	m := c.elect(7, 1)
	m.put("a")
	m.events = func(e string) { events = append(events, e) }
	c.drop = func(from, _ ids.NodeID, msg *Message) bool {
		if from == 1 {
			events = append(events, fmt.Sprintf("%v of term %d leaves",
				msg.Raft.GetType(), msg.Raft.GetTerm()))
		}
		return false
	}
	next := m.status().Term + 1
	m.do(func() { m.g.TransferLeader(2) })
	c.settle()
	if !c.nodes[2].machines[7].status().IsLeader {
		t.Fatal("node 2 does not lead")
	}
	published := fmt.Sprintf("node 1 hears of term %d", next)
	at := slices.IndexFunc(events, func(e string) bool { return strings.HasPrefix(e, published) })
	first := slices.IndexFunc(events, func(e string) bool {
		return strings.Contains(e, fmt.Sprintf("of term %d leaves", next))
	})
	if at < 0 || first < 0 || first < at {
		t.Fatalf("term %d: published at %d, first message at %d of %q", next, at, first, events)
	}
}

func TestAProposalOfAnEarlierTermIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	var err error
	// A message of a higher term arrives in the same pass, before the task: raft
	// has stepped down, the StateMachine does not know yet.
	c.nodes[1].host.Receive(Frame{From: 3, Messages: []Message{{Range: 7, Raft: &raftpb.Message{
		Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(3)), To: new(uint64(1)),
		Term: new(uint64(m.ts.Term) + 1), Commit: new(uint64(0)),
	}}}})
	m.do(func() {
		if !m.status().IsLeader {
			t.Error("the test is not about what it says")
		}
		err = m.g.Propose([][]byte{[]byte("a")})
	})
	if !errors.Is(err, ErrNotLeader) {
		t.Fatalf("proposal: %v", err)
	}
}

func TestAFailedApplyHaltsItsGroupAndSparesTheOthers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	c.bootstrap(7, 1)
	c.bootstrap(9, 1)
	m7, m9 := c.elect(7, 1), c.elect(9, 1)
	m9.put("fine")
	m7.refuse = func(p string) error {
		if p == "bad" {
			return errors.New("unknown format")
		}
		return nil
	}
	n := c.nodes[1]
	at := m7.index
	for _, m := range []*machine{m9, m7} {
		if err := m.g.Enqueue(TaskFunc(func() {
			m.pending = append(m.pending, []byte("bad"))
		}), 1); err != nil {
			t.Fatal(err)
		}
	}
	c.settle()
	if !slices.Contains(m9.log, "bad") {
		t.Fatal("the other group of the same batch did not apply")
	}
	if st := m7.status(); !st.Halted || st.IsLeader || st.Applied != at {
		t.Fatalf("status %+v, want halted at %d", st, at)
	}
	stored := func(r ids.RangeID) *store.ReplicaState {
		rs, err := n.store.State().Replica(r)
		if err != nil {
			t.Fatal(err)
		}
		return rs
	}
	if got := stored(7).Applied.GetIndex(); got != uint64(at) {
		t.Fatalf("applied index %d of the failed Apply was committed, want %d", got, at)
	}
	if got := stored(9).Applied.GetIndex(); got != uint64(m9.index) {
		t.Fatalf("range 9 lost its part of the batch: %d, want %d", got, m9.index)
	}
	m7.propose("more")
	if err := m7.results[len(m7.results)-1]; !errors.Is(err, ErrStopped) {
		t.Fatalf("proposal to a halted group: %v", err)
	}
	var w waiter
	m7.do(func() { m7.g.Read(&w) })
	if w.called != 1 || !errors.Is(w.err, ErrStopped) {
		t.Fatalf("read of a halted group: %+v", w)
	}
	m9.put("still fine")
	if n.host.Metrics().HaltedReplicas != 1 {
		t.Fatal("not counted")
	}
}

func TestAStructuralEntryEndsTheSharedBatch(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	c.bootstrap(7, 1)
	m := c.elect(7, 1)
	var visible []uint64
	m.splits = func(p string) bool { return p == "split" }
	m.applied = func() {
		rs, err := c.nodes[1].store.State().Replica(7)
		if err != nil {
			t.Fatal(err)
		}
		visible = append(visible, rs.Applied.GetIndex())
	}
	m.propose("a", "split", "b", "split", "c")
	c.settle()
	base := uint64(startIndex + 1)
	if want := []uint64{base + 2, base + 4, base + 5}; !slices.Equal(visible, want) {
		t.Fatalf("applied and visible at %v, want %v", visible, want)
	}
}

func TestAGroupRemovedFromItsOwnApplyLeavesQuietly(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	c.bootstrap(7, 1)
	m := c.elect(7, 1)
	h := c.nodes[1].host
	removed := 0
	m.splits = func(p string) bool { return p == "end" }
	m.onApply = func(p string) {
		if p == "end" {
			h.RemoveGroup(7, func() { removed++ })
		}
	}
	var w waiter
	m.do(func() {
		m.pending = [][]byte{[]byte("end"), []byte("never")}
		m.g.Read(&w)
	})
	c.settle()
	if removed != 1 || slices.Contains(m.log, "never") {
		t.Fatalf("removed %d times, applied %q", removed, m.log)
	}
	if w.called != 1 {
		t.Fatalf("read waiter called %d times", w.called)
	}
	if err := m.g.Enqueue(TaskFunc(func() {}), 0); !errors.Is(err, ErrStopped) {
		t.Fatalf("task for a removed group: %v", err)
	}
	if h.Metrics().Groups != 0 {
		t.Fatal("still counted")
	}
	// The same range may come again.
	if _, err := h.AddGroup(GroupConfig{Range: 7, Replica: 101, Machine: m}); err != nil {
		t.Fatal(err)
	}
	second := GroupConfig{Range: 7, Replica: 201, Machine: m}
	if _, err := h.AddGroup(second); !errors.Is(err, ErrExists) {
		t.Fatalf("a second group: %v", err)
	}
}
