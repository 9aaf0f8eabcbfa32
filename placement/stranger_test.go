package placement

import (
	"errors"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Leaders tell of copies on nodes that neither report nor stand in the registry, and such
// a node may lead. Every node that a known range names has an entry, so whoever looks at
// the range finds it, whatever it looks for.
func TestCopiesOnNodesThatNobodyHasHeardOfStopNobody(t *testing.T) {
	t.Parallel()
	for story, replicas := range map[string][]*metapb.Replica{
		"none":         {voter(1, 1), voter(2, 2), voter(3, 3)},
		"two of three": {voter(1, 1), voter(8, 2), voter(9, 3)},
		"too many":     {voter(1, 1), voter(2, 2), voter(3, 3), voter(8, 4), voter(9, 5)},
		"a learner":    {voter(1, 1), voter(2, 2), voter(8, 3), learner(9, 4)},
		"changing": {voter(1, 1), {NodeId: 8, ReplicaId: 2,
			Role: metapb.ReplicaRole_REPLICA_ROLE_VOTER_INCOMING}, {NodeId: 9, ReplicaId: 3,
			Role: metapb.ReplicaRole_REPLICA_ROLE_VOTER_DEMOTING}, voter(2, 4)},
	} {
		for _, leader := range []uint64{1, 8} {
			c, r := situation(3, "sssss", true, leader, replicas...)
			right := c.learn(r.leader, &metapb.RangeFact{LeaderNode: leader, Term: 1,
				Descriptor_: &metapb.RangeDescriptor{RangeId: 8, Start: []byte{0x21},
					End: []byte{0x22}, Generation: 1, Replicas: replicas}})
			for _, reports := range []int{0, 2, 200} { // just heard of, silent, dead
				for range reports {
					c.advanceTo(c.now + c.suspectAfter)
					for id := ids.NodeID(1); id <= 5; id++ {
						c.heard(c.nodes[id], &metapb.NodeReport{})
					}
				}
				askEverybody(t, c, r, right)
				verify(t, c)
			}
			for _, x := range [...]*rangeState{r, right} { // and then nobody leads
				c.lead(x, 0, x.term)
				c.review(x)
			}
			askEverybody(t, c, r, right)
			verify(t, c)
			if n := c.nodes[8]; n != nil && (n.desc != nil || n.phase != phaseDead) {
				t.Errorf("%s: n8 is %+v", story, n)
			}
		}
	}
}

// askEverybody has all who look at ranges look at two neighbours.
func askEverybody(t *testing.T, c *cluster, left, right *rangeState) {
	t.Helper()
	c.influence()
	set, faults := rules.New(&metapb.RuleSet{Version: 1, Rules: []*metapb.Rule{
		{Name: "all", Replicas: 3, Forbid: []string{"zone=x"}, Leaders: []string{"zone=y"}}}})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	newPreview(c, set, &adminpb.SetRulesReply{}).slice()
	for _, r := range [...]*rangeState{left, right} {
		ops := []*operator{check(c, r).op}
		for _, p := range r.desc.GetReplicas() {
			at := ids.NodeID(p.GetNodeId())
			c.moveSteps(r, at, 4)
			op, _, _ := c.requestTransfer(r, at)
			ops = append(ops, op)
			c.crowds(r, []ids.NodeID{at, 4, 5})
			_ = c.mayLeave(c.nodes[at], standingDecommissioning)
		}
		op, _, _ := c.requestRelocate(r, []uint64{3, 4, 5})
		merge, _ := c.requestMerge(r)
		for _, op := range append(ops, op, merge) {
			if op == nil {
				continue
			}
			op.begun, op.topology = c.now, c.topology+1 // so that it is judged anew
			c.expect(op)
			op.advance(c)
			op.orderFor(c, r.leader)
		}
		e := &explainer{c: c, r: r}
		e.what()
		e.copies()
		e.leader()
		e.missing()
		e.shape()
		e.moves(true)
		e.past()
		if len(e.lines) == 0 {
			t.Fatal("nothing is said")
		}
		c.whyNobody(r)
		c.whyNoHeir(r)
		if c.unmergeable(left, right) == "" {
			c.mergeSteps(left, right)
		}
		c.sticky(r)
	}
	c.influence()
	_, _, _, _ = scatter(c, left.desc.GetStart(), nil)
	c.unbalanced = true
	c.schedule(budget{transfers: 8, moves: 8, limit: 8})
	c.influence()
	c.now += time.Second
}

// An operator runs for minutes. Its nodes may be decommissioned meanwhile, or be such as
// nobody has heard of: it is judged, shown and ordered all the same, at whichever step.
func TestAnOperatorWhoseNodesAreGoneOrUnknownStopsNobody(t *testing.T) {
	t.Parallel()
	const gone, stranger = 4, 77
	for _, to := range []ids.NodeID{gone, stranger} {
		steps := []step{{kind: addLearner, node: to}, {kind: catchUp, node: to},
			{kind: promote, node: to}, {kind: swap, node: to, from: 2},
			{kind: swap, node: 5, from: to}, {kind: demote, node: to},
			{kind: removeLearner, node: to}, {kind: transferLeader, node: to}}
		for _, leader := range []uint64{1, 2, stranger + 1} {
			for i, s := range steps {
				c, r := situation(3, "sssss", true, leader, voter(1, 1), voter(2, 2), voter(3, 3))
				c.setStanding(c.nodes[gone], standingDecommissioned, 1)
				_ = s.held(c, r)
				op := newOperator(r, kindRequest, "somebody wants it", steps[i:]...)
				op.blame = to
				judgeAndShow(t, c, r, op)
				c.addOperator(op)
				c.influence()
				c.expected(to)
				judgeAndShow(t, c, r, op)
				c.judge(op, failed)
				if result, why := op.advance(c); result == failed && why == "" {
					t.Errorf("%v fails, and nobody knows why", op)
				}
				c.removeOperator(op)
				verify(t, c)
			}
		}
	}
}

func judgeAndShow(t *testing.T, c *cluster, r *rangeState, op *operator) {
	t.Helper()
	op.topology = c.topology + 1 // so that it is judged anew
	op.outdated(c, r)
	op.orderFor(c, r.leader)
	op.describe(c)
	e := &explainer{c: c, r: r}
	e.moves(true)
	if len(e.lines) == 0 {
		t.Fatal("nothing is said")
	}
}

// What people ask for may name nodes that the cluster does not know, for ranges that
// stand on such. They are told so.
func TestRequestsThatNameNodesNobodyKnowsAreRefusedInWords(t *testing.T) {
	t.Parallel()
	for _, replicas := range [][]*metapb.Replica{
		{voter(1, 1), voter(2, 2), voter(3, 3)}, {voter(1, 1), voter(2, 2), voter(8, 3)},
	} {
		c, r := situation(3, "sssss", true, 1, replicas...)
		for _, to := range []ids.NodeID{0, 8, 77} {
			for _, target := range [][]uint64{{uint64(to), 2, 3}, {1, 2, uint64(to)}} {
				op, _, err := c.requestRelocate(r, target)
				if op != nil || !errors.Is(err, ErrUnknownNode) {
					t.Errorf("relocation to %v: %v, %v", target, op, err)
				}
			}
			if op, _, err := c.requestTransfer(r, to); op != nil || !errors.Is(err, ErrRefused) {
				t.Errorf("transfer to %v: %v, %v", to, op, err)
			}
		}
		verify(t, c)
	}
}
