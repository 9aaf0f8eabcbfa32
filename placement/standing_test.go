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

// want sets the standing of a node and returns what the driver says.
func (w *world) want(id ids.NodeID, s metapb.NodeStanding) (p *adminpb.NodeProgress, err error) {
	w.t.Helper()
	answered := false
	w.node(w.driver).d.SetStanding(id, s, func(got *adminpb.NodeProgress, e error) {
		p, err, answered = got, e, true
	})
	if !answered {
		w.t.Fatal("no answer")
	}
	return p, err
}

// must fails if a change of standing is refused.
func (w *world) must(id ids.NodeID, s metapb.NodeStanding) *adminpb.NodeProgress {
	w.t.Helper()
	p, err := w.want(id, s)
	if err != nil {
		w.t.Fatalf("%v to %v: %v", id, s, err)
	}
	return p
}

func (w *world) progress(id ids.NodeID) *adminpb.NodeProgress {
	w.t.Helper()
	for _, p := range w.node(w.driver).d.Nodes(w.now).GetNodes() {
		if p.GetStatus().GetNode().GetNodeId() == uint64(id) {
			return p
		}
	}
	w.t.Fatalf("%v is not listed", id)
	return nil
}

// holds counts the copies on a node, and the ranges that it leads.
func (w *world) holds(id ids.NodeID) (copies, leads int) {
	for _, r := range w.ranges {
		if replicaOn(r.desc, id) != nil {
			copies++
		}
		if r.leader == id {
			leads++
		}
	}
	return copies, leads
}

func TestADrainedNodeGivesAwayItsLeadersAndKeepsItsCopies(t *testing.T) {
	t.Parallel()
	w := grown(t, 40, 24, 4)
	copies, leads := w.holds(2)
	if copies == 0 || leads == 0 {
		t.Fatal("nothing to drain")
	}
	p := w.must(2, standingDraining)
	if p.GetStatus().GetStanding() != standingDraining || int(p.GetLeadersMost()) != leads {
		t.Fatalf("%v, it led %d", p, leads)
	}
	last := p.GetLeadersLeft()
	w.runUntil(2*time.Minute, "it leads nothing", func() bool {
		p := w.progress(2)
		if p.GetLeadersLeft() > last || p.GetLeadersMost() < p.GetLeadersLeft() {
			t.Fatalf("%v, it had %d a moment ago", p, last)
		}
		last = p.GetLeadersLeft()
		_, leads := w.holds(2)
		return leads == 0 && last == 0
	})
	w.run(time.Minute)
	if after, leads := w.holds(2); after != copies || leads != 0 {
		t.Fatalf("%d copies, had %d; leads %d", after, copies, leads)
	}
	w.must(2, standingDraining) // again: harmless
	// A new driver knows it, too.
	w.moveDriver(3)
	w.run(time.Minute)
	if _, leads := w.holds(2); leads != 0 || w.progress(2).GetStatus().GetStanding() !=
		standingDraining {
		t.Fatal("a new driver does not know that the node is drained")
	}
	w.must(2, standingActive)
	w.runUntil(5*time.Minute, "it leads its share again", w.even)
	w.run(2 * time.Minute)
	w.quiet(10 * time.Minute)
}

func TestANodeIsDecommissionedToTheEndAndNeverComesBack(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		w := grown(t, 50+seed, 24, 4)
		if w.driver == 2 {
			w.moveDriver(1)
			w.run(30 * time.Second)
		}
		w.loss = 0.1 * float64(seed)
		p := w.must(2, standingDecommissioning)
		if p.GetReplicasLeft() == 0 || p.GetBytesLeft() == 0 {
			t.Fatalf("%v", p)
		}
		paced := false
		w.runUntil(20*time.Minute, "it is decommissioned", func() bool {
			p := w.progress(2)
			paced = paced || p.GetSecondsLeft() > 0
			for id, r := range w.ranges {
				if n := len(r.voters()); n != 3 {
					t.Fatalf("%v passes through %d voters", id, n)
				}
			}
			return p.GetStatus().GetStanding() == standingDecommissioned
		})
		if !paced {
			t.Fatal("nobody said how long it takes")
		}
		if copies, leads := w.holds(2); copies+leads > 0 || !w.allHave(3)() {
			t.Fatalf("%d copies and %d leaders left", copies, leads)
		}
		w.loss = 0
		w.run(3 * time.Minute)
		d := w.node(w.driver).d
		if reply := d.Report(w.now, &metapb.NodeReport{Node: w.node(2).desc}); reply.Standing ==
			nil || reply.GetStanding() != standingDecommissioned || reply.GetWantFull() {
			t.Fatalf("its report was taken: %v", reply)
		}
		d.Join(&adminpb.JoinRequest{Node: w.node(2).desc}, func(_ *adminpb.JoinReply, err error) {
			if !errors.Is(err, ErrDecommissioned) || !strings.Contains(err.Error(), "empty") {
				t.Fatalf("its join: %v", err)
			}
		})
		w.node(2).up = false
		w.run(5 * time.Minute)
		if s := w.status(); len(s.GetProblems()) != 0 || s.GetTolerates() != 1 {
			t.Fatalf("a decommissioned node keeps the cluster unwell: %v", s)
		}
		if _, err := w.want(2, standingActive); !errors.Is(err, ErrRefused) {
			t.Fatalf("active again: %v", err)
		}
		w.quiet(10 * time.Minute)
	}
}

func TestADeadNodeIsDecommissioned(t *testing.T) {
	t.Parallel()
	w := grown(t, 60, 12, 4)
	if w.driver == 3 {
		w.moveDriver(1)
		w.run(30 * time.Second)
	}
	w.node(3).up = false
	w.run(10 * time.Second)
	w.must(3, standingDecommissioning) // not dead yet, only silent: it need not be waited for
	w.runUntil(10*time.Minute, "it is decommissioned", func() bool {
		return w.progress(3).GetStatus().GetStanding() == standingDecommissioned
	})
	w.run(time.Minute)
	if s := w.status(); len(s.GetProblems()) != 0 {
		t.Fatalf("%v", s)
	}
}

func TestUndrainingStopsADecommissionMidway(t *testing.T) {
	t.Parallel()
	w := grown(t, 61, 30, 4)
	w.must(4, standingDecommissioning)
	w.runUntil(5*time.Minute, "some copies left", func() bool { return w.swaps > 5 })
	w.must(4, standingActive)
	w.runUntil(10*time.Minute, "at rest", func() bool {
		return w.even() && w.allHave(3)() && w.status().GetOperators() == 0
	})
	w.run(5 * time.Minute)
	if copies, _ := w.holds(4); copies == 0 || w.progress(4).GetStatus().GetStanding() !=
		standingActive {
		t.Fatal("it went on")
	}
	w.quiet(10 * time.Minute)
}

func TestStandingsThatWouldDoHarmAreRefusedAndNothingChanges(t *testing.T) {
	t.Parallel()
	w := grown(t, 62, 6, 3)
	refused := func(id ids.NodeID, s metapb.NodeStanding, words string) {
		t.Helper()
		writes := w.kv.writes
		if _, err := w.want(id, s); !errors.Is(err, ErrRefused) ||
			!strings.Contains(err.Error(), words) {
			t.Fatalf("%v to %v: %v, want a refusal with %q", id, s, err, words)
		}
		if w.kv.writes != writes {
			t.Fatal("something was written")
		}
	}
	refused(9, standingDraining, "does not know")
	if _, err := w.want(9, standingDraining); !errors.Is(err, ErrUnknownNode) {
		t.Fatalf("an unknown node: %v", err)
	}
	refused(2, standingDecommissioning, "rule default keeps 3 copies")
	refused(2, standingDecommissioning, "only 2 would be left")
	refused(2, standingDecommissioned, "by itself")
	w.must(1, standingDraining)
	w.must(2, standingDraining)
	refused(3, standingDraining, "last node")
	w.must(1, standingActive)
	w.must(2, standingActive)
	w.join()
	w.runUntil(20*time.Minute, "even", w.even)
	w.run(5 * time.Minute)
	down := ids.NodeID(3)
	if w.driver == down {
		down = 2
	}
	w.node(down).up = false
	w.run(10 * time.Second)
	other := ids.NodeID(4)
	refused(other, standingDecommissioning, "no live majority without n4")
	refused(other, standingDraining, "no live majority without n4")
	w.node(down).up = true
	w.run(10 * time.Second)
	w.must(other, standingDraining)
}

func TestNoTwoStandingsChangeAtATime(t *testing.T) {
	t.Parallel()
	w := grown(t, 63, 3, 5)
	d := w.node(w.driver).d
	w.kv.delayed = true
	var first, second error = errKV, nil
	d.SetStanding(4, standingDecommissioning,
		func(_ *adminpb.NodeProgress, err error) { first = err })
	d.SetStanding(5, standingDecommissioning,
		func(_ *adminpb.NodeProgress, err error) { second = err })
	if !errors.Is(second, ErrAskAgain) {
		t.Fatalf("the second: %v", second)
	}
	for range 10 {
		w.kv.deliver(nil)
	}
	if w.kv.delayed = false; first != nil {
		t.Fatalf("the first: %v", first)
	}
}

func TestADecommissionThatCannotGoOnSaysWhy(t *testing.T) {
	t.Parallel()
	w := grown(t, 64, 12, 4)
	w.must(4, standingDecommissioning)
	w.runUntil(time.Minute, "it is under way", func() bool { return w.swaps > 1 })
	var settings *metapb.PlacementSettings
	w.node(w.driver).d.Pause(true, "eva, for a test", func(s *metapb.PlacementSettings, err error) {
		settings = s
	})
	if !settings.GetPaused() {
		t.Fatal("not paused")
	}
	w.runUntil(time.Minute, "nothing runs", func() bool { return w.status().GetOperators() == 0 })
	p := w.progress(4)
	if len(p.GetStuck()) != 1 || !strings.Contains(p.GetStuck()[0], "paused by eva") {
		t.Fatalf("stuck: %q", p.GetStuck())
	}
	before := w.swaps
	w.run(5 * time.Minute)
	if w.swaps != before {
		t.Fatal("moved while paused")
	}
	w.moveDriver(2) // the next driver keeps the pause
	w.run(5 * time.Minute)
	if w.swaps != before || w.status().GetPausedBy() != "eva, for a test" {
		t.Fatal("a new driver does not know of the pause")
	}
	w.node(w.driver).d.Pause(false, "", func(*metapb.PlacementSettings, error) {})
	w.runUntil(20*time.Minute, "decommissioned", func() bool {
		return w.progress(4).GetStatus().GetStanding() == standingDecommissioned
	})
}

// A person takes a decommissioning back through another driver in the very moment in
// which this one, which has not heard that it drives no more, calls the node
// decommissioned. That is for good, and must not be written over what was asked.
func TestWhatAnotherDriverTookBackIsNotCalledDecommissioned(t *testing.T) {
	t.Parallel()
	w := grown(t, 50, 24, 4)
	if w.driver == 2 {
		w.moveDriver(1)
		w.run(30 * time.Second)
	}
	w.must(2, standingDecommissioning)
	takenBack := false
	w.kv.conflict = func(key []byte) {
		if string(key) == string(standingKey(2)) && !takenBack {
			takenBack = true
			w.kv.clock++
			w.kv.rows[string(key)] = KeyValue{
				key, encodeNumber(uint64(standingActive)), w.kv.clock,
			}
		}
	}
	w.runUntil(20*time.Minute, "the driver wants to call it decommissioned", func() bool {
		return takenBack
	})
	w.run(time.Second)
	row := w.kv.rows[string(standingKey(2))]
	if s, err := decodeStanding(row.Key, row.Value, row.Version); err != nil || s != standingActive {
		t.Fatalf("%v, %v is stored; another driver had stored that it is active", s, err)
	}
}
