package core

import (
	"bytes"
	"slices"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// entry is one range in the cache. Its descriptor is immutable.
type entry struct {
	desc    *metapb.RangeDescriptor
	leader  ids.NodeID // who led last, as far as we heard; 0: unknown
	gate    *gate      // while it is not known who leads; nil: open
	suspect bool       // something contradicted it: look it up before the next use
}

func (e *entry) start() []byte { return e.desc.Start }
func (e *entry) end() []byte   { return e.desc.End }

// same says whether a descriptor is of the same range in the same generation.
func (e *entry) same(d *metapb.RangeDescriptor) bool {
	return e.desc.RangeId == d.RangeId && e.desc.Generation == d.Generation &&
		bytes.Equal(e.desc.Start, d.Start) && bytes.Equal(e.desc.End, d.End)
}

// holds says whether a node has a replica of the range.
func (e *entry) holds(n ids.NodeID) bool {
	return slices.ContainsFunc(e.desc.Replicas, func(r *metapb.Replica) bool {
		return ids.NodeID(r.NodeId) == n
	})
}

// rangeCache maps keys to ranges: a slice ordered by start key, in which no
// two entries overlap. It is a hint: a node refuses a request that was routed
// by an old entry.
//
// Merge rule: per key the generation only rises, so a descriptor evicts all
// older ones that it overlaps, and one that overlaps anything newer is
// dropped whole.
type rangeCache struct {
	entries []*entry
	hand    int // where eviction goes on when the cache is full
	// orphans are gates of entries that left the cache, or are doubted: what
	// waits there is routed anew when the step ends.
	orphans []*gate
}

// orphan notes that what waits at an entry must be routed anew.
func (rc *rangeCache) orphan(e *entry) {
	if e.gate != nil {
		rc.orphans = append(rc.orphans, e.gate)
	}
}

// before returns the number of entries that start at or before key.
func (rc *rangeCache) before(key []byte) int {
	i, _ := slices.BinarySearchFunc(rc.entries, key, func(e *entry, k []byte) int {
		if bytes.Compare(e.start(), k) <= 0 {
			return -1
		}
		return 1
	})
	return i
}

// predecessor returns the last entry that starts at or before key (forward) or
// strictly before key (reverse), nil if there is none.
func (rc *rangeCache) predecessor(key []byte, reverse bool) *entry {
	i := rc.before(key)
	if reverse && i > 0 && bytes.Equal(rc.entries[i-1].start(), key) {
		i--
	}
	if i == 0 {
		return nil
	}
	return rc.entries[i-1]
}

// find returns the entry that holds key or, for reverse, the keys just below
// it; nil if that is not cached.
func (rc *rangeCache) find(key []byte, reverse bool) *entry {
	e := rc.predecessor(key, reverse)
	if e == nil {
		return nil
	}
	c := bytes.Compare(key, e.end())
	if c < 0 || (reverse && c == 0) {
		return e
	}
	return nil
}

// merge adds a descriptor by the merge rule and says whether it is in the
// cache now.
func (rc *rangeCache) merge(d *metapb.RangeDescriptor, leader ids.NodeID) bool {
	if d == nil || bytes.Compare(d.Start, d.End) >= 0 || len(d.Replicas) == 0 {
		return false
	}
	first := rc.before(d.Start)
	if first > 0 && bytes.Compare(rc.entries[first-1].end(), d.Start) > 0 {
		first--
	}
	last := first
	for last < len(rc.entries) && bytes.Compare(rc.entries[last].start(), d.End) < 0 {
		if rc.entries[last].desc.Generation > d.Generation {
			return false
		}
		last++
	}
	if last == first+1 && rc.entries[first].same(d) {
		// Nothing new but perhaps a leader, and who was asked last knows better.
		old := rc.entries[first]
		old.desc = d
		if old.leader == 0 {
			old.leader = leader
		}
		return true
	}
	fresh := &entry{desc: d}
	for _, old := range rc.entries[first:last] {
		rc.orphan(old)
		// A half of a split is led where the whole was led, mostly.
		if fresh.leader == 0 && fresh.holds(old.leader) {
			fresh.leader = old.leader
		}
	}
	if leader != 0 {
		fresh.leader = leader
	}
	rc.entries = slices.Replace(rc.entries, first, last, fresh)
	if len(rc.entries) > maxCachedRanges {
		rc.evict(fresh)
	}
	return true
}

// evict drops the entry under the hand, but not keep.
func (rc *rangeCache) evict(keep *entry) {
	if rc.hand >= len(rc.entries) {
		rc.hand = 0
	}
	if rc.entries[rc.hand] == keep {
		rc.hand = (rc.hand + 1) % len(rc.entries)
	}
	rc.orphan(rc.entries[rc.hand])
	rc.entries = slices.Delete(rc.entries, rc.hand, rc.hand+1)
}

// forgetLeader drops every hint to a node that went away.
func (rc *rangeCache) forgetLeader(n ids.NodeID) {
	for _, e := range rc.entries {
		if e.leader == n {
			e.leader = 0
		}
	}
}
