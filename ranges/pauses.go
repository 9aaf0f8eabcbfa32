package ranges

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// How long merges keep writes waiting: those of the right half from when it is taken
// until its keys are the left half's, or it is thawed again, and those of the left
// half from when it is taken until the absorb is applied. Counted where the merge was
// led; one whose leader is lost on the way is not, and its right half waits until
// the next one has undone it.

// FreezeBuckets is the number of buckets of Freezes.
const FreezeBuckets = 15

// freezeUnit is the upper bound of the first bucket; each next is twice it.
const freezeUnit = 500 * time.Microsecond

// FreezeBound returns the upper bound of bucket i: 500 µs << i. The last bucket also
// counts everything above it (8 s).
func FreezeBound(i int) time.Duration { return freezeUnit << i }

// Freezes are times for which one half of merges waited, since the start.
type Freezes struct {
	Count   uint64
	Sum     time.Duration
	Buckets [FreezeBuckets]uint64 // not cumulative; see FreezeBound
}

// freezes counts Freezes. Any goroutine.
type freezes struct {
	nanos   atomic.Uint64
	buckets [FreezeBuckets]atomic.Uint64
}

func (f *freezes) add(d time.Duration) {
	i := 0
	if d = max(d, 0); d > 0 {
		i = min(bits.Len64(uint64((d-1)/freezeUnit)), FreezeBuckets-1)
	}
	f.nanos.Add(uint64(d))
	f.buckets[i].Add(1)
}

func (f *freezes) read() Freezes {
	out := Freezes{Sum: time.Duration(f.nanos.Load())}
	for i := range f.buckets {
		out.Buckets[i] = f.buckets[i].Load()
		out.Count += out.Buckets[i]
	}
	return out
}

// MergeFreezes returns for how long the left and the right halves of merges led here
// took no writes. Any goroutine.
func (t *Table) MergeFreezes() (left, right Freezes) {
	return t.dirty.leftFreezes.read(), t.dirty.rightFreezes.read()
}

// thawed counts the time for which a right half was frozen whose merge was given up,
// if it was frozen here. Shard only.
func (r *Replica) thawed() {
	if began := r.upkeep.frozen; began != 0 && r.mergeMark() == nil {
		r.upkeep.frozen = 0
		r.table.dirty.rightFreezes.add(r.table.cfg.Physical.Monotonic() - began)
	}
}
