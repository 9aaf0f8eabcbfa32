package placement

import (
	"slices"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const (
	roleVoter   = metapb.ReplicaRole_REPLICA_ROLE_VOTER
	roleLearner = metapb.ReplicaRole_REPLICA_ROLE_LEARNER
)

// votes says whether a replica of this role votes in the outgoing and in the
// incoming half of a configuration; outside a joint one both are the same. The
// role is always read from the descriptor as a whole: there is no update of a
// replica's other fields that could drop it.
func votes(role metapb.ReplicaRole) (outgoing, incoming bool) {
	switch role {
	case roleVoter:
		return true, true
	case metapb.ReplicaRole_REPLICA_ROLE_VOTER_INCOMING:
		return false, true
	case metapb.ReplicaRole_REPLICA_ROLE_VOTER_OUTGOING,
		metapb.ReplicaRole_REPLICA_ROLE_VOTER_DEMOTING:
		return true, false
	default:
		return false, false
	}
}

// half counts one half of a configuration.
type half struct{ voters, live int }

func (h *half) add(votes, live bool) {
	if votes {
		h.voters++
		if live {
			h.live++
		}
	}
}

// tolerates returns how many more failures leave a quorum of live voters.
func (h half) tolerates() int { return max(0, h.live-(h.voters/2+1)) }

// joint says whether a descriptor is between two configurations.
func joint(d *metapb.RangeDescriptor) bool {
	return slices.ContainsFunc(d.GetReplicas(), func(r *metapb.Replica) bool {
		return r.GetRole() != roleVoter && r.GetRole() != roleLearner
	})
}

// replicaOn returns the replica of d on node n, nil if there is none.
func replicaOn(d *metapb.RangeDescriptor, n ids.NodeID) *metapb.Replica {
	for _, r := range d.GetReplicas() {
		if ids.NodeID(r.GetNodeId()) == n {
			return r
		}
	}
	return nil
}

// lagging says whether r has a learner that still needs entries or a snapshot.
func (r *rangeState) lagging() bool {
	return slices.ContainsFunc(r.desc.GetReplicas(), func(p *metapb.Replica) bool {
		return p.GetRole() == roleLearner && !slices.Contains(r.caughtUp, p.GetReplicaId())
	})
}

// changing says whether r is between two configurations or part of a merge: its
// leader takes no orders then, and ends it by itself.
func (r *rangeState) changing() bool { return joint(r.desc) || r.desc.GetMerge() != nil }
