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
	last := ""
	c.dir.byStart.Scan(func(at string, r *rangeState) bool {
		if at < last {
			t.Fatalf("%v overlaps its left neighbour", r.id())
		}
		if at == last && seams+1 > 0 && last != "" {
			seams++
		}
		last = string(r.desc.GetEnd())
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
	for i := range unwell {
		if unwell[i] != c.unwell[i].Len() || c.attention[i].Len() > unwell[i] {
			t.Fatalf("need %d: %d listed, %d awaiting, should be %d", i, c.unwell[i].Len(),
				c.attention[i].Len(), unwell[i])
		}
	}
	for id, n := range c.nodes {
		if n.holds.Len() != holds[id] || n.leads.Len() != leads[id] {
			t.Fatalf("%v holds %d leads %d, should be %d and %d", id, n.holds.Len(), n.leads.Len(),
				holds[id], leads[id])
		}
	}
}

func voter(n, id uint64) *metapb.Replica { return &metapb.Replica{NodeId: n, ReplicaId: id} }

func learner(n, id uint64) *metapb.Replica {
	return &metapb.Replica{NodeId: n, ReplicaId: id, Role: roleLearner}
}
