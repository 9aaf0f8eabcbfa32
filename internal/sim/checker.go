package sim

import (
	"bytes"
	"fmt"
	"sort"

	"google.golang.org/protobuf/proto"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// checker holds what was seen so far, to hold what is seen next against.
type checker struct {
	sim     *Sim
	leaders map[leaderKey]uint64        // who led, by range and term
	applied map[appliedKey]appliedValue // what a range's state was, by index
	highest map[replicaKey]durable      // how far a replica's state had come
	spans   map[replicaKey][]byte       // where a replica's span ended, across crashes
	arrived map[arrival]bool            // a snapshot came, and may shrink the replica
	sample  int
	lease   *leaseChecker
	tiles   *tiles
	acks    *ackChecker
}

type leaderKey struct {
	r    ids.RangeID
	term uint64
}

type appliedKey struct {
	r     ids.RangeID
	index uint64
}

type appliedValue struct {
	node        ids.NodeID
	fingerprint uint64
	stats       mvcc.Stats
	descriptor  string
}

type replicaKey struct {
	n  ids.NodeID
	r  ids.RangeID
	id uint64
}

type arrival struct {
	n ids.NodeID
	r ids.RangeID
}

type durable struct {
	applied, generation uint64
	seen                int // number of the look that saw it last
}

func newChecker(s *Sim) *checker {
	return &checker{
		sim: s, leaders: map[leaderKey]uint64{},
		applied: map[appliedKey]appliedValue{}, highest: map[replicaKey]durable{},
		spans: map[replicaKey][]byte{}, arrived: map[arrival]bool{}, lease: newLeaseChecker(s),
		tiles: newTiles(s), acks: newAckChecker(s),
	}
}

// sent looks at the messages that leave a node: only leaders append, and a term
// of a range has one.
func (c *checker) sent(n *node, msgs []multiraft.Message) {
	for i := range msgs {
		m := msgs[i].Raft
		if m == nil {
			continue
		}
		switch m.GetType() {
		case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap:
			k := leaderKey{msgs[i].Range, m.GetTerm()}
			if was, ok := c.leaders[k]; !ok {
				c.leaders[k] = m.GetFrom()
				c.sim.count("elections")
				c.sim.loop.tracef("%s leads r%d in term %d", n.id, k.r, k.term)
			} else if was != m.GetFrom() {
				c.sim.fail("two leaders of r%d in term %d: replicas %d and %d",
					k.r, k.term, was, m.GetFrom())
			}
			c.lease.sent(msgs[i].Range, m)
		case raftpb.MsgTimeoutNow:
			c.sim.count("transfers")
		}
	}
}

// states checks what the stores hold now.
func (c *checker) states() {
	for _, n := range c.sim.machines {
		if n.alive && n.table != nil {
			c.node(n)
		}
	}
}

// forget drops how far a node's replicas had come: a crash takes applied state
// back to what was synced, from where the log carries it on again.
func (c *checker) forget(n ids.NodeID) {
	for k := range c.highest {
		if k.n == n {
			delete(c.highest, k)
		}
	}
}

func (c *checker) node(n *node) {
	defer func() { n.looks++ }()
	replicas := n.replicas()
	for _, r := range replicas {
		c.replica(n, r)
		c.halves(n, r)
	}
	sort.Slice(replicas, func(i, j int) bool {
		return bytes.Compare(replicas[i].Descriptor.Start, replicas[j].Descriptor.Start) < 0
	})
	for i := 1; i < len(replicas); i++ {
		a, b := replicas[i-1].Descriptor, replicas[i].Descriptor
		if bytes.Compare(a.End, b.Start) > 0 {
			c.sim.fail("%s holds overlapping ranges: r%d [%x,%x) and r%d [%x,%x)",
				n.id, a.RangeId, a.Start, a.End, b.RangeId, b.Start, b.End)
		}
	}
}

// replica checks one replica against every other copy of its range and its own past.
func (c *checker) replica(n *node, r *store.ReplicaState) {
	id := ids.RangeID(r.Descriptor.RangeId)
	k := replicaKey{n.id, id, uint64(r.Replica)}
	was := c.highest[k]
	if r.Descriptor.Generation < was.generation {
		c.sim.fail("r%d on %s went back from generation %d to %d",
			id, n.id, was.generation, r.Descriptor.Generation)
	}
	if was.seen != 0 && was.seen < n.looks {
		c.sim.fail("replica %d of r%d was gone from %s and is back", r.Replica, id, n.id)
	}
	c.highest[k] = durable{r.Applied.Index, r.Descriptor.Generation, n.looks + 1}
	if r.Applied.Index < was.applied {
		c.sim.fail("r%d on %s went back from index %d to %d",
			id, n.id, was.applied, r.Applied.Index)
	}
	a := appliedKey{id, r.Applied.Index}
	now := appliedValue{
		node: n.id, fingerprint: r.Applied.Fingerprint,
		stats:      mvcc.StatsFromProto(r.Applied.Stats),
		descriptor: describe(r.Descriptor),
	}
	before, ok := c.applied[a]
	if !ok {
		c.applied[a] = now
	} else if before.fingerprint != now.fingerprint || before.stats != now.stats ||
		before.descriptor != now.descriptor {
		c.sim.fail("r%d differs at index %d:\n %s has %x %+v %s\n %s has %x %+v %s",
			id, a.index, before.node, before.fingerprint, before.stats, before.descriptor,
			now.node, now.fingerprint, now.stats, now.descriptor)
	}
	c.sample++
	if c.sample%17 == 0 {
		c.recount(n, r)
	}
}

// recountAll compares all of them, in the end.
func (c *checker) recountAll() {
	for _, n := range c.sim.machines {
		for _, r := range n.replicas() {
			c.recount(n, r)
		}
	}
}

// recount compares the carried statistics and fingerprint with the data.
func (c *checker) recount(n *node, r *store.ReplicaState) {
	d, err := mvcc.Compute(n.store.State().DB(), r.Descriptor.Start, r.Descriptor.End)
	if err != nil {
		c.sim.fail("recount r%d on %s: %v", r.Descriptor.RangeId, n.id, err)
		return
	}
	stats := mvcc.StatsFromProto(r.Applied.Stats)
	if d.Fingerprint != r.Applied.Fingerprint || d.Stats != stats {
		c.sim.fail("r%d on %s at index %d: carried %x %+v, recounted %x %+v",
			r.Descriptor.RangeId, n.id, r.Applied.Index, r.Applied.Fingerprint, stats,
			d.Fingerprint, d.Stats)
	}
}

// halves: when a replica's span ends earlier than before, a split was applied,
// and the right half is on this node too, unless it was removed since.
func (c *checker) halves(n *node, r *store.ReplicaState) {
	k := replicaKey{n.id, ids.RangeID(r.Descriptor.RangeId), uint64(r.Replica)}
	was := c.spans[k]
	c.spans[k] = r.Descriptor.End
	if was == nil || bytes.Compare(r.Descriptor.End, was) >= 0 {
		return
	}
	d, _, here := n.table.Route(r.Descriptor.End)
	if here {
		return
	}
	if a := (arrival{n.id, k.r}); c.arrived[a] {
		// A snapshot of a range that split since brings no right half. Its install
		// may have been the last thing that the machine did before it lost power.
		delete(c.arrived, a)
		return
	}
	for _, m := range c.sim.machines {
		if !m.alive || m.table == nil {
			continue
		}
		if d, _, _ = m.table.Route(r.Descriptor.End); d != nil {
			next, err := n.store.Log().Tombstone(ids.RangeID(d.RangeId))
			if err == nil && next == 0 {
				c.sim.fail("%s applied a split of %s and has no right half r%d",
					n.id, k.r, d.RangeId)
			}
			return
		}
	}
}

func describe(d *metapb.RangeDescriptor) string {
	out := fmt.Sprintf("[%x,%x) g%d next %d:", d.Start, d.End, d.Generation, d.NextReplicaId)
	for _, r := range d.Replicas {
		out += fmt.Sprintf(" n%d/%d/%d", r.NodeId, r.ReplicaId, r.Role)
	}
	if d.StickyUntil != 0 {
		out += fmt.Sprintf(" sticky until %d", d.StickyUntil)
	}
	if m := d.Merge; m != nil {
		out += fmt.Sprintf(" merge: %v r%d g%d over g%d", m.Phase, m.RangeId, m.Generation,
			m.OtherGeneration)
	}
	return out
}

// tiling checks, at rest, that the newest descriptors tile the keyspace and that
// every replica they name has reached the same state.
func (c *checker) tiling() error {
	newest := map[ids.RangeID]*metapb.RangeDescriptor{}
	for _, n := range c.sim.machines {
		for _, r := range n.replicas() {
			id := ids.RangeID(r.Descriptor.RangeId)
			if d := newest[id]; d == nil || d.Generation < r.Descriptor.Generation {
				newest[id] = proto.Clone(r.Descriptor).(*metapb.RangeDescriptor)
			}
		}
	}
	all := make([]*metapb.RangeDescriptor, 0, len(newest))
	for _, d := range newest {
		all = append(all, d)
	}
	sort.Slice(all, func(i, j int) bool { return bytes.Compare(all[i].Start, all[j].Start) < 0 })
	at := []byte{kv.SystemPrefix}
	for _, d := range all {
		if !bytes.Equal(d.Start, at) {
			return fmt.Errorf("keyspace has a gap or overlap at %x: r%d starts at %x",
				at, d.RangeId, d.Start)
		}
		at = d.End
		if err := c.agree(d); err != nil {
			return err
		}
	}
	if !bytes.Equal(at, []byte{kv.EndPrefix}) {
		return fmt.Errorf("keyspace ends at %x", at)
	}
	c.sim.counters["ranges_at_end"] = len(all)
	return nil
}

func (c *checker) agree(d *metapb.RangeDescriptor) error {
	var first *store.ReplicaState
	for _, r := range d.Replicas {
		state, err := c.sim.nodes[ids.NodeID(r.NodeId)].store.State().
			Replica(ids.RangeID(d.RangeId))
		if err != nil {
			return err
		}
		if state == nil {
			return fmt.Errorf("r%d has no replica on n%d, which its descriptor names",
				d.RangeId, r.NodeId)
		}
		if first == nil {
			first = state
			continue
		}
		if state.Applied.Index != first.Applied.Index ||
			state.Applied.Fingerprint != first.Applied.Fingerprint {
			return fmt.Errorf("r%d at rest: n%d is at %d/%x, another replica at %d/%x",
				d.RangeId, r.NodeId, state.Applied.Index, state.Applied.Fingerprint,
				first.Applied.Index, first.Applied.Fingerprint)
		}
	}
	return nil
}
