package ranges

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Descriptors are values: nobody changes one that another part may see. The
// functions here return changed copies.

func cloneDescriptor(d *metapb.RangeDescriptor) *metapb.RangeDescriptor {
	return proto.Clone(d).(*metapb.RangeDescriptor)
}

// holds says whether key lies in the span of d.
func holds(d *metapb.RangeDescriptor, key []byte) bool {
	return bytes.Compare(d.GetStart(), key) <= 0 && bytes.Compare(key, d.GetEnd()) < 0
}

// holdsSpan says whether [start, end) lies in the span of d.
func holdsSpan(d *metapb.RangeDescriptor, start, end []byte) bool {
	return bytes.Compare(d.GetStart(), start) <= 0 && bytes.Compare(end, d.GetEnd()) <= 0
}

// overlaps says whether two half-open spans have a key in common.
func overlaps(aStart, aEnd, bStart, bEnd []byte) bool {
	return bytes.Compare(aStart, bEnd) < 0 && bytes.Compare(bStart, aEnd) < 0
}

// boundsHash names the span of d. It stands in the header of each entry.
func boundsHash(d *metapb.RangeDescriptor) uint64 {
	var length [8]byte
	binary.LittleEndian.PutUint64(length[:], uint64(len(d.GetStart())))
	var h xxhash.Digest
	h.Reset()
	_, _ = h.Write(length[:])
	_, _ = h.Write(d.GetStart())
	_, _ = h.Write(d.GetEnd())
	return h.Sum64()
}

func replicaOf(d *metapb.RangeDescriptor, id ids.ReplicaID) *metapb.Replica {
	for _, r := range d.GetReplicas() {
		if r.GetReplicaId() == uint64(id) {
			return r
		}
	}
	return nil
}

func replicaOn(d *metapb.RangeDescriptor, node ids.NodeID) *metapb.Replica {
	for _, r := range d.GetReplicas() {
		if r.GetNodeId() == uint64(node) {
			return r
		}
	}
	return nil
}

func nodeOf(d *metapb.RangeDescriptor, id ids.ReplicaID) ids.NodeID {
	return ids.NodeID(replicaOf(d, id).GetNodeId())
}

func peersOf(d *metapb.RangeDescriptor) map[ids.ReplicaID]ids.NodeID {
	peers := make(map[ids.ReplicaID]ids.NodeID, len(d.GetReplicas()))
	for _, r := range d.GetReplicas() {
		peers[ids.ReplicaID(r.GetReplicaId())] = ids.NodeID(r.GetNodeId())
	}
	return peers
}

// isJoint says whether d is in the middle of a change through joint consensus.
func isJoint(d *metapb.RangeDescriptor) bool {
	for _, r := range d.GetReplicas() {
		switch r.GetRole() {
		case metapb.ReplicaRole_REPLICA_ROLE_VOTER, metapb.ReplicaRole_REPLICA_ROLE_LEARNER:
		default:
			return true
		}
	}
	return false
}

func hasLearner(d *metapb.RangeDescriptor) bool {
	for _, r := range d.GetReplicas() {
		if r.GetRole() == metapb.ReplicaRole_REPLICA_ROLE_LEARNER {
			return true
		}
	}
	return false
}

// withLearner adds a learner on node under a new replica id.
func withLearner(
	d *metapb.RangeDescriptor, node ids.NodeID,
) (*metapb.RangeDescriptor, ids.ReplicaID, error) {
	if node == 0 || replicaOn(d, node) != nil {
		return nil, 0, fmt.Errorf("%w: node %d has a replica already", ErrRefused, node)
	}
	next := cloneDescriptor(d)
	id := ids.ReplicaID(max(next.GetNextReplicaId(), 1))
	next.Replicas = append(next.Replicas, &metapb.Replica{
		NodeId:    uint64(node),
		ReplicaId: uint64(id),
		Role:      metapb.ReplicaRole_REPLICA_ROLE_LEARNER,
	})
	next.NextReplicaId = uint64(id) + 1
	next.Generation++
	return next, id, nil
}

// withRole changes the role of a replica, which must have the role from now.
func withRole(
	d *metapb.RangeDescriptor, id ids.ReplicaID, from, to metapb.ReplicaRole,
) (*metapb.RangeDescriptor, error) {
	next := cloneDescriptor(d)
	r := replicaOf(next, id)
	if r == nil || r.GetRole() != from {
		return nil, fmt.Errorf("%w: replica %d is %v, not %v", ErrRefused, id, r.GetRole(), from)
	}
	r.Role = to
	next.Generation++
	return next, nil
}

// withoutLearner removes a learner.
func withoutLearner(
	d *metapb.RangeDescriptor, id ids.ReplicaID,
) (*metapb.RangeDescriptor, error) {
	if r := replicaOf(d, id); r.GetRole() != metapb.ReplicaRole_REPLICA_ROLE_LEARNER || r == nil {
		return nil, fmt.Errorf("%w: replica %d is no learner", ErrRefused, id)
	}
	next := cloneDescriptor(d)
	kept := next.Replicas[:0]
	for _, r := range next.Replicas {
		if r.GetReplicaId() != uint64(id) {
			kept = append(kept, r)
		}
	}
	next.Replicas = kept
	next.Generation++
	return next, nil
}

// leaveJoint is d after the joint configuration is left.
func leaveJoint(d *metapb.RangeDescriptor) *metapb.RangeDescriptor {
	next := cloneDescriptor(d)
	kept := next.Replicas[:0]
	for _, r := range next.Replicas {
		switch r.GetRole() {
		case metapb.ReplicaRole_REPLICA_ROLE_VOTER_INCOMING:
			r.Role = metapb.ReplicaRole_REPLICA_ROLE_VOTER
		case metapb.ReplicaRole_REPLICA_ROLE_VOTER_DEMOTING:
			r.Role = metapb.ReplicaRole_REPLICA_ROLE_LEARNER
		case metapb.ReplicaRole_REPLICA_ROLE_VOTER_OUTGOING:
			continue
		}
		kept = append(kept, r)
	}
	next.Replicas = kept
	next.Generation++
	return next
}

// splitDescriptor cuts d at key; both halves get the parent's generation + 1
// and the same replicas.
func splitDescriptor(
	d *metapb.RangeDescriptor, key []byte, right ids.RangeID,
) (l, r *metapb.RangeDescriptor) {
	l, r = cloneDescriptor(d), cloneDescriptor(d)
	l.End = bytes.Clone(key)
	l.Generation++
	r.Start = bytes.Clone(key)
	r.RangeId = uint64(right)
	r.Generation++
	r.StickyUntil = 0 // what was asked for was the parent's start, not this one
	return l, r
}

// confOf is the raft configuration that a descriptor outside a joint change stands for.
func confOf(d *metapb.RangeDescriptor) *metapb.ConfState {
	c := &metapb.ConfState{}
	for _, r := range d.GetReplicas() {
		if r.GetRole() == metapb.ReplicaRole_REPLICA_ROLE_LEARNER {
			c.Learners = append(c.Learners, r.GetReplicaId())
		} else {
			c.Voters = append(c.Voters, r.GetReplicaId())
		}
	}
	return c
}

func confToRaft(c *metapb.ConfState) *raftpb.ConfState {
	return &raftpb.ConfState{
		Voters:         c.GetVoters(),
		Learners:       c.GetLearners(),
		VotersOutgoing: c.GetVotersOutgoing(),
		LearnersNext:   c.GetLearnersNext(),
		AutoLeave:      new(c.GetAutoLeave()),
	}
}

func confFromRaft(c *raftpb.ConfState) *metapb.ConfState {
	return &metapb.ConfState{ // copies: c belongs to raft
		Voters:         slices.Clone(c.GetVoters()),
		Learners:       slices.Clone(c.GetLearners()),
		VotersOutgoing: slices.Clone(c.GetVotersOutgoing()),
		LearnersNext:   slices.Clone(c.GetLearnersNext()),
		AutoLeave:      c.GetAutoLeave(),
	}
}

func descriptorText(d *metapb.RangeDescriptor) string {
	return fmt.Sprintf("%v generation %d", ids.RangeID(d.GetRangeId()), d.GetGeneration())
}
