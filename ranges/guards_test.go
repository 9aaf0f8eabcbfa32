package ranges

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// The bug classes that docs/TESTING.md lists, as far as they are stories of
// whole ranges and not told elsewhere in this package.

// isolate lets nothing pass between the nodes of a and the others.
func (w *world) isolate(a ...ids.NodeID) {
	w.drop = func(from, to ids.NodeID, _ *multiraft.Message) bool {
		return slices.Contains(a, from) != slices.Contains(a, to)
	}
}

// Bug class 12: a read at t is served; then another replica, which nobody told
// of that read, is elected and writes. Its write must lie above t.
func TestReadIsNeverOvertakenByAWriteOfTheNextLeader(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("k", "old")
	told, next := w.nodes[l.id%3+1], w.nodes[(l.id+1)%3+1]
	// Of the followers one takes part in the read's confirmation.
	w.drop = func(from, to ids.NodeID, _ *multiraft.Message) bool {
		return from == l.id && to == next.id
	}
	at := hlc.New(w.wall+20*60*1000, 0) // a clock elsewhere is ahead
	resp := l.do(&kv.Request{Verb: kv.VerbGet, Key: key("k"), Timestamp: at})
	wantCode(t, resp, kv.CodeOK)
	w.isolate(l.id)
	for range 100 {
		w.tick(1)
		if told.table.Leads(2) {
			w.transferFrom(told, next)
		}
		if next.table.Leads(2) {
			break
		}
	}
	if ts := next.put("k", "new"); ts <= at {
		t.Fatalf("a write at %d after a read at %d", ts, at)
	}
	again := next.do(&kv.Request{Verb: kv.VerbGet, Key: key("k"), Timestamp: at})
	if !bytes.Equal(again.Value, resp.Value) {
		t.Fatalf("at %d first %q, then %q", at, resp.Value, again.Value)
	}
}

// transferFrom asks a leader that is cut off from a part of the others to hand
// over.
func (w *world) transferFrom(from, to *node) {
	from.table.Order(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER, NodeId: uint64(to.id),
	}, func(error) {})
	w.settle()
}

// Bug class 13: the timestamp that a leader fixes for a span says nothing about
// keys that another leader serves, whose clock may be ahead.
func TestInstantOfASpanOverTwoRangesIsRefused(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("a", "1")
	l.put("m", "1")
	w.split(2, "k")
	w.tick(2)
	span := &kv.Request{Verb: kv.VerbReadTimestamp, Key: key("a"), End: key("z")}
	wantCode(t, l.do(span), kv.CodeWrongRange)
	span.End = key("k")
	wantCode(t, l.do(span), kv.CodeOK)
}

// Bug classes 29 and 30: all nodes lose power in the middle of a change from
// three to four voters. Half of the old and half of the new configuration is a
// majority of neither: two nodes of the four must not be able to write.
func TestHalfOfTheVotersCannotWriteAfterACrashDuringAChange(t *testing.T) {
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
	keepJoint := func(_, _ ids.NodeID, m *multiraft.Message) bool {
		return m.Range == 2 && isJoint(l.table.replica(2).descriptor()) &&
			len(m.Raft.GetEntries()) > 0
	}
	w.drop = keepJoint // the entry that leaves the joint configuration is lost
	must(t, w.order(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_PROMOTE,
		ReplicaId: replicaOn(w.descriptor(2), 4).GetReplicaId(),
	}))
	w.tick(3)
	for _, n := range w.nodes[1:] {
		must(t, n.store.Sync())
		n.crash()
	}
	w.wire, w.drop = nil, nil
	pair := []ids.NodeID{l.id, l.id%3 + 1}
	w.isolate(pair...)
	for _, n := range w.nodes[1:] {
		n.restart()
		d := n.table.replica(2).descriptor()
		if !isJoint(d) || replicaOn(d, 4).GetRole() != roleIncoming {
			t.Fatalf("%v forgot the change: %v", n, d)
		}
	}
	w.tick(60)
	for _, n := range w.nodes[1:] {
		if c := n.start(n.putRequest("k", n.String())); n.table.Leads(2) || c.count > 0 &&
			c.resp.Code == kv.CodeOK {
			t.Fatalf("%v leads with two of four", n)
		}
	}
	w.drop = nil
	w.tick(40)
	w.leader(2).put("k", "v")
	w.tick(5)
	w.check()
}

// Bug class 30: a change after which no majority of the voters has the log would
// leave the range to the one node that begins it.
func TestChangeToAMajorityThatLagsIsRefused(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	lag, other := w.nodes[l.id%3+1], w.nodes[(l.id+1)%3+1]
	lag.down = true
	for range 2 * maxLag {
		l.put("k", "v")
	}
	w.tick(3)
	demote := &metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_DEMOTE,
		ReplicaId: uint64(other.table.replica(2).self),
	}
	w.wantOrder(demote, ErrLagging)
	lag.down = false
	w.tick(20)
	w.wantOrder(demote, nil)
}

// Bug class 30: a voter that answers no more has what little was written since. A change
// that needs it would stop the range, though two of three voters live.
func TestChangeThatNeedsAVoterWhoDoesNotAnswerIsRefused(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("k", "v")
	mute, lives := w.nodes[l.id%3+1], w.nodes[(l.id+1)%3+1]
	mute.down = true
	w.tick(60)
	demote := &metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_DEMOTE,
		ReplicaId: uint64(lives.table.replica(2).self),
	}
	w.wantOrder(demote, ErrLagging)
	l.put("k", "after")
	mute.down = false
	w.tick(20)
	w.wantOrder(demote, nil)
}

// Bug classes 5 and 19: a learner that missed its removal. It never campaigns
// and its leader sends it nothing more, so it has to ask.
func TestLearnerThatMissedItsRemovalAsksAndIsTold(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	if l.id == 3 {
		w.transfer(2, 1)
		l = w.nodes[1]
	}
	l.put("k", "v")
	away := w.nodes[3]
	self := away.table.replica(2).self
	must(t, w.order(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_DEMOTE, ReplicaId: uint64(self),
	}))
	w.tick(3)
	if role := replicaOf(away.table.replica(2).descriptor(), self).GetRole(); role != roleLearner {
		t.Fatalf("it is a %v", role)
	}
	away.down = true
	must(t, w.order(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_REMOVE_LEARNER, ReplicaId: uint64(self),
	}))
	w.tick(3)
	away.down = false
	w.tick(150)
	if away.table.replica(2) != nil {
		t.Fatal("the removed learner is still there")
	}
	rs, err := away.store.State().Replica(2)
	must(t, err)
	if rs != nil {
		t.Fatal("its data is still there")
	}
	w.check()
}

// copyOf pins a snapshot of a range as its leader would send it to a replica.
func (n *node) copyOf(r ids.RangeID, to ids.ReplicaID) (*metapb.SnapshotHeader, [][]byte) {
	t := n.w.t
	t.Helper()
	o, err := n.store.NewSnapshot(r)
	must(t, err)
	defer o.Close()
	s := o.State()
	h := &metapb.SnapshotHeader{
		RangeId: uint64(r), FromNode: uint64(n.id), FromReplica: uint64(s.Replica),
		ToReplica: uint64(to), Descriptor_: s.Descriptor, Applied: s.Applied,
		RaftTerm: uint64(n.table.replica(r).state.Load().lead.term),
		Stamp:    uint64(n.clock.Peek()),
	}
	var chunks [][]byte
	for {
		chunk, err := o.Next()
		if errors.Is(err, io.EOF) {
			return h, chunks
		}
		must(t, err)
		chunks = append(chunks, bytes.Clone(chunk))
	}
}

// Bug classes 8, 19 and 30: a leader is paused, with a snapshot on its way.
// Meanwhile the others move the snapshot's receiver to another node and write.
// Then the snapshot arrives, and the old leader comes back and reaches nobody
// but that node. If the removed replica lived again, without the memory of its
// vote, the two would be a majority of the configuration that both know.
func TestOldLeaderFindsNoMajorityInAReplicaThatWasRemoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4, nil)
	w.bootstrap()
	w.addVoter(2, 2)
	w.addVoter(2, 3)
	if w.leader(2).id == 3 {
		w.transfer(2, 1)
	}
	old, dead := w.leader(2), w.nodes[3]
	old.put("k", "old")
	w.tick(3)
	was := dead.table.replica(2).self
	h, chunks := old.copyOf(2, was)

	old.down = true // paused: it remembers that it leads
	w.tick(40)
	w.addVoter(2, 4)
	if w.leader(2) == dead {
		w.transfer(2, 4)
	}
	w.removeReplica(2, was)
	w.tick(5)
	if dead.table.replica(2) != nil {
		t.Fatal("the removed replica is still there")
	}
	w.leader(2).put("k", "new")

	var refusal error
	dead.takeSnapshot(h, chunks, func(err error) { refusal = err })
	w.settle()
	w.isolate(old.id, dead.id)
	old.down = false
	put := old.start(old.putRequest("k", "lost"))
	w.tick(8)
	get := old.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")})
	w.tick(8)
	if put.count > 0 && put.resp.Code == kv.CodeOK {
		t.Error("the old leader's write was acknowledged")
	}
	if get.count > 0 && get.resp.Code == kv.CodeOK {
		t.Errorf("the old leader reads %q", get.resp.Value)
	}
	if !errors.Is(refusal, ErrSnapshotRefused) {
		t.Errorf("the snapshot for the removed replica: %v", refusal)
	}
	w.drop = nil
	w.tick(60)
	if v := w.leader(2).get("k"); v != "new" {
		t.Errorf("acknowledged %q is lost, there is %q", "new", v)
	}
}

// Bug classes 15, 19 and 24: whatever a node wrote, a power cut leaves a prefix
// of its commits. The store is copied after every single one, and every copy is
// opened: data and applied index agree, the halves of a split are both there or
// neither is, a replica is there as a whole or gone with its tombstone.
func TestEveryPrefixOfTheCommitsIsAWholeNode(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	n := w.nodes[1]
	for _, k := range []string{"a", "m", "x"} {
		n.put(k, "v")
	}
	type prefix struct {
		fs    *vfs.MemFS
		acked []string
	}
	var prefixes []prefix
	var acked []string
	n.committed = func() {
		must(t, n.store.Sync())
		prefixes = append(prefixes, prefix{n.fs.CrashClone(vfs.CrashCloneCfg{}), acked})
	}
	put := func(k string) {
		n.table.Submit(n.putRequest(k, k), func(r *kv.Response) {
			wantCode(t, r, kv.CodeOK)
			acked = append(slices.Clip(acked), k)
		})
		w.settle()
	}
	for _, k := range []string{"b", "c", "n"} {
		put(k)
	}
	w.split(2, "k")
	w.tick(2)
	put("o")
	put("d")
	removed := w.leaderOf("n")
	n.table.OnGone(removed, n.table.replica(removed).self+1)
	acked = slices.DeleteFunc(slices.Clone(acked), func(k string) bool { return k >= "k" })
	w.settle()
	put("e")
	n.committed = nil
	if len(prefixes) < 12 {
		t.Fatalf("only %d commits", len(prefixes))
	}
	for i, p := range prefixes {
		w := &world{t: t, wall: 2_000_000, nextID: 200, nodes: make([]*node, 2)}
		n := &node{w: w, id: 1, fs: p.fs}
		w.nodes[1] = n
		n.open(false)
		must(t, n.table.Start(n.host))
		w.tick(25)
		w.check()
		next, err := n.store.Log().Tombstone(removed)
		must(t, err)
		if _, _, there := n.table.Route(key("n")); there == (next != 0) {
			t.Errorf("after %d commits: right half there %v, tombstone %d", i+1, there, next)
		}
		for _, k := range p.acked {
			if _, _, there := n.table.Route(key(k)); there && n.get(k) != k {
				t.Errorf("after %d commits: acknowledged %q is gone", i+1, k)
			}
		}
		n.close()
	}
}

// Bug class 10: a leader loses its leadership with a write in flight, which the
// next leader commits. When the first one leads again, nothing that it had
// evaluated in its first term may enter the log a second time and take effect.
func TestWriteInFlightAppliesOnceWhenItsLeaderIsElectedAgain(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("k", "old")
	// The followers take the entry, and the leader never hears that they did.
	w.drop = func(_, to ids.NodeID, m *multiraft.Message) bool { return to == l.id }
	c := l.start(l.putRequest("k", "v"))
	w.tick(30)
	if c.count != 1 || c.resp.Code == kv.CodeOK {
		t.Fatalf("the write ended %d times, with %+v", c.count, c.resp)
	}
	w.drop = nil
	w.tick(20)
	w.transfer(2, l.id)
	l.put("other", "v")
	w.tick(5)
	w.check()
	if s := l.table.replica(2).state.Load(); s.data.Stats.Versions != 3 {
		t.Fatalf("%d versions of three puts", s.data.Stats.Versions)
	}
}
