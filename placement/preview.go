package placement

import (
	"fmt"
	"math"
	"slices"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

// maxExamples bounds the moves that a preview names.
const maxExamples = 5

// preview says what a set of rules would move, compared with the present places of
// all ranges. It walks them all, which only a person's question makes it do.
func (c *cluster) preview(set *rules.Set, reply *adminpb.SetRulesReply) {
	p := &previewer{c: c, set: set, reply: reply, ideals: make(map[*rules.Rule]int)}
	for _, id := range c.order {
		n := c.nodes[id]
		if n.desc != nil && n.phase > phaseDead && n.standing == standingActive {
			p.nodes = append(p.nodes, n.labels)
		}
	}
	c.dir.byStart.Scan(func(_ string, r *rangeState) bool {
		p.see(r)
		return true
	})
}

// previewer compares ranges with rules to come.
type previewer struct {
	c      *cluster
	set    *rules.Set
	reply  *adminpb.SetRulesReply
	nodes  []rules.Labels
	ideals map[*rules.Rule]int
}

// see counts what the rules would do to one range.
func (p *previewer) see(r *rangeState) {
	bounds := p.set.Bounds(r.desc.GetStart(), r.desc.GetEnd())
	rule := p.set.Of(r.desc.GetStart())
	var held []rules.Labels
	var wrong []string
	for _, x := range r.desc.GetReplicas() {
		n := p.c.nodes[ids.NodeID(x.GetNodeId())]
		if _, votes := votes(x.GetRole()); !votes {
			continue
		}
		if why := rule.Why(n.labels); why != "" {
			wrong = append(wrong, fmt.Sprintf("%v: %s", n.id, why))
			continue
		}
		held = append(held, n.labels)
	}
	spare := max(0, len(held)-rule.Replicas)
	moves := max(0, rule.Replicas-len(held)) // copies to be made: wrong ones, missing ones
	if moves == 0 && spare == 0 {
		moves = p.tooNear(rule, held)
	}
	leader := p.leaderMoves(r, rule)
	if moves == 0 && spare == 0 && len(wrong) == 0 && !leader && len(bounds) == 0 {
		return
	}
	out := p.reply
	out.RangesAffected++
	out.ReplicasToMove += uint64(moves)
	out.BytesToMove += uint64(moves) * uint64(max(0, r.load.bytes))
	if leader {
		out.LeadersToMove++
	}
	if len(out.Examples) < maxExamples {
		out.Examples = append(out.Examples, p.example(r, rule, wrong, moves, spare, leader,
			len(bounds) > 0))
	}
}

// tooNear returns how many copies must move until they stand as far apart as the
// nodes allow, trying the best single move again and again.
func (p *previewer) tooNear(rule *rules.Rule, held []rules.Labels) (moves int) {
	ideal, known := p.ideals[rule]
	if !known {
		ideal = idealOf(rule, p.nodes)
		p.ideals[rule] = ideal
	}
	if ideal == math.MaxInt {
		return 0
	}
	held = slices.Clone(held)
	for rule.Collisions(held) > ideal && moves < len(held) {
		at, to, best := -1, rules.Labels(nil), 0
		for i := range held {
			rest := slices.Delete(slices.Clone(held), i, i+1)
			now := rule.Adds(rest, held[i])
			for _, n := range p.nodes {
				if gain := now - rule.Adds(rest, n); rule.Allows(n) && gain > best {
					at, to, best = i, n, gain
				}
			}
		}
		if at < 0 {
			return moves
		}
		held[at] = to
		moves++
	}
	return moves
}

// leaderMoves says whether the leader of r would have to be another node.
func (p *previewer) leaderMoves(r *rangeState, rule *rules.Rule) bool {
	lead := p.c.nodes[r.leader]
	if lead == nil {
		return false
	}
	if !rule.Allows(lead.labels) {
		return true
	}
	return slices.ContainsFunc(p.nodes, func(n rules.Labels) bool {
		return rule.Allows(n) && rule.Preference(n) < rule.Preference(lead.labels)
	})
}

// example describes in words what would happen to one range.
func (p *previewer) example(r *rangeState, rule *rules.Rule, wrong []string, moves, spare int,
	leader, split bool) string {
	text := fmt.Sprintf("%v under rule %s:", r.id(), rule.Name)
	add := func(format string, args ...any) { text += fmt.Sprintf(format, args...) + "," }
	if split {
		add(" is split where another rule begins")
	}
	for _, w := range wrong {
		add(" leaves %s", w)
	}
	if n := moves - len(wrong); n > 0 {
		add(" %s more to be made or moved apart", count(n, "copy"))
	}
	if spare > 0 {
		add(" %s fewer", count(spare, "copy"))
	}
	if leader {
		add(" another leader")
	}
	return text[:len(text)-1]
}
