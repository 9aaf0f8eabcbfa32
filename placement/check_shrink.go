package placement

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
)

// shrink takes voters away, down to want: those that are too many, or one of an even
// number that cannot become odd otherwise. If the leader is among them one that stays
// leads first, for a leader is never removed.
func shrink(c *cluster, r *rangeState, s survey, want int) plan {
	stay := c.staying(r, s.voters, want)
	leave := without(s.voters, stay...)
	// What does not answer goes first: a majority of the others does not need it.
	slices.SortStableFunc(leave, func(a, b ids.NodeID) int {
		return cmp.Or(cmp.Compare(min(c.nodes[a].phase, phaseLive),
			min(c.nodes[b].phase, phaseLive)), cmp.Compare(b, a))
	})
	if want >= 3 && c.weakens(r, s.voters, without(s.voters, leave[0])) {
		return plan{why: fmt.Sprintf("%d of %d copies are too many, but one that is "+
			"to stay does not answer: until it does, or counts as dead, all go on to vote",
			len(leave), len(s.voters))}
	}
	var steps []step
	if !slices.Contains(stay, r.leader) {
		heir := c.heirAmong(r, stay)
		if heir == nil {
			return plan{why: nobodyLeads}
		}
		steps = append(steps, step{kind: transferLeader, node: heir.id})
	}
	for _, kind := range []stepKind{demote, removeLearner} {
		for _, n := range leave {
			steps = append(steps, step{kind: kind, node: n})
		}
	}
	reason := fmt.Sprintf("%d copies vote, one is too many: %s stops", len(s.voters), names(leave))
	if len(leave) > 1 {
		reason = fmt.Sprintf("%d copies vote, %d are too many: %s stop", len(s.voters), len(leave),
			names(leave))
	}
	return plan{op: newOperator(r, kindRepair, reason, steps...)}
}

// without returns nodes but for some of them.
func without(all []ids.NodeID, some ...ids.NodeID) []ids.NodeID {
	return slices.DeleteFunc(slices.Clone(all), func(n ids.NodeID) bool {
		return slices.Contains(some, n)
	})
}

// heirAmong returns that of some nodes which should lead r, nil if none can now.
func (c *cluster) heirAmong(r *rangeState, some []ids.NodeID) (best *node) {
	for _, id := range some {
		n := c.nodes[id]
		if !c.canLead(r, n) {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(r.rank(n), r.rank(best)),
			cmp.Compare(n.leaders(), best.leaders())) < 0 {
			best = n
		}
	}
	return best
}

// stay is what speaks against a set of voters as those that stay, the worst first.
type stay struct {
	majority  int // 1: of one place, although the rule isolates
	dead      int
	near      int // collisions beyond what the nodes allow anyway: they cost a move each
	misplaced int // likewise
	leaves    int // likewise
	lead      int // 1: the leader goes, which costs a transfer
	silent    int // a node that is back soon is worth more than one in the wrong place
	nearer    int // all collisions
	draining  int
	fill      float64
	replicas  int
}

func (a stay) compare(b stay) int {
	return cmp.Or(cmp.Compare(a.majority, b.majority), cmp.Compare(a.dead, b.dead),
		cmp.Compare(a.near, b.near), cmp.Compare(a.misplaced, b.misplaced),
		cmp.Compare(a.leaves, b.leaves),
		cmp.Compare(a.lead, b.lead), cmp.Compare(a.silent, b.silent),
		cmp.Compare(a.nearer, b.nearer), cmp.Compare(a.draining, b.draining),
		cmp.Compare(a.fill, b.fill), cmp.Compare(a.replicas, b.replicas))
}

// staying chooses which of the voters of r stay if only some may. All sets are
// compared, for one voter after the other can end in a set that is not the best: there
// are few, since a range has at most 7 voters, and 7 to replace them. Of equally good
// ones the nodes with the lower ids stay.
func (c *cluster) staying(r *rangeState, voters []ids.NodeID, want int) []ids.NodeID {
	all := slices.Sorted(slices.Values(voters))
	all = all[:min(len(all), maxCopies)]
	ideal := 0
	if u := c.current(r.rule); want == u.Replicas && u.ideal != math.MaxInt {
		ideal = u.ideal
	}
	var best []ids.NodeID
	var least stay
	for set := range uint32(1) << len(all) {
		if bits.OnesCount32(set) != want {
			continue
		}
		var some []ids.NodeID
		for i, id := range all {
			if set>>i&1 == 1 {
				some = append(some, id)
			}
		}
		if is := c.stayOf(r, some, ideal); best == nil || is.compare(least) < 0 {
			best, least = some, is
		}
	}
	return best
}

func (c *cluster) stayOf(r *rangeState, some []ids.NodeID, ideal int) stay {
	var s stay
	var at []rules.Labels
	for _, id := range some {
		n := c.nodes[id]
		at = append(at, n.labels)
		s.dead += one(n.phase == phaseDead)
		s.silent += one(n.phase < phaseLive)
		s.misplaced += one(n.desc != nil && !r.rule.Allows(n.labels))
		s.leaves += one(n.standing >= standingDecommissioning)
		s.draining += one(n.standing == standingDraining)
		s.fill += n.fill()
		s.replicas += n.replicas()
	}
	s.lead = one(!slices.Contains(some, r.leader))
	s.nearer = r.rule.Collisions(at)
	if key := r.rule.Isolate; key != "" && len(at) > 1 {
		s.majority = one(rules.Majority(at, key) != "")
	}
	s.near = max(s.nearer, ideal)
	return s
}

// one counts what is so.
func one(so bool) int {
	if so {
		return 1
	}
	return 0
}
