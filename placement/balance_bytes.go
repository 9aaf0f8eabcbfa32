package placement

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
)

// Copies are spread by weight: their bytes, and emptyCopy for each, which decides among
// ranges that are nearly empty and is lost in those of common size. A node's fill is
// the weight that it holds by the size of its disk. The spread rests when every fill is
// within the slack of the mean. A move needs a node outside of that, a gap between giver
// and taker of more than the slack, and leaves the giver no emptier than the taker: so
// it lessens the sum of squares, there is no cycle, and a fill that wavers around a
// bound moves a copy once, not to and fro.
const (
	// bytesPercent of the mean, or one copy of mean weight if that is more, is the
	// slack. Whoever is out of it has a partner at the mean or beyond: so there always
	// is a gap.
	bytesPercent = 0.05
	// evenDisks is up to which ratio disks count as equally large.
	evenDisks = 1.1
	// takersTried bounds the nodes, the emptiest first, that are tried for a copy,
	// copiesSeen the copies that could move of which the heaviest is taken: few large
	// moves instead of many small ones.
	takersTried = 32
	copiesSeen  = 256
	// barrenPause is how long a node whose copies all have to stay is left out.
	barrenPause = 30 * time.Second
)

func (r *rangeState) weight() float64 { return float64(r.load.bytes + emptyCopy) }

func (n *node) weight() float64 {
	return float64(n.load.bytes + n.pending.load.bytes + int64(n.replicas())*emptyCopy)
}

// holder is a node that takes part in the spread of copies.
type holder struct {
	n    *node
	room float64 // size of its disk, 1 for a mean one
}

func (h holder) fill() float64 { return h.n.weight() / h.room }

// levels is one look of the balancer that goes by bytes.
type levels struct {
	*pass
	nodes     []holder // the fullest first
	even      float64  // fill of all if they were even
	slack     float64
	takesIn   int64 // bytes written a second that a taker may come to
	temporary bool  // something that could be moved cannot be moved now
}

// evenBytes plans moves of copies that even out what nodes hold.
func evenBytes(p *pass) verdict {
	l := levelsOf(p)
	if len(l.nodes) < 2 {
		return rested
	}
	for planned := false; ; planned = true {
		slices.SortStableFunc(l.nodes, func(a, b holder) int {
			return cmp.Compare(b.fill(), a.fill())
		})
		if !l.uneven() {
			return max(p.ended(planned, false), l.enoughToLead())
		}
		if p.full(p.left.moves) {
			return acted
		}
		m := l.pick()
		if m.r == nil {
			return p.ended(planned || l.temporary, true)
		}
		p.move(newOperator(m.r, kindBytes, l.reason(m), m.steps...))
	}
}

// levelsOf measures the nodes that take part: those that are here to stay.
func levelsOf(p *pass) *levels {
	l := &levels{pass: p}
	var weight, disks float64
	var written int64
	least, most, copies := uint64(1<<63), uint64(0), 0
	for _, id := range p.c.order {
		n := p.c.nodes[id]
		if n.desc == nil || !n.full || n.phase < phaseLive || n.sheds() {
			continue
		}
		l.nodes = append(l.nodes, holder{n, 1})
		least, most = min(least, n.disk), max(most, n.disk)
		weight, disks, copies = weight+n.weight(), disks+float64(n.disk), copies+n.replicas()
		written += n.charge().applied
	}
	if len(l.nodes) == 0 {
		return l
	}
	count := float64(len(l.nodes))
	if least > 0 && float64(most) > evenDisks*float64(least) {
		for i := range l.nodes {
			l.nodes[i].room = float64(l.nodes[i].n.disk) / (disks / count)
		}
	}
	l.even = weight / count
	l.slack = max(bytesPercent*l.even, weight/float64(max(1, copies)))
	hot := hotWrites.limits()
	written /= int64(len(l.nodes))
	l.takesIn = written + max(written*hot.percent/100, hot.floor)/2
	return l
}

func (l *levels) uneven() bool {
	return l.nodes[0].fill() > l.even+l.slack ||
		l.nodes[len(l.nodes)-1].fill() < l.even-l.slack
}

// enoughToLead plans moves for nodes that hold enough bytes but in so few copies, of
// large ranges, that they cannot lead their part of all ranges. They get the lightest
// ones. Only when bytes are even, and never so that they are not any more: then no
// copy moves back for it, and each move lowers what is lacking.
func (l *levels) enoughToLead() verdict {
	if len(l.leaders) < 2 {
		return rested
	}
	l.count()
	planned, lacking := false, false
	for _, to := range slices.Backward(l.nodes) {
		for to.n.mayLead() && to.n.mayHold() && float64(to.n.replicas()) < l.mean {
			lacking = true
			if l.full(l.left.moves) {
				return acted
			}
			m := l.lightest(to)
			if m.r == nil {
				break
			}
			planned = true
			l.move(newOperator(m.r, kindBytes, fmt.Sprintf(
				"%v holds only %d copies and could not lead its part of the ranges, %v holds %d",
				to.n.id, to.n.replicas(), m.from.n.id, m.from.n.replicas()), m.steps...))
		}
	}
	return l.ended(planned || l.temporary && lacking, lacking)
}

// lightest returns the lightest copy that can go to a node from one that holds more
// copies than it needs to lead its part, without making the bytes uneven.
func (l *levels) lightest(to holder) (best relocation) {
	if !l.c.mayTake(to.n, 0) {
		l.temporary = true
		return best
	}
	for _, from := range l.nodes {
		if has := from.n.replicas() - 1; float64(has) < l.mean || has <= to.n.replicas() {
			continue
		}
		seen := 0
		l.look(&from.n.holds, maxLooks, func(r *rangeState) (enough bool) {
			w := r.weight()
			switch {
			case !l.copyable(r):
				l.temporary = true
			case best.r != nil && w >= best.r.weight():
				seen++
			case r.leader == from.n.id && voters(r) > 1, to.n.weight()+w > (l.even+l.slack)*to.room,
				from.n.weight()-w < (l.even-l.slack)*from.room, !l.c.mayTake(to.n, r.load.bytes),
				!l.c.mayReplace(r, from.n, to.n):
			default:
				if steps := l.c.moveSteps(r, from.n.id, to.n.id); steps != nil {
					best = relocation{r, from, to, steps}
					seen++
				}
			}
			return seen >= copiesSeen
		})
		if best.r != nil {
			return best
		}
	}
	return best
}

// relocation is a copy that could go from one node to another.
type relocation struct {
	r        *rangeState
	from, to holder
	steps    []step
}

// pick finds one move, from the fullest node that has something to give.
func (l *levels) pick() relocation {
	able := 0
	for _, h := range l.nodes {
		if h.n.mayHold() {
			able++
		}
	}
	for _, from := range l.nodes {
		s := &from.n.sched
		if s.barrenUntil > l.c.now && s.barrenFor == able {
			continue
		}
		takers := l.takers(from)
		if len(takers) == 0 {
			continue
		}
		before := l.temporary
		l.temporary = false
		m := l.heaviest(from, takers)
		if m.r != nil {
			return m
		}
		if !l.temporary && l.looks <= maxLooks {
			s.barrenUntil, s.barrenFor = l.c.now+barrenPause, able
		}
		l.temporary = l.temporary || before
		if l.looks > maxLooks {
			break
		}
	}
	return relocation{}
}

// takers returns the nodes that may be given a copy of a node, the emptiest first:
// all that are emptier by the gap if it holds too much, else those that hold too
// little.
func (l *levels) takers(from holder) (takers []holder) {
	over := from.fill() > l.even+l.slack
	for _, to := range slices.Backward(l.nodes) {
		fill := to.fill()
		if fill >= from.fill()-l.slack || !over && fill >= l.even-l.slack ||
			len(takers) == takersTried {
			break
		}
		switch {
		case !to.n.mayHold():
		case !l.c.mayTake(to.n, 0):
			l.temporary = true
		default:
			takers = append(takers, to)
		}
	}
	return takers
}

// heaviest returns the heaviest copy that can leave a node without leaving it
// emptier than the taker. A copy that leads is taken only if there is no other.
func (l *levels) heaviest(from holder, takers []holder) relocation {
	var best, leading relocation
	seen := 0
	l.look(&from.n.holds, maxLooks, func(r *rangeState) (enough bool) {
		if !l.copyable(r) {
			l.temporary = true
			return false
		}
		slot := &best
		if r.leader == from.n.id {
			slot = &leading
		}
		if slot.r != nil && slot.r.weight() >= r.weight() {
			seen++
			return seen >= copiesSeen
		}
		for _, to := range takers {
			if l.suits(r, from, to) {
				*slot = relocation{r: r, from: from, to: to}
				seen++
				break
			}
		}
		return seen >= copiesSeen
	})
	for _, m := range [...]relocation{best, leading} {
		if m.r == nil {
			continue
		}
		if m.steps = l.c.moveSteps(m.r, m.from.n.id, m.to.n.id); m.steps != nil {
			return m
		}
		l.temporary = true // nobody can take over the lead now
	}
	return relocation{}
}

// copyable says whether a copy of r may move now, for the sake of balance: nothing
// is wrong with the range, and its leader may send one more snapshot.
func (p *pass) copyable(r *rangeState) bool {
	return p.movable(r) && p.c.condition(r).need == needNothing && p.c.mayGive(p.c.nodes[r.leader])
}

// suits says whether a copy may go from one node to another for the sake of balance.
// What takes in many writes must not bring the taker near to being hot: that would
// be undone.
func (l *levels) suits(r *rangeState, from, to holder) bool {
	most := (from.fill() - to.fill()) / (1/from.room + 1/to.room)
	if r.weight() > most || !l.c.mayTake(to.n, r.load.bytes) {
		return false
	}
	if r.load.applied >= warmApplied && to.n.charge().applied+r.load.applied > l.takesIn {
		return false
	}
	if r.leader == from.n.id && r.id() == systemRange {
		return false
	}
	return l.c.mayReplace(r, from.n, to.n)
}

// mayReplace says whether a node may hold a voter of r instead of another one: the
// rule allows it, the copies stand no nearer to one another, and no worse node leads.
func (c *cluster) mayReplace(r *rangeState, from, to *node) bool {
	p := replicaOn(r.desc, from.id)
	if p.GetRole() != roleVoter || replicaOn(r.desc, to.id) != nil || to.id == r.avoid ||
		!r.rule.Allows(to.labels) {
		return false
	}
	var room [maxCopies]rules.Labels
	rest, rank := room[:0], len(r.rule.Leaders)
	for _, o := range r.desc.GetReplicas() {
		n := c.nodes[ids.NodeID(o.GetNodeId())]
		if n == nil || n == from || o.GetRole() != roleVoter || len(rest) == maxCopies {
			continue
		}
		rest, rank = append(rest, n.labels), min(rank, r.rank(n))
	}
	return r.rule.Adds(rest, to.labels) <= r.rule.Adds(rest, from.labels) &&
		min(rank, r.rank(to)) <= min(rank, r.rank(from))
}

func (l *levels) reason(m relocation) string {
	from, to := m.from.n, m.to.n
	if l.even < 2*emptyCopy*float64(from.replicas()) {
		return fmt.Sprintf("%v holds %d copies, %v %d", from.id, from.replicas(),
			to.id, to.replicas())
	}
	words := fmt.Sprintf("%v holds %s, %v %s", from.id, size(from.charge().bytes),
		to.id, size(to.charge().bytes))
	if m.from.room != 1 || m.to.room != 1 {
		words += fmt.Sprintf("; by the size of the disks it should be %s and %s",
			size(int64(l.even*m.from.room)), size(int64(l.even*m.to.room)))
	}
	return words
}
