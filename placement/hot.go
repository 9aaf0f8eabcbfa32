package placement

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// What a node bears far too much of for several reports is lessened here, where the
// other schedulers cannot: by transfers for the bytes that are read, then, when no
// voter of a hot range is on a cool node, by a copy that moves to one. A range that
// is itself too hot for any node is split by its leader, not here.
const (
	// coolDown is how long after a copy left a node because of its load no further
	// one does: the load has to be seen without it first.
	coolDown = 10 * time.Second
	// coolTried bounds the nodes, the coolest first, that are tried for a hot copy,
	// and hotLooks the ranges of a hot node, the hottest first.
	coolTried = 16
	hotLooks  = 64
)

// coolNodes plans what takes load off nodes that are hot.
func coolNodes(p *pass) verdict {
	worst := rested
	if len(p.leaders) >= 2 {
		p.count()
		reads := p.gaugeNodes(hotReads, p.leaders)
		worst = max(p.lighten(reads, kindHot), p.coolByCopy(reads, p.leaders))
		cpu := p.gaugeNodes(hotCPU, p.leaders)
		worst = max(worst, p.coolByCopy(cpu, p.leaders))
	}
	var holders []*node
	for _, id := range p.c.order {
		if n := p.c.nodes[id]; n.desc != nil && n.full && n.phase >= phaseLive && !n.sheds() {
			holders = append(holders, n)
		}
	}
	if len(holders) >= 2 {
		writes := p.gaugeNodes(hotWrites, holders)
		worst = max(worst, p.coolByCopy(writes, holders))
	}
	return worst
}

// coolByCopy plans at most one move of a copy for each hot node of a field.
func (p *pass) coolByCopy(f *field, nodes []*node) verdict {
	v := rested
	if f.wait {
		v = watching
	}
	cool := slices.Clone(nodes)
	for _, from := range f.over {
		switch {
		case f.load(from) <= f.limit(): // by what was planned meanwhile
			continue
		case from.sched.coolUntil > p.c.now:
			v = max(v, watching)
			continue
		case p.full(p.left.moves):
			return acted
		}
		slices.SortStableFunc(cool, func(a, b *node) int {
			return cmp.Compare(f.load(a), f.load(b))
		})
		op, t := p.coolest(f, from, cool)
		if op == nil {
			v = max(v, blocked)
			continue
		}
		from.sched.coolUntil = p.c.now + coolDown
		p.move(op)
		p.giveBack(kindHot, t)
		v = acted
	}
	return v
}

// coolest returns the move of a copy that takes the hottest range, or a part of its
// writes, off a node, and as a trade what goes the other way.
func (p *pass) coolest(f *field, from *node, cool []*node) (found *operator, t trade) {
	looks := 0
	set := &from.sched.warm
	if f.of == ofWrites {
		set = &from.sched.wet
	}
	set.descend(maxLoad, func(w warmth) bool {
		r := p.c.dir.byID[w.id]
		if p.copyable(r) && !p.warming(r) && r.id() != systemRange {
			found, t = p.coolTo(f, r, from, cool)
		}
		looks++
		return found == nil && looks < hotLooks
	})
	return found, t
}

// maxLoad is above every load.
const maxLoad = int64(1) << 62

// coolTo returns the operator that moves a copy of r to one of the coolest nodes,
// nil if none can take it. For writes the copy leaves the hot node; else another
// voter does and the new one leads, for it is the lead that costs; if that would bring
// a count of leaders out of its bounds, another range is led the other way.
func (p *pass) coolTo(f *field, r *rangeState, from *node, cool []*node) (*operator, trade) {
	what := f.of.of(r.load)
	for _, to := range cool[:min(len(cool), coolTried)] {
		if f.lightens(what, from, to) == 0 || !to.mayHold() || !p.c.mayTake(to, r.load.bytes) {
			continue
		}
		var steps []step
		t := trade{r: r, from: from, to: to}
		if f.of == ofWrites {
			if p.c.mayReplace(r, from, to) {
				steps = p.c.moveSteps(r, from.id, to.id)
			}
		} else if to.mayLead() && r.rank(to) <= r.rank(from) && p.bearable(f, r, to) &&
			(p.keepsCounts(from, to) || p.left.transfers > 0 && p.findBack(f, &t)) {
			steps = p.newLeader(f, r, from, to)
		}
		if steps != nil {
			return newOperator(r, kindHot, fmt.Sprintf(
				"%v bears %s, %v %s; %s of it with this range", from.id, f.of.words(f.load(from)),
				to.id, f.of.words(f.load(to)), f.of.words(what)), steps...), t
		}
	}
	return nil, trade{}
}

// newLeader are the steps by which a node gets a copy of r, in place of that follower
// which bears most, and leads it; nil if no follower can be replaced.
func (p *pass) newLeader(f *field, r *rangeState, from, to *node) []step {
	var out *node
	for _, o := range r.desc.GetReplicas() {
		n := p.c.nodes[ids.NodeID(o.GetNodeId())]
		if n == nil || n == from || !p.c.mayReplace(r, n, to) {
			continue
		}
		if out == nil || f.load(n) > f.load(out) {
			out = n
		}
	}
	if out == nil {
		return nil
	}
	return append(p.c.moveSteps(r, out.id, to.id), step{kind: transferLeader, node: to.id})
}
