package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// survey is what the checker sees of one range.
type survey struct {
	voters, dead, learners []ids.NodeID
	candidates             []ids.NodeID // may become voters, the best first
	waiting                int          // nodes that may become candidates by themselves
}

func (c *cluster) survey(r *rangeState) survey {
	var s survey
	for _, p := range r.desc.GetReplicas() {
		id := ids.NodeID(p.GetNodeId())
		switch {
		case p.GetRole() == roleLearner:
			s.learners = append(s.learners, id)
			continue
		case c.nodes[id].phase == phaseDead:
			s.dead = append(s.dead, id)
		}
		s.voters = append(s.voters, id)
	}
	for _, id := range c.order {
		n := c.nodes[id]
		switch {
		case n.desc == nil || n.phase == phaseDead || slices.Contains(s.voters, id):
		case n.mayHold(), slices.Contains(s.learners, id) && n.phase >= phaseLive:
			s.candidates = append(s.candidates, id)
		case n.phase < phaseLive || !n.full || n.draining:
			s.waiting++
		}
	}
	slices.SortStableFunc(s.candidates, func(a, b ids.NodeID) int {
		return cmp.Or(
			compareFlags(a == r.avoid, b == r.avoid),
			compareFlags(!slices.Contains(s.learners, a), !slices.Contains(s.learners, b)),
			cmp.Compare(c.nodes[a].replicas(), c.nodes[b].replicas()))
	})
	return s
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

// checkReplicas returns what should be done about the replicas of r, nil if
// nothing or nothing now. Pure: it goes by the state of the range alone, so it
// also finishes or undoes what an operator, of this driver or an earlier one,
// left half done.
func checkReplicas(c *cluster, r *rangeState) *operator {
	if r.restUntil > c.now || r.health.leaderless || joint(r.desc) {
		return nil
	}
	s := c.survey(r)
	reachable := len(s.voters) + len(s.candidates)
	want := oddFloor(min(c.factor, reachable))
	even := len(s.voters)%2 == 0
	switch {
	case len(s.voters) < want:
		return grow(c, r, s, want)
	case len(s.voters) > c.factor, even && len(s.voters) > want && s.waiting == 0:
		return shrink(c, r, s)
	case len(s.dead) > 0 && len(s.candidates) > 0:
		return replace(c, r, s)
	case len(s.learners) == 0:
		return nil
	case (len(s.dead) > 0 || len(s.voters) < c.factor) && s.waiting > 0:
		return nil // a learner may still be of use when its node, or another, is back
	default:
		return tidy(r, s)
	}
}

// grow adds voters up to want. All learners are made ready before the first is
// promoted, so that the range passes quickly over even numbers of voters.
func grow(c *cluster, r *rangeState, s survey, want int) *operator {
	chosen := s.candidates[:want-len(s.voters)]
	var steps []step
	for _, kind := range []stepKind{addLearner, catchUp, promote} {
		for _, n := range chosen {
			steps = append(steps, step{kind, n})
		}
	}
	return newOperator(r, fmt.Sprintf("%d of %d copies vote, %s to be added",
		len(s.voters), c.factor, names(chosen)), steps...)
}

// replace moves the copy of a dead node to a live one. The new copy votes
// before the old one stops to, so that the number of live voters never falls.
func replace(c *cluster, r *rangeState, s survey) *operator {
	dead, target := s.dead[0], s.candidates[0]
	return newOperator(r, fmt.Sprintf("%v has been silent for %s, its copy goes to %v",
		dead, words(c.silence(c.nodes[dead])), target),
		step{addLearner, target}, step{catchUp, target}, step{promote, target},
		step{demote, dead}, step{removeLearner, dead})
}

// shrink takes one voter away: one too many, or one of an even number that
// cannot become odd otherwise. The dead go first, then those whose node is
// silent, then those on full nodes; never the leader.
func shrink(c *cluster, r *rangeState, s survey) *operator {
	var choice []ids.NodeID
	for _, n := range s.voters {
		if n != r.leader {
			choice = append(choice, n)
		}
	}
	if len(choice) == 0 {
		return nil
	}
	last := slices.MinFunc(choice, func(a, b ids.NodeID) int {
		na, nb := c.nodes[a], c.nodes[b]
		return cmp.Or(
			cmp.Compare(min(na.phase, phaseLive), min(nb.phase, phaseLive)),
			cmp.Compare(nb.replicas(), na.replicas()),
			cmp.Compare(b, a))
	})
	return newOperator(r, fmt.Sprintf("%d copies vote, one is too many: %v stops",
		len(s.voters), last), step{demote, last}, step{removeLearner, last})
}

// tidy removes learners that nobody needs.
func tidy(r *rangeState, s survey) *operator {
	var steps []step
	for _, n := range s.learners {
		steps = append(steps, step{removeLearner, n})
	}
	return newOperator(r, fmt.Sprintf("the learners on %s are left over", names(s.learners)),
		steps...)
}

func names(nodes []ids.NodeID) string {
	words := make([]string, len(nodes))
	for i, n := range nodes {
		words[i] = n.String()
	}
	return strings.Join(words, ", ")
}
