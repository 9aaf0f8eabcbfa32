package placement

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// verify counts everything again, slowly, and compares it with what the
// cluster kept by change.
func verify(t testing.TB, c *cluster) {
	t.Helper()
	holds, leads := make(map[ids.NodeID]int), make(map[ids.NodeID]int)
	var tolerates [maxTolerates + 1]int
	var unwell [needs]int
	under, leaderless, seams := 0, 0, 0
	for c.ruled != c.topology || c.sweep.going || c.sweep.behind() {
		c.sweepSome() // what it has not come to yet is not wrong
	}
	last := ""
	c.dir.byStart.Scan(func(at string, r *rangeState) bool {
		if at < last {
			t.Fatalf("%v overlaps its left neighbour", r.id())
		}
		if at == last && seams+1 > 0 && last != "" {
			seams++
		}
		last = string(r.desc.GetEnd())
		if r.rule.Rule != c.ruleSet.Of(r.desc.GetStart()) {
			t.Fatalf("%v: under rule %s", r.id(), r.rule.Name)
		}
		if c.dir.byID[r.id()] != r {
			t.Fatalf("%v in order but not by id", r.id())
		}
		for _, p := range r.desc.GetReplicas() {
			holds[ids.NodeID(p.GetNodeId())]++
			if !c.nodes[ids.NodeID(p.GetNodeId())].holds.Contains(r.id()) {
				t.Fatalf("n%d does not hold %v", p.GetNodeId(), r.id())
			}
		}
		if r.leader != 0 {
			leads[r.leader]++
		}
		h := c.assess(r)
		if h.counted = true; h != r.health {
			t.Fatalf("%v: health %+v, should be %+v", r.id(), r.health, h)
		}
		if h.need != needNothing {
			unwell[h.need]++
		}
		if h.under {
			under++
		}
		if h.leaderless {
			leaderless++
		}
		tolerates[h.tolerates]++
		return true
	})
	if seams != c.dir.seams || len(c.dir.byID) != c.dir.byStart.Len() {
		t.Fatalf("%d seams, should be %d; %d ranges by id, %d in order", c.dir.seams, seams,
			len(c.dir.byID), c.dir.byStart.Len())
	}
	if tolerates != c.tolerates || under != c.under.Len() || leaderless != c.leaderless.Len() {
		t.Fatalf("tolerates %v %v under %d %d leaderless %d %d", c.tolerates, tolerates,
			c.under.Len(), under, c.leaderless.Len(), leaderless)
	}
	verifyLists(t, c, unwell)
	verifyOperators(t, c)
	for id, n := range c.nodes {
		if n.holds.Len() != holds[id] || n.leads.Len() != leads[id] {
			t.Fatalf("%v holds %d leads %d, should be %d and %d", id, n.holds.Len(), n.leads.Len(),
				holds[id], leads[id])
		}
	}
}

// verifyLists looks at the lists of ranges that need something.
func verifyLists(t testing.TB, c *cluster, unwell [needs]int) {
	t.Helper()
	var listed [needs]int
	c.unwell.Scan(func(w wanting) bool {
		listed[w.need]++
		if r := c.dir.byID[w.id]; r == nil || r.wanting() != w {
			t.Fatalf("%+v is listed, the range says otherwise", w)
		}
		return true
	})
	c.attention.Scan(func(w wanting) bool {
		if _, ok := c.unwell.Get(w); !ok {
			t.Fatalf("%+v awaits a check, but needs nothing", w)
		}
		return true
	})
	if listed != unwell {
		t.Fatalf("listed by need %v, should be %v", listed, unwell)
	}
}

// verifyOperators looks for each operator at the ranges that it holds and the nodes
// that lead them.
func verifyOperators(t testing.TB, c *cluster) {
	t.Helper()
	at := make(map[ids.NodeID]map[uint64]bool)
	holders := 0
	c.ops.Scan(func(id uint64, op *operator) bool {
		for _, r := range [...]ids.RangeID{op.rng, op.other} {
			if r == 0 {
				continue
			}
			holders++
			if c.holder[r] != op {
				t.Fatalf("%v is not held by %v", r, op)
			}
			if s := c.dir.byID[r]; s != nil && s.leader != 0 {
				if at[s.leader] == nil {
					at[s.leader] = make(map[uint64]bool)
				}
				at[s.leader][id] = true
			}
		}
		return true
	})
	if len(c.holder) != holders {
		t.Fatalf("%d ranges are held, should be %d", len(c.holder), holders)
	}
	for id, n := range c.nodes {
		n.ops.Scan(func(op uint64, _ *operator) bool {
			if !at[id][op] {
				t.Fatalf("operator %d is put to %v, which leads none of its ranges", op, id)
			}
			return true
		})
		if n.ops.Len() != len(at[id]) {
			t.Fatalf("%d operators are put to %v, should be %d", n.ops.Len(), id, len(at[id]))
		}
	}
}

func voter(n, id uint64) *metapb.Replica { return &metapb.Replica{NodeId: n, ReplicaId: id} }

func learner(n, id uint64) *metapb.Replica {
	return &metapb.Replica{NodeId: n, ReplicaId: id, Role: roleLearner}
}
