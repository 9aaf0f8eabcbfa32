package ranges

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// countedRanges are led ranges on n sets of three nodes.
func countedRanges(ranges, sets int) *Table {
	t := &Table{cfg: Config{Node: 1}}
	for i := range ranges {
		second := uint64(2 + 2*(i%sets))
		s := &state{
			desc: &metapb.RangeDescriptor{Replicas: []*metapb.Replica{
				{NodeId: 1, ReplicaId: 1}, {NodeId: second, ReplicaId: 2},
				{NodeId: second + 1, ReplicaId: 3},
			}},
			conf: &metapb.ConfState{Voters: []uint64{1, 2, 3}},
			lead: leadership{mine: true, ready: true},
		}
		t.census.move(nil, s)
	}
	return t
}

func TestCountingLeasesCostsNodesAndNotRanges(t *testing.T) {
	allocs := func(ranges int) (float64, int) {
		table, asked := countedRanges(ranges, 1), 0
		got := func() {
			asked = 0
			held, led := table.Leases(func(n ids.NodeID) bool { asked++; return n == 3 })
			if held != ranges || led != ranges {
				t.Fatalf("%d of %d", held, led)
			}
		}
		return testing.AllocsPerRun(10, got), asked
	}
	one, askedOne := allocs(1)
	many, askedMany := allocs(5_000)
	if one != many || askedOne != 2 || askedMany != 2 {
		t.Fatalf("5,000 ranges cost %v allocations and %d questions, one costs %v and %d",
			many, askedMany, one, askedOne)
	}
}

func TestLeasesAreHeldWhereAMajorityOfEachHalfSupports(t *testing.T) {
	t.Parallel()
	table := countedRanges(10, 2) // five on nodes 1, 2, 3 and five on 1, 4, 5
	for _, c := range []struct {
		by   []ids.NodeID
		held int
	}{{nil, 0}, {[]ids.NodeID{2}, 5}, {[]ids.NodeID{2, 3}, 5}, {[]ids.NodeID{3, 4}, 10}} {
		held, led := table.Leases(func(n ids.NodeID) bool {
			for _, by := range c.by {
				if by == n {
					return true
				}
			}
			return false
		})
		if held != c.held || led != 10 {
			t.Errorf("supported by %v: %d of %d, want %d", c.by, held, led, c.held)
		}
	}
	joint := &state{
		desc: &metapb.RangeDescriptor{Replicas: []*metapb.Replica{
			{NodeId: 1, ReplicaId: 1}, {NodeId: 2, ReplicaId: 2}, {NodeId: 3, ReplicaId: 3},
		}},
		conf: &metapb.ConfState{Voters: []uint64{1, 2}, VotersOutgoing: []uint64{1, 3}},
	}
	for by, want := range map[ids.NodeID]bool{1: false, 2: false, 3: false} {
		got := backed(voterNodes(joint), func(n ids.NodeID) bool { return n == by || n == 1 })
		if got != want {
			t.Errorf("a joint configuration supported by %v: %v", by, got)
		}
	}
	if !backed(voterNodes(joint), func(ids.NodeID) bool { return true }) {
		t.Error("a joint configuration that all support")
	}
}

// counted checks the counts kept by change against those of the replicas themselves.
func (n *node) counted() {
	n.w.t.Helper()
	_, walked := n.table.WalkLeases()
	all, led := n.table.Leases(func(ids.NodeID) bool { return true })
	if led != walked || all != walked {
		n.w.t.Fatalf("%v counts %d ranges led, %d supported; it leads %d", n.id, led, all, walked)
	}
	for set, count := range n.table.census.sets {
		for _, r := range n.table.all() {
			if s := r.state.Load(); s.leads() && voterNodes(s) == set {
				count--
			}
		}
		if count != 0 {
			n.w.t.Fatalf("%v is off by %d in the ranges on %q", n.id, count, set)
		}
	}
}

func TestLeaseCountsFollowLeadersSplitsMergesAndMembers(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	everywhere := func(when string) {
		t.Helper()
		w.settle()
		led := 0
		for _, n := range w.nodes[1:] {
			n.counted()
			_, here := n.table.Leases(func(ids.NodeID) bool { return false })
			led += here
		}
		if want := len(w.leader(2).table.all()); led != want {
			t.Fatalf("%s: %d ranges are led, there are %d", when, led, want)
		}
	}
	everywhere("at first")
	_, right := w.split(2, "m")
	id := ids.RangeID(right.GetRangeId())
	everywhere("after a split")
	w.transfer(id, 2)
	everywhere("after a transfer")
	if _, led := w.nodes[2].table.Leases(func(ids.NodeID) bool { return true }); led != 1 {
		t.Fatalf("the new leader counts %d", led)
	}
	w.transfer(id, w.leader(2).id)
	w.merge(2, id)
	everywhere("after a merge")
	if _, led := w.leader(2).table.Leases(func(ids.NodeID) bool { return true }); led == 0 {
		t.Fatal("nothing is led after the merge")
	}
}
