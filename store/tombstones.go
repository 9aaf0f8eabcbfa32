package store

import (
	"sync"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// tombstoneSlots bounds the tombstones in memory, 64 KB: two ranges share a slot
// only if their ids are a multiple of this apart, and then the newer question wins.
const tombstoneSlots = 4096

// tombstones keep what was last read of some ranges' tombstones, "none" included. A
// node is asked for them by every message to a range that it does not have: after a
// merge or a removal by those who have not heard of it, during a split by those who
// are ahead. That must not cost a look into the engine each.
//
// Everything that says that a replica may not live rests on tombstones, so a value
// from here is one that a look into the engine at that moment could have brought.
// Whoever writes one says so before the commit (begin) and after it (end). From begin
// on no value of it is here; while any write is under way nothing is taken in; and
// what was read before an end is not taken in after it. So once a commit has returned
// nobody gets the value of before. The memory begins empty with each Open, as the
// engine does after a crash: a tombstone that was lost with the log's tail is not in
// it either.
type tombstones struct {
	mu      sync.Mutex
	writes  int    // under way
	version uint64 // counts ends
	slots   []tombstoneSlot
}

// tombstoneSlot is empty while its range is 0, which no range is.
type tombstoneSlot struct {
	of   ids.RangeID
	next ids.ReplicaID
}

func (t *tombstones) slot(r ids.RangeID) *tombstoneSlot {
	if t.slots == nil { // a store without questions has none
		t.slots = make([]tombstoneSlot, tombstoneSlots)
	}
	return &t.slots[r%tombstoneSlots]
}

// get returns what is known; version is for put.
func (t *tombstones) get(r ids.RangeID) (next ids.ReplicaID, known bool, version uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.slot(r); s.of == r && r != 0 {
		return s.next, true, t.version
	}
	return 0, false, t.version
}

// put keeps what the engine said after get.
func (t *tombstones) put(r ids.RangeID, next ids.ReplicaID, version uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.writes == 0 && t.version == version {
		*t.slot(r) = tombstoneSlot{r, next}
	}
}

// begin is called before tombstones of these ranges are committed, and end after
// it, whatever came of it.
func (t *tombstones) begin(ranges []ids.RangeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writes++
	for _, r := range ranges {
		if s := t.slot(r); s.of == r {
			*s = tombstoneSlot{}
		}
	}
}

func (t *tombstones) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writes--
	t.version++
}
