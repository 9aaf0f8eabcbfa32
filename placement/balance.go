package placement

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// The spread of leaders rests when every node's count is near the mean: within
// one, or within 5 % if that is more. A move needs a node outside of that, and a
// difference of at least two (and of the slack) between giver and taker, so it
// always lessens the sum of squares: there is no cycle, and noise does not start
// one.
const (
	leaderSlack   = 1.0
	leaderPercent = 0.05
	// maxFits bounds the ranges, all equally good for the count, of which the one is
	// taken that suits the load best.
	maxFits = 16
)

// slackOf is by how much a count of leaders may differ from the mean.
func slackOf(mean float64) float64 { return max(leaderSlack, leaderPercent*mean) }

// leaderSpread is one look of the balancer that goes by counts.
type leaderSpread struct {
	*pass
	least int // difference between giver and taker
}

// evenCounts plans transfers that even out the number of leaders per node.
func evenCounts(p *pass) verdict {
	if len(p.leaders) < 2 {
		return rested
	}
	p.count()
	s := &leaderSpread{pass: p, least: max(2, int(slackOf(p.mean)))}
	for planned := false; ; planned = true {
		givers, takers := s.outliers()
		if len(givers)+len(takers) == 0 {
			return p.ended(planned, false)
		}
		if p.full(p.left.transfers) {
			return acted
		}
		best := s.pick(givers, takers)
		if best.r == nil {
			return p.ended(planned, true)
		}
		p.transfer(newTransfer(best.r, kindLeaders, best.to.id, fmt.Sprintf(
			"%v leads %d ranges, %v leads %d", best.from.id, best.from.leaders(),
			best.to.id, best.to.leaders())))
	}
}

// count takes the mean anew: leaders may have come off nodes that do not count.
func (p *pass) count() {
	total := 0
	for _, n := range p.leaders {
		total += n.leaders()
	}
	p.mean = float64(total) / float64(len(p.leaders))
}

// outliers returns the nodes with far too many leaders, the fullest first, and
// those with far too few, the emptiest first.
func (s *leaderSpread) outliers() (givers, takers []*node) {
	slack := slackOf(s.mean)
	for _, n := range s.leaders {
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

// choice is a range whose leader could go from one node to another. Strain is what
// that leaves of the difference between their loads: of two equally good for the
// count the one with less of it is taken.
type choice struct {
	r        *rangeState
	from, to *node
	strain   int64
}

func choose(r *rangeState, from, to *node) choice {
	gap := from.charge().cpu - to.charge().cpu
	return choice{r, from, to, max(gap-2*r.load.cpu, 2*r.load.cpu-gap)}
}

// pick finds one transfer: away from the fullest node to wherever it helps
// most, else to the emptiest node from wherever it helps most.
func (s *leaderSpread) pick(givers, takers []*node) (best choice) {
	fewest, most := s.leaders[0].leaders(), s.leaders[0].leaders()
	for _, n := range s.leaders {
		fewest, most = min(fewest, n.leaders()), max(most, n.leaders())
	}
	for _, from := range givers {
		fits := 0
		s.look(&from.leads, maxLooks, func(r *rangeState) (enough bool) {
			to := s.taker(r, from)
			if to == nil {
				return false
			}
			if to.leaders() == fewest {
				fits++
			}
			next := choose(r, from, to)
			if best.r == nil || cmp.Or(cmp.Compare(to.leaders(), best.to.leaders()),
				cmp.Compare(next.strain, best.strain)) < 0 {
				best = next
			}
			return fits >= maxFits
		})
		if best.r != nil {
			return best
		}
	}
	for _, to := range takers {
		fits := 0
		s.look(&to.holds, maxLooks, func(r *rangeState) (enough bool) {
			from := s.c.nodes[r.leader]
			if from == nil || !s.movable(r) || !s.fits(r, from, to) {
				return false
			}
			if from.leaders() == most {
				fits++
			}
			next := choose(r, from, to)
			if best.r == nil || cmp.Or(cmp.Compare(best.from.leaders(), from.leaders()),
				cmp.Compare(next.strain, best.strain)) < 0 {
				best = next
			}
			return fits >= maxFits
		})
		if best.r != nil {
			return best
		}
	}
	return best
}

// movable says whether the leadership of r may move now. While a learner waits
// for a snapshot it stays: only the sender keeps the log that the learner will
// need next.
func (p *pass) movable(r *rangeState) bool { return p.free(r) && !r.lagging() }

// taker returns the node with the fewest leaders that can take r from its
// leader, nil if none would gain by it.
func (s *leaderSpread) taker(r *rangeState, from *node) (best *node) {
	if !s.movable(r) {
		return nil
	}
	for _, p := range r.desc.GetReplicas() {
		to := s.c.nodes[ids.NodeID(p.GetNodeId())]
		if s.fits(r, from, to) && (best == nil || to.leaders() < best.leaders()) {
			best = to
		}
	}
	return best
}

// fits says whether leadership of r may go from one node to another and makes
// the spread more even. The driver runs where range 1 is led, and forgets what it
// knows when that moves: it stays.
func (s *leaderSpread) fits(r *rangeState, from, to *node) bool {
	return r.id() != systemRange && from.mayLead() && from.leaders()-to.leaders() >= s.least &&
		s.c.canLead(r, to) && r.rank(to) <= r.rank(from)
}

// canLead says whether another node than the leader may be given r. Whether it holds
// the newest entries only the leader knows; it refuses a lagging one. A node that has
// missed a few reports may be gone already.
func (c *cluster) canLead(r *rangeState, to *node) bool {
	p := replicaOn(r.desc, to.id)
	return p != nil && to.id != r.leader && to.mayLead() && p.GetRole() == roleVoter &&
		c.silence(to) <= c.suspectAfter/freshShare && !c.mute(r, p)
}

const (
	// freshShare of the time after which a node is suspect, as a divisor, is how old
	// its last report may be for it to be given leaders.
	freshShare = 3
	// muteFor is how long it counts that a leader said a replica does not answer. A
	// quiet range does not tell when it does again; then the leader is asked.
	muteFor = 30 * time.Second
)

// mute says whether a replica does not answer its leader, as far as is known: the
// leader said so, not long ago, and after the node last came up.
func (c *cluster) mute(r *rangeState, p *metapb.Replica) bool {
	if !slices.Contains(r.silent, p.GetReplicaId()) || c.now-r.silentAt >= muteFor {
		return false
	}
	n := c.nodes[ids.NodeID(p.GetNodeId())]
	return n == nil || r.silentAt >= n.liveSince
}

// rank is how well the rule of r likes a node as its leader, 0 best.
func (r *rangeState) rank(n *node) int {
	if r.rule == nil || len(r.rule.Leaders) == 0 {
		return 0
	}
	return r.rule.Preference(n.labels)
}
