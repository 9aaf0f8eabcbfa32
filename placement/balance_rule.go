package placement

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// prefer keeps the set of ranges that have a voter which their rule would rather
// see lead than the present leader; whether it can lead now is seen when its turn
// comes. It is called after every change of a range's replicas, leader or rule.
func (c *cluster) prefer(r *rangeState) {
	if c.misled(r) {
		c.sched.misled.Insert(r.id())
	} else if c.sched.misled.Len() > 0 {
		c.sched.misled.Delete(r.id())
	}
}

func (c *cluster) misled(r *rangeState) bool {
	if r.rule == nil || len(r.rule.Leaders) == 0 || r.leader == 0 {
		return false
	}
	now := r.rank(c.node(r.leader))
	for _, p := range r.desc.GetReplicas() {
		if p.GetRole() == roleVoter && r.rank(c.node(ids.NodeID(p.GetNodeId()))) < now {
			return true
		}
	}
	return false
}

// followRules plans transfers off nodes that must not lead and to those that the
// rules of the ranges prefer. Each lowers the number of leaders that are out of
// place, and no other scheduler raises it: none gives a leader to a node that the
// rule likes less.
func followRules(p *pass) verdict {
	before, left := len(p.ops), 0
	for _, id := range p.c.order {
		if n := p.c.nodes[id]; n.leads.Len() > 0 {
			if k, why := n.mustNotLead(); why != "" {
				left += n.leads.Len()
				p.empty(n, k, why)
			}
		}
	}
	left += p.c.sched.misled.Len()
	p.look(&p.c.sched.misled, maxLooks, func(r *rangeState) (enough bool) {
		from := p.c.nodes[r.leader]
		if to := p.heir(r); to != nil && r.rank(to) < r.rank(from) && !p.full(p.left.transfers) {
			p.transfer(newTransfer(r, kindRule, to.id, fmt.Sprintf(
				"rule %s wants leaders on %v, which %v has not", r.rule.Name,
				r.rule.Leaders[r.rank(to)], from.id)))
		}
		return p.full(p.left.transfers)
	})
	return p.ended(len(p.ops) > before || p.full(p.left.transfers) && left > 0, left > 0)
}

// mustNotLead says why leaders leave a node, "" if they need not.
func (n *node) mustNotLead() (k kind, why string) {
	switch {
	case n.standing == standingDecommissioning:
		return kindDecommission, fmt.Sprintf("%v is being decommissioned", n.id)
	case n.draining || n.standing == standingDraining:
		return kindDrain, fmt.Sprintf("%v is draining", n.id)
	case n.readOnly:
		return kindRepair, fmt.Sprintf("%v takes no writes: its disk is nearly full", n.id)
	}
	return 0, ""
}

// empty plans to move leaders off n. That a range was moved a moment ago, for the sake
// of balance, does not keep it there.
func (p *pass) empty(n *node, k kind, why string) {
	p.look(&n.leads, maxLooks, func(r *rangeState) (enough bool) {
		if p.planned[r.id()] || p.c.clinging(r) != "" {
			return false
		}
		to := p.c.heir(r, r.leader)
		if to != nil && !p.full(p.left.transfers) {
			p.transfer(newTransfer(r, k, to.id, fmt.Sprintf("%s, %v leads instead", why, to.id)))
		}
		return p.full(p.left.transfers)
	})
}

// clinging says in words why the leader of r cannot leave a node now although it must,
// whoever could take it; "" if it can.
func (c *cluster) clinging(r *rangeState) string {
	switch {
	case c.busy(r.id()):
		return "an operator is at it"
	case c.headless(r):
		return "it has no leader that could do it"
	case r.changing():
		return "its leader is changing it"
	case c.recovers(r):
		return c.recovery(r)
	case r.lagging(): // only the sender keeps the log that the learner will need next
		return "its leader is sending a copy"
	}
	return ""
}

// heir returns the node that should lead r if its leader should not, nil if none
// can: the one that the rule likes best, and of those the one with the fewest
// leaders.
func (p *pass) heir(r *rangeState) (best *node) {
	if !p.movable(r) {
		return nil
	}
	return p.c.heir(r, r.leader)
}

// heir returns the node that should lead r in place of one of its nodes, nil if none
// can.
func (c *cluster) heir(r *rangeState, not ids.NodeID) (best *node) {
	for _, p := range r.desc.GetReplicas() {
		n := c.nodes[ids.NodeID(p.GetNodeId())]
		if n == nil || n.id == not || !c.canLead(r, n) {
			continue
		}
		if best == nil || r.rank(n) < r.rank(best) ||
			r.rank(n) == r.rank(best) && n.leaders() < best.leaders() {
			best = n
		}
	}
	return best
}
