package placement

import (
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func fact(generation, term, leader uint64) *metapb.RangeFact {
	return &metapb.RangeFact{LeaderNode: leader, Term: term, Descriptor_: &metapb.RangeDescriptor{
		RangeId: 7, Start: []byte{0x20}, End: []byte{0x21}, Generation: generation,
		Replicas: []*metapb.Replica{voter(1, 1), voter(2, 2), voter(3, 3)}}}
}

func TestWhoLeadsFollowsTheTermAlone(t *testing.T) {
	t.Parallel()
	for _, s := range []struct {
		story  string
		facts  []*metapb.RangeFact
		disown bool // node 1 says in full that it leads nothing, before the last fact
		leader ids.NodeID
		gen    ids.Generation
	}{
		{"a newer term", []*metapb.RangeFact{fact(3, 5, 1), fact(3, 6, 2)}, false, 2, 3},
		{"an older term", []*metapb.RangeFact{fact(3, 5, 1), fact(3, 4, 2)}, false, 1, 3},
		{"a newer term with an older descriptor", []*metapb.RangeFact{fact(3, 5, 1),
			fact(2, 6, 2)}, false, 2, 3},
		{"an older term with a newer descriptor", []*metapb.RangeFact{fact(3, 5, 1),
			fact(4, 4, 2)}, false, 1, 4},
		{"a second leader of one term", []*metapb.RangeFact{fact(3, 5, 1), fact(3, 5, 2)},
			false, 1, 3},
		{"a full report without it", []*metapb.RangeFact{fact(3, 5, 1), fact(3, 4, 1)}, true, 0, 3},
		{"and then an old message", []*metapb.RangeFact{fact(3, 5, 1), fact(2, 5, 1)}, true, 0, 3},
		{"and then it leads after all", []*metapb.RangeFact{fact(3, 5, 1), fact(3, 5, 1)}, true,
			1, 3},
		{"no leader named: the sender", []*metapb.RangeFact{fact(3, 5, 0)}, false, 1, 3},
	} {
		d := activeDriver(t, newMemKV())
		for i, f := range s.facts {
			if s.disown && i == len(s.facts)-1 {
				d.Report(0, &metapb.NodeReport{Full: true, Node: &metapb.NodeDescriptor{NodeId: 1}})
				if d.Range(7).GetLeaderNode() != 0 {
					t.Errorf("%s: still led by the node that says no", s.story)
				}
			}
			from := max(1, f.GetLeaderNode())
			d.Report(0, &metapb.NodeReport{Node: &metapb.NodeDescriptor{NodeId: from},
				Facts: []*metapb.RangeFact{f}})
		}
		r := d.cluster.dir.byID[7]
		if r.leader != s.leader || r.generation() != s.gen {
			t.Errorf("%s: leader %v generation %d", s.story, r.leader, r.generation())
		}
		verify(t, d.cluster)
	}
}

func TestALeaderThatFellSilentCountsAsNone(t *testing.T) {
	t.Parallel()
	w := grown(t, 20, 5, 3)
	d := w.node(w.driver).d
	c := d.cluster
	if c.leaderless.Len() != 0 {
		t.Fatal("not at rest")
	}
	led := c.nodes[3].leads.Len()
	c.nodes[3].lastReport = w.now - defaultSuspectAfter - tick
	c.nextPhase = 0
	if s := d.Status(w.now + 2*tick); int(s.GetLeaderless()) != led || led == 0 {
		t.Fatalf("%d ranges without a leader, want %d", s.GetLeaderless(), led)
	}
	// It was only slow. What it said meanwhile may be lost.
	reply := d.Report(w.now+3*tick, &metapb.NodeReport{Node: w.node(3).desc, Leaders: uint32(led)})
	if s := d.Status(w.now + 3*tick); s.GetLeaderless() != 0 || !reply.GetWantFull() {
		t.Fatalf("%v %v", s, reply)
	}
}

func TestANodeWhoseCountsDifferForLongIsAskedForAll(t *testing.T) {
	t.Parallel()
	d := activeDriver(t, newMemKV())
	a, _ := join(t, d, joining(100))
	desc := joining(100).GetNode()
	desc.NodeId = a.GetNodeId()
	d.Report(0, &metapb.NodeReport{Node: desc, Full: true})
	asked := 0
	for now := time.Second; now <= 2*recountAfter; now += time.Second {
		r := &metapb.NodeReport{Node: desc, Leaders: 1, Full: asked > 0}
		if d.Report(now, r).GetWantFull() {
			asked++
			if now < recountAfter {
				t.Fatalf("asked after %v", now)
			}
		}
	}
	if asked != 2 {
		t.Fatalf("asked %d times", asked)
	}
}

func TestNothingIsPlannedBeforeAllNodesHaveTold(t *testing.T) {
	t.Parallel()
	w := grown(t, 21, 30, 3)
	w.moveDriver(2)
	d := w.node(2).d
	w.node(1).full = true
	w.node(2).full = true
	for now := w.now; now < w.now+30*time.Second; now += tick {
		for _, n := range w.nodes[:2] {
			msg := &metapb.NodeReport{Node: n.desc, Full: true}
			for _, r := range w.ranges {
				if r.leader == n.id {
					msg.Facts = append(msg.Facts, &metapb.RangeFact{Descriptor_: r.desc,
						LeaderNode: uint64(n.id), Term: r.term})
				}
			}
			d.Report(now, msg)
		}
		d.Report(now, &metapb.NodeReport{Node: w.node(3).desc}) // alive, but has not told
		d.Step(now)
		if d.planning || d.cluster.ops.Len() != 0 {
			t.Fatal("planned with a part of the facts")
		}
	}
}

func TestARangeRestsLongerAfterEachFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 22, 1)
	w.run(2 * time.Second)
	w.join().noSnaps = true
	w.join().noSnaps = true
	d := w.node(1).d
	begun := 0
	var last *operator
	var failedAt, pauses []time.Duration
	for end := w.now + time.Hour; w.now < end; w.now += tick {
		w.step()
		op := d.cluster.holder[2]
		ok := op != nil
		switch {
		case ok && last == nil:
			begun++
			if len(failedAt) > 0 {
				pauses = append(pauses, w.now-failedAt[len(failedAt)-1])
			}
		case !ok && last != nil:
			failedAt = append(failedAt, w.now)
		}
		last = op
	}
	if len(pauses) < 5 {
		t.Fatalf("pauses %v", pauses)
	}
	for i, p := range pauses {
		if least := restAfter << min(i, maxRestDoublings); p < least || p > least+time.Second {
			t.Fatalf("pause %d lasted %v, want %v: %v", i, p, least, pauses)
		}
	}
}

func TestAFullReportDisownsWithItsLastPartOnly(t *testing.T) {
	t.Parallel()
	d := activeDriver(t, newMemKV())
	a, _ := join(t, d, joining(100))
	desc := joining(100).GetNode()
	desc.NodeId = a.GetNodeId()
	fact := func(id uint64) *metapb.RangeFact {
		key := func(i uint64) []byte { return []byte{0x20, byte(i)} }
		return &metapb.RangeFact{Term: 6, LeaderNode: desc.GetNodeId(),
			Descriptor_: &metapb.RangeDescriptor{RangeId: id, Start: key(id), End: key(id + 1),
				Generation: 1, Replicas: []*metapb.Replica{{NodeId: 1, ReplicaId: 1}}}}
	}
	led := func() int { return d.cluster.nodes[ids.NodeID(desc.GetNodeId())].leads.Len() }
	report := func(part uint32, more bool, ids ...uint64) bool {
		r := &metapb.NodeReport{Node: desc, Full: true, Part: part, More: more, Leaders: 3}
		for _, id := range ids {
			r.Facts = append(r.Facts, fact(id))
		}
		return d.Report(0, r).GetWantFull()
	}
	if report(0, false, 2, 3, 4) || led() != 3 {
		t.Fatalf("leads %d ranges by a report of one part", led())
	}
	report(0, true, 2)
	if report(1, true, 5); led() != 4 {
		t.Fatalf("leads %d ranges while the report is not whole, want 4", led())
	}
	if report(2, false); led() != 2 {
		t.Fatalf("leads %d ranges, want the two of the report", led())
	}
	// A part is missing, or the report began before this driver did.
	report(0, true, 2)
	if report(2, false, 6); led() != 3 {
		t.Fatalf("a report with a hole disowned: leads %d ranges", led())
	}
}
