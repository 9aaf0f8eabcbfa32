package placement

import (
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func TestANodeThatComesAndGoesWaitsLongerForLeadersEachTime(t *testing.T) {
	t.Parallel()
	d := activeDriver(t, newMemKV())
	a, _ := join(t, d, joining(100))
	desc := joining(100).GetNode()
	desc.NodeId = a.GetNodeId()
	n := d.cluster.nodes[ids.NodeID(a.GetNodeId())]
	now, born := time.Duration(0), -time.Hour
	up := func(limit time.Duration, ok func() bool) (took time.Duration) {
		for ; !ok() && took < limit; took += time.Second {
			d.Report(now, &metapb.NodeReport{Node: desc, Full: true,
				UptimeSeconds: (now - born).Seconds()})
			d.Step(now)
			now += time.Second
		}
		return took
	}
	settled := func() bool { return n.phase == phaseSettled }
	up(time.Minute, settled)
	fall := func(restarts bool) {
		if restarts { // so fast that nobody noticed that it was away
			born = now - time.Second
			up(2*time.Second, func() bool { return !settled() })
			return
		}
		for range 5 {
			now += time.Second
			d.Step(now)
		}
	}
	base := settleFactor * defaultSuspectAfter
	for i := range maxSettleDoublings + 3 {
		fall(i%3 == 2)
		want := base << min(i, maxSettleDoublings)
		if got := up(time.Hour, settled); got < want-3*time.Second || got > want+2*time.Second {
			t.Errorf("after fall %d it is given leaders when up for %v, want %v", i+1, got, want)
		}
	}
	up(fallsKept, func() bool { return false }) // and then it stays
	fall(false)
	if got := up(time.Hour, settled); got > base+2*time.Second {
		t.Errorf("what was long ago is not forgotten: %v", got)
	}
}

func TestASlowlyFlappingNodeDrawsFewLeaders(t *testing.T) {
	t.Parallel()
	w := grown(t, 75, 30, 4)
	w.run(5 * time.Minute)
	flaps := w.driver%4 + 1
	drawn := 0
	for i := range 8 {
		w.node(flaps).up = false
		w.run(20 * time.Second)
		w.node(flaps).up, w.node(flaps).started = true, w.now
		w.run(25 * time.Second)
		if _, leads := w.holds(flaps); leads > 0 {
			if drawn++; i > 2 {
				t.Errorf("it leads %d ranges 25 s after its fall number %d", leads, i+1)
			}
		}
	}
	if drawn == 0 {
		t.Error("the first fall is not held against it")
	}
	w.runUntil(5*time.Minute, "it leads its part when it stays", w.even)
	w.run(2 * time.Minute)
	w.quiet(10 * time.Minute)
}

func TestARequestToLetAFlappingNodeLeadIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	w := grown(t, 76, 6, 3)
	flaps := w.driver%3 + 1
	for range 3 {
		w.node(flaps).up = false
		w.run(5 * time.Second)
		w.node(flaps).up = true
		w.run(8 * time.Second)
	}
	id := uint64(2)
	for r := range w.ranges {
		if w.ranges[r].leader != flaps && r != 1 {
			id = uint64(r)
		}
	}
	_, err := w.operate(transferTo(id, uint64(flaps)))
	if err == nil || !strings.Contains(err.Error(), "it has failed 3 times in the last minutes, and "+
		"is given leaders only when it has been up for 24 s: in ") {
		t.Fatalf("%v", err)
	}
}

func TestADrainDoesNotWaitForTheRestOfWhatWasJustMoved(t *testing.T) {
	t.Parallel()
	for _, to := range []metapb.NodeStanding{standingDraining, standingDecommissioning} {
		l := newLab(t, 14, 4)
		l.addMany(60, 4, sized(mib))
		l.run(5 * time.Minute)
		n := l.c.nodes[1]
		n.leads.Scan(func(id ids.RangeID) bool { // all of them came a moment ago
			l.c.giveRest(l.c.dir.byID[id], restAfter)
			return true
		})
		led := n.leads.Len()
		l.c.setStanding(n, to, 2)
		l.run(restAfter / 2)
		if n.leads.Len() > 0 || led == 0 {
			t.Errorf("%v: it leads %d of %d ranges after %v", to, n.leads.Len(), led, restAfter/2)
		}
	}
}

func TestANewDriverDoesNotCallANodeDrainedThatItKnowsNothingOf(t *testing.T) {
	t.Parallel()
	w := grown(t, 77, 24, 4)
	w.node(w.driver).d.Pause(true, "a test", func(*metapb.PlacementSettings, error) {})
	w.must(2, standingDraining)
	_, leads := w.holds(2)
	if p := w.progress(2); p.GetUnknown() || int(p.GetLeadersLeft()) != leads || leads == 0 {
		t.Fatalf("it leads %d: %v", leads, p)
	}
	w.moveDriver(3)
	unknown := 0
	for range 100 {
		if p := w.progress(2); p.GetUnknown() {
			if unknown++; p.GetSecondsLeft() != 0 || len(p.GetStuck()) == 0 {
				t.Fatalf("not known, and yet: %v", p)
			}
		} else if int(p.GetLeadersLeft()) != leads {
			t.Fatalf("it leads %d: %v", leads, p)
		}
		w.step()
		w.now += tick
	}
	if unknown == 0 || w.progress(2).GetUnknown() {
		t.Fatalf("unknown at %d looks", unknown)
	}
	// What nobody has told of may be led by it, too.
	c := w.node(3).d.cluster
	c.evict(c.dir.byID[5])
	if p := w.progress(2); !p.GetUnknown() {
		t.Fatalf("with a gap in the directory: %v", p)
	}
}

// Seed 5000029 of the simulation: the only copy of a range goes where it can be led. On a
// node that is not given leaders yet it would be made, given up when the time is over, and
// made again.
func TestAnOnlyCopyDoesNotMoveToANodeThatMayNotLeadYet(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 92, 3)
	w.run(2 * time.Second)
	w.join()
	w.run(20 * time.Second)
	w.set(&metapb.Rule{Name: "all", Replicas: 1})
	w.run(time.Minute)
	c := w.node(w.driver).d.cluster
	r := c.dir.byID[2]
	from, to := r.leader, 3-r.leader
	if c.moveSteps(r, from, to) == nil {
		t.Fatal("it cannot move although all is well")
	}
	c.nodes[to].phase = phaseLive
	if steps := c.moveSteps(r, from, to); steps != nil {
		t.Fatalf("to a node that has just come up: %v", steps)
	}
}
