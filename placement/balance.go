package placement

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// The spread of leaders rests when every node's count is near the mean: within
// one, or within 5 % if that is more. A move needs a node outside of that, and a
// difference of at least two between giver and taker, so it always lessens the
// sum of squares: there is no cycle, and noise does not start one.
const (
	leaderSlack   = 1.0
	leaderPercent = 0.05
	// maxLooks bounds the ranges looked at in one pass; the next pass goes on
	// elsewhere among the node's ranges.
	maxLooks = 4096
	// lookAgain is when an imbalance that could not be mended is tried again.
	lookAgain = 5 * time.Second
)

// leaderSpread is one pass of the balancer.
type leaderSpread struct {
	c     *cluster
	nodes []*node // that take part, by id
	mean  float64
	looks int
}

// spreadLeaders returns up to limit transfers that even out the number of
// leaders per node, and whether it was stuck: uneven, but nothing could be moved
// now. Pure but for counting its own plans into the load.
func spreadLeaders(c *cluster, limit int) (ops []*operator, stuck bool) {
	s := &leaderSpread{c: c}
	total := 0
	for _, id := range c.order {
		if n := c.nodes[id]; n.mayLead() {
			s.nodes = append(s.nodes, n)
			total += n.leaders()
		}
	}
	if len(s.nodes) < 2 {
		return nil, false
	}
	s.mean = float64(total) / float64(len(s.nodes))
	planned := make(map[ids.RangeID]bool)
	for {
		givers, takers := s.outliers()
		if len(givers)+len(takers) == 0 || len(ops) >= limit {
			return ops, false
		}
		op := s.pick(givers, takers, planned)
		if op == nil {
			return ops, true
		}
		planned[op.id] = true
		c.expect(op)
		ops = append(ops, op)
	}
}

// outliers returns the nodes with far too many leaders, the fullest first, and
// those with far too few, the emptiest first.
func (s *leaderSpread) outliers() (givers, takers []*node) {
	slack := max(leaderSlack, leaderPercent*s.mean)
	for _, n := range s.nodes {
		switch {
		case float64(n.leaders()) > s.mean+slack:
			givers = append(givers, n)
		case float64(n.leaders()) < s.mean-slack:
			takers = append(takers, n)
		}
	}
	byLeaders := func(a, b *node) int { return cmp.Compare(a.leaders(), b.leaders()) }
	slices.SortStableFunc(givers, func(a, b *node) int { return byLeaders(b, a) })
	slices.SortStableFunc(takers, byLeaders)
	return givers, takers
}

// pick finds one transfer: away from the fullest node to wherever it helps
// most, else to the emptiest node from wherever it helps most.
func (s *leaderSpread) pick(givers, takers []*node, planned map[ids.RangeID]bool) *operator {
	fewest, most := s.nodes[0].leaders(), s.nodes[0].leaders()
	for _, n := range s.nodes {
		fewest, most = min(fewest, n.leaders()), max(most, n.leaders())
	}
	for _, from := range givers {
		var best *rangeState
		var to *node
		s.look(&from.leads, planned, func(r *rangeState) (enough bool) {
			if t := s.taker(r, from); t != nil && (to == nil || t.leaders() < to.leaders()) {
				best, to = r, t
			}
			return to != nil && to.leaders() == fewest
		})
		if best != nil {
			return s.transfer(best, from, to)
		}
	}
	for _, to := range takers {
		var best *rangeState
		var from *node
		s.look(&to.holds, planned, func(r *rangeState) (enough bool) {
			f := s.c.nodes[r.leader]
			if s.fits(r, f, to) && (from == nil || f.leaders() > from.leaders()) {
				best, from = r, f
			}
			return from != nil && from.leaders() == most
		})
		if best != nil {
			return s.transfer(best, from, to)
		}
	}
	return nil
}

// look visits the movable ranges of a set, from a place that differs from pass
// to pass, until there were enough.
func (s *leaderSpread) look(set rangeSet, planned map[ids.RangeID]bool,
	visit func(*rangeState) (enough bool)) {
	size := set.Len()
	if size == 0 {
		return
	}
	start, _ := set.GetAt(int(s.c.offset % uint64(size)))
	enough := false
	see := func(id ids.RangeID) bool {
		if s.looks++; s.looks > maxLooks {
			return false
		}
		if r := s.c.dir.byID[id]; !planned[id] && s.movable(r) {
			enough = visit(r)
		}
		return !enough
	}
	set.Ascend(start, see)
	if !enough {
		set.Scan(func(id ids.RangeID) bool { return id < start && see(id) })
	}
}

// rangeSet is an ordered set of ranges.
type rangeSet interface {
	Len() int
	GetAt(i int) (ids.RangeID, bool)
	Ascend(pivot ids.RangeID, visit func(ids.RangeID) bool)
	Scan(visit func(ids.RangeID) bool)
}

// movable says whether the leadership of r may move now. While a learner waits
// for a snapshot it stays: only the sender keeps the log that the learner will
// need next.
func (s *leaderSpread) movable(r *rangeState) bool {
	_, busy := s.c.ops.Get(r.id())
	return !busy && r.restUntil <= s.c.now && !r.health.leaderless && !joint(r.desc) && !r.lagging()
}

// taker returns the node with the fewest leaders that can take r from its
// leader, nil if none would gain by it.
func (s *leaderSpread) taker(r *rangeState, from *node) (best *node) {
	for _, p := range r.desc.GetReplicas() {
		to := s.c.nodes[ids.NodeID(p.GetNodeId())]
		if s.fits(r, from, to) && (best == nil || to.leaders() < best.leaders()) {
			best = to
		}
	}
	return best
}

// fits says whether leadership of r may go from one node to another and makes
// the spread more even. Whether the taker holds the newest entries only the
// leader knows; it refuses a lagging one.
func (s *leaderSpread) fits(r *rangeState, from, to *node) bool {
	p := replicaOn(r.desc, to.id)
	return to != from && from.mayLead() && to.mayLead() && from.leaders()-to.leaders() >= 2 &&
		p.GetRole() == roleVoter && !slices.Contains(r.silent, p.GetReplicaId())
}

func (s *leaderSpread) transfer(r *rangeState, from, to *node) *operator {
	op := newOperator(r, fmt.Sprintf("%v leads %d ranges, %v leads %d", from.id, from.leaders(),
		to.id, to.leaders()), step{transferLeader, to.id})
	op.from = from.id
	return op
}
