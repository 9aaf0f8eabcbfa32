package ranges

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Short names of the roles.
const (
	roleVoter    = metapb.ReplicaRole_REPLICA_ROLE_VOTER
	roleLearner  = metapb.ReplicaRole_REPLICA_ROLE_LEARNER
	roleIncoming = metapb.ReplicaRole_REPLICA_ROLE_VOTER_INCOMING
	roleDemoting = metapb.ReplicaRole_REPLICA_ROLE_VOTER_DEMOTING
)

// Order carries out a step of placement, or refuses it: stale generation, not
// leader, another change in progress, lagging target (all typed). done is
// called once, on any goroutine. nil means: applied here, or, for a transfer of
// leadership, begun. ErrUnknownOutcome: look at the descriptor.
func (t *Table) Order(o *metapb.Order, done func(error)) {
	id := ids.RangeID(o.GetRangeId())
	if o.GetKind() == metapb.OrderKind_ORDER_KIND_SPLIT {
		key := o.GetSplitKey()
		if len(key) == 0 {
			key = nil
		}
		t.split(id, key, o.GetGeneration(), 0,
			func(_, _ *metapb.RangeDescriptor, err error) { done(err) })
		return
	}
	if o.GetKind() == metapb.OrderKind_ORDER_KIND_MERGE {
		t.merge(o, done)
		return
	}
	r := t.replica(id)
	if r == nil {
		done(fmt.Errorf("change %v: %w", id, ErrNoReplica))
		return
	}
	if err := r.enqueue(multiraft.TaskFunc(func() { r.order(o, done) }), 0); err != nil {
		done(fmt.Errorf("change %v: %w", id, err))
	}
}

// order runs on the shard.
func (r *Replica) order(o *metapb.Order, done func(error)) {
	op := fmt.Sprintf("%v of %v", o.GetKind(), r.id)
	if err := r.begin(op, o.GetGeneration()); err != nil {
		done(err)
		return
	}
	if o.GetKind() == metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER {
		r.change = nil
		done(r.transfer(o))
		return
	}
	next, change, err := r.plan(o)
	if err == nil && !r.quorumCaughtUp(next) {
		err = fmt.Errorf("%w: no majority of the voters afterwards has", ErrLagging)
	}
	if err == nil {
		err = r.proposeReplicas(next, change, done)
	}
	if err != nil {
		r.change = nil
		done(fmt.Errorf("%s: %w", op, err))
	}
}

// plan turns an order into a descriptor and a configuration change. Adding and
// removing learners moves no quorum and is a simple change; what does goes
// through an explicit joint configuration, which this leader, or a later one,
// leaves as soon as it is applied.
func (r *Replica) plan(o *metapb.Order) (*metapb.RangeDescriptor, *raftpb.ConfChangeV2, error) {
	d, id := r.descriptor(), ids.ReplicaID(o.GetReplicaId())
	switch o.GetKind() {
	case metapb.OrderKind_ORDER_KIND_ADD_LEARNER:
		next, id, err := withLearner(d, ids.NodeID(o.GetNodeId()))
		return next, single(raftpb.ConfChangeAddLearnerNode, id, false), err
	case metapb.OrderKind_ORDER_KIND_REMOVE_LEARNER:
		next, err := withoutLearner(d, id)
		return next, single(raftpb.ConfChangeRemoveNode, id, false), err
	case metapb.OrderKind_ORDER_KIND_PROMOTE:
		next, err := withRole(d, id, roleLearner, roleIncoming)
		if err == nil && !r.caughtUp(id) {
			err = ErrLagging
		}
		change := single(raftpb.ConfChangeAddNode, id, true)
		if out := ids.ReplicaID(o.GetDemoteReplicaId()); err == nil && out != 0 {
			next, err = r.swap(next, change, out)
		}
		return next, change, err
	case metapb.OrderKind_ORDER_KIND_DEMOTE:
		next, err := r.demote(d, id)
		return next, single(raftpb.ConfChangeAddLearnerNode, id, true), err
	}
	return nil, nil, fmt.Errorf("%w: unknown order", ErrRefused)
}

// demote gives up a voter other than this leader.
func (r *Replica) demote(
	d *metapb.RangeDescriptor, id ids.ReplicaID,
) (*metapb.RangeDescriptor, error) {
	if id == r.self {
		return nil, fmt.Errorf("%w: transfer the leadership first", ErrRefused)
	}
	return withRole(d, id, roleVoter, roleDemoting)
}

// swap adds to a promotion that a voter becomes a learner: one change, with one
// new generation. Both halves of the joint configuration have as many voters as
// before. A promotion that is followed by a demotion would count an even number
// in between, which tolerates no more failures than one fewer, and with the new
// copy in the zone of the old one half of the voters would be in one zone.
func (r *Replica) swap(
	promoted *metapb.RangeDescriptor, change *raftpb.ConfChangeV2, out ids.ReplicaID,
) (*metapb.RangeDescriptor, error) {
	next, err := r.demote(promoted, out)
	if err != nil {
		return nil, err
	}
	next.Generation = promoted.GetGeneration()
	change.Changes = append(change.Changes,
		single(raftpb.ConfChangeAddLearnerNode, out, true).Changes...)
	return next, nil
}

func single(kind raftpb.ConfChangeType, id ids.ReplicaID, joint bool) *raftpb.ConfChangeV2 {
	cc := &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{
		{Type: kind.Enum(), NodeId: new(uint64(id))},
	}}
	if joint {
		cc.Transition = raftpb.ConfChangeTransitionJointExplicit.Enum()
	}
	return cc
}

// proposeReplicas proposes a change whose context is an entry with the new
// descriptor. done is called when it ended; not if an error is returned.
func (r *Replica) proposeReplicas(
	next *metapb.RangeDescriptor, cc *raftpb.ConfChangeV2, done func(error),
) error {
	body, err := proto.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode descriptor: %w", err)
	}
	r.flush()
	h := r.headerFor(kindReplicas)
	cc.Context = encodeEntry(h, body)
	if err := r.group().ProposeConfChange(cc); err != nil {
		return errors.Join(ErrDropped, err)
	}
	r.pending.push(&proposal{sequence: h.sequence, finish: func(v verdict) {
		r.change = nil
		switch v {
		case applied:
			done(nil)
		case lost:
			done(ErrUnknownOutcome)
		default:
			done(ErrDropped)
		}
	}})
	return nil
}

// leaveJoint ends a joint configuration, whoever began it. Called when one was
// applied, when a leader becomes ready, and by maintenance until it is done.
func (r *Replica) leaveJoint() {
	s := r.state.Load()
	if !s.leads() || r.change != nil || !isJoint(s.desc) {
		return
	}
	if role := replicaOf(s.desc, r.self).GetRole(); role != roleVoter && role != roleIncoming {
		r.bequeath(s.desc)
		return
	}
	r.change = &change{op: "leave joint configuration"}
	err := r.proposeReplicas(leaveJoint(s.desc), &raftpb.ConfChangeV2{}, func(error) {})
	if err != nil {
		r.change = nil
		r.mark()
	}
}

// bequeath hands a joint configuration to one of those who vote after it, since
// this leader does not. If it left the configuration itself it would step down as
// soon as it applied that, and who votes afterwards may not know yet that it is
// committed: they still need votes of the ones before, which are refused to them if
// this log is longer by an entry. The group would have no leader ever again.
// Maintenance comes again.
func (r *Replica) bequeath(d *metapb.RangeDescriptor) {
	r.mark()
	for _, x := range d.GetReplicas() {
		id := ids.ReplicaID(x.GetReplicaId())
		if (x.GetRole() == roleVoter || x.GetRole() == roleIncoming) && r.caughtUp(id) {
			r.handTo(id)
			return
		}
	}
}

// caughtUp says whether a replica follows closely: it answers, takes appends as
// they come and lacks few. One that needs a snapshot, or is being sent one, does not.
func (r *Replica) caughtUp(id ids.ReplicaID) bool {
	applied := r.state.Load().applied
	for _, p := range r.group().Progress() {
		if p.Replica == id {
			return p.State == "replicate" && p.RecentActive && p.Match+maxLag >= applied
		}
	}
	return false
}

// quorumCaughtUp says whether a majority of the voters that a change leads to
// has the log. Otherwise the group could change into one that cannot go on
// without this leader: the missing voters may not even be born.
func (r *Replica) quorumCaughtUp(next *metapb.RangeDescriptor) bool {
	voters, ready := 0, 0
	for _, x := range next.GetReplicas() {
		if x.GetRole() != roleVoter && x.GetRole() != roleIncoming {
			continue
		}
		voters++
		if id := ids.ReplicaID(x.GetReplicaId()); id == r.self || r.caughtUp(id) {
			ready++
		}
	}
	return ready > voters/2
}

// transfer hands leadership to a voter that can take it at once.
func (r *Replica) transfer(o *metapb.Order) error {
	d := r.descriptor()
	target := replicaOf(d, ids.ReplicaID(o.GetReplicaId()))
	if target == nil && o.GetReplicaId() == 0 {
		target = replicaOn(d, ids.NodeID(o.GetNodeId()))
	}
	id := ids.ReplicaID(target.GetReplicaId())
	switch {
	case target == nil || target.GetRole() != roleVoter:
		return fmt.Errorf("transfer leadership of %v: %w: the target is no voter", r.id, ErrRefused)
	case id == r.self:
		return nil
	case !r.caughtUp(id):
		return fmt.Errorf("transfer leadership of %v: %w", r.id, ErrLagging)
	}
	r.handTo(id)
	return nil
}

// handTo asks a voter to take leadership over.
func (r *Replica) handTo(id ids.ReplicaID) {
	r.setHeir(id)
	r.group().TransferLeader(id)
}

// setHeir notes, for whoever asks for the leader meanwhile, who may lead soon.
// 0: nobody, proposals pass.
func (r *Replica) setHeir(id ids.ReplicaID) {
	if s := r.state.Load(); s.lead.heir != id {
		next := *s
		next.lead.heir = id
		r.publish(&next)
	}
}
