package placement

import (
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func scatterAll() *adminpb.OperateRequest {
	return &adminpb.OperateRequest{What: &adminpb.OperateRequest_Scatter{
		Scatter: &adminpb.Scatter{Start: []byte{0x20}, End: []byte{0x21}}}}
}

func (w *world) scattering(id uint64) *adminpb.ScatterProgress {
	return w.node(w.driver).d.Operators(&adminpb.OperatorsRequest{ScatterId: id}).GetScatter()
}

// unspread returns a paused cluster of five nodes of which two hold nothing.
func unspread(t *testing.T, seed uint64) *world {
	t.Helper()
	w := grown(t, seed, 24, 3)
	w.node(w.driver).d.Pause(true, "a test", func(*metapb.PlacementSettings, error) {})
	w.join()
	w.join()
	w.run(30 * time.Second)
	return w
}

func TestAScatterGoesOnToItsEndAndSaysWhatMoved(t *testing.T) {
	t.Parallel()
	w := unspread(t, 95)
	const learners = metapb.OrderKind_ORDER_KIND_ADD_LEARNER
	const transfers = metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER
	made, handed := w.executed[learners], w.executed[transfers]
	reply, err := w.operate(scatterAll())
	id := reply.GetScatter().GetId()
	if err != nil || id == 0 || reply.GetTenure() == 0 || reply.GetScatter().GetRanges() != 24 {
		t.Fatalf("%v %v", reply, err)
	}
	w.run(2 * time.Second)
	again, err := w.operate(scatterAll()) // whose answer was lost, say
	if err != nil || again.GetScatter().GetId() != id ||
		len(w.node(w.driver).d.cluster.sched.scatters) != 1 {
		t.Fatalf("asked for again: %v %v", again, err)
	}
	var last *adminpb.ScatterProgress
	w.runUntil(20*time.Minute, "spread, though placement is paused", func() bool {
		now := w.scattering(id)
		if now.GetLeadersMoved() < last.GetLeadersMoved() ||
			now.GetReplicasMoved() < last.GetReplicasMoved() {
			t.Fatalf("%v after %v", now, last)
		}
		last = now
		return last.GetEnded() && last.GetRunning() == 0
	})
	made, handed = w.executed[learners]-made, w.executed[transfers]-handed
	if last.GetWhy() != "" || last.GetWaiting() != 0 || last.GetReplicasMoved() == 0 ||
		last.GetBytesMoved() != last.GetReplicasMoved()*20<<20 {
		t.Fatalf("%v", last)
	}
	if last.GetFailed() == 0 && (int(last.GetReplicasMoved()) != made ||
		int(last.GetLeadersMoved()) != handed) {
		t.Fatalf("%d copies and %d leaders moved, told was %v", made, handed, last)
	}
	for _, n := range w.nodes {
		if copies, leads := w.holds(n.id); copies < 12 || copies > 18 || leads < 3 || leads > 7 {
			t.Errorf("%v holds %d copies and leads %d", n.id, copies, leads)
		}
	}
	h := w.node(w.driver).d.Operators(&adminpb.OperatorsRequest{History: true, ScatterId: id})
	if h.GetTotal() < last.GetReplicasMoved() {
		t.Errorf("%d operators in the history, %v", h.GetTotal(), last)
	}
	// Another driver has other scatters, and its tenure says so.
	w.moveDriver(w.driver%5 + 1)
	w.run(5 * time.Second)
	next := w.node(w.driver).d.Operators(&adminpb.OperatorsRequest{ScatterId: id})
	if next.GetScatter() != nil || next.GetTenure() == reply.GetTenure() {
		t.Fatalf("the next driver: %v", next)
	}
}

func TestAScatterThatCannotGoOnEndsWithTheReason(t *testing.T) {
	t.Parallel()
	w := unspread(t, 96)
	c := w.node(w.driver).d.cluster
	for _, n := range c.nodes {
		n.sched.shunUntil = w.now + 24*time.Hour // copies do not get through to any of them
	}
	reply, err := w.operate(scatterAll())
	if err != nil {
		t.Fatal(err)
	}
	began := w.now
	var p *adminpb.ScatterProgress
	w.runUntil(10*time.Minute, "given up", func() bool {
		p = w.scattering(reply.GetScatter().GetId())
		return p.GetEnded()
	})
	if took := w.now - began; took < scatterStuck || p.GetWaiting() == 0 || !strings.Contains(
		p.GetWhy(), "could stand better, but nothing of them could be moved for 2 min 0 s") {
		t.Fatalf("after %v: %v", took, p)
	}
	if len(c.sched.scatters) != 0 {
		t.Fatal("it goes on all the same")
	}
}
