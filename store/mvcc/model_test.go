package mvcc

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// model is the slow, obviously right twin: all versions ever written, in order
// of time, per key.
type model struct {
	keys     [][]byte
	versions map[string][]Version
}

func (m *model) get(key []byte, ts hlc.Timestamp) (v Version, found bool) {
	for _, at := range m.versions[string(key)] {
		if at.Timestamp <= ts {
			v = at
			found = !at.Tombstone
		}
	}
	return v, found
}

func (m *model) scan(o ScanOptions) (rows []kv.KeyValue) {
	for _, k := range m.keys {
		if bytes.Compare(k, o.Start) < 0 || (len(o.End) > 0 && bytes.Compare(k, o.End) >= 0) {
			continue
		}
		if v, found := m.get(k, o.Timestamp); found {
			row := kv.KeyValue{Key: k, Value: v.Value, Version: v.Timestamp}
			if o.KeysOnly {
				row.Value = nil
			}
			rows = append(rows, row)
		}
	}
	if o.Reverse {
		slices.Reverse(rows)
	}
	return rows
}

// awkwardKeys hold zero bytes, bytes that look like version lengths, and
// continue one another.
func awkwardKeys() [][]byte {
	keys := [][]byte{{0}, {0, 0}, {9}, []byte("a"), []byte("a\x00"), []byte("a\x00\x00"),
		[]byte("a\x00\x00b"), []byte("a\x00\x09"), []byte("a\x00\xff"), []byte("a\x01"),
		[]byte("a\x00\x00\x00\x00\x00\x00\x00\x00\x01\x09"), []byte("aa"), []byte("ab"), {0xff}}
	for i := range 20 {
		keys = append(keys, fmt.Appendf(nil, "b%02d", i))
	}
	slices.SortFunc(keys, bytes.Compare)
	return keys
}

// TestEverythingAgreesWithASlowTwin writes, deletes, collects, flushes and
// compacts at random and compares reads, scans both ways in pages of any size,
// probes, statistics and fingerprint with the model.
func TestEverythingAgreesWithASlowTwin(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 12; seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			run(t, seed)
		})
	}
}

func run(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 77))
	w := &writer{t: t, db: openDB(t, 64+r.IntN(400))}
	m := &model{keys: awkwardKeys(), versions: map[string][]Version{}}
	now, threshold := hlc.Timestamp(0), hlc.Timestamp(0)
	hot := 1 + r.IntN(len(m.keys)) // some seeds pile many versions on few keys
	for range 600 {
		switch op := r.IntN(100); {
		case op < 70:
			now += hlc.Timestamp(1 + r.IntN(3))
			k := m.keys[r.IntN(hot)]
			v := Version{Timestamp: now, Tombstone: r.IntN(4) == 0, Expiry: int64(r.IntN(2)),
				Value: fmt.Appendf(nil, "%d-%x", now, make([]byte, r.IntN(12)))}
			if r.IntN(2) == 0 {
				v.Identity = kv.Identity{Client: 1 + r.Uint64N(3), Sequence: uint64(now),
					Operation: r.Uint32N(2)}
			}
			w.put(k, v)
			m.versions[string(k)] = append(m.versions[string(k)], v)
		case op < 73:
			w.check(w.db.Flush())
		case op < 74:
			w.check(w.db.Compact(t.Context(), []byte{0}, []byte{0xff, 0xff, 0}, false))
		case op < 77 && now > threshold:
			next := threshold + 1 + hlc.Timestamp(r.Uint64N(uint64(now-threshold)))
			w.collect(nil, nil, threshold, next, 1+r.IntN(300))
			threshold = next
			noGarbageBelow(t, w, threshold)
		case op < 79:
			w.agree()
		default:
			compareReads(t, r, w, m, threshold, now)
		}
	}
	w.agree()
}

func compareReads(
	t *testing.T, r *rand.Rand, w *writer, m *model, threshold, now hlc.Timestamp,
) {
	t.Helper()
	it, err := NewIterator(w.db, nil, nil)
	w.check(err)
	defer func() { w.check(it.Close()) }()
	ts := threshold + 1 + hlc.Timestamp(r.Uint64N(uint64(now-threshold)+2))
	o := ScanOptions{Timestamp: ts, Reverse: r.IntN(2) == 0, KeysOnly: r.IntN(4) == 0}
	if r.IntN(3) > 0 {
		o.Start = m.keys[r.IntN(len(m.keys))]
	}
	if r.IntN(3) > 0 {
		o.End = append(slices.Clone(m.keys[r.IntN(len(m.keys))]), make([]byte, r.IntN(2))...)
	}
	if r.IntN(2) == 0 {
		o.Limit = 1 + r.IntN(5)
	}
	if r.IntN(3) == 0 {
		o.MaxBytes = 1 + r.IntN(60)
	}
	for range 5 {
		k := m.keys[r.IntN(len(m.keys))]
		v, found, err := it.Get(k, ts)
		w.check(err)
		want, wantFound := m.get(k, ts)
		if found != wantFound || (found && (v.Timestamp != want.Timestamp ||
			!bytes.Equal(v.Value, want.Value) || v.Identity != want.Identity)) {
			t.Fatalf("get %q at %d: %+v %v, want %+v %v", k, ts, v, found, want, wantFound)
		}
	}
	compareScan(t, it, m, o)
	compareProbe(t, r, it, m, threshold, now)
}

func compareScan(t *testing.T, it *Iterator, m *model, o ScanOptions) {
	t.Helper()
	want := m.scan(o)
	var got []kv.KeyValue
	for pages := 0; ; pages++ {
		rows, resume, err := it.Scan(o)
		if err != nil {
			t.Fatal(err)
		}
		if o.Limit > 0 && len(rows) > o.Limit {
			t.Fatalf("%d rows in a page of %d", len(rows), o.Limit)
		}
		size := 0
		for _, row := range rows {
			size += len(row.Key) + len(row.Value)
		}
		if o.MaxBytes > 0 && size > o.MaxBytes && len(rows) > 1 {
			t.Fatalf("%d bytes in a page of %d", size, o.MaxBytes)
		}
		got = append(got, rows...)
		if resume == nil {
			break
		}
		if o.Reverse {
			o.End = resume
		} else {
			o.Start = resume
		}
		if pages > 1000 {
			t.Fatal("scan makes no progress")
		}
	}
	if !slices.EqualFunc(got, want, func(a, b kv.KeyValue) bool {
		return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value) &&
			a.Version == b.Version && (a.Value == nil) == (b.Value == nil)
	}) {
		t.Fatalf("scan %+v:\n got %+v\nwant %+v", o, got, want)
	}
}

func compareProbe(
	t *testing.T, r *rand.Rand, it *Iterator, m *model, threshold, now hlc.Timestamp,
) {
	t.Helper()
	k := m.keys[r.IntN(len(m.keys))]
	versions := m.versions[string(k)]
	if len(versions) == 0 {
		return
	}
	v := versions[r.IntN(len(versions))]
	id := v.Identity
	id.Floor = threshold + hlc.Timestamp(r.Uint64N(uint64(now-threshold)+1))
	p, err := it.Probe(k, id)
	if err != nil {
		t.Fatal(err)
	}
	last := versions[len(versions)-1]
	collected := last.Tombstone && last.Timestamp <= threshold
	if p.Newest.Found == collected || (!collected && (p.Newest.Timestamp != last.Timestamp ||
		p.Newest.Tombstone != last.Tombstone || p.Newest.Identity != last.Identity)) {
		t.Fatalf("newest of %q: %+v, want %+v (collected: %v)", k, p.Newest, last, collected)
	}
	want := id.Client != 0 && v.Timestamp > id.Floor
	if p.Duplicate != want || (want && p.DuplicateAt != v.Timestamp) {
		t.Fatalf("probe of %q for %+v: %+v, written at %d", k, id, p, v.Timestamp)
	}
}

// noGarbageBelow reads everything: at or below the threshold each key may have
// one version, and that is a value.
func noGarbageBelow(t *testing.T, w *writer, threshold hlc.Timestamp) {
	t.Helper()
	it, err := newPebbleIterator(w.db, nil, nil, nil)
	w.check(err)
	defer func() { w.check(it.Close()) }()
	anchors := map[string]bool{}
	for it.First(); it.Valid(); it.Next() {
		e, err := currentEntry(it)
		w.check(err)
		if e.version.Timestamp > threshold {
			continue
		}
		if e.version.Tombstone || anchors[string(e.key)] {
			t.Fatalf("%q at %d is garbage at %d", e.key, e.version.Timestamp, threshold)
		}
		anchors[string(e.key)] = true
	}
	w.check(it.Error())
}
