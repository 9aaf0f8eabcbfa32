package sim

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/ranges"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// The comparison of replicas, as package server has it in compare.go, with calls of
// this network. Nothing here damages data, so replicas that differ are a bug: of what
// they applied, or of the comparison, which would stop nodes that are right.

const (
	compareEvery = time.Second // per node: one range that was written to
	compareAfter = time.Second // for the others to apply and to read
)

// comparing is a comparison under way.
type comparing struct {
	n    *node
	c    ranges.Comparison
	held map[ids.NodeID]mvcc.Delta
}

// compare fetches what the others held, and judges.
func (n *node) compare(c ranges.Comparison) {
	x := &comparing{n: n, c: c, held: map[ids.NodeID]mvcc.Delta{n.id: c.Own.Data}}
	if c.Own.Data != c.Own.Recorded {
		n.sim.fail("%s reads %s in %v at %d, recorded is %s", n, ranges.SumWords(c.Own.Data),
			c.Range, c.Index, ranges.SumWords(c.Own.Recorded))
	}
	n.after(compareAfter, func() {
		for _, r := range c.Replicas {
			if m := n.sim.nodeOf(r.NodeId); m != nil && m != n {
				x.ask(m)
			}
		}
		n.after(compareAfter, x.judge)
	})
}

func (x *comparing) ask(m *node) {
	x.n.sim.net.call(x.n, m, func(reply func(func())) {
		if m.table == nil {
			return
		}
		theirs, known := m.table.Comparison(x.c.Range, x.c.Index)
		reply(func() {
			if known {
				x.held[m.id] = theirs.Own.Data
			}
		})
	})
}

func (x *comparing) judge() {
	s, j := x.n.sim, x.c.Judge(x.held)
	x.n.table.Judged(j)
	s.count("comparisons_" + j.Result.String())
	if j.Result != ranges.Different && j.Result != ranges.Undecided {
		return
	}
	for _, r := range x.c.Replicas {
		if d, ok := x.held[ids.NodeID(r.NodeId)]; ok {
			s.loop.tracef("n%d holds %s", r.NodeId, ranges.SumWords(d))
		}
	}
	s.fail("the replicas of %v differ at %d: %v, wrong are %v", x.c.Range, x.c.Index,
		j.Result, j.Wrong)
}
