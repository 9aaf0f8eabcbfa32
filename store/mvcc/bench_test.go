package mvcc

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

const benchKeys = 100_000

func benchKey(dst []byte, i int) []byte { return fmt.Appendf(dst, "\x20user%012d", i) }

func benchDB(b *testing.B) (*pebble.DB, [][]byte) {
	b.Helper()
	db := openDB(b, 32<<10)
	keys := make([][]byte, benchKeys)
	for i := range keys {
		keys[i] = benchKey(nil, i)
	}
	for round := range 2 {
		batch := db.NewBatch()
		for i, k := range keys {
			_, _, err := Put(batch, k, Version{Timestamp: hlc.Timestamp(1 + round*benchKeys + i),
				Identity: kv.Identity{Client: 1, Sequence: uint64(i)},
				Value:    make([]byte, 256)}, Newest{})
			if err != nil {
				b.Fatal(err)
			}
		}
		if err := batch.Commit(pebble.NoSync); err != nil {
			b.Fatal(err)
		}
		if err := db.Flush(); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := Compute(db, nil, nil); err != nil { // warms the block cache
		b.Fatal(err)
	}
	return db, keys
}

func BenchmarkGet(b *testing.B) {
	db, keys := benchDB(b)
	it, err := NewIterator(db, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = it.Close() }()
	r := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	for b.Loop() {
		_, found, err := it.Get(keys[r.IntN(benchKeys)], hlc.MaxTimestamp)
		if !found || err != nil {
			b.Fatal(found, err)
		}
	}
}

func BenchmarkProbe(b *testing.B) {
	db, keys := benchDB(b)
	it, err := NewIterator(db, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = it.Close() }()
	r := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	for b.Loop() {
		id := kv.Identity{Client: 9, Sequence: 9, Floor: 2*benchKeys + 1}
		if p, err := it.Probe(keys[r.IntN(benchKeys)], id); !p.Newest.Found || err != nil {
			b.Fatal(p, err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	db := openDB(b, 4096)
	batch := db.NewBatchWithSize(1 << 20)
	key, value, ts := benchKey(nil, 7), make([]byte, 256), hlc.Timestamp(0)
	b.ReportAllocs()
	for b.Loop() {
		if batch.Len() > 512<<10 {
			batch.Reset()
		}
		ts++
		v := Version{Timestamp: ts, Identity: kv.Identity{Client: 1, Sequence: 1 << 20},
			Value: value}
		if _, _, err := Put(batch, key, v, Newest{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkScan100(b *testing.B) {
	for _, reverse := range []bool{false, true} {
		b.Run(fmt.Sprintf("reverse=%v", reverse), func(b *testing.B) {
			db, keys := benchDB(b)
			it, err := NewIterator(db, nil, nil)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = it.Close() }()
			r := rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			for b.Loop() {
				i := 100 + r.IntN(benchKeys-200)
				o := ScanOptions{Start: keys[i], Timestamp: hlc.MaxTimestamp, Limit: 100}
				if reverse {
					o.Start, o.End, o.Reverse = nil, keys[i], true
				}
				if rows, _, err := it.Scan(o); len(rows) != 100 || err != nil {
					b.Fatal(len(rows), err)
				}
			}
		})
	}
}
