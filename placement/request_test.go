package placement

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func (w *world) operate(r *adminpb.OperateRequest) (*adminpb.OperateReply, error) {
	return w.node(w.driver).d.Operate(r)
}

func relocate(id uint64, nodes ...uint64) *adminpb.OperateRequest {
	return &adminpb.OperateRequest{RangeId: id, What: &adminpb.OperateRequest_Relocate{
		Relocate: &adminpb.Relocate{Nodes: nodes}}}
}

func transferTo(id, node uint64) *adminpb.OperateRequest {
	return &adminpb.OperateRequest{RangeId: id, What: &adminpb.OperateRequest_Transfer{
		Transfer: &adminpb.TransferTo{NodeId: node}}}
}

func mergeOf(id uint64) *adminpb.OperateRequest {
	return &adminpb.OperateRequest{RangeId: id, What: &adminpb.OperateRequest_Merge{
		Merge: &adminpb.MergeWith{}}}
}

func TestARangeIsRelocatedToExactlyTheseNodes(t *testing.T) {
	t.Parallel()
	w := grown(t, 90, 6, 6)
	w.run(5 * time.Minute)
	for i, nodes := range [][]uint64{{4, 5, 6}, {1, 2, 3}, {2, 3, 4}, {6, 2, 4}} {
		r := w.ranges[3]
		reply, err := w.operate(relocate(3, nodes...))
		if err != nil || len(reply.GetOperators()) != 1 ||
			reply.GetOperators()[0].GetKind() != "request" {
			t.Fatalf("%d: %v %v", i, reply, err)
		}
		w.runUntil(3*time.Minute, "it is there", func() bool {
			if n := len(r.voters()); n != 3 {
				t.Fatalf("passes through %d voters", n)
			}
			d := w.node(w.driver).d
			return len(d.Operators(&adminpb.OperatorsRequest{RangeId: 3}).GetOperators()) == 0
		})
		if len(r.desc.GetReplicas()) != 3 || r.leader != ids.NodeID(nodes[0]) {
			t.Fatalf("%v: %v led by %v", nodes, r.desc, r.leader)
		}
		for _, n := range nodes {
			if p := replicaOn(r.desc, ids.NodeID(n)); p.GetRole() != roleVoter || p == nil {
				t.Fatalf("%v: no voter on n%d", nodes, n)
			}
		}
	}
	reply, err := w.operate(relocate(3, 6, 2, 4))
	if err != nil || reply.GetNote() == "" || len(reply.GetOperators()) != 0 {
		t.Fatalf("it is there already: %v %v", reply, err)
	}
	h := w.node(w.driver).d.Operators(&adminpb.OperatorsRequest{History: true, RangeId: 3,
		Limit: 2})
	if len(h.GetOperators()) != 2 || h.GetTotal() < 2 ||
		h.GetOperators()[0].GetOutcome() != "done" {
		t.Fatalf("history: %v", h)
	}
}

func TestASingleCopyIsRelocated(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 91, 3)
	w.run(2 * time.Second)
	w.join()
	w.run(20 * time.Second)
	w.set(&metapb.Rule{Name: "all", Replicas: 1})
	w.run(time.Minute)
	to := 3 - w.ranges[2].leader
	if _, err := w.operate(relocate(2, uint64(to))); err != nil {
		t.Fatal(err)
	}
	w.runUntil(time.Minute, "it is there", func() bool {
		r := w.ranges[2]
		return r.leader == to && len(r.desc.GetReplicas()) == 1
	})
}

func TestALeaderIsTransferredOnRequestEvenWhilePaused(t *testing.T) {
	t.Parallel()
	w := grown(t, 92, 4, 3)
	w.node(w.driver).d.Pause(true, "a test", func(*metapb.PlacementSettings, error) {})
	to := w.ranges[2].leader%3 + 1
	if _, err := w.operate(transferTo(2, uint64(to))); err != nil {
		t.Fatal(err)
	}
	w.runUntil(time.Minute, "it leads", func() bool { return w.ranges[2].leader == to })
	w.run(2 * time.Second)
	reply, err := w.operate(transferTo(2, uint64(to)))
	if err != nil || reply.GetNote() == "" {
		t.Fatalf("again: %v %v", reply, err)
	}
}

func TestRequestsThatCannotBeRightAreRefusedAndNothingChanges(t *testing.T) {
	t.Parallel()
	w := zoned(t, 93, 5, "a", "b", "c", "a", "b", "c")
	w.set(&metapb.Rule{Name: "all", Replicas: 3, Spread: "zone"},
		&metapb.Rule{Name: "fifth", Prefix: []byte{0, 4}, Replicas: 3, Forbid: []string{"zone=a"}})
	w.run(10 * time.Minute)
	down := ids.NodeID(5)
	if w.driver == down {
		w.moveDriver(1)
		w.run(30 * time.Second)
	}
	w.node(down).up = false
	w.must(6, standingDraining)
	w.run(10 * time.Second)
	leader := w.ranges[2].leader
	lost := uint64(0)
	for n := uint64(1); n <= 4; n++ {
		if replicaOn(w.ranges[2].desc, ids.NodeID(n)) == nil {
			lost = n
		}
	}
	var last ids.RangeID
	for id, r := range w.ranges {
		if len(r.desc.GetEnd()) == 1 && r.desc.GetEnd()[0] == 0x21 {
			last = id
		}
	}
	sent := w.sent
	for _, s := range []struct {
		story string
		ask   *adminpb.OperateRequest
		words string
	}{
		{"a node twice", relocate(2, 1, 2, 1), "n1 is named twice"},
		{"an unknown node", relocate(2, 1, 2, 77), "does not know"},
		{"a silent node", relocate(2, 1, 2, 5), "n5 has been silent"},
		{"a draining node", relocate(2, 1, 2, 6), "n6 is draining"},
		{"too few", relocate(2, 1, 2), "keeps 3 copies"},
		{"too many", relocate(2, 1, 2, 3, 4), "keeps 3 copies"},
		{"none", relocate(2), "keeps 3 copies"},
		{"a forbidden node", relocate(6, 1, 2, 3), "rule fifth forbids zone=a"},
		{"an unknown range", relocate(99, 1, 2, 3), "no such range"},
		{"a node without a copy", transferTo(2, lost), "has no copy"},
		{"an unknown node to lead", transferTo(2, 77), "has no copy of r2 that could lead it: choose"},
		{"the last range", mergeOf(uint64(last)), "last range"},
		{"two rules", mergeOf(5), "under rule"},
		{"the system range", mergeOf(1), "range 1"},
		{"nothing", &adminpb.OperateRequest{RangeId: 2}, "nothing"},
	} {
		_, err := w.operate(s.ask)
		if err == nil || !strings.Contains(err.Error(), s.words) ||
			!errors.Is(err, ErrRefused) && !errors.Is(err, ErrUnknownRange) {
			t.Errorf("%s: %v, want %q", s.story, err, s.words)
		}
	}
	w.run(5 * time.Second)
	if w.sent != sent || w.ranges[2].leader != leader {
		t.Fatalf("%d orders went out", w.sent-sent)
	}
	if _, err := w.operate(transferTo(3, uint64(w.ranges[3].voters()[0]))); err != nil {
		t.Log(err)
	}
}

func TestABusyRangeIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := grown(t, 94, 4, 4)
	w.run(5 * time.Minute)
	r := w.ranges[2]
	var free uint64
	for n := uint64(1); n <= 4; n++ {
		if replicaOn(r.desc, ids.NodeID(n)) == nil {
			free = n
		}
	}
	target := append([]uint64{uint64(r.leader)}, free)
	for _, v := range r.voters() {
		if v != uint64(r.leader) && len(target) < 3 {
			target = append(target, v)
		}
	}
	if _, err := w.operate(relocate(2, target...)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.operate(relocate(2, target...)); !errors.Is(err, ErrRefused) ||
		!strings.Contains(err.Error(), "busy") {
		t.Fatalf("a second one at the same time: %v", err)
	}
	if _, err := w.operate(mergeOf(2)); !errors.Is(err, ErrRefused) {
		t.Fatalf("a merge of a busy range: %v", err)
	}
}
