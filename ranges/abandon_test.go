package ranges

import (
	"errors"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// except lets everything happen but on one shard of one node.
func (w *world) except(away *node, shard int) {
	for range 60 {
		for _, n := range w.nodes[1:] {
			if n != away {
				n.step()
				continue
			}
			n.host.Poll(1 - shard)
			for n.host.CompleteSync(1 - shard) {
			}
			jobs := n.jobs
			n.jobs = nil
			for _, job := range jobs {
				job()
			}
		}
		wire := w.wire
		w.wire = nil
		for _, p := range wire {
			if p.run != nil {
				p.run()
			} else {
				w.nodes[p.to].host.Receive(p.frame)
			}
		}
	}
}

// install has a node take a snapshot that was copied before.
func (n *node) install(h *metapb.SnapshotHeader, chunks [][]byte, done func(error)) {
	n.w.t.Helper()
	a, err := n.table.AdmitSnapshot(h)
	must(n.w.t, err)
	for _, c := range chunks {
		must(n.w.t, a.Incoming.Add(c))
	}
	must(n.w.t, a.Incoming.Finish())
	a.Deliver(done)
}

// Bug class 20: a snapshot of a right half is given up, then one of its parent comes,
// which is older than the split. The group that was made for the first has not ended
// when the split is applied: it may be voting just then.
func TestSplitWaitsForTheGroupOfASnapshotThatWasGivenUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4, nil)
	w.bootstrap()
	w.tick(30)
	l, n := w.leader(2), w.nodes[4]
	l.put("a", "left")
	l.put("x", "right")
	w.noSnaps = true
	must(t, w.order(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_ADD_LEARNER, NodeId: 4,
	}))
	self := ids.ReplicaID(replicaOn(w.descriptor(2), 4).GetReplicaId())
	parent, chunks := l.copyOf(2, self)
	_, d := w.split(2, "m")
	right := ids.RangeID(d.GetRangeId())
	if right%2 == 0 {
		t.Fatal("the story is not told: both halves are on one shard")
	}
	w.tick(2)
	header, _ := w.leader(right).copyOf(right, self)
	if n.table.replica(2) != nil || n.table.replica(right) != nil {
		t.Fatal("the story is not told: node 4 has replicas")
	}
	a, err := n.table.AdmitSnapshot(header)
	must(t, err)
	w.except(n, 0) // its group is born
	a.Abandon()
	if _, err := n.table.AdmitSnapshot(header); !errors.Is(err, ErrSnapshotRefused) {
		t.Fatalf("another snapshot, while the group of the first is there: %v", err)
	}
	installed := errors.New("never")
	n.install(parent, chunks, func(err error) { installed = err })
	w.except(n, 1)
	must(t, installed)
	for range 20 {
		for _, other := range w.nodes[1:] {
			other.host.Tick()
		}
		w.except(n, 1)
	}
	at := n.table.replica(2).group().Status()
	if at.LastIndex <= ids.Index(parent.GetApplied().GetIndex()) {
		t.Fatalf("the story is not told: its log ends at %d", at.LastIndex)
	}
	if x := n.table.replica(right); x != nil {
		t.Fatal("the right half was born beside a group of the same range")
	}
	w.noSnaps = false
	w.settle()
	if x := n.table.replica(right); x == nil || !x.state.Load().initialised() {
		t.Fatalf("the split was not applied when the group had ended: %v",
			n.table.replica(2).descriptor())
	}
	w.tick(5)
	w.check()
}
