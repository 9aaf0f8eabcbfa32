package mvcc

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/cockroachkvs"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

type quietLogger struct{}

func (quietLogger) Infof(string, ...any)              {}
func (quietLogger) Errorf(string, ...any)             {}
func (quietLogger) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// openDB opens a Pebble with the schema of a node and blocks so small that
// filters and block borders matter.
func openDB(t testing.TB, blockSize int) *pebble.DB {
	t.Helper()
	o := &pebble.Options{
		FS:                      vfs.NewMem(),
		FormatMajorVersion:      pebble.FormatNewest,
		Comparer:                &cockroachkvs.Comparer,
		KeySchema:               cockroachkvs.KeySchema.Name,
		KeySchemas:              sstable.MakeKeySchemas(&cockroachkvs.KeySchema),
		BlockPropertyCollectors: cockroachkvs.BlockPropertyCollectors,
		MemTableSize:            64 << 20,
		CacheSize:               128 << 20,
		Logger:                  quietLogger{},
	}
	for i := range o.Levels {
		o.Levels[i].BlockSize = blockSize
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := pebble.Open("", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// writer writes versions the way evaluation does: probe, then put.
type writer struct {
	t     testing.TB
	db    *pebble.DB
	total Delta
}

func (w *writer) put(key []byte, v Version) {
	w.t.Helper()
	it, err := NewIterator(w.db, nil, nil)
	w.check(err)
	p, err := it.Probe(key, v.Identity)
	w.check(err)
	w.check(it.Close())
	b := w.db.NewBatch()
	d, now, err := Put(b, key, v, p.Newest)
	w.check(err)
	w.check(b.Commit(pebble.NoSync))
	w.total.Add(d)
	if now.Timestamp != v.Timestamp || now.Tombstone != v.Tombstone {
		w.t.Fatalf("newest after a put of %+v is %+v", v, now)
	}
}

func (w *writer) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *writer) collect(
	start, end []byte, old, threshold hlc.Timestamp, maxBytes int,
) (pages int) {
	w.t.Helper()
	for {
		b := w.db.NewBatch()
		d, resume, err := GCPage(w.db, b, start, end, old, threshold, maxBytes)
		w.check(err)
		w.check(b.Commit(pebble.NoSync))
		w.total.Add(d)
		pages++
		if resume == nil {
			return pages
		}
		start = resume
		if pages > 100_000 {
			w.t.Fatal("garbage collection makes no progress")
		}
	}
}

func (w *writer) agree() {
	w.t.Helper()
	got, err := Compute(w.db, nil, nil)
	w.check(err)
	if got != w.total {
		w.t.Fatalf("deltas add up to\n%+v, the data is\n%+v", w.total, got)
	}
	s := got.Stats
	if s.KeyBytes+s.ValueBytes != s.LiveBytes+s.GarbageBytes {
		w.t.Fatalf("live and garbage are not all bytes: %+v", s)
	}
}

func TestKeysSortAsTheirVersionsShould(t *testing.T) {
	t.Parallel()
	keys := [][]byte{
		{}, {0}, {0, 0}, {0, 9}, {9}, []byte("a"), []byte("a\x00"), []byte("a\x00\x00"),
		[]byte("a\x00\x00b"), []byte("a\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09"),
		[]byte("a\x01"), []byte("aa"), []byte("b"), {0xff}, {0xff, 0xff},
	}
	slices.SortFunc(keys, bytes.Compare)
	var engine [][]byte
	for _, k := range keys {
		engine = append(engine, AppendKey(nil, k, 0))
		for _, ts := range []hlc.Timestamp{math.MaxUint64, 1 << 40, 256, 9, 1} { // newest first
			ek := AppendKey([]byte("x"), k, ts)[1:]
			engine = append(engine, ek)
			got, at, ok := DecodeKey(ek)
			if !ok || at != ts || !bytes.Equal(got, k) {
				t.Fatalf("%q at %d decodes to %q at %d, %v", k, ts, got, at, ok)
			}
		}
	}
	for i := 1; i < len(engine); i++ {
		if cockroachkvs.Compare(engine[i-1], engine[i]) >= 0 {
			t.Fatalf("%x does not sort before %x", engine[i-1], engine[i])
		}
	}
	for _, bad := range [][]byte{nil, {0}, {9}, []byte("abc\x00"), []byte("\x0112345678\x09"),
		[]byte("\x00123456781234\x0d"), make([]byte, 9)} {
		if _, _, ok := DecodeKey(bad); ok {
			t.Errorf("%x decodes as a version", bad)
		}
	}
}

func TestValuesSurviveAndDamagedOnesAreRefused(t *testing.T) {
	t.Parallel()
	ids := []kv.Identity{{}, {Client: 1}, {Client: math.MaxUint64, Sequence: math.MaxUint64,
		Operation: math.MaxUint32}, {Client: 7, Sequence: 128, Operation: 1}}
	for _, id := range ids {
		for _, expiry := range []int64{0, 1, math.MaxInt64} {
			for _, value := range [][]byte{{}, []byte("v"), bytes.Repeat([]byte{0}, 300)} {
				for _, tombstone := range []bool{false, true} {
					roundTrip(t, Version{Identity: id, Expiry: expiry, Value: value,
						Tombstone: tombstone})
				}
			}
		}
	}
	if n := len(AppendValue(nil, Version{Value: []byte("abc")})); n != 4 {
		t.Errorf("a plain value of 3 bytes takes %d", n)
	}
	bad := [][]byte{nil, {flagProvisional}, {0x80}, {flagOperation}, {flagIdentity, 1, 2},
		{flagTombstone, 1}, append([]byte{flagIdentity}, make([]byte, 9)...), {flagExpiry},
		append([]byte{flagExpiry}, bytes.Repeat([]byte{0xff}, 11)...)}
	for _, data := range bad {
		if _, err := DecodeValue(data); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x: %v", data, err)
		}
	}
}

func roundTrip(t *testing.T, v Version) {
	t.Helper()
	data := AppendValue([]byte("before"), v)[len("before"):]
	if len(data) != valueSize(v) {
		t.Fatalf("%+v takes %d bytes, valueSize says %d", v, len(data), valueSize(v))
	}
	got, err := DecodeValue(data)
	if err != nil {
		t.Fatal(err)
	}
	if v.Tombstone {
		v.Value = nil
	}
	if got.Identity != v.Identity || got.Expiry != v.Expiry || got.Tombstone != v.Tombstone ||
		!bytes.Equal(got.Value, v.Value) {
		t.Fatalf("%+v came back as %+v", v, got)
	}
	for cut := range data { // whatever is cut off, no panic and no wrong identity
		if short, err := DecodeValue(data[:cut]); err == nil && short.Identity != v.Identity {
			t.Fatalf("%x decodes to %+v", data[:cut], short)
		}
	}
}

func TestProbeFindsTheEarlierAttemptAboveTheFloorOnly(t *testing.T) {
	t.Parallel()
	w := &writer{t: t, db: openDB(t, 4096)}
	key, id := []byte("k"), kv.Identity{Client: 5, Sequence: 9, Operation: 2}
	w.put(key, Version{Timestamp: 10, Identity: id, Value: []byte("mine")})
	w.put(key, Version{Timestamp: 20, Value: []byte("other")})
	w.put(key, Version{Timestamp: 30, Tombstone: true,
		Identity: kv.Identity{Client: 5, Sequence: 10}})
	it, err := NewIterator(w.db, []byte("a"), []byte("z"))
	w.check(err)
	defer func() { w.check(it.Close()) }()
	probe := func(id kv.Identity, floor hlc.Timestamp) Probe {
		id.Floor = floor
		p, err := it.Probe(key, id)
		w.check(err)
		if !p.Newest.Found || p.Newest.Timestamp != 30 || !p.Newest.Tombstone {
			t.Fatalf("newest: %+v", p.Newest)
		}
		return p
	}
	if p := probe(id, 9); !p.Duplicate || p.DuplicateAt != 10 {
		t.Errorf("attempt above the floor not found: %+v", p)
	}
	if p := probe(id, 10); p.Duplicate {
		t.Errorf("attempt at the floor found: %+v", p)
	}
	if p := probe(kv.Identity{Client: 5, Sequence: 9, Operation: 1}, 0); p.Duplicate {
		t.Errorf("another operation's attempt found: %+v", p)
	}
	if p := probe(kv.Identity{}, 0); p.Duplicate {
		t.Errorf("no identity matches: %+v", p)
	}
	if p, err := it.Probe([]byte("absent"), id); err != nil || p != (Probe{}) {
		t.Errorf("absent key: %+v, %v", p, err)
	}
}

func TestReadsOutsideTheBoundsAreErrors(t *testing.T) {
	t.Parallel()
	w := &writer{t: t, db: openDB(t, 4096)}
	for _, k := range []string{"a", "b", "c"} {
		w.put([]byte(k), Version{Timestamp: 5, Value: []byte(k)})
	}
	it, err := NewIterator(w.db, []byte("b"), []byte("c"))
	w.check(err)
	defer func() { w.check(it.Close()) }()
	for _, k := range []string{"a", "c", "d"} {
		if _, _, err := it.Get([]byte(k), 9); err == nil {
			t.Errorf("get %q outside [b, c) gives no error", k)
		}
	}
	if v, found, err := it.Get([]byte("b"), 9); err != nil || !found || string(v.Value) != "b" {
		t.Errorf("get b after errors: %+v %v %v", v, found, err)
	}
	if _, found, err := it.Get([]byte("b"), 0); found || err != nil {
		t.Errorf("get at timestamp 0: %v %v", found, err)
	}
}

func TestAWriteBelowTheNewestVersionStopsTheNode(t *testing.T) {
	t.Parallel()
	db := openDB(t, 4096)
	defer func() {
		if _, ok := recover().(invariant.Violation); !ok {
			t.Error("no violation")
		}
	}()
	_, _, _ = Put(db.NewBatch(), []byte("k"), Version{Timestamp: 7},
		Newest{Found: true, Timestamp: 7})
}

func TestFingerprintTellsSwappedValuesApart(t *testing.T) {
	t.Parallel()
	sum := func(a, b string) uint64 {
		return fingerprint(AppendKey(nil, []byte("x"), 1), []byte(a)) +
			fingerprint(AppendKey(nil, []byte("y"), 1), []byte(b))
	}
	if sum("1", "2") == sum("2", "1") {
		t.Error("exchanged values give the same fingerprint")
	}
}

func TestSplitStatisticsAddUpToTheWhole(t *testing.T) {
	t.Parallel()
	w := &writer{t: t, db: openDB(t, 256)}
	r := rand.New(rand.NewPCG(1, 2))
	for ts := hlc.Timestamp(1); ts < 300; ts++ {
		w.put(fmt.Appendf(nil, "k%02d", r.IntN(40)), Version{Timestamp: ts,
			Tombstone: r.IntN(4) == 0, Value: make([]byte, r.IntN(20))})
	}
	left, err := Compute(w.db, nil, []byte("k20"))
	w.check(err)
	right, err := Compute(w.db, []byte("k20"), nil)
	w.check(err)
	rest := w.total
	rest.Sub(left)
	if rest != right || StatsFromProto(right.Stats.Proto()) != right.Stats {
		t.Errorf("whole - left = %+v, right = %+v", rest, right)
	}
}
