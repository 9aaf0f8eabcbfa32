package ranges

import (
	"sync/atomic"

	"github.com/flotilla-kv/flotilla/store/rowcache"
)

// A read that a lease allows runs on its caller's goroutine and cannot see the
// latches, which belong to the shard. What it looks at instead is below: for
// each stripe of keys how many writes are in flight, and how many have ended.
//
// The rule of writers, on the shard: announce, then take the timestamp from the
// clock; retract when the write is visible in the engine and the state that
// includes it is published, or when it is known never to take effect, or when
// leadership is lost, and then after the state that says so is published.
//
// The rule of readers: fix the timestamp with the clock, then look.
//
// The clock is one, and what it issues rises. If a write's timestamp lies at or
// below a read's, the writer asked the clock before the reader did (an explicit
// timestamp moves the clock, so whoever asks later gets a higher one), and it
// had announced itself before that. So the reader finds it announced, and goes
// to the shard to wait for it; or retracted, and then one of three is true: the
// engine shows it to an iterator opened later; it never takes effect; or the
// state loaded later says that this replica leads no more, and the read is
// refused. A write that the reader does not find has a higher timestamp.
//
// Blind to keys that share a stripe: a read may go to the shard for nothing,
// never the other way round.

// stripeCount is how many stripes a node has: 128 KiB. With 1,000 writes in
// flight one get in 16 meets a stripe of others. They are not padded to cache
// lines (1 MiB): two writers would have to meet within eight of 16,384.
const stripeCount = 1 << 14

// stripe is one word: in the low stripeBits how many writes are in flight, above
// how many have ended. So a word with none in flight comes back only after 2^40
// writes, and stands for "nothing of this stripe has changed" (see rows.go).
type stripe struct{ word atomic.Uint64 }

const (
	stripeBits = 24
	stripeEnd  = 1<<stripeBits - 1 // what a write adds to the word when it ends
)

// quiet says whether a word has no write in flight.
func quiet(word uint64) bool { return word&stripeEnd == 0 }

// stripes are shared by all replicas of a node; the hash of a key includes its
// range, see rowcache.Hash. Any goroutine.
type stripes [stripeCount]stripe

func (s *stripes) of(hash uint64) *stripe { return &s[hash%stripeCount] }

// moving is what any goroutine can see of a range's latches as a whole.
type moving struct {
	// writes are announced and not retracted. A scan looks at this.
	writes atomic.Int32
	// splits are marked from before their proposal until the halves are
	// published, and so are the freezes of merges until those have ended. Every
	// read looks at this: see doc.go, splits and reads.
	splits atomic.Int32
}

// announce says that a write of a key is about to take a timestamp. REQUIRES:
// the shard; before the clock is asked; not after the write was retracted.
func (w *write) announce(key []byte) {
	if len(w.announced) == 0 {
		w.announced = w.oneStripe[:0]
		w.r.moving.writes.Add(1)
	}
	s := w.r.table.stripes.of(rowcache.Hash(w.r.id, key))
	s.word.Add(1)
	w.announced = append(w.announced, s)
}

// retract ends what announce began, if it did. See the rule of writers.
func (w *write) retract() {
	if len(w.announced) == 0 {
		return
	}
	for _, s := range w.announced {
		s.word.Add(stripeEnd)
	}
	w.announced = nil
	w.r.moving.writes.Add(-1)
}
