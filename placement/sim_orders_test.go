package placement

import (
	"bytes"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// obey executes an order as the leader of a range does, or refuses it.
func (w *world) obey(n *simNode, o *metapb.Order) {
	r := w.ranges[ids.RangeID(o.GetRangeId())]
	if r == nil || r.leader != n.id || r.desc.GetGeneration() != o.GetGeneration() {
		w.refused++
		return
	}
	switch o.GetKind() {
	case metapb.OrderKind_ORDER_KIND_SPLIT:
		w.executed[o.GetKind()]++
		w.splitAt(r, w.newID(), o.GetSplitKey())
		return
	case metapb.OrderKind_ORDER_KIND_MERGE:
		w.merge(r, o)
		return
	}
	next := &metapb.RangeDescriptor{
		RangeId: r.desc.RangeId, Start: r.desc.Start, End: r.desc.End,
		Generation: r.desc.Generation + 1, NextReplicaId: r.desc.NextReplicaId,
		StickyUntil: r.desc.StickyUntil,
	}
	for _, p := range r.desc.GetReplicas() {
		next.Replicas = append(next.Replicas,
			&metapb.Replica{NodeId: p.NodeId, ReplicaId: p.ReplicaId, Role: p.Role})
	}
	target := replicaOn(next, ids.NodeID(o.GetNodeId()))
	known := target != nil && target.GetReplicaId() == o.GetReplicaId()
	ok := false
	switch o.GetKind() {
	case metapb.OrderKind_ORDER_KIND_ADD_LEARNER:
		if ok = target == nil; ok {
			id := next.NextReplicaId
			next.NextReplicaId++
			next.Replicas = append(next.Replicas,
				&metapb.Replica{NodeId: o.GetNodeId(), ReplicaId: id, Role: roleLearner})
			r.caught[id] = w.now + time.Duration(500+w.rng.IntN(2500))*time.Millisecond
		}
	case metapb.OrderKind_ORDER_KIND_PROMOTE:
		ok = known && target.Role == roleLearner && r.told[target.ReplicaId] && w.unvote(r, next, o)
		if ok {
			target.Role = roleVoter
		}
	case metapb.OrderKind_ORDER_KIND_DEMOTE:
		if ok = known && target.Role == roleVoter && r.leader != ids.NodeID(target.NodeId); ok {
			target.Role = roleLearner
		}
	case metapb.OrderKind_ORDER_KIND_REMOVE_LEARNER:
		if ok = known && target.Role == roleLearner; ok {
			next.Replicas = slices.DeleteFunc(next.Replicas,
				func(p *metapb.Replica) bool { return p == target })
		}
	case metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER:
		if ok = known && target.Role == roleVoter && w.isUp(target.NodeId); ok {
			r.leader, r.term = ids.NodeID(target.NodeId), r.term+1
			next.Generation--
		}
	}
	if !ok {
		w.refused++
		return
	}
	w.executed[o.GetKind()]++
	r.desc = next
	w.tell(r)
}

// unvote takes the vote that a promotion takes from another replica, if any.
func (w *world) unvote(r *simRange, next *metapb.RangeDescriptor, o *metapb.Order) bool {
	if o.GetDemoteReplicaId() == 0 {
		return true
	}
	for _, p := range next.GetReplicas() {
		if p.GetReplicaId() == o.GetDemoteReplicaId() && p.Role == roleVoter &&
			r.leader != ids.NodeID(p.NodeId) {
			p.Role = roleLearner
			w.swaps++
			return true
		}
	}
	return false
}

// merge has a range absorb its right neighbour, or refuses.
func (w *world) merge(left *simRange, o *metapb.Order) {
	right := w.ranges[ids.RangeID(o.GetOtherRangeId())]
	if right == nil || right.leader != left.leader || !aligned(left.desc, right.desc) ||
		right.desc.GetGeneration() != o.GetOtherGeneration() ||
		!bytes.Equal(left.desc.GetEnd(), right.desc.GetStart()) {
		w.refused++
		return
	}
	w.executed[o.GetKind()]++
	left.desc = &metapb.RangeDescriptor{RangeId: left.desc.RangeId, Start: left.desc.Start,
		End:           right.desc.End,
		Generation:    max(left.desc.Generation, right.desc.Generation) + 1,
		NextReplicaId: left.desc.NextReplicaId, Replicas: left.desc.Replicas,
		StickyUntil: left.desc.StickyUntil}
	left.bytes += right.bytes
	delete(w.ranges, ids.RangeID(right.desc.GetRangeId()))
	w.tell(left)
}

// newID returns a range id that nobody ever had.
func (w *world) newID() ids.RangeID {
	w.lastID++
	return w.lastID
}

// split cuts a range in the middle, as ranges do by themselves.
func (w *world) split(id, right ids.RangeID) {
	r := w.ranges[id]
	if r.leader == 0 {
		return
	}
	at := append(bytes.Clone(r.desc.GetStart()), 0x80)
	if bytes.Compare(at, r.desc.GetEnd()) < 0 {
		w.splitAt(r, right, at)
	}
}

func (w *world) splitAt(r *simRange, right ids.RangeID, at []byte) {
	half := func(id ids.RangeID, start, end []byte) *metapb.RangeDescriptor {
		return &metapb.RangeDescriptor{RangeId: uint64(id), Start: start, End: end,
			Generation: r.desc.Generation + 1, NextReplicaId: r.desc.NextReplicaId,
			Replicas: r.desc.GetReplicas()}
	}
	n := &simRange{desc: half(right, at, r.desc.GetEnd()), leader: r.leader, term: 1,
		bytes: r.bytes / 2, cpu: r.cpu / 2,
		caught: make(map[uint64]time.Duration), told: make(map[uint64]bool)}
	for replica, when := range r.caught {
		n.caught[replica] = when
	}
	r.bytes, r.cpu = r.bytes/2, r.cpu/2
	sticky := r.desc.StickyUntil
	r.desc = half(ids.RangeID(r.desc.GetRangeId()), r.desc.GetStart(), at)
	r.desc.StickyUntil = sticky
	w.ranges[right] = n
	w.tell(r)
	w.tell(n)
}
