package placement

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
)

// survey is what the checkers see of one range.
type survey struct {
	voters, dead, learners []ids.NodeID
	leaves                 []ids.NodeID // voters on nodes that are decommissioned
	misplaced              []ids.NodeID // voters where the rule allows none
	useless                []ids.NodeID // learners that can never become voters
	candidates             int          // nodes that may become voters
	waiting                int          // nodes that may become candidates by themselves
	lent                   bool         // draining nodes are among the candidates
}

func (c *cluster) survey(r *rangeState) survey {
	var s survey
	for _, p := range r.desc.GetReplicas() {
		id := ids.NodeID(p.GetNodeId())
		n := c.nodes[id]
		switch {
		case p.GetRole() == roleLearner:
			s.learners = append(s.learners, id)
			if n.standing >= standingDecommissioning || n.desc != nil && !r.rule.Allows(n.labels) {
				s.useless = append(s.useless, id)
			}
			continue
		case n.phase == phaseDead:
			s.dead = append(s.dead, id)
		case n.standing == standingDecommissioning:
			s.leaves = append(s.leaves, id)
		case n.desc != nil && !r.rule.Allows(n.labels):
			s.misplaced = append(s.misplaced, id)
		}
		s.voters = append(s.voters, id)
	}
	var able, lending vacancies
	for _, id := range c.order {
		n := c.nodes[id]
		switch {
		case n.desc == nil || n.phase == phaseDead || n.standing >= standingDecommissioning ||
			!r.rule.Allows(n.labels) || slices.Contains(s.voters, id):
		case n.serves(r):
			able.add(r.rule.Rule, n)
		case n.lends(r):
			lending.add(r.rule.Rule, n)
		case n.away():
			s.waiting++
		}
	}
	s.candidates = c.placeable(r, able)
	// A draining node is given nothing, unless without it the range would rest with fewer
	// copies than it can have: the node stops later or not at all, and what it has then
	// is as good as that of any node that is stopped for a while.
	few := len(s.voters)+s.candidates < r.rule.Replicas || len(s.dead) > 0 && s.candidates == 0
	if few && lending.count > 0 && (s.waiting == 0 || c.condition(r).tolerates == 0) {
		s.candidates, s.lent = c.placeable(r, able, lending), true
	}
	return s
}

// vacancies are nodes that may get a copy, by their place if the rule isolates places.
type vacancies struct {
	count int
	in    map[string]int
}

func (v *vacancies) add(rule *rules.Rule, n *node) {
	v.count++
	if rule.Isolate == "" {
		return
	}
	if v.in == nil {
		v.in = make(map[string]int)
	}
	v.in[n.labels.Place(rule.Isolate)]++
}

// placeable returns how many copies may be added at most on such nodes, to those of r
// that do not stand on dead ones.
func (c *cluster) placeable(r *rangeState, all ...vacancies) (count int) {
	for _, v := range all {
		count += v.count
	}
	key := r.rule.Isolate
	if key == "" {
		return count
	}
	room, held := make(map[string]int), make(map[string]int)
	for _, v := range all {
		for place, n := range v.in { // order-free: sums
			room[place] += n
		}
	}
	for _, p := range r.desc.GetReplicas() {
		n := c.nodes[ids.NodeID(p.GetNodeId())]
		if before, after := votes(p.GetRole()); (before || after) && n.phase != phaseDead {
			held[n.labels.Place(key)]++
		}
	}
	count = 0
	for place, n := range room { // order-free: a sum
		count += max(0, min(n, r.rule.PerPlace()-held[place]))
	}
	return count
}

// serves says whether n may be made a voter of r: it may take a copy, or has one
// as a learner.
func (n *node) serves(r *rangeState) bool {
	return n.mayHold() ||
		n.phase >= phaseLive && n.standing == standingActive && replicaOn(r.desc, n.id) != nil
}

// lends says whether n, which a person drains, could be made a voter of r for want of
// any other node.
func (n *node) lends(r *rangeState) bool {
	return n.standing == standingDraining && n.phase >= phaseLive && !n.draining &&
		(replicaOn(r.desc, n.id) != nil || n.desc != nil && n.full && !n.readOnly && !n.crowded)
}

// away says whether n takes no copies now, but may by itself before long: it is silent,
// has just come up, or its process stops.
func (n *node) away() bool {
	return n.desc != nil && n.phase > phaseDead && n.standing < standingDecommissioning &&
		(n.phase < phaseLive || !n.full || n.draining)
}

// plan is what a checker comes to.
type plan struct {
	op *operator
	// paced: something is to be done, but the nodes that it needs are busy with
	// other copies. It is tried again with the next Step.
	paced bool
	// why says in words what else keeps it from being done now, something that no event
	// ends. It is looked at again after a while.
	why string
}

// check returns what should be done about r: nothing, or nothing now. Pure: it goes
// by the state of the range and its nodes alone, so it also finishes or undoes what
// an operator, of this driver or an earlier one, left half done.
func check(c *cluster, r *rangeState) plan {
	if c.recovers(r) || c.headless(r) || r.changing() {
		return plan{}
	}
	s := c.survey(r)
	copies := r.rule.Replicas
	want := oddFloor(min(copies, len(s.voters)+s.candidates))
	even := len(s.voters)%2 == 0
	switch {
	case len(s.voters) < want:
		return grow(c, r, s, want)
	case len(s.voters) > copies, even && len(s.voters) > want && s.waiting == 0:
		return shrink(c, r, s, want)
	case len(s.dead) > 0 && s.candidates > 0:
		return replace(c, r, s)
	case len(s.dead) == 0 && len(s.leaves) > 0 && s.candidates > 0:
		return evacuate(c, r, s)
	case len(s.dead) == 0 && len(s.misplaced) > 0 && s.candidates > 0:
		return expel(c, r, s)
	case len(s.useless) > 0:
		return plan{op: tidy(r, s.useless)}
	case len(s.learners) > 0:
		if (len(s.dead) > 0 || len(s.voters) < copies) && s.waiting > 0 {
			return plan{} // a learner may still be of use when its node, or another, is back
		}
		return plan{op: tidy(r, s.learners)}
	case r.straddles:
		return plan{op: cut(c, r)}
	case len(s.dead) == 0 && c.collisions(r) > c.current(r.rule).ideal:
		return spread(c, r, s)
	}
	return plan{}
}

// recovers says whether r rests since an operator failed.
func (c *cluster) recovers(r *rangeState) bool { return r.failures > 0 && r.restUntil > c.now }

// cut splits a range where another rule begins.
func cut(c *cluster, r *rangeState) *operator {
	bounds := c.ruleSet.Bounds(r.desc.GetStart(), r.desc.GetEnd())
	if len(bounds) == 0 || r.id() == systemRange {
		return nil
	}
	at := bounds[len(bounds)/2] // the halves of many are many at a time
	return newOperator(r, kindSplit, fmt.Sprintf("rule %s begins at %s",
		c.ruleSet.Of(at).Name, keyWords(at)), step{kind: split, key: at})
}

// labelsOf returns the localities of the voters of r that stand elsewhere than on
// the given node (0: all of them).
func (c *cluster) labelsOf(r *rangeState, except ids.NodeID) []rules.Labels {
	var all []rules.Labels
	for _, p := range r.desc.GetReplicas() {
		id := ids.NodeID(p.GetNodeId())
		before, after := votes(p.GetRole())
		if n := c.nodes[id]; id != except && n != nil && (before || after) {
			all = append(all, n.labels)
		}
	}
	return all
}

// labelsAt returns the localities of nodes after one of them was exchanged for
// another; 0 for none.
func (c *cluster) labelsAt(nodes []ids.NodeID, without, with ids.NodeID) []rules.Labels {
	var all []rules.Labels
	for _, id := range nodes {
		if id != without {
			all = append(all, c.node(id).labels)
		}
	}
	if with != 0 {
		all = append(all, c.node(with).labels)
	}
	return all
}

// collisions says how near to one another the voters of r stand.
func (c *cluster) collisions(r *rangeState) int { return r.rule.Collisions(c.labelsOf(r, 0)) }

// wish is a search for the best node for one more voter of a range.
type wish struct {
	r      *rangeState
	others []rules.Labels // where the other voters will stand
	taken  []ids.NodeID   // nodes that are out of the question
	below  int            // only nodes that add less than this to the collisions; 0: any
	lent   bool           // draining nodes may be asked, too
	// patient: nothing is in danger. Rather than that copies stand nearer to one another
	// than by accepts, a node is waited for that is farther away and only silent.
	patient bool
	accepts int
}

// find returns the best node, nil if there is none now; paced if there is one that
// only has to finish other copies first. The most distant from the other copies
// comes first, then a learner that is there already, then the least full one. It is
// worth waiting for distance, even in need: the wait is one snapshot, while two copies
// in one zone stay until a third node has taken one of them away again.
func (c *cluster) find(w wish) (best *node, paced bool) {
	var bestScore, pacedScore score
	nearest := math.MaxInt // of nodes that are away
	bytes := w.r.load.bytes
	limited := c.nodes[w.r.leader] == nil || !c.maySend(c.nodes[w.r.leader])
	for _, id := range c.order {
		n := c.nodes[id]
		if n.desc == nil || slices.Contains(w.taken, id) || !w.r.rule.Allows(n.labels) ||
			w.r.rule.Bars(w.others, n.labels) {
			continue
		}
		lends := w.lent && n.lends(w.r)
		if !n.serves(w.r) && !lends {
			if w.patient && n.away() && n.standing == standingActive {
				nearest = min(nearest, w.r.rule.Adds(w.others, n.labels))
			}
			continue
		}
		s := score{patient: w.patient, avoided: id == w.r.avoid || c.now < n.sched.shunUntil,
			lends: lends, near: w.r.rule.Adds(w.others, n.labels),
			fresh: replicaOn(w.r.desc, id) == nil, fill: n.fill(), replicas: n.replicas()}
		switch {
		case w.below > 0 && s.near >= w.below:
		case s.fresh && (limited || !c.mayReceive(n, bytes)):
			if !paced || s.less(pacedScore) {
				paced, pacedScore = true, s
			}
		case best == nil || s.less(bestScore):
			best, bestScore = n, s
		}
	}
	switch {
	case best == nil:
		return nil, paced
	case paced && pacedScore.near < bestScore.near:
		return nil, true
	case bestScore.near > max(nearest, w.accepts):
		return nil, false
	}
	return best, false
}

// score ranks a node as the home of a copy; nodes are compared by id in the end,
// because they come in that order.
type score struct {
	patient  bool // the same in all that are compared
	avoided  bool // a copy did not get there last
	lends    bool // it is draining
	near     int
	fresh    bool // it has nothing of the range yet
	fill     float64
	replicas int
}

func (s score) less(o score) bool {
	switch {
	case s.avoided != o.avoided && !s.patient:
		return o.avoided
	case s.lends != o.lends:
		return o.lends
	case s.near != o.near:
		return s.near < o.near
	case s.avoided != o.avoided:
		return o.avoided
	case s.fresh != o.fresh:
		return o.fresh
	case s.fill != o.fill:
		return s.fill < o.fill
	default:
		return s.replicas < o.replicas
	}
}

// spread moves one copy to where it stands farther from the others, if there is such
// a place. Each such move lowers the collisions of the range, so there is an end.
func spread(c *cluster, r *rangeState, s survey) plan {
	var from ids.NodeID
	var to *node
	most, paced := 0, false
	for _, id := range s.voters {
		others := c.labelsOf(r, id)
		now := r.rule.Adds(others, c.nodes[id].labels)
		n, wait := c.find(wish{r: r, others: others, taken: s.voters, below: now})
		paced = paced || wait
		if now == 0 || n == nil {
			continue
		}
		gain := now - r.rule.Adds(others, n.labels)
		// Of equal ones the leader stays: moving it costs a transfer.
		if gain > most || gain == most && from == r.leader {
			from, to, most = id, n, gain
		}
	}
	if to == nil {
		return plan{paced: paced}
	}
	steps := c.moveSteps(r, from, to.id)
	if steps == nil {
		return plan{why: nobodyLeads}
	}
	return plan{op: newOperator(r, kindRule, fmt.Sprintf("%v stands too near to other copies, "+
		"%v (%v) is farther away", from, to.id, to.labels), steps...)}
}

// nobodyLeads says why a copy that leads stays for the moment.
const nobodyLeads = "no other voter can take over the lead now"

// moveSteps returns the steps that bring the voter on one node to another: the new
// copy gets the vote and the old one loses it in one change, so that no moment has
// an even number of voters or more copies in one place than before and after. A
// leader hands over before its own copy moves. Nil if nobody could lead instead now.
func (c *cluster) moveSteps(r *rangeState, from, to ids.NodeID) []step {
	steps := []step{{kind: addLearner, node: to}, {kind: catchUp, node: to}}
	if r.leader != from {
		return append(steps, step{kind: swap, node: to, from: from},
			step{kind: removeLearner, node: from})
	}
	if heir := c.heir(r, from); heir != nil {
		return append(steps, step{kind: transferLeader, node: heir.id},
			step{kind: swap, node: to, from: from}, step{kind: removeLearner, node: from})
	}
	if voters(r) > 1 || !c.nodes[to].mayLead() {
		return nil
	}
	// The only copy: for a moment there are two voters.
	return append(steps, step{kind: promote, node: to}, step{kind: transferLeader, node: to},
		step{kind: demote, node: from}, step{kind: removeLearner, node: from})
}

// voters counts the voters of a range that is not changing.
func voters(r *rangeState) (count int) {
	for _, p := range r.desc.GetReplicas() {
		if p.GetRole() == roleVoter {
			count++
		}
	}
	return count
}

// stuckAfter is how long a joint configuration or a merge may last before it is told.
const stuckAfter = time.Minute

// emptyCopy is what a copy of an empty range counts in bytes, so that many of them
// fill a node, too.
const emptyCopy = 64 << 10

// fill is how full a node is: bytes of its copies as a part of its disk, of one of
// usual size if that is not known.
func (n *node) fill() float64 {
	const usual = 1 << 40
	disk := float64(n.disk)
	if disk == 0 {
		disk = usual
	}
	return (float64(n.charge().bytes) + float64(n.replicas())*emptyCopy) / disk
}
