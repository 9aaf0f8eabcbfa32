package placement

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// grow adds voters up to want. All learners are made ready before the first is
// promoted, so that the range passes quickly over even numbers of voters.
func grow(c *cluster, r *rangeState, s survey, want int) plan {
	others, taken := c.labelsOf(r, 0), slices.Clone(s.voters)
	var chosen []ids.NodeID
	for len(s.voters)+len(chosen) < want {
		// With three voters nothing is in danger: see wish.
		n, paced := c.find(wish{r: r, others: others, taken: taken, lent: s.lent,
			patient: len(s.voters) >= 3})
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

// move plans to bring the copy on a node to the best other one. Only what is dead
// cannot wait for nodes that are silent.
func (c *cluster) move(r *rangeState, s survey, from ids.NodeID, k kind, why string) plan {
	others := c.labelsOf(r, from)
	to, paced := c.find(wish{r: r, others: others, taken: s.voters, lent: s.lent,
		patient: k != kindRepair, accepts: r.rule.Adds(others, c.nodes[from].labels)})
	if to == nil {
		return plan{paced: paced}
	}
	steps := c.moveSteps(r, from, to.id)
	if steps == nil {
		return plan{why: nobodyLeads}
	}
	op := newOperator(r, k, fmt.Sprintf("%s, its copy goes to %v", why, to.id), steps...)
	op.blame = from
	return plan{op: op}
}

// tidy removes learners that nobody needs.
func tidy(r *rangeState, learners []ids.NodeID) *operator {
	var steps []step
	for _, n := range learners {
		steps = append(steps, step{kind: removeLearner, node: n})
	}
	return newOperator(r, kindRepair, fmt.Sprintf("the learners on %s are left over",
		names(learners)), steps...)
}

func names(nodes []ids.NodeID) string {
	words := make([]string, len(nodes))
	for i, n := range nodes {
		words[i] = n.String()
	}
	return strings.Join(words, ", ")
}
