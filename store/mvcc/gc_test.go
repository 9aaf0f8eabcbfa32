package mvcc

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

func TestGarbageCollectionStopsInTheMiddleOfAKeyAndGoesOn(t *testing.T) {
	t.Parallel()
	w := &writer{t: t, db: openDB(t, 256)}
	for ts := hlc.Timestamp(1); ts <= 200; ts++ {
		w.put([]byte("hot"), Version{Timestamp: ts, Value: []byte("v"), Tombstone: ts == 200})
	}
	w.check(w.db.Flush())
	if pages := w.collect(nil, nil, 0, 200, 100); pages < 10 {
		t.Errorf("200 versions went in %d pages", pages)
	}
	w.agree()
	if w.total != (Delta{}) {
		t.Errorf("nothing should be left: %+v", w.total)
	}
}

func TestGarbageCollectionKeepsWhatAReaderAboveTheThresholdSees(t *testing.T) {
	t.Parallel()
	w := &writer{t: t, db: openDB(t, 256)}
	key := []byte("k")
	w.put(key, Version{Timestamp: 10, Value: []byte("ten")})
	w.put(key, Version{Timestamp: 20, Value: []byte("twenty")})
	w.put(key, Version{Timestamp: 30, Tombstone: true})
	w.put(key, Version{Timestamp: 40, Value: []byte("forty")})
	w.collect(nil, nil, 0, 25, 1<<20)
	it, err := NewIterator(w.db, nil, nil)
	w.check(err)
	v, found, err := it.Get(key, 26)
	w.check(err)
	if !found || string(v.Value) != "twenty" {
		t.Errorf("at 26: %+v %v", v, found)
	}
	w.check(it.Close())
	w.collect(nil, nil, 25, 35, 1<<20)
	w.agree()
	if s := w.total.Stats; s.Versions != 1 || s.GarbageBytes != 0 || s.Keys != 1 {
		t.Errorf("a tombstone below a newer value stays: %+v", s)
	}
}

func TestGarbageCollectionSkipsBlocksWithoutGarbage(t *testing.T) {
	t.Parallel()
	w := &writer{t: t, db: openDB(t, 512)}
	b, ts := w.db.NewBatch(), hlc.Timestamp(0)
	for i := range 20_000 {
		ts++
		d, _, err := Put(b, fmt.Appendf(nil, "key%06d", i), Version{Timestamp: ts,
			Value: make([]byte, 20)}, Newest{})
		w.check(err)
		w.total.Add(d)
	}
	w.check(b.Commit(pebble.NoSync))
	w.check(w.db.Flush())
	old := ts
	w.put([]byte("key000700"), Version{Timestamp: ts + 1, Value: []byte("new")})
	w.check(w.db.Flush())
	batch := w.db.NewBatch()
	before := w.db.Metrics().BlockCache.Hits + w.db.Metrics().BlockCache.Misses
	d, resume, err := GCPage(w.db, batch, nil, nil, old, ts+1, 1<<20)
	w.check(err)
	after := w.db.Metrics().BlockCache.Hits + w.db.Metrics().BlockCache.Misses
	if resume != nil || d.Stats.Versions != -1 {
		t.Errorf("collected %+v, resume %q", d.Stats, resume)
	}
	if blocks := after - before; blocks > 100 {
		t.Errorf("%d blocks were read to find one version of 20,000", blocks)
	}
}

func TestAScanThroughTombstonesEndsItsPage(t *testing.T) {
	t.Parallel()
	db := openDB(t, 4096)
	b := db.NewBatch()
	const n = maxScanKeys + 10
	for i := range n {
		if _, _, err := Put(b, fmt.Appendf(nil, "k%06d", i), Version{Timestamp: 5,
			Tombstone: i < n-1}, Newest{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	it, err := NewIterator(db, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = it.Close() }()
	rows, resume, err := it.Scan(ScanOptions{Timestamp: 9})
	if err != nil || len(rows) != 0 || resume == nil {
		t.Fatalf("first page: %d rows, resume %q, %v", len(rows), resume, err)
	}
	rows, resume, err = it.Scan(ScanOptions{Timestamp: 9, Start: resume})
	if err != nil || len(rows) != 1 || resume != nil {
		t.Fatalf("second page: %d rows, resume %q, %v", len(rows), resume, err)
	}
}
