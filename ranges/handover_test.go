package ranges

import (
	"fmt"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// manyRanges is a cluster of three whose first node leads so many ranges.
func manyRanges(t *testing.T, n int) *world {
	w := threeNodes(t, nil)
	for i := 1; i < n-1; i++ {
		k := key(fmt.Sprintf("k%04d", i))
		w.leader(2).put(fmt.Sprintf("k%04d", i), "v")
		id := w.nodes[1].table.find(k).id
		w.leader(id).table.Split(id, k, func(_, _ *metapb.RangeDescriptor, err error) { must(t, err) })
		w.settle()
	}
	for range 20 {
		if replicas, leaders := w.nodes[1].table.Counts(); leaders == replicas {
			return w
		}
		w.tick(1)
	}
	t.Fatal("the first node does not lead everything")
	return nil
}

// empty steps a handover until nothing is left, or so often.
func (w *world) empty(h *Handover, n *node, steps int) (left int) {
	now := time.Duration(0)
	for range steps {
		if left = h.Step(now); left == 0 && n.table.leaders.Load() == 0 {
			return 0
		}
		if len(h.moving) > maxDepartures {
			w.t.Fatalf("%d transfers in flight", len(h.moving))
		}
		w.settle()
		now += scanEvery
	}
	return left
}

func TestHandoverEmptiesANodeEvenlyWithoutATick(t *testing.T) {
	t.Parallel()
	w := manyRanges(t, 2*maxDepartures+20)
	n := w.nodes[1]
	if left := w.empty(n.table.NewHandover(), n, 20); left != 0 {
		t.Fatalf("still leads %d", left)
	}
	_, two := w.nodes[2].table.Counts()
	_, three := w.nodes[3].table.Counts()
	if two-three > 2 || three-two > 2 || two+three != 2*maxDepartures+20 {
		t.Fatalf("n2 leads %d, n3 leads %d", two, three)
	}
}

func TestHandoverAsksAnotherTargetWhenOneDoesNotTakeOver(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	n := w.leader(2)
	n.put("k", "v")
	deaf := w.nodes[n.id%3+1].id
	w.drop = func(_, to ids.NodeID, m *multiraft.Message) bool {
		return to == deaf && m.Raft != nil && m.Raft.GetType().String() == "MsgTimeoutNow"
	}
	if left := w.empty(n.table.NewHandover(), n, 40); left != 0 {
		t.Fatalf("still leads %d", left)
	}
	if l := w.leader(2); l.id == deaf || l.get("k") != "v" {
		t.Fatalf("%v leads", l.id)
	}
}

// Two nodes that stop together do not pass their leaders to and fro.
func TestNodesThatStopTogetherFindTheOneThatStays(t *testing.T) {
	t.Parallel()
	w := manyRanges(t, 30)
	a, b := w.nodes[1], w.nodes[2]
	ha, hb := a.table.NewHandover(), b.table.NewHandover()
	now, moves := time.Duration(0), 0
	for range 60 {
		moves += len(ha.moving) + len(hb.moving)
		left := ha.Step(now) + hb.Step(now)
		w.settle()
		if now += scanEvery; left == 0 && a.table.leaders.Load()+b.table.leaders.Load() == 0 {
			break
		}
	}
	if _, led := w.nodes[3].table.Counts(); led != 30 || moves > 200 {
		t.Fatalf("the node that stays leads %d of 30 after %d moves", led, moves)
	}
}

// Each has more to give than it gives until the first ones come back, and does
// not wait until it has given everything to see that they do.
func TestNodesThatAllStopKeepWhatTheyLead(t *testing.T) {
	t.Parallel()
	const count = 8 * maxDepartures
	w := manyRanges(t, count)
	terms := func() (sum ids.Term) {
		for _, r := range w.nodes[1].table.all() {
			sum += r.state.Load().lead.term
		}
		return sum
	}
	began := terms()
	var handovers []*Handover
	for _, n := range w.nodes[1:] {
		handovers = append(handovers, n.table.NewHandover())
	}
	for i := range 20 {
		for _, h := range handovers {
			h.Step(time.Duration(i) * lookBackEvery)
		}
		w.settle()
	}
	if moves := terms() - began; moves < maxDepartures || moves > count {
		t.Fatalf("%d transfers of %d ranges", moves, count)
	}
}

func TestHandoverLeavesAloneWhatNobodyElseCanLead(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	h := w.nodes[1].table.NewHandover()
	if left := h.Step(1); left != 0 {
		t.Fatalf("waits for %d", left)
	}
	w = threeNodes(t, nil)
	n := w.leader(2)
	for _, o := range w.nodes[1:] {
		if o != n {
			o.down = true
		}
	}
	n.start(n.putRequest("k", "v")) // nobody has it but this node
	w.settle()
	h = n.table.NewHandover()
	for i := range 20 {
		h.Step(time.Duration(i) * scanEvery)
		w.settle()
	}
	if !n.table.Leads(2) {
		t.Fatal("a range was given to a node that is down")
	}
}
