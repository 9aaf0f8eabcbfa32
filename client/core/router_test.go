package core

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// slowCache is the merge rule written down: a list, walked from end to end.
type slowCache []*metapb.RangeDescriptor

func overlap(a, b *metapb.RangeDescriptor) bool {
	return bytes.Compare(a.Start, b.End) < 0 && bytes.Compare(b.Start, a.End) < 0
}

func (s *slowCache) merge(d *metapb.RangeDescriptor) {
	for _, o := range *s {
		if overlap(o, d) && o.Generation > d.Generation {
			return
		}
	}
	*s = slices.DeleteFunc(*s, func(o *metapb.RangeDescriptor) bool { return overlap(o, d) })
	*s = append(*s, d)
}

func (s slowCache) find(key []byte, reverse bool) *metapb.RangeDescriptor {
	for _, o := range s {
		after, before := bytes.Compare(o.Start, key), bytes.Compare(key, o.End)
		if !reverse && after <= 0 && before < 0 || reverse && after < 0 && before <= 0 {
			return o
		}
	}
	return nil
}

func descriptor(id, generation uint64, start, end string, nodes ...uint64) *metapb.RangeDescriptor {
	d := &metapb.RangeDescriptor{
		RangeId: id, Generation: generation, Start: []byte(start), End: []byte(end),
	}
	for _, n := range nodes {
		d.Replicas = append(d.Replicas, &metapb.Replica{NodeId: n, ReplicaId: n})
	}
	return d
}

func TestRangeCacheAgreesWithASlowList(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	key := func(n int) string { return fmt.Sprintf("%02d", n) }
	for round := range 40 {
		var fast rangeCache
		var slow slowCache
		for step := range 60 {
			lo := rng.IntN(40)
			d := descriptor(rng.Uint64N(9)+1, rng.Uint64N(6)+1, key(lo), key(lo+1+rng.IntN(12)), 1)
			fast.merge(d, ids.NodeID(rng.Uint64N(2)))
			slow.merge(d)
			for n := range 54 {
				for _, reverse := range []bool{false, true} {
					want := slow.find([]byte(key(n)), reverse)
					got := fast.find([]byte(key(n)), reverse)
					if (got == nil) != (want == nil) || got != nil && got.desc != want {
						t.Fatalf("round %d step %d: find(%d, %t) = %v, the list says %v",
							round, step, n, reverse, got, want)
					}
				}
			}
			for i := 1; i < len(fast.entries); i++ {
				if bytes.Compare(fast.entries[i-1].end(), fast.entries[i].start()) > 0 {
					t.Fatalf("entries %d and %d overlap", i-1, i)
				}
			}
		}
	}
}

func TestHalvesOfASplitInheritTheLeader(t *testing.T) {
	t.Parallel()
	var rc rangeCache
	rc.merge(descriptor(2, 1, "a", "z", 1, 2, 3), 2)
	rc.merge(descriptor(2, 2, "a", "m", 1, 2, 3), 0)
	rc.merge(descriptor(7, 2, "m", "z", 1, 2, 3), 0)
	for _, key := range []string{"b", "p"} {
		e := rc.find([]byte(key), false)
		want := ids.NodeID(2)
		if key == "p" {
			want = 0 // the whole was evicted by the left half already
		}
		if e == nil || e.leader != want {
			t.Errorf("leader of %q: %+v, want %v", key, e, want)
		}
	}
	if rc.merge(descriptor(2, 1, "a", "z", 1, 2, 3), 2) {
		t.Error("an old descriptor got in over its own halves")
	}
}

func TestFullRangeCacheEvictsOthersThanTheNewOne(t *testing.T) {
	t.Parallel()
	var rc rangeCache
	key := func(n int) string { return fmt.Sprintf("%07d", n) }
	for n := range maxCachedRanges + 100 {
		rc.merge(descriptor(uint64(n+1), 1, key(n), key(n+1), 1), 1)
		if rc.find([]byte(key(n)), false) == nil {
			t.Fatalf("range %d is not cached right after it was learnt", n)
		}
	}
	if len(rc.entries) != maxCachedRanges {
		t.Errorf("%d entries, the bound is %d", len(rc.entries), maxCachedRanges)
	}
}
