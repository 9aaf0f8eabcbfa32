package server

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// registry is what this node knows of the others: their addresses and where
// the system range lives. It comes from answers to joins and reports, and is
// kept on disk so that a restart finds its peers by itself. Safe for concurrent use.
type registry struct {
	self ids.NodeID
	save func([]byte) error // makes the record durable

	saving sync.Mutex // orders saves; taken before mu
	mu     sync.RWMutex
	nodes  map[ids.NodeID]*metapb.NodeDescriptor
	system *metapb.RangeDescriptor
	hint   ids.NodeID // where the driver answered last
}

func newRegistry(
	self ids.NodeID, nodes []*metapb.NodeDescriptor, system *metapb.RangeDescriptor,
	save func([]byte) error,
) *registry {
	r := &registry{self: self, save: save, nodes: map[ids.NodeID]*metapb.NodeDescriptor{}}
	for _, n := range nodes {
		r.nodes[ids.NodeID(n.GetNodeId())] = n
	}
	r.system = system
	return r
}

// resolve returns a node's address.
func (r *registry) resolve(n ids.NodeID) (string, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	d, ok := r.nodes[n]
	return d.GetAddress(), ok && d.GetAddress() != ""
}

// list returns all known nodes in order of id; they must not be changed.
func (r *registry) list() []*metapb.NodeDescriptor {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]*metapb.NodeDescriptor, 0, len(r.nodes))
	for _, n := range slices.Sorted(maps.Keys(r.nodes)) {
		out = append(out, r.nodes[n])
	}
	return out
}

// learn takes what an answer brought, and saves it if it is news. A node that
// is missing in the answer has left the cluster; an empty list says nothing.
func (r *registry) learn(nodes []*metapb.NodeDescriptor, system *metapb.RangeDescriptor) error {
	r.saving.Lock()
	defer r.saving.Unlock()
	record := r.merge(nodes, system)
	if record == nil {
		return nil
	}
	data, err := proto.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode the node registry: %w", err)
	}
	return r.save(data)
}

// merge returns the record to save, nil if nothing changed.
func (r *registry) merge(
	nodes []*metapb.NodeDescriptor, system *metapb.RangeDescriptor,
) *adminpb.JoinReply {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := false
	if len(nodes) > 0 {
		fresh := make(map[ids.NodeID]*metapb.NodeDescriptor, len(nodes))
		for _, n := range nodes {
			fresh[ids.NodeID(n.GetNodeId())] = n
		}
		same := func(a, b *metapb.NodeDescriptor) bool { return proto.Equal(a, b) }
		if changed = !maps.EqualFunc(r.nodes, fresh, same); changed {
			r.nodes = fresh
		}
	}
	if system != nil && system.GetGeneration() > r.system.GetGeneration() {
		r.system, changed = system, true
	}
	if !changed {
		return nil
	}
	record := &adminpb.JoinReply{SystemRange: r.system}
	for _, n := range slices.Sorted(maps.Keys(r.nodes)) {
		record.Nodes = append(record.Nodes, r.nodes[n])
	}
	return record
}

// drivers returns who may drive placement, likeliest first: the leader of the
// system range as this node sees it (0: unknown), who answered last, and every
// replica of the system range; all nodes if even that is unknown.
func (r *registry) drivers(leader ids.NodeID) []ids.NodeID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []ids.NodeID
	add := func(n ids.NodeID) {
		if n != 0 && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	add(leader)
	add(r.hint)
	for _, rep := range r.system.GetReplicas() {
		add(ids.NodeID(rep.GetNodeId()))
	}
	if r.system == nil {
		for _, n := range slices.Sorted(maps.Keys(r.nodes)) {
			add(n)
		}
	}
	return out
}

// driver returns who answered as the driver last, 0 if nobody did.
func (r *registry) driver() ids.NodeID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.hint
}

// drives notes who answered as the driver.
func (r *registry) drives(n ids.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hint = n
}
