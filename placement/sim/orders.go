package sim

import (
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// obey carries out an order as the leader of a range does, or refuses it.
func (w *World) obey(n *node, o *metapb.Order) {
	w.tally.orders++
	if err := w.execute(n, o); err != nil {
		w.tally.refused++
		return
	}
	w.tally.executed[o.GetKind()]++
}

func (w *World) execute(n *node, o *metapb.Order) error {
	r := w.ranges[ids.RangeID(o.GetRangeId())]
	switch {
	case r == nil || r.leader != n.id:
		return fmt.Errorf("%v does not lead r%d", n.id, o.GetRangeId())
	case r.desc.GetGeneration() != o.GetGeneration():
		return fmt.Errorf("%v is past generation %d", r.id, o.GetGeneration())
	case r.change != nil || r.desc.Merge != nil:
		return fmt.Errorf("%v is busy", r.id)
	case w.survives(r.desc, w.up) < 0:
		return fmt.Errorf("%v has no majority", r.id)
	}
	switch o.GetKind() {
	case metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER:
		return w.transfer(r, o)
	case metapb.OrderKind_ORDER_KIND_SPLIT:
		key := o.GetSplitKey()
		if len(key) == 0 {
			key = nil
		}
		return w.split(r, key)
	case metapb.OrderKind_ORDER_KIND_MERGE:
		return w.merge(r, o)
	default:
		return w.reconfigure(r, o)
	}
}

func (w *World) transfer(r *simRange, o *metapb.Order) error {
	target := replicaOn(r.desc, ids.NodeID(o.GetNodeId()))
	to := w.node(ids.NodeID(o.GetNodeId()))
	switch {
	case target == nil || target.GetRole() != roleVoter:
		return fmt.Errorf("n%d has no voter of %v", o.GetNodeId(), r.id)
	case to.id == r.leader:
		return nil
	case !w.current(to):
		return fmt.Errorf("%v lags", to.id)
	}
	w.lead(r, to.id)
	return nil
}

// current says whether a node's voters have the whole log.
func (w *World) current(n *node) bool { return n.up && w.now-n.began >= currentAfter }

// reconfigure changes the copies of a range.
func (w *World) reconfigure(r *simRange, o *metapb.Order) error {
	d := r.next()
	target := replicaOn(d, ids.NodeID(o.GetNodeId()))
	known := target != nil && target.GetReplicaId() == o.GetReplicaId()
	switch o.GetKind() {
	case metapb.OrderKind_ORDER_KIND_ADD_LEARNER:
		if target != nil || w.node(ids.NodeID(o.GetNodeId())) == nil {
			return fmt.Errorf("n%d cannot get a copy of %v", o.GetNodeId(), r.id)
		}
		id := d.NextReplicaId
		d.NextReplicaId++
		d.Replicas = append(d.Replicas,
			&metapb.Replica{NodeId: o.GetNodeId(), ReplicaId: id, Role: roleLearner})
		w.become(r, d)
		w.send(r, id, ids.NodeID(o.GetNodeId()))
		w.comes(r, ids.NodeID(o.GetNodeId()))
		return nil
	case metapb.OrderKind_ORDER_KIND_REMOVE_LEARNER:
		if !known || target.Role != roleLearner {
			return fmt.Errorf("no such learner of %v", r.id)
		}
		d.Replicas = slices.DeleteFunc(d.Replicas,
			func(p *metapb.Replica) bool { return p == target })
		delete(r.caught, o.GetReplicaId())
		w.become(r, d)
		w.goes(r, ids.NodeID(o.GetNodeId()))
		return nil
	case metapb.OrderKind_ORDER_KIND_DEMOTE:
		if !known || target.Role != roleVoter || ids.NodeID(target.NodeId) == r.leader {
			return fmt.Errorf("the copy of %v on n%d cannot stop to vote", r.id, o.GetNodeId())
		}
		target.Role = roleDemoting
	case metapb.OrderKind_ORDER_KIND_PROMOTE:
		if !known || target.Role != roleLearner || !r.caught[target.ReplicaId] {
			return fmt.Errorf("the copy of %v on n%d cannot vote", r.id, o.GetNodeId())
		}
		target.Role = roleIncoming
		if err := r.swap(d, o.GetDemoteReplicaId()); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown order %v", o.GetKind())
	}
	if !w.quorumCurrent(d) {
		return fmt.Errorf("no majority of %v would have the log", r.id)
	}
	w.become(r, d)
	return nil
}

// swap lets a voter become a learner in the same joint change.
func (r *simRange) swap(d *metapb.RangeDescriptor, demoted uint64) error {
	if demoted == 0 {
		return nil
	}
	i := slices.IndexFunc(d.Replicas,
		func(p *metapb.Replica) bool { return p.ReplicaId == demoted })
	if i < 0 || d.Replicas[i].Role != roleVoter || ids.NodeID(d.Replicas[i].NodeId) == r.leader {
		return fmt.Errorf("replica %d of %v cannot stop to vote", demoted, r.id)
	}
	d.Replicas[i].Role = roleDemoting
	return nil
}

func (w *World) quorumCurrent(d *metapb.RangeDescriptor) bool {
	_, after := halves(d)
	ready := 0
	for _, id := range after {
		if w.current(w.node(id)) {
			ready++
		}
	}
	return ready > len(after)/2
}

// transfer of bytes: a snapshot on its way to a learner.
type transfer struct {
	r       *simRange
	replica uint64
	from    ids.NodeID // 0: not begun
	to      *node
	left    float64
}

// leastSnapshot is what even an empty range costs.
const leastSnapshot = 64 * kib

func (w *World) send(r *simRange, replica uint64, to ids.NodeID) {
	w.transfers = append(w.transfers, &transfer{r: r, replica: replica, to: w.node(to)})
}

// fork gives the learners of a range that was split snapshots of the right half,
// and begins those of the left one anew.
func (w *World) fork(left, right *simRange) {
	for _, t := range slices.Clone(w.transfers) {
		if t.r == left {
			t.from = 0
			w.send(right, t.replica, t.to.id)
		}
	}
}

// wanted says whether the learner still waits for its snapshot.
func (t *transfer) wanted(w *World) bool {
	p := replicaOn(t.r.desc, t.to.id)
	return w.ranges[t.r.id] == t.r && p != nil && p.GetReplicaId() == t.replica &&
		!t.r.caught[t.replica]
}

// copyBytes lets snapshots go on for one tick: each gets the lesser of its
// sender's and its receiver's even share.
func (w *World) copyBytes() {
	if len(w.transfers) == 0 {
		return
	}
	w.transfers = slices.DeleteFunc(w.transfers, func(t *transfer) bool { return !t.wanted(w) })
	for _, n := range w.nodes {
		n.sends, n.receives = 0, 0
	}
	for _, t := range w.transfers {
		switch {
		case !t.to.up || t.r.leader == 0:
			t.from = 0
			continue
		case t.from != t.r.leader: // its sender is lost, or it has not begun
			t.from = t.r.leader
			t.left = float64(max(t.r.bytes, leastSnapshot))
		}
		w.node(t.from).sends++
		t.to.receives++
	}
	for _, t := range w.transfers {
		if t.from == 0 {
			continue
		}
		from := w.node(t.from)
		rate := min(float64(from.spec.Out)/float64(from.sends),
			float64(t.to.spec.In)/float64(t.to.receives))
		part := min(t.left, rate*tick.Seconds())
		t.left -= part
		t.to.received += int64(part)
		w.tally.bytes += int64(part)
		w.tally.receiving = max(w.tally.receiving, t.to.receives)
		if t.left <= 0 {
			t.r.caught[t.replica] = true
		}
	}
}
