package ranges

import (
	"fmt"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// remember notes and applies a write of a key.
func remember(m *recent, k string, ts hlc.Timestamp) {
	id := identity{client: 1, sequence: uint64(ts)}
	now := mvcc.Newest{Found: true, Timestamp: ts}
	m.applied(m.note(k, now, id, &identRecord{at: ts}), 1)
}

func familiarPut(k string, floor hlc.Timestamp) *write {
	return newWrite(nil, &kv.Request{
		Verb: kv.VerbPut, Key: []byte(k), Identity: kv.Identity{Client: 1, Floor: floor},
	}, nil)
}

func TestAWriteOfARecentKeyNeedsNoLookAtTheDisk(t *testing.T) {
	t.Parallel()
	var m recent
	m.start(100, 10)
	if m.familiar.knows(familiarPut("a", 100)) {
		t.Fatal("knows a key that was never written")
	}
	remember(&m, "a", 101)
	if !m.familiar.knows(familiarPut("a", 100)) {
		t.Fatal("does not know the key written last")
	}
	if m.familiar.knows(familiarPut("b", 100)) {
		t.Fatal("knows another key")
	}
	if m.familiar.knows(familiarPut("a", 99)) {
		t.Fatal("vouches for an identity that may be from before the term")
	}
	compare := newWrite(nil, &kv.Request{
		Verb: kv.VerbCompareAndSwap, Key: []byte("a"), Expect: kv.ExpectExists,
		Identity: kv.Identity{Client: 1, Floor: 100},
	}, nil)
	if m.familiar.knows(compare) {
		t.Fatal("knows the value that a comparison needs")
	}
	m.forget(200, 20)
	if m.familiar.knows(familiarPut("a", 200)) {
		t.Fatal("still knows what was forgotten")
	}
}

// What familiar vouches for must nearly always be in memory when the shard
// gets to it, or the shard would read from the disk; and what is in memory
// should nearly always be vouched for, or the caller would.
func TestFamiliarFollowsTheGenerations(t *testing.T) {
	t.Parallel()
	var m recent
	m.start(100, 10)
	ts := hlc.Timestamp(100)
	wrong, missed, total := 0, 0, 0
	for i := range 6 * recentEntries {
		ts++
		remember(&m, fmt.Sprint("k", i), ts)
		if i%97 != 0 {
			continue
		}
		for j := max(0, i-3*recentEntries); j <= i; j += 13 {
			k := fmt.Sprint("k", j)
			known, there := m.familiar.knows(familiarPut(k, ts)), m.key(k) != nil
			total++
			switch {
			case known && !there:
				wrong++
			case there && !known:
				missed++
			}
		}
	}
	if wrong > 0 || missed > total/4 {
		t.Fatalf("of %d questions %d were answered wrongly, %d too carefully",
			total, wrong, missed)
	}
}
