package placement

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// dimension is one of the loads that are spread.
type dimension uint8

const (
	ofCPU    dimension = iota // of the ranges that a node leads
	ofReads                   // bytes, of the ranges that it leads
	ofWrites                  // bytes, of the ranges that it holds
)

func (d dimension) of(l load) int64 {
	switch d {
	case ofCPU:
		return l.cpu
	case ofReads:
		return l.readBytes
	default:
		return l.applied
	}
}

// words says how much of the load something is.
func (d dimension) words(v int64) string {
	switch d {
	case ofCPU:
		return cpuWords(v) + " of processor time a second"
	case ofReads:
		return fmt.Sprintf("%s read a second", size(v))
	default:
		return fmt.Sprintf("%s written a second", size(v))
	}
}

// gauge says when a node bears too much of a load.
type gauge uint8

const (
	spreadCPU gauge = iota // more than its part
	hotCPU                 // far more
	hotReads
	hotWrites
	gauges
)

// limits is what a gauge calls too much: more than percent above the mean and than
// floor above it, for so long without a break. The facts behind a sum may each be a
// quarter off, since smaller changes are not told; a sum of several is off by less.
type limits struct {
	of       dimension
	percent  int64
	floor    int64
	patience time.Duration
}

func (g gauge) limits() limits {
	switch g {
	case spreadCPU:
		return limits{ofCPU, 20, 50_000, 2 * time.Second}
	case hotCPU:
		return limits{ofCPU, 50, 200_000, 5 * time.Second}
	case hotReads:
		return limits{ofReads, 50, 8 << 20, 5 * time.Second}
	default:
		return limits{ofWrites, 50, 4 << 20, 5 * time.Second}
	}
}

// overload is since when a node has been above a gauge's limit.
type overload struct {
	is    bool
	since time.Duration
}

// field is the nodes among which a load is spread, with their loads' mean.
type field struct {
	limits
	nodes []*node
	mean  int64
	over  []*node // above the limit for long enough, the most loaded first
	wait  bool    // some node is above it, but not for long enough
}

// gaugeNodes compares nodes by a gauge. A node that is at its limit because of what
// operators will take away does not count as above it.
func (p *pass) gaugeNodes(g gauge, nodes []*node) *field {
	f := &field{limits: g.limits(), nodes: nodes}
	var sum int64
	for _, n := range nodes {
		sum += f.load(n)
	}
	f.mean = sum / int64(max(1, len(nodes)))
	for _, n := range nodes {
		o := &n.sched.over[g]
		switch is := f.load(n) > f.limit(); {
		case !is:
			o.is = false
		case !o.is:
			o.is, o.since = true, p.c.now
			f.wait = true
		case p.c.now-o.since >= f.patience:
			f.over = append(f.over, n)
		default:
			f.wait = true
		}
	}
	slices.SortStableFunc(f.over, func(a, b *node) int { return cmp.Compare(f.load(b), f.load(a)) })
	return f
}

func (f *field) load(n *node) int64 { return f.of.of(n.charge()) }

func (f *field) limit() int64 { return f.mean + max(f.mean*f.percent/100, f.floor) }

// lightens says whether a load that goes from one node to another is worth it: the
// pair is farther apart than a node may be from the mean, the load is not so little
// that very many would have to go, and leaves the pair nearer to one another, by a
// margin for what is not known exactly. The sum of the squares falls by twice the
// result, which is 0 if it is not worth it.
func (f *field) lightens(what int64, from, to *node) (gain int64) {
	gap := f.load(from) - f.load(to)
	if what <= 0 || gap <= f.limit()-f.mean || what < gap/maxPieces || what > gap*3/4 {
		return 0
	}
	return what * (gap - what)
}

// maxPieces bounds into how many moves the difference between two nodes is cut.
const maxPieces = 64

// evenLoads plans transfers that even out the processor time that nodes spend on the
// ranges that they lead. Counts come first: a transfer that would bring a count out
// of its bounds is made only together with one that brings it back. So the two never
// undo each other: what evenCounts lowers is not raised here, and without raising it
// each transfer lowers the sum of the squares of the loads.
func evenLoads(p *pass) verdict {
	if len(p.leaders) < 2 {
		return rested
	}
	p.count()
	f := p.gaugeNodes(spreadCPU, p.leaders)
	return p.lighten(f, kindLeaders)
}

// lighten plans transfers off the nodes of a field that bear too much.
func (p *pass) lighten(f *field, k kind) verdict {
	planned := false
	for _, from := range f.over {
		for f.load(from) > f.limit() {
			if p.left.transfers < 2 || len(p.ops)+2 > maxPlans {
				return acted
			}
			t := p.lightest(f, from)
			if t.r == nil {
				break
			}
			planned = true
			p.carry(f, k, t)
		}
	}
	switch {
	case planned:
		return acted
	case len(f.over) > 0:
		return blocked
	case f.wait:
		return watching
	default:
		return rested
	}
}

// trade is the transfer of a range, and perhaps of another one the other way.
type trade struct {
	r, back  *rangeState
	from, to *node
	gain     int64
}

func (p *pass) carry(f *field, k kind, t trade) {
	reason := fmt.Sprintf("%v bears %s, %v %s; %s of it with this range", t.from.id,
		f.of.words(f.load(t.from)), t.to.id, f.of.words(f.load(t.to)),
		f.of.words(f.of.of(t.r.load)))
	p.transfer(newTransfer(t.r, k, t.to.id, reason))
	p.giveBack(k, t)
}

// giveBack plans the transfer that a trade needs in exchange.
func (p *pass) giveBack(k kind, t trade) {
	if t.back != nil {
		p.transfer(newTransfer(t.back, k, t.from.id, fmt.Sprintf(
			"in exchange for %v, so that %v and %v lead as many ranges as before",
			t.r.id(), t.from.id, t.to.id)))
	}
}

// lightest finds the transfer off a node that evens out the load most.
func (p *pass) lightest(f *field, from *node) (best trade) {
	looks := 0
	consider := func(r *rangeState) {
		if !p.movable(r) || p.warming(r) || r.id() == systemRange {
			return
		}
		for _, replica := range r.desc.GetReplicas() {
			to := p.c.nodes[ids.NodeID(replica.GetNodeId())]
			gain := f.lightens(f.of.of(r.load), from, to)
			if gain <= best.gain || !p.c.canLead(r, to) || r.rank(to) > r.rank(from) ||
				!p.bearable(f, r, to) {
				continue
			}
			t := trade{r: r, from: from, to: to, gain: gain}
			if !p.keepsCounts(from, to) && !p.findBack(f, &t) {
				continue
			}
			if t.gain > best.gain {
				best = t
			}
		}
	}
	from.sched.warm.descend(maxLoad, func(w warmth) bool {
		looks++
		consider(p.c.dir.byID[w.id])
		return looks < warmLooks
	})
	if best.r == nil { // nothing that is warm: then many that are hardly so
		p.look(&from.leads, warmLooks, func(r *rangeState) bool { consider(r); return false })
	}
	return best
}

// warmLooks bounds the ranges that are looked at for one transfer.
const warmLooks = 256

// warming says whether the load of r is still that of its former leader. It stays
// where it is until that is known: this is its cool-down.
func (p *pass) warming(r *rangeState) bool {
	_, settling := p.c.sched.settling[r.id()]
	return settling
}

// keepsCounts says whether a transfer does not raise the sum of the squares of what
// counts of leaders are out of their bounds. Every transfer of evenCounts lowers that
// sum, also where no count can be within its bounds, because a rule wants leaders on
// some nodes only; so no two transfers undo each other.
func (p *pass) keepsCounts(from, to *node) bool {
	slack := slackOf(p.mean)
	out := func(n *node, change int) float64 {
		d := float64(n.leaders()+change) - p.mean
		excess := max(0, max(d, -d)-slack)
		return excess * excess
	}
	return out(from, -1)+out(to, +1) <= out(from, 0)+out(to, 0)
}

// findBack completes a trade by the coldest of some ranges that can go the other way
// and leave it worth while. Two hot ones are not traded: what is known of them is not
// exact enough.
func (p *pass) findBack(f *field, t *trade) bool {
	least := int64(0)
	p.look(&t.to.leads, backLooks, func(r *rangeState) (enough bool) {
		l := f.of.of(r.load)
		if t.back != nil && l >= least || l > f.of.of(t.r.load)/2 || !p.movable(r) ||
			!p.c.canLead(r, t.from) || r.rank(t.from) > r.rank(t.to) || r.id() == systemRange {
			return false
		}
		if gain := f.lightens(f.of.of(t.r.load)-l, t.from, t.to); gain > 0 {
			t.back, t.gain, least = r, gain, l
		}
		return t.back != nil && least == 0
	})
	return t.back != nil
}

// backLooks bounds the ranges that are looked at for one that goes the other way.
const backLooks = 128

// bearable says whether a node that takes a range over because of another load can
// bear its processor time: that is never pushed above its own limit.
func (p *pass) bearable(f *field, r *rangeState, to *node) bool {
	if f.of == ofCPU {
		return true
	}
	var sum int64
	for _, n := range p.leaders {
		sum += n.charge().cpu
	}
	cpu := gaugeLimit(spreadCPU, sum/int64(max(1, len(p.leaders))))
	return to.charge().cpu+r.load.cpu <= cpu
}

func gaugeLimit(g gauge, mean int64) int64 {
	return (&field{limits: g.limits(), mean: mean}).limit()
}
