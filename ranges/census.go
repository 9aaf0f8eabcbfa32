package ranges

import (
	"encoding/binary"
	"slices"
	"sync"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// census counts the ranges that are led here by the set of nodes whose voters their
// leases rest on. It is kept by change: a replica moves from one count to another when
// its leadership or its configuration changes, so whoever asks for the counts pays for
// the sets of nodes and not for the ranges. In a cluster of three nodes there is one
// set; there are never more than ranges led.
type census struct {
	mu   sync.Mutex
	sets map[string]int // by voterNodes; no zeros
}

// publish makes s what this replica is. Shard only, or before the replica is anywhere.
func (r *Replica) publish(s *state) {
	old := r.state.Load()
	r.state.Store(s)
	r.table.census.move(old, s)
}

// move counts a replica as what it is now instead of what it was; old may be nil.
// Nearly all that a replica publishes is that entries were applied: that is told by
// a few comparisons and takes no lock.
func (c *census) move(old, now *state) {
	was, is := old != nil && old.leads(), now.leads()
	if !was && !is || was && is && old.desc == now.desc && old.conf == now.conf {
		return
	}
	var from, to string
	if was {
		from = voterNodes(old)
	}
	if is {
		to = voterNodes(now)
	}
	if from == to {
		return // both lead, on the same nodes: the set of who leads is never empty
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sets == nil {
		c.sets = make(map[string]int)
	}
	if is {
		c.sets[to]++
	}
	if was {
		if c.sets[from]--; c.sets[from] == 0 {
			delete(c.sets, from)
		}
	}
}

// voterNodes is the nodes of the voters, each half of the configuration in order and
// after its length: ranges whose leases rest on the same nodes have the same.
func voterNodes(s *state) string {
	var key []byte
	for _, half := range [][]uint64{s.conf.GetVoters(), s.conf.GetVotersOutgoing()} {
		nodes := make([]uint64, len(half))
		for i, v := range half {
			nodes[i] = uint64(nodeOf(s.desc, ids.ReplicaID(v)))
		}
		slices.Sort(nodes)
		key = binary.AppendUvarint(key, uint64(len(nodes)))
		for _, n := range nodes {
			key = binary.AppendUvarint(key, n)
		}
	}
	return string(key)
}

// Leases returns how many ranges this node leads and has applied its own term in, and
// for how many of them it is supported now by a majority of the voters' nodes, of both
// halves if the configuration is joint. supported says whether a node other than this
// one supports it now; 0 is a node that is not known.
//
// That is what reads without a quorum rest on. The last word is each read's own: the
// voters must also have acknowledged this leadership, which takes a round trip after
// an election, and one that is being handed over has given its lease up. The cost
// grows with the distinct sets of voters' nodes, not with the ranges. Any goroutine.
func (t *Table) Leases(supported func(ids.NodeID) bool) (held, led int) {
	c := &t.census
	c.mu.Lock()
	defer c.mu.Unlock()
	answers := make(map[ids.NodeID]bool)
	counts := func(n ids.NodeID) bool {
		ok, known := answers[n]
		if !known {
			ok = n == t.cfg.Node || n != 0 && supported(n)
			answers[n] = ok
		}
		return ok
	}
	for set, ranges := range c.sets { // a sum, in whatever order
		led += ranges
		if !t.cfg.QuorumReads && backed(set, counts) {
			held += ranges
		}
	}
	return held, led
}

// backed says whether a majority of each half of a voterNodes counts.
func backed(set string, counts func(ids.NodeID) bool) bool {
	key := []byte(set)
	next := func() uint64 {
		v, size := binary.Uvarint(key)
		key = key[size:]
		return v
	}
	for len(key) > 0 {
		size, have := next(), uint64(0)
		for range size {
			if counts(ids.NodeID(next())) {
				have++
			}
		}
		if size > 0 && have <= size/2 {
			return false
		}
	}
	return true
}
