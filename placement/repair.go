package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
)

// grow adds voters up to want. All learners are made ready before the first is
// promoted, so that the range passes quickly over even numbers of voters.
func grow(c *cluster, r *rangeState, s survey, want int) plan {
	others, taken := c.labelsOf(r, 0), slices.Clone(s.voters)
	var chosen []ids.NodeID
	for len(s.voters)+len(chosen) < want {
		n, paced := c.find(wish{r: r, others: others, taken: taken})
		if n == nil {
			return plan{paced: paced}
		}
		chosen, taken = append(chosen, n.id), append(taken, n.id)
		others = append(others, n.labels)
	}
	var steps []step
	for _, kind := range []stepKind{addLearner, catchUp, promote} {
		for _, n := range chosen {
			steps = append(steps, step{kind: kind, node: n})
		}
	}
	return plan{op: newOperator(r, kindRepair, fmt.Sprintf("%d of %d copies vote, %s to be added",
		len(s.voters), r.rule.Replicas, names(chosen)), steps...)}
}

// replace moves the copy of a dead node to a live one.
func replace(c *cluster, r *rangeState, s survey) plan {
	dead := s.dead[0]
	n := c.nodes[dead]
	why := fmt.Sprintf("%v has been silent for %s", dead, words(c.silence(n)))
	if n.gone() {
		why = fmt.Sprintf("%v is decommissioned", dead)
	}
	return c.move(r, s, dead, kindRepair, why)
}

// evacuate moves a copy off a node that is decommissioned, one that its leader need
// not leave first.
func evacuate(c *cluster, r *rangeState, s survey) plan {
	from := others(s.leaves, r.leader)
	return c.move(r, s, from, kindDecommission, fmt.Sprintf("%v is being decommissioned", from))
}

// expel moves a copy off a node where the rule allows none.
func expel(c *cluster, r *rangeState, s survey) plan {
	from := others(s.misplaced, r.leader)
	return c.move(r, s, from, kindRule, r.rule.Why(c.nodes[from].labels)+
		fmt.Sprintf(" (%v)", from))
}

// others returns the first node that is not the leader, or the leader if it is alone.
func others(all []ids.NodeID, leader ids.NodeID) ids.NodeID {
	if all[0] == leader && len(all) > 1 {
		return all[1]
	}
	return all[0]
}

// move plans to bring the copy on a node to the best other one.
func (c *cluster) move(r *rangeState, s survey, from ids.NodeID, k kind, why string) plan {
	to, paced := c.find(wish{r: r, others: c.labelsOf(r, from), taken: s.voters})
	if to == nil {
		return plan{paced: paced}
	}
	steps := c.moveSteps(r, from, to.id)
	if steps == nil {
		return plan{}
	}
	op := newOperator(r, k, fmt.Sprintf("%s, its copy goes to %v", why, to.id), steps...)
	op.blame = from
	return plan{op: op}
}

// shrink takes voters away, down to want: those that are too many, or one of an even
// number that cannot become odd otherwise; never the leader.
func shrink(c *cluster, r *rangeState, s survey, want int) *operator {
	rest := slices.Clone(s.voters)
	var last []ids.NodeID
	for len(rest) > want {
		id := c.dispensable(r, rest)
		if id == 0 {
			break
		}
		rest = slices.DeleteFunc(rest, func(n ids.NodeID) bool { return n == id })
		last = append(last, id)
	}
	if len(last) == 0 {
		return nil
	}
	var steps []step
	for _, kind := range []stepKind{demote, removeLearner} {
		for _, n := range last {
			steps = append(steps, step{kind: kind, node: n})
		}
	}
	reason := fmt.Sprintf("%d copies vote, one is too many: %s stops", len(s.voters), names(last))
	if len(last) > 1 {
		reason = fmt.Sprintf("%d copies vote, %d are too many: %s stop", len(s.voters), len(last),
			names(last))
	}
	return newOperator(r, kindRepair, reason, steps...)
}

// dispensable returns the voter that a range can spare best, 0 if it is only its
// leader: a dead one, then one whose node is silent, one on its way out, one where
// the rule wants none, one that stands nearest to the others, one on a node that is
// draining (it keeps its copies, so that is no reason to crowd a zone), the one on the
// fullest node.
func (c *cluster) dispensable(r *rangeState, from []ids.NodeID) ids.NodeID {
	near := func(id ids.NodeID) int {
		var rest []rules.Labels
		for _, o := range from {
			if o != id {
				rest = append(rest, c.nodes[o].labels)
			}
		}
		return r.rule.Adds(rest, c.nodes[id].labels)
	}
	order := func(a, b ids.NodeID) int {
		na, nb := c.nodes[a], c.nodes[b]
		return cmp.Or(
			cmp.Compare(min(na.phase, phaseLive), min(nb.phase, phaseLive)),
			compareFlags(na.standing < standingDecommissioning,
				nb.standing < standingDecommissioning),
			compareFlags(r.rule.Allows(na.labels), r.rule.Allows(nb.labels)),
			cmp.Compare(near(b), near(a)),
			cmp.Compare(nb.standing, na.standing),
			cmp.Compare(nb.fill(), na.fill()),
			cmp.Compare(nb.replicas(), na.replicas()),
			cmp.Compare(b, a))
	}
	var best ids.NodeID
	for _, id := range from {
		if id != r.leader && (best == 0 || order(id, best) < 0) {
			best = id
		}
	}
	return best
}

// compareFlags orders false before true.
func compareFlags(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// tidy removes learners that nobody needs.
func tidy(r *rangeState, s survey) *operator {
	var steps []step
	for _, n := range s.learners {
		steps = append(steps, step{kind: removeLearner, node: n})
	}
	return newOperator(r, kindRepair, fmt.Sprintf("the learners on %s are left over",
		names(s.learners)), steps...)
}

func names(nodes []ids.NodeID) string {
	words := make([]string, len(nodes))
	for i, n := range nodes {
		words[i] = n.String()
	}
	return strings.Join(words, ", ")
}
