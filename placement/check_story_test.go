package placement

import (
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/placement/rules"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// placed is a situation with places: each word of nodes is the letter of a node's phase,
// as in situation, and its zone.
func placed(t *testing.T, rule *metapb.Rule, nodes string, leader uint64,
	replicas ...*metapb.Replica) (*cluster, *rangeState) {
	t.Helper()
	letters := ""
	for _, word := range strings.Fields(nodes) {
		letters += word[:1]
	}
	c, _ := situation(3, letters, false, leader, replicas...)
	for i, word := range strings.Fields(nodes) {
		id := uint64(i + 1)
		c.register(&metapb.NodeDescriptor{NodeId: id, StoreId: id,
			Locality: []string{"zone=" + word[1:]}}, 2)
	}
	if rule == nil {
		rule = &metapb.Rule{Name: "all", Replicas: 3}
	}
	set, faults := rules.New(&metapb.RuleSet{Version: 1, Rules: []*metapb.Rule{rule}})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	c.setRules(set)
	for c.sweepSome(); c.sweep.going; c.sweepSome() {
	}
	c.influence()
	return c, c.dir.byID[7]
}

func (c *cluster) planned(r *rangeState) string {
	if op := check(c, r).op; op != nil {
		return brief(op)
	}
	return ""
}

// voting are voters on nodes.
func voting(nodes ...uint64) (all []*metapb.Replica) {
	for _, n := range nodes {
		all = append(all, voter(n, n))
	}
	return all
}

func TestOfTooManyCopiesThoseStayThatNeedNoFurtherMove(t *testing.T) {
	t.Parallel()
	forbidB := &metapb.Rule{Name: "all", Replicas: 3, Forbid: []string{"zone=b"}}
	one := &metapb.Rule{Name: "all", Replicas: 1, Require: []string{"zone=c"}}
	for _, s := range []struct {
		story  string
		rule   *metapb.Rule
		nodes  string
		leader uint64
		voters []uint64
		want   string
	}{
		{"a node that flaps stands alone in its zone: it stays", nil, "sa sa sb qc", 1,
			[]uint64{1, 2, 3, 4}, "unvote 2 remove 2"},
		{"so does one that leaves, if its zone has another node for the copy", nil,
			"sa sa sb Lc sc", 1, []uint64{1, 2, 3, 4}, "unvote 2 remove 2"},
		{"if not it goes: each zone that is left has its copy", nil, "sa sa sb Lc", 1,
			[]uint64{1, 2, 3, 4}, "unvote 4 remove 4"},
		{"the dead one goes although it stands alone", nil, "sa sa sb dc", 1,
			[]uint64{1, 2, 3, 4}, "unvote 4 remove 4"},
		{"the leader stands where no copy may, the others not: it hands over", forbidB,
			"sb sa sc sd", 1, []uint64{1, 2, 3, 4}, "lead 2 unvote 1 remove 1"},
		{"the only copy that is allowed stays when one is enough", one, "sa sb sc", 1,
			[]uint64{1, 2, 3}, "lead 3 unvote 2 unvote 1 remove 2 remove 1"},
		{"also when it is silent: there is time", one, "sa sb qc", 1, []uint64{1, 2, 3}, ""},
		{"not when it is dead", one, "sa sb dc", 1, []uint64{1, 2, 3},
			"unvote 3 unvote 2 remove 3 remove 2"},
		{"of five the silent one goes first", nil, "sa sb qc sd se", 1, []uint64{1, 2, 3, 4, 5},
			"unvote 3 unvote 5 remove 3 remove 5"},
		{"of five no other stops to vote while one that is to stay is silent", nil,
			"sa sa sb sb qc", 1, []uint64{1, 2, 3, 4, 5}, ""},
	} {
		c, r := placed(t, s.rule, s.nodes, s.leader, voting(s.voters...)...)
		if got := c.planned(r); got != s.want {
			t.Errorf("%s: %q, want %q", s.story, got, s.want)
		}
		if s.want == "" && check(c, r).why == "" {
			t.Errorf("%s: no word why", s.story)
		}
		verify(t, c)
	}
}

func TestADrainingNodeHoldsACopyRatherThanThatOneIsMissing(t *testing.T) {
	t.Parallel()
	l := func(n uint64) *metapb.Replica { return learner(n, n) }
	for _, s := range []struct {
		story    string
		nodes    string
		replicas []*metapb.Replica
		want     string
	}{
		{"one of three drains, the range has one copy", "sa sb Dc", voting(1),
			"add 2 add 3 wait 2 wait 3 vote 2 vote 3"},
		{"there is another node", "sa sb Dc sd", voting(1), "add 2 add 4 wait 2 wait 4 vote 2 vote 4"},
		{"another node is silent, but one copy is in danger", "sa sb Dc qd", voting(1),
			"add 2 add 3 wait 2 wait 3 vote 2 vote 3"},
		{"its unfinished learner is promoted if it is needed", "sa sb Dc",
			append(voting(1, 2), l(3)), "add 3 wait 3 vote 3"},
		{"and removed if not", "sa sb Dc sd", append(voting(1, 2, 4), l(3)), "remove 3"},
		{"also while a fourth node is silent", "sa sb Dc qd sb", append(voting(1, 2, 5), l(3)),
			"remove 3"},
		{"one on a node that leaves for good is removed in any case", "sa sb Lc qd",
			append(voting(1, 2), l(3)), "remove 3"},
		{"a dead copy goes there if nowhere else", "sa sb dc Dd", voting(1, 2, 3),
			"add 4 wait 4 swap 4 for 3 remove 3"},
		{"one that is full cannot help: a pair goes back to one", "sa sb fc", voting(1, 2),
			"unvote 2 remove 2"},
		{"a copy that is in no danger waits", "sa sb Lc Dd", voting(1, 2, 3), ""},
	} {
		c, r := placed(t, nil, s.nodes, 1, s.replicas...)
		if got := c.planned(r); got != s.want {
			t.Errorf("%s: %q, want %q", s.story, got, s.want)
		}
		verify(t, c)
	}
}

func TestWhatIsInNoDangerWaitsForAZoneThatIsOnlySilent(t *testing.T) {
	t.Parallel()
	five := &metapb.Rule{Name: "all", Replicas: 5}
	for _, s := range []struct {
		story  string
		rule   *metapb.Rule
		nodes  string
		voters []uint64
		want   string
	}{
		{"a copy leaves a node for good", nil, "sa sb Lc qc sa", []uint64{1, 2, 3}, ""},
		{"its zone is dead", nil, "sa sb Lc dc sa", []uint64{1, 2, 3},
			"add 5 wait 5 swap 5 for 3 remove 3"},
		{"its zone has another node", nil, "sa sb Lc sc sa", []uint64{1, 2, 3},
			"add 4 wait 4 swap 4 for 3 remove 3"},
		{"a lost copy does not wait", nil, "sa sb dc qc sa", []uint64{1, 2, 3},
			"add 5 wait 5 swap 5 for 3 remove 3"},
		{"three copies become five", five, "sa sb sc sa sa qb", []uint64{1, 2, 3}, ""},
		{"one copy becomes three at once", nil, "sa sa sa qb qc", []uint64{1},
			"add 2 add 3 wait 2 wait 3 vote 2 vote 3"},
	} {
		c, r := placed(t, s.rule, s.nodes, 1, voting(s.voters...)...)
		if got := c.planned(r); got != s.want {
			t.Errorf("%s: %q, want %q", s.story, got, s.want)
		}
		if s.want == "" && c.holdup(r, true) != "it waits for nodes that are silent or starting" {
			t.Errorf("%s: %q", s.story, c.holdup(r, true))
		}
		verify(t, c)
	}
}

func TestIsolationRatherLeavesACopyMissingThanGivesAZoneTheMajority(t *testing.T) {
	t.Parallel()
	three := &metapb.Rule{Name: "strict", Replicas: 3, Isolation: "zone"}
	five := &metapb.Rule{Name: "strict", Replicas: 5, Isolation: "zone"}
	for _, s := range []struct {
		story  string
		rule   *metapb.Rule
		nodes  string
		voters []uint64
		want   string
		why    string
	}{
		{"a zone is dead", three, "sa sb dc sa sb", []uint64{1, 2, 3}, "",
			"n4: zone=a has as many copies as rule strict allows one zone"},
		{"one node of it lives", three, "sa sb dc sa sc", []uint64{1, 2, 3},
			"add 5 wait 5 swap 5 for 3 remove 3", ""},
		{"one copy cannot become three in two zones", three, "sa sb sa sb dc", []uint64{1}, "",
			"an even number of copies would survive no more than an odd one"},
		{"a pair in two zones goes back to one", three, "sa sb sa sb dc", []uint64{1, 2},
			"unvote 2 remove 2", ""},
		{"five copies have two a zone", five, "sa sb sc sa sb sc sa", []uint64{1, 2, 3},
			"add 4 add 5 wait 4 wait 5 vote 4 vote 5", ""},
		{"of five too many those stay that no zone has a majority of, when that can be", three,
			"sa sb dc sa sb", []uint64{1, 2, 3, 4, 5}, "", "does not answer"},
		{"but not three", five, "sa sb sc sa sa sa dc", []uint64{1, 2, 3, 4, 7}, "",
			"n5: zone=a has as many copies as rule strict allows one zone"},
	} {
		c, r := placed(t, s.rule, s.nodes, 1, voting(s.voters...)...)
		if got := c.planned(r); got != s.want {
			t.Errorf("%s: %q, want %q", s.story, got, s.want)
		}
		if why := c.holdup(r, true); !strings.Contains(why, s.why) {
			t.Errorf("%s: %q", s.story, why)
		}
		verify(t, c)
	}
}

// Bug class: what was planned for nodes as they were is ordered of nodes as they are.
func TestAChangeOfVotesIsHeldBackWhileItWouldCostTheLastSpareCopy(t *testing.T) {
	t.Parallel()
	swapFor2 := step{kind: swap, node: 4, from: 2}
	for _, s := range []struct {
		story string
		nodes string
		step  step
		goes  bool
	}{
		{"all live", "ssss", swapFor2, true},
		{"the new one has fallen silent", "sssq", swapFor2, false},
		{"so has the one that it replaces", "sqsq", swapFor2, true},
		{"the one that it replaces is dead", "sdss", swapFor2, true},
		{"another one is silent, before as after", "ssqs", swapFor2, true},
		{"a silent learner is not let vote", "sssq", step{kind: promote, node: 4}, false},
		{"three never become two", "ssss", step{kind: demote, node: 2}, false},
	} {
		replicas := append(voting(1, 2, 3), learner(4, 4))
		c, r := situation(3, s.nodes, true, 1, replicas...)
		if got := s.step.order(c, r, "why") != nil; got != s.goes {
			t.Errorf("%s: ordered %v", s.story, got)
		}
	}
	// With a rule of one copy there is none to spare.
	c, r := situation(1, "sss", true, 1, voting(1, 2, 3)...)
	if (step{kind: demote, node: 2}).order(c, r, "why") == nil {
		t.Error("copies too many are kept")
	}
}

func TestAChangeThatIsHeldBackForTooLongSaysWhy(t *testing.T) {
	t.Parallel()
	c, r := situation(3, "ssss", true, 1, append(voting(1, 2, 3), learner(4, 4))...)
	op := newOperator(r, kindBytes, "why", step{kind: swap, node: 4, from: 2})
	c.addOperator(op)
	n := c.nodes[4]
	n.lastReport = c.now - 10*time.Second
	c.rephase(n)
	if o := op.orderFor(c, 1); o != nil {
		t.Fatalf("ordered: %v", o)
	}
	n.lastReport = c.now + changeTimeout - 10*time.Second // it stays on the verge
	c.now += changeTimeout + time.Second
	c.rephase(n)
	if result, why := op.advance(c); result != failed || why != "could not let n4 vote instead of n2 "+
		"within 30 s: only 2 of 3 voters would answer" {
		t.Fatalf("%v %q", result, why)
	}
}

func TestWhatWasBegunForALostZoneIsCalledOffWhenItIsBack(t *testing.T) {
	t.Parallel()
	c, r := placed(t, nil, "sa sb Lc dc sa", 1, voting(1, 2, 3)...)
	op := check(c, r).op
	if op == nil || brief(op) != "add 5 wait 5 swap 5 for 3 remove 3" {
		t.Fatalf("%v", op)
	}
	c.addOperator(op)
	if result, why := op.advance(c); result != running {
		t.Fatalf("%v %s", result, why)
	}
	n := c.nodes[4]
	n.lastReport = c.now
	c.rephase(n)
	if result, why := op.advance(c); result != cancelled ||
		why != "n4 (zone=c) is back and stands farther from the other copies than n5" {
		t.Fatalf("%v %q", result, why)
	}
	// So is what was to replace a copy of that zone, which is back.
	c, r = placed(t, nil, "sa sb dc sa", 1, voting(1, 2, 3)...)
	op = check(c, r).op
	c.addOperator(op)
	c.nodes[3].lastReport = c.now
	c.rephase(c.nodes[3])
	if result, why := op.advance(c); result != cancelled ||
		why != "n3 (zone=c) is back and stands farther from the other copies than n4" {
		t.Fatalf("%v %q", result, why)
	}
	// Even though another copy is lost.
	c, r = placed(t, nil, "sa db dc sa sb", 1, voting(1, 2, 3)...)
	op = newOperator(r, kindRepair, "why", c.moveSteps(r, 3, 4)...)
	op.blame = 3
	c.addOperator(op)
	c.nodes[3].lastReport = c.now
	c.rephase(c.nodes[3])
	if result, why := op.advance(c); result != cancelled {
		t.Fatalf("%v %q", result, why)
	}
	// What replaces a lost copy goes on: another one may be lost before it came there.
	c, r = placed(t, nil, "sa sb dc dc sa", 1, voting(1, 2, 3)...)
	op = check(c, r).op
	c.addOperator(op)
	n = c.nodes[4]
	n.lastReport = c.now
	c.rephase(n)
	if result, why := op.advance(c); result != running {
		t.Fatalf("%v %s", result, why)
	}
}

func TestNobodyIsMovedTogetherForAMergeOrByHand(t *testing.T) {
	t.Parallel()
	c, r := placed(t, nil, "sa sb sc sa", 1, voting(1, 2, 3)...)
	fact := func(id uint64, start, end byte, replicas []*metapb.Replica) *rangeState {
		return c.learn(1, &metapb.RangeFact{LeaderNode: 1, Term: 1, Stats: &metapb.RangeStats{},
			Descriptor_: &metapb.RangeDescriptor{RangeId: id, Start: []byte{start},
				End: []byte{end}, Generation: 1, Replicas: replicas}})
	}
	crowd := fact(8, 0x21, 0x22, voting(1, 2, 4))
	if why := c.unmergeable(crowd, fact(9, 0x22, 0x23, voting(1, 2, 3))); why !=
		"the copies of r8 stand nearer to one another than those of r9" {
		t.Errorf("merge: %q", why)
	}
	_, err := c.relocateTarget(r, []uint64{1, 4, 2})
	if err == nil || !strings.Contains(err.Error(), "n1 is in zone=a, n4 in zone=a") {
		t.Errorf("relocate: %v", err)
	}
	if _, err := c.relocateTarget(crowd, []uint64{1, 4, 2}); err != nil {
		t.Errorf("it is there: %v", err)
	}
	c.nodes[3].lastReport = 0 // without the third zone there is no better place
	c.rephase(c.nodes[3])
	if _, err := c.relocateTarget(r, []uint64{1, 4, 2}); err != nil {
		t.Errorf("with two zones: %v", err)
	}
}

// The first Step after the death of a node that held very much must not take as long as
// all that follows from it.
func TestAStepBeginsABoundedNumberOfRepairsAndTheNextStepsTheOthers(t *testing.T) {
	t.Parallel()
	const nodes, ranges, now = 700, 600, time.Hour
	d := NewDriver(Config{Self: 1, ClusterID: 7, KV: newMemKV()})
	d.SetActive(true, now)
	c := d.cluster
	reports := make([]*metapb.NodeReport, nodes)
	for i := range reports {
		desc := &metapb.NodeDescriptor{NodeId: uint64(i + 1), StoreId: uint64(i + 1), Address: "a:1"}
		c.register(desc, 1)
		reports[i] = &metapb.NodeReport{Node: desc, Full: true}
	}
	for i := range uint64(ranges) {
		reports[i].Facts = append(reports[i].Facts, &metapb.RangeFact{LeaderNode: i + 1, Term: 1,
			Descriptor_: &metapb.RangeDescriptor{RangeId: i + 2, Start: []byte{0x20, byte(i >> 8), byte(i)},
				End:        []byte{0x20, byte((i + 1) >> 8), byte(i + 1)},
				Generation: 1, Replicas: voting(i+1, (i+1)%ranges+1, nodes)}})
	}
	for _, r := range reports {
		d.Report(now, r)
	}
	dead := c.nodes[nodes]
	dead.lastReport = 0
	c.rephase(dead)
	c.countAble()
	for _, want := range []int{maxBegun, 2 * maxBegun, ranges} {
		d.Step(now)
		if got := int(d.counts.begun[kindRepair]); got != want {
			t.Fatalf("%d repairs begun, want %d", got, want)
		}
	}
	verify(t, c)
}
