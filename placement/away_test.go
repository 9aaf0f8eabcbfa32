package placement

import (
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// unmoved fails if any order went out since.
func (w *world) unmoved(before int, when string) {
	w.t.Helper()
	if w.sent != before {
		w.dump()
		w.t.Fatalf("%d orders %s", w.sent-before, when)
	}
}

func TestTenMinutesWithoutPlacementAreFollowedByNoMovement(t *testing.T) {
	t.Parallel()
	w := grown(t, 70, 20, 5)
	w.run(5 * time.Minute)
	before := w.sent
	w.node(w.driver).d.SetActive(false, w.now)
	w.run(10 * time.Minute)
	to := w.driver%5 + 1
	w.driver = to
	w.node(to).d.SetActive(true, w.now)
	w.run(15 * time.Minute)
	w.unmoved(before, "after a new driver began")
}

// The driver's process was stopped, not killed: when it goes on it still believes
// that it drives, and has heard of nobody for ten minutes.
func TestADriverThatSleptBuriesNobody(t *testing.T) {
	t.Parallel()
	w := grown(t, 71, 20, 5)
	w.run(5 * time.Minute)
	before := w.sent
	w.now += 10 * time.Minute
	w.run(15 * time.Minute)
	w.unmoved(before, "after a sleep")
}

// A node that died while nobody drove is waited for from when somebody does.
func TestANodeThatDiedMeanwhileIsGivenItsTime(t *testing.T) {
	t.Parallel()
	w := grown(t, 72, 20, 5)
	w.run(5 * time.Minute)
	w.node(w.driver).d.SetActive(false, w.now)
	dead := w.driver%5 + 1
	w.node(dead).up = false
	w.run(10 * time.Minute)
	w.driver = dead%5 + 1
	began := w.now
	swaps := w.swaps
	w.node(w.driver).d.SetActive(true, w.now)
	w.runUntil(10*time.Minute, "replaced", func() bool {
		if w.swaps != swaps && w.now < began+time.Minute {
			t.Fatalf("replaced after %v", w.now-began)
		}
		copies, _ := w.holds(dead)
		return copies == 0 && w.allHave(3)()
	})
}

func TestANodeThatIsBackInTimeIsWelcomedWithoutACopy(t *testing.T) {
	t.Parallel()
	w := grown(t, 73, 20, 5)
	w.run(5 * time.Minute)
	down := w.driver%5 + 1
	copies, _ := w.holds(down)
	learners := w.executed[metapb.OrderKind_ORDER_KIND_ADD_LEARNER]
	for range 5 {
		w.node(down).up = false
		w.run(50 * time.Second)
		w.node(down).up, w.node(down).started = true, w.now
		w.run(20 * time.Second)
	}
	w.run(10 * time.Minute)
	after, _ := w.holds(down)
	if got := w.executed[metapb.OrderKind_ORDER_KIND_ADD_LEARNER]; got != learners ||
		after != copies {
		t.Fatalf("%d copies were made, it holds %d of %d", got-learners, after, copies)
	}
	w.runUntil(5*time.Minute, "it leads again", w.even)
}

// The node is back when its replacement has just begun: what has not got its copy yet
// is called off, what has is finished or tidied, and no range is left odd.
func TestANodeThatIsBackDuringItsReplacementStopsIt(t *testing.T) {
	t.Parallel()
	w := grown(t, 74, 40, 5)
	w.run(5 * time.Minute)
	down := w.driver%5 + 1
	copies, _ := w.holds(down)
	swaps := w.swaps
	w.node(down).up = false
	w.runUntil(5*time.Minute, "some are replaced", func() bool { return w.swaps > swaps+2 })
	d := w.node(w.driver).d
	begun := d.Counts()[kindRepair].Begun
	w.node(down).up, w.node(down).full = true, true
	w.run(20 * time.Second)
	// Learners that came too late are tidied, nothing more.
	if more := d.Counts()[kindRepair].Begun - begun; more > uint64(copies)/4 {
		t.Fatalf("%d repairs were begun for %d copies that are back", more, copies)
	}
	w.runUntil(20*time.Minute, "at rest", func() bool {
		return w.allHave(3)() && w.status().GetOperators() == 0
	})
	w.run(10 * time.Minute)
	w.quiet(10 * time.Minute)
}

// The order for the new copy may be on its way already. If it is carried out all the
// same a learner is left, which is tidied.
func TestReplacementsThatHaveNoCopyYetAreCalledOffWhenTheNodeIsBack(t *testing.T) {
	t.Parallel()
	d := activeDriver(t, newMemKV())
	c := d.cluster
	report := func(now time.Duration, n uint64, facts ...*metapb.RangeFact) {
		d.Report(now, &metapb.NodeReport{Full: true, Facts: facts,
			Node: &metapb.NodeDescriptor{NodeId: n, StoreId: n, Address: "a:1"}})
	}
	for n := uint64(1); n <= 4; n++ {
		c.register(&metapb.NodeDescriptor{NodeId: n, StoreId: n, Address: "a:1"}, 1)
	}
	ranges := []*metapb.RangeFact{benchFact(3, 0, 1, 1), benchFact(3, 3, 1, 1)}
	now := time.Duration(0)
	for ; now < defaultDeadAfter+10*time.Second; now += time.Second {
		// Nobody obeys here: without a pause ranges would rest after failed operators.
		d.Pause(now <= defaultDeadAfter, "a test", func(*metapb.PlacementSettings, error) {})
		report(now, 1, ranges...)
		for n := uint64(2); n <= 4; n++ {
			if n != 3 || now == 0 {
				report(now, n)
			}
		}
		d.Step(now)
	}
	blamed := func() (count int) {
		c.ops.Scan(func(_ uint64, op *operator) bool {
			if op.blame == 3 {
				count++
			}
			return true
		})
		return count
	}
	if blamed() != 2 {
		t.Fatalf("%d operators replace the dead node", blamed())
	}
	report(now, 3)
	if blamed() != 0 {
		t.Fatal("it is replaced although it is back")
	}
	last := d.Operators(&adminpb.OperatorsRequest{History: true}).GetOperators()[0]
	if last.GetOutcome() != "cancelled" || last.GetError() != "n3 is back" {
		t.Fatalf("%v", last)
	}
	verify(t, c)
	// One of them had reached its leader. What is left of it is tidied.
	f := benchFact(3, 0, 2, 1)
	f.Descriptor_.Replicas = append(f.Descriptor_.Replicas, learner(4, 9))
	report(now, 1, f, ranges[1])
	d.Step(now)
	if op := c.holder[2]; op == nil || brief(op) != "remove 4" {
		t.Fatalf("the learner that came too late: %v", op)
	}
}

// Of many ranges that need a copy those come first which the next failure stops.
func TestTheMostEndangeredRangesAreRepairedFirst(t *testing.T) {
	t.Parallel()
	c, _ := situation(5, "sssddsss", false, 1, voter(1, 1), voter(2, 2), voter(3, 3),
		voter(6, 6), voter(7, 7))
	add := func(id uint64, at byte, nodes ...uint64) {
		d := &metapb.RangeDescriptor{RangeId: id, Generation: 1,
			Start: []byte{0x22, at}, End: []byte{0x22, at + 1}}
		for _, n := range nodes {
			d.Replicas = append(d.Replicas, voter(n, n))
		}
		c.learn(1, &metapb.RangeFact{LeaderNode: 1, Term: 1, Descriptor_: d})
	}
	add(20, 1, 1, 2, 3, 4, 6) // one dead of five
	c.now += time.Second      // later, but worse:
	add(21, 2, 1, 2, 4, 5, 3) // two dead of five: the next failure stops it
	add(22, 3, 1, 2, 3, 5, 7) // one dead of five, younger than the first
	var order []ids.RangeID
	for r := c.nextNeedy(); r != nil; r = c.nextNeedy() {
		order = append(order, r.id())
	}
	if len(order) != 3 || order[0] != 21 || order[1] != 20 || order[2] != 22 {
		t.Fatalf("checked in the order %v", order)
	}
	verify(t, c)
}

func TestARestartedNodeIsNotGivenLeadersAtOnce(t *testing.T) {
	t.Parallel()
	d := activeDriver(t, newMemKV())
	a, _ := join(t, d, joining(100))
	desc := joining(100).GetNode()
	desc.NodeId = a.GetNodeId()
	n := d.cluster.nodes[ids.NodeID(a.GetNodeId())]
	report := func(now, uptime time.Duration) {
		d.Report(now, &metapb.NodeReport{Node: desc, Full: true, UptimeSeconds: uptime.Seconds()})
		d.Step(now)
	}
	now := time.Duration(0)
	for ; now < 20*time.Second; now += time.Second {
		report(now, time.Hour+now)
	}
	if n.phase != phaseSettled {
		t.Fatal("not settled")
	}
	report(now, time.Second) // nobody noticed that it was away: it started fast
	if n.phase != phaseLive {
		t.Fatal("takes leaders a second after its start")
	}
	for up := time.Second; up < settleFactor*defaultSuspectAfter+2*time.Second; up += time.Second {
		report(now+up, up+time.Second)
	}
	if n.phase != phaseSettled {
		t.Fatal("does not settle again")
	}
}
