//go:build !race

// Under the race detector pools drop what they hold by chance and the engine checks itself:
// what allocates there says nothing of the product. The ordinary run counts.

package mvcc

import (
	"math"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

func TestPointReadsAndWritesAllocateNothing(t *testing.T) {
	w := &writer{t: t, db: openDB(t, 4096)} // not parallel: counts allocations
	key, id := []byte("\x20user000123"), kv.Identity{Client: 3, Sequence: 4, Floor: 3}
	for ts := hlc.Timestamp(1); ts < 5; ts++ {
		w.put(key, Version{Timestamp: ts, Value: make([]byte, 100)})
	}
	w.check(w.db.Flush())
	it, err := NewIterator(w.db, []byte("\x20"), []byte("\x21"))
	w.check(err)
	defer func() { w.check(it.Close()) }()
	batch := w.db.NewBatchWithSize(1 << 20)
	var now Newest
	ts := hlc.Timestamp(100)
	for name, f := range map[string]func() error{
		"get":   func() error { _, _, err := it.Get(key, 3); return err },
		"probe": func() error { _, err := it.Probe(key, id); return err },
		"put": func() (err error) {
			ts++
			_, now, err = Put(batch, key, Version{Timestamp: ts, Identity: id, Value: key}, now)
			return err
		},
	} {
		w.check(f())
		// What the engine does in the background is counted, too: one quiet look of
		// some tells.
		least := math.Inf(1)
		for look := 0; look < 20 && least != 0; look++ {
			least = min(least, testing.AllocsPerRun(200, func() { w.check(f()) }))
		}
		if least != 0 {
			t.Errorf("%s allocates %v times", name, least)
		}
	}
}
