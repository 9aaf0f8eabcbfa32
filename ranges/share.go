package ranges

import (
	"encoding/binary"
	"sync"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Most ranges of a cluster have replicas on the same few sets of nodes, and the
// halves of a split have those of their parent, ids included. What says so is
// the larger part of a descriptor, is needed in four forms, and never changes
// once it is made: so it is kept once for all replicas of a node that agree.

// maxShared bounds the sets of replicas that are remembered. When there are
// more all are forgotten: who has one keeps it, only later ones do not share it.
const maxShared = 4096

// shared are the forms of one set of replicas and of one configuration.
// Immutable, also for multiraft.
type shared[T any] struct {
	mu   sync.Mutex
	sets map[string]T
}

// get returns the value of a key, made if it is not there. Any goroutine.
func (s *shared[T]) get(key []byte, create func() T) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.sets[string(key)]
	if !ok {
		if s.sets == nil || len(s.sets) >= maxShared {
			s.sets = make(map[string]T)
		}
		v = create()
		s.sets[string(key)] = v
	}
	return v
}

// replicaSet is a descriptor's list of replicas and where they live.
type replicaSet struct {
	replicas []*metapb.Replica
	peers    map[ids.ReplicaID]ids.NodeID
}

// confSet is a configuration as it is stored and as raft has it.
type confSet struct {
	stored *metapb.ConfState
	raft   *raftpb.ConfState
}

// sharing is what the replicas of a node share.
type sharing struct {
	replicas shared[replicaSet]
	confs    shared[confSet]
}

// share has d share its replicas with all descriptors that have the same.
// REQUIRES: nobody else has seen d.
func (s *sharing) share(d *metapb.RangeDescriptor) {
	d.Replicas = s.set(d).replicas
}

// peersOf returns where the replicas of d live. The map is shared.
func (s *sharing) peersOf(d *metapb.RangeDescriptor) map[ids.ReplicaID]ids.NodeID {
	return s.set(d).peers
}

func (s *sharing) set(d *metapb.RangeDescriptor) replicaSet {
	var key []byte
	for _, r := range d.GetReplicas() {
		key = binary.AppendUvarint(key, r.GetNodeId())
		key = binary.AppendUvarint(key, r.GetReplicaId())
		key = binary.AppendUvarint(key, uint64(r.GetRole()))
	}
	return s.replicas.get(key, func() replicaSet {
		return replicaSet{d.GetReplicas(), peersOf(d)}
	})
}

// conf returns both forms of a configuration, which are shared.
func (s *sharing) conf(c *metapb.ConfState) confSet {
	var key []byte
	for _, list := range [][]uint64{
		c.GetVoters(), c.GetLearners(), c.GetVotersOutgoing(), c.GetLearnersNext(),
	} {
		key = binary.AppendUvarint(key, uint64(len(list)))
		for _, id := range list {
			key = binary.AppendUvarint(key, id)
		}
	}
	if c.GetAutoLeave() {
		key = append(key, 1)
	}
	return s.confs.get(key, func() confSet { return confSet{c, confToRaft(c)} })
}
