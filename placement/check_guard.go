package placement

import (
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
)

// An operator is planned for what is known when it begins, and runs for minutes. What
// is here looks at what has become of that before each change of votes: a change that
// would be unsafe now is held back, and what has become wrong is called off.

// answering counts the nodes of voters that answer, as far as is known.
func (c *cluster) answering(r *rangeState, voters []ids.NodeID) (count int) {
	for _, id := range voters {
		n, p := c.nodes[id], replicaOn(r.desc, id)
		count += one(n != nil && n.phase >= phaseLive && (p == nil || !c.mute(r, p)))
	}
	return count
}

// spare returns how many of the nodes of voters may fail so that a majority of them
// answers; below 0 there is none now.
func (c *cluster) spare(r *rangeState, voters []ids.NodeID) int {
	return c.answering(r, voters) - (len(voters)/2 + 1)
}

// weakens says whether a change of voters would cost r what it could spare: afterwards
// the next failure stops it, and before it did not.
func (c *cluster) weakens(r *rangeState, before, after []ids.NodeID) bool {
	is := c.spare(r, after)
	return is < 1 && is < c.spare(r, before)
}

// votersOf returns the nodes whose copies vote; of a joint configuration those that
// do afterwards.
func (r *rangeState) votersOf() (all []ids.NodeID) {
	for _, p := range r.desc.GetReplicas() {
		if _, after := votes(p.GetRole()); after {
			all = append(all, ids.NodeID(p.GetNodeId()))
		}
	}
	return all
}

// revote returns what a step makes of voters.
func (s step) revote(voters []ids.NodeID) []ids.NodeID {
	switch s.kind {
	case promote:
		return append(without(voters, s.node), s.node)
	case swap:
		return append(without(voters, s.node, s.from), s.node)
	case demote:
		return without(voters, s.node)
	}
	return voters
}

// held says why a change of votes is not ordered now, "" if it may be. Once another
// voter, or the learner that is to vote, has fallen silent a change that was harmless
// could leave a range that the next failure stops. It is ordered when the silence ends,
// or its time runs out.
func (s step) held(c *cluster, r *rangeState) string {
	if r.rule.Replicas < 3 {
		return "" // it is to have no copy to spare
	}
	before := r.votersOf()
	if after := s.revote(before); c.weakens(r, before, after) {
		return fmt.Sprintf("only %d of %d voters would answer", c.answering(r, after), len(after))
	}
	return ""
}

// outdated says in words why an operator that runs should not go on, "" if it should:
// it would bring copies nearer to one another than they are and need to be. It was
// planned while the nodes that are better were away.
func (op *operator) outdated(c *cluster, r *rangeState) string {
	u := c.current(r.rule)
	lost := op.blame == 0 || c.node(op.blame).phase == phaseDead
	if r.changing() || op.kind == kindRepair && lost && c.condition(r).tolerates == 0 {
		return "" // what is in danger does not wait for the better place
	}
	now := r.votersOf()
	then, fresh := op.leadsTo(c, r, now)
	if len(fresh) == 0 || len(then) != u.Replicas {
		return ""
	}
	near := c.nearness(r, then)
	if near <= u.ideal || near <= c.nearness(r, now) {
		return ""
	}
	for _, s := range fresh {
		better, paced := c.betterThan(r, s, then, now)
		if better != nil {
			return fmt.Sprintf("%v (%v) is back and stands farther from the other copies than %v",
				better.id, better.labels, s.node)
		}
		if paced {
			return fmt.Sprintf("nodes are back that stand farther from the other copies than %v", s.node)
		}
	}
	return ""
}

// leadsTo returns which nodes have voters of r when an operator has ended, and the
// steps by which those get their vote that have none now.
func (op *operator) leadsTo(
	c *cluster, r *rangeState, now []ids.NodeID,
) (then []ids.NodeID, fresh []step) {
	then = now
	for _, s := range op.steps[op.at:] {
		if op.rangeOf(c, s) != r {
			continue
		}
		then = s.revote(then)
		if (s.kind == promote || s.kind == swap) && !slices.Contains(now, s.node) {
			fresh = append(fresh, s)
		}
	}
	return then, fresh
}

// betterThan returns a node for the copy that a step brings, farther away from the
// others than its node: the one that the copy is to leave, if it need not, or any
// other.
func (c *cluster) betterThan(r *rangeState, s step, then, now []ids.NodeID) (*node, bool) {
	others := c.labelsAt(then, s.node, 0)
	adds := r.rule.Adds(others, c.nodes[s.node].labels)
	if adds == 0 {
		return nil, false
	}
	from := c.nodes[s.from]
	if from != nil && !c.mustLeave(r, from) && r.rule.Adds(others, from.labels) < adds {
		return from, false
	}
	return c.find(wish{r: r, others: others, taken: append(then, now...), below: adds})
}

// mustLeave says whether a copy of r cannot stay on a node.
func (c *cluster) mustLeave(r *rangeState, n *node) bool {
	return n.phase == phaseDead || n.standing >= standingDecommissioning ||
		n.desc != nil && !r.rule.Allows(n.labels)
}

// nearness says how near to one another copies on these nodes stand.
func (c *cluster) nearness(r *rangeState, nodes []ids.NodeID) int {
	return r.rule.Collisions(c.labelsAt(nodes, 0, 0))
}

// crowds says whether the copies of r would stand nearer to one another on these nodes
// than they do, for no need: none of them has to leave its node, or there are better
// ones and placement would move them apart at once.
func (c *cluster) crowds(r *rangeState, target []ids.NodeID) bool {
	if near := c.nearness(r, target); near <= c.nearness(r, r.votersOf()) {
		return false
	} else if near > c.current(r.rule).ideal {
		return true
	}
	return !slices.ContainsFunc(r.votersOf(), func(id ids.NodeID) bool {
		return c.mustLeave(r, c.nodes[id])
	})
}

// nearWords names two of some nodes that stand nearest to one another.
func (c *cluster) nearWords(r *rangeState, nodes []ids.NodeID) string {
	text, most := "", 0
	for i, a := range nodes {
		for _, b := range nodes[:i] {
			la, lb := c.nodes[a].labels, c.nodes[b].labels
			if near := r.rule.Near(la, lb); near > most {
				text, most = fmt.Sprintf("%v is in %v, %v in %v", b, lb, a, la), near
			}
		}
	}
	return text
}

// whyBarred says in words why the isolation of the rule keeps n from getting a copy of
// r in place of a dead one, or one more; "" if it does not.
func (c *cluster) whyBarred(r *rangeState, n *node) string {
	var others []rules.Labels
	for _, id := range r.votersOf() {
		if o := c.nodes[id]; o.phase != phaseDead {
			others = append(others, o.labels)
		}
	}
	return r.rule.WhyBarred(others, n.labels)
}
