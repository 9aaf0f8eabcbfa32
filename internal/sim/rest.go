package sim

import (
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// A cluster at rest costs nothing: this is how long it must be silent, and how
// soon after its last work: then every range has been compared, one a second.
const (
	silence       = 3 * time.Second
	silenceWithin = 60 * time.Second
)

// effort counts what the groups of all nodes did.
func (s *Sim) effort() (sum uint64) {
	for _, n := range s.machines {
		if n.host != nil {
			m := n.host.Metrics()
			sum += m.MessagesOut + m.Ticks
		}
	}
	return sum
}

// fallSilent demands that a cluster without load stops: no group is ticked and
// no message of raft flows, every range's leader holds its lease, and all
// replicas have applied all there is.
func (s *Sim) fallSilent() bool {
	last, since := s.effort(), s.loop.now
	still := func() bool {
		if now := s.effort(); now != last {
			last, since = now, s.loop.now
		}
		return s.loop.now-since >= silence
	}
	if !s.until(s.loop.now+silenceWithin, still) {
		return s.failed("groups still work %s after the last request:\n%s\n%s",
			silenceWithin, s.busy(), s.describe())
	}
	if missing := s.withoutLease(nil); len(missing) > 0 {
		return s.failed("no lease is held at rest for %v:\n%s", missing, s.describe())
	}
	if err := s.checker.tiling(); err != nil {
		return s.failed("replicas differ at rest: %v", err)
	}
	return true
}

// busy says what the nodes' hosts do in a second.
func (s *Sim) busy() string {
	var b strings.Builder
	before := make([]string, len(s.machines))
	for i, n := range s.machines {
		before[i] = fmt.Sprintf("%+v", n.host.Metrics())
	}
	s.until(s.loop.now+time.Second, func() bool { return false })
	for i, n := range s.machines {
		fmt.Fprintf(&b, "%s before %s\n   after %+v\n", n, before[i], n.host.Metrics())
	}
	return b.String()
}

// ranges returns the newest descriptors' ids that nodes with a table know, by
// their voters' machines.
func (s *Sim) voters() map[ids.RangeID][]*node {
	newest := map[ids.RangeID]uint64{}
	voters := map[ids.RangeID][]*node{}
	for _, n := range s.machines {
		if !n.alive || n.table == nil {
			continue
		}
		for _, d := range n.descriptors() {
			id := ids.RangeID(d.RangeId)
			if at, ok := newest[id]; ok && at >= d.Generation {
				continue
			}
			newest[id] = d.Generation
			voters[id] = nil
			for _, r := range d.Replicas {
				if m := s.nodes[ids.NodeID(r.NodeId)]; r.Role == 0 && m != nil {
					voters[id] = append(voters[id], m)
				}
			}
		}
	}
	return voters
}

// withoutLease returns the ranges that have a majority of voters outside gone
// and nobody there who holds the lease, in order.
func (s *Sim) withoutLease(gone *node) (missing []ids.RangeID) {
	for id, voters := range s.voters() {
		live, held := 0, false
		for _, n := range voters {
			if n == gone {
				continue
			}
			live++
			if _, ok := n.holds(id); ok {
				held = true
			}
		}
		if live > len(voters)/2 && !held {
			missing = append(missing, id)
		}
	}
	sort.Slice(missing, func(i, j int) bool { return missing[i] < missing[j] })
	return missing
}

// descriptors walks a node's routing table.
func (n *node) descriptors() (all []*metapb.RangeDescriptor) {
	for _, r := range n.replicas() {
		all = append(all, r.Descriptor)
	}
	return all
}
