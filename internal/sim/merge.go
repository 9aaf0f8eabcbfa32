package sim

import (
	"bytes"
	"time"

	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// mergeOne merges two neighbours by orders of its own, past placement: it has one
// node lead both, orders the merge there, and breaks something meanwhile.
func (s *Sim) mergeOne() {
	list := s.checker.tiles.list
	if len(list) < 3 {
		return
	}
	at := 1 + s.nemesisRand.IntN(len(list)-2) // not the system range
	left, right := list[at], list[at+1]
	n := s.leads(left.Start)
	if n == nil || n.paused {
		return
	}
	if !n.table.Leads(rangeOf(right)) {
		s.bring(n, right)
		s.loop.after(between(s.nemesisRand, 5*time.Millisecond, 500*time.Millisecond), func() {
			s.disturb(n)
			s.orderMerge(n, left.Start, right.Start)
		})
		return
	}
	s.disturb(n)
	s.orderMerge(n, left.Start, right.Start)
}

// leads returns the node that leads the range of a key and serves.
func (s *Sim) leads(key []byte) *node {
	for _, n := range s.machines {
		if r, _, ok := pick(n, key); ok && n.table.Leads(r) {
			return n
		}
	}
	return nil
}

// bring orders the leader of a range to let n lead it.
func (s *Sim) bring(n *node, d *metapb.RangeDescriptor) {
	leader := s.leads(d.Start)
	if leader == nil {
		return
	}
	for _, r := range d.Replicas {
		if s.nodeOf(r.NodeId) == n {
			o := &metapb.Order{
				RangeId: d.RangeId, Kind: metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER,
				NodeId: r.NodeId, ReplicaId: r.ReplicaId, Reason: "nemesis",
			}
			leader.run(func() { s.order(leader, o) })
		}
	}
}

// orderMerge orders a node to merge the ranges that begin at two keys.
func (s *Sim) orderMerge(n *node, first, second []byte) {
	if s.quiet || !n.alive || n.table == nil {
		return
	}
	left, _, ok := n.table.Route(first)
	right, _, also := n.table.Route(second)
	if !ok || !also || !bytes.Equal(left.End, right.Start) {
		return
	}
	o := &metapb.Order{
		RangeId: left.RangeId, Generation: left.Generation,
		Kind:         metapb.OrderKind_ORDER_KIND_MERGE,
		OtherRangeId: right.RangeId, OtherGeneration: right.Generation, Reason: "nemesis",
	}
	n.run(func() { s.order(n, o) })
}

// ambush breaks something, perhaps, at the most delicate moment: a range has just
// frozen, and is about to be absorbed. Now and then one node misses that for so long
// that it gets the merged range by a snapshot only.
func (s *Sim) ambush(d *metapb.RangeDescriptor) {
	if s.quiet || !chance(s.nemesisRand, s.options.Placement.Ambushes) {
		return
	}
	n := s.nodeOf(d.Replicas[s.nemesisRand.IntN(len(d.Replicas))].NodeId)
	soon := between(s.nemesisRand, 0, 40*time.Millisecond)
	if n.alive && chance(s.nemesisRand, 0.3) {
		n.doom = 1 + s.nemesisRand.IntN(10)
		return
	}
	s.loop.after(soon, func() {
		if !n.alive || n.isolated || !s.mayBreakOneMore() {
			return
		}
		s.count("ambushes")
		s.loop.tracef("ambush %s", n)
		n.isolated = true
		s.cut(n, true)
		s.loop.after(between(s.nemesisRand, time.Second, 12*time.Second), func() {
			n.isolated = false
			s.cut(n, false)
		})
	})
}

// disturb breaks something, perhaps, while a merge is under way that n leads.
func (s *Sim) disturb(n *node) {
	if s.quiet {
		return
	}
	m := s.machine()
	if chance(s.nemesisRand, 0.5) {
		m = n
	}
	soon := between(s.nemesisRand, 0, 60*time.Millisecond)
	switch p := s.nemesisRand.IntN(10); {
	case p < 2 && m.alive && s.mayBreakOneMore():
		m.doom = 1 + s.nemesisRand.IntN(20) // between the writes of this merge, perhaps
	case p < 4:
		s.loop.after(soon, func() {
			if m.alive {
				s.strand(m)
			}
		})
	case p < 5:
		s.loop.after(soon, func() { s.orderOne(metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER) })
	case p < 6:
		s.loop.after(soon, s.splitOne)
	}
}
