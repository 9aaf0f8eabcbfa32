package placement

import (
	"math"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
)

// ruling is a rule with what the nodes make of it.
type ruling struct {
	*rules.Rule
	at    uint64 // topology that the following is true for
	fit   int    // copies that find a place on nodes which are not on their way out, live or not
	ideal int    // Collisions of copies on the best nodes that are not dead
}

// goal is how many live voters a range of the rule should have, given its nodes.
func (u *ruling) goal() int { return oddFloor(min(u.Replicas, u.fit)) }

// sweep reviews ranges, some with every Step: those of nodes that have changed, and all
// of them after something changed that no list of ranges tells apart: the rules, or what
// they make of the nodes.
//
// What a node is (its phase, standing, labels) is known at once, and whoever decides
// about a range goes by that: headless, condition, survey, canLead. Only the counters and
// lists that the reviews keep are behind meanwhile, each of them true for the ranges as
// they were last reviewed, and status says so.
//
// The list of what is to be mended is in order for the ranges reviewed, whatever is
// behind, and for all once nothing is. Until then only ranges that the next failure may
// stop are mended (nextNeedy): nothing that is still to be reviewed can be in more danger
// than those, but it may be in more than all others. They count as waiting since their
// node changed, not since their turn came, so the order is in the end as if all had been
// reviewed at that moment. Nodes that come and go hold the others up only while they have
// more ranges than are reviewed between one change and the next.
type sweep struct {
	going bool
	again bool   // something changed since it began
	from  string // where it goes on

	nodes []shifted   // whose ranges come first, in the order of the changes
	next  ids.RangeID // where the first of them goes on
}

// shifted is a node on which the health of its ranges depends otherwise than before.
type shifted struct {
	node *node
	at   time.Duration // since then
}

// Bounds of what one Step reviews: for a sweep through all ranges, or, before that, of
// ranges whose nodes have changed. Each takes some microseconds. A third of a thousand
// nodes that fall silent together may have copies of a million ranges.
const (
	maxSwept    = 2000
	maxReviewed = 4096
)

// behind says whether ranges wait to be reviewed whose nodes have changed.
func (s *sweep) behind() bool { return len(s.nodes) > 0 }

// reviewOf has every range reviewed that n holds or leads, a part with every Step. A node
// that waits for its turn waits once; one that changes while it is gone through is gone
// through again after the others.
func (c *cluster) reviewOf(n *node) {
	if !n.shifted {
		n.shifted = true
		c.sweep.nodes = append(c.sweep.nodes, shifted{n, c.now})
	}
}

// reviewSome reviews the next ranges of nodes that have changed.
func (c *cluster) reviewSome() {
	s := &c.sweep
	for left := maxReviewed; s.behind(); {
		first := s.nodes[0]
		if s.next == 0 {
			first.node.shifted = false // what changes from here on is another turn
		}
		if s.next, left = c.reviewFrom(first, s.next, left); s.next != 0 {
			return
		}
		s.nodes = s.nodes[1:]
	}
	s.nodes = nil
}

// reviewFrom reviews the ranges of a node from an id on, as many as are left. It returns
// the id where it goes on, 0 if it is through, and what is left.
func (c *cluster) reviewFrom(
	n shifted, from ids.RangeID, left int,
) (next ids.RangeID, remain int) {
	held, led := n.node.holds.Iter(), n.node.leads.Iter()
	holds, leads := held.Seek(from), led.Seek(from)
	for ; holds || leads; left-- {
		if !leads || holds && held.Key() <= led.Key() {
			next = held.Key()
		} else {
			next = led.Key()
		}
		if left == 0 {
			return next, 0
		}
		if holds && held.Key() == next {
			holds = held.Next()
		}
		if leads && led.Key() == next {
			leads = led.Next()
		}
		c.reviewSince(c.dir.byID[next], n.at)
	}
	return 0, left
}

// setRules puts a set in force. Ranges keep what they have of the former one until
// the sweep comes to them.
func (c *cluster) setRules(s *rules.Set) {
	c.ruleSet = s
	c.rulings = make(map[*rules.Rule]*ruling, len(s.Rules()))
	for _, r := range s.Rules() {
		c.rulings[r] = &ruling{Rule: r}
	}
	c.topology++
	c.sweepAll()
	c.usable()
}

// rulingOf returns what holds for a key.
func (c *cluster) rulingOf(key []byte) *ruling { return c.current(c.rulings[c.ruleSet.Of(key)]) }

// current brings a ruling up to date with the nodes. Only what is looked at is;
// Step sees to the others.
func (c *cluster) current(u *ruling) *ruling {
	if u.at == c.topology {
		return u
	}
	goal, ideal, fresh := u.goal(), u.ideal, u.at == 0
	var usable []rules.Labels
	u.at, u.fit = c.topology, c.fitting(u.Rule, nil)
	for _, id := range c.order {
		n := c.nodes[id]
		if n.desc == nil || n.standing >= standingDecommissioning || !u.Allows(n.labels) {
			continue
		}
		if n.phase > phaseDead && n.standing == standingActive {
			usable = append(usable, n.labels)
		}
	}
	u.ideal = idealOf(u.Rule, usable)
	if !fresh && (u.goal() != goal || u.ideal != ideal) {
		c.sweepAll()
	}
	return u
}

// fitting counts the copies of a rule that find a place on the nodes that are not on
// their way out, live or not; one node can be left out of the count.
func (c *cluster) fitting(r *rules.Rule, but *node) int {
	count := 0
	var fit []rules.Labels
	for _, n := range c.nodes { // order-free: a count
		if n == but || n.desc == nil || n.standing >= standingDecommissioning ||
			!r.Allows(n.labels) {
			continue
		}
		if count++; r.Isolate != "" {
			fit = append(fit, n.labels)
		}
	}
	if r.Isolate != "" {
		return r.Placeable(fit)
	}
	return count
}

// idealOf returns how near to one another copies stand that are placed one after
// the other as far apart as the nodes allow. Too few nodes allow anything: nothing
// is moved from bad to worse while some are away.
func idealOf(r *rules.Rule, nodes []rules.Labels) int {
	if len(nodes) < r.Replicas {
		return math.MaxInt
	}
	var copies []rules.Labels
	used := make([]bool, len(nodes))
	for len(copies) < r.Replicas {
		best, least := -1, 0
		for i, n := range nodes {
			if adds := r.Adds(copies, n); !used[i] && (best < 0 || adds < least) {
				best, least = i, adds
			}
		}
		used[best] = true
		copies = append(copies, nodes[best])
	}
	return r.Collisions(copies)
}

// rule resolves the rule of a range.
func (c *cluster) rule(r *rangeState) {
	r.rule = c.rulingOf(r.desc.GetStart())
	r.straddles = len(c.ruleSet.Bounds(r.desc.GetStart(), r.desc.GetEnd())) > 0 &&
		r.id() != systemRange
}

// systemRange is where placement keeps its state. It is never split or merged.
const systemRange = ids.RangeID(1)

// sweepAll has every range looked at again, a part of them with every Step.
func (c *cluster) sweepAll() {
	if c.sweep.going {
		c.sweep.again = true
		return
	}
	c.sweep.going, c.sweep.from = true, ""
}

// sweepSome does the next part of a sweep, and sees whether one is called for.
func (c *cluster) sweepSome() {
	if c.ruled != c.topology {
		c.ruled = c.topology
		for _, r := range c.ruleSet.Rules() {
			c.current(c.rulings[r])
		}
	}
	c.reviewSome()
	if !c.sweep.going || c.sweep.behind() {
		return
	}
	var some []*rangeState
	c.dir.byStart.Ascend(c.sweep.from, func(_ string, r *rangeState) bool {
		some = append(some, r)
		return len(some) < maxSwept
	})
	for _, r := range some {
		c.rule(r)
		c.review(r)
	}
	if len(some) == maxSwept {
		c.sweep.from = string(some[maxSwept-1].desc.GetEnd())
		return
	}
	c.sweep.going, c.sweep.again, c.sweep.from = c.sweep.again, false, ""
}
