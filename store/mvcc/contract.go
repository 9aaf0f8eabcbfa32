// Package mvcc is the encoding of versioned values and the pure functions that
// read and write them. No lock, goroutine or clock; state only in arguments.
//
// CONTRACT STUB: signatures are fixed, bodies are to be written (split over
// key.go, header.go, iterator.go, write.go, stats.go, gc.go).
package mvcc

import (
	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Reader is what versions are read from: *pebble.DB or *pebble.Snapshot.
type Reader interface {
	NewIter(o *pebble.IterOptions) (*pebble.Iterator, error)
}

// Stats are the statistics of a span of versions, or a change to them.
type Stats struct {
	Keys, Versions, Tombstones, KeyBytes, ValueBytes, LiveBytes, Intents, GarbageBytes int64
}

// Delta is what a write changes beside the data: statistics and fingerprint.
// The fingerprint is a sum (mod 2^64) of one hash per version (engine key and
// value), so deltas add up in any order.
type Delta struct {
	Stats       Stats
	Fingerprint uint64
}

func (d *Delta) Add(o Delta)                    { panic("unimplemented") }
func (s Stats) Proto() *metapb.RangeStats       { panic("unimplemented") }
func StatsFromProto(p *metapb.RangeStats) Stats { panic("unimplemented") }

// Version is one version of a key. Value aliases the iterator or buffer it was
// decoded from.
type Version struct {
	Timestamp hlc.Timestamp
	Tombstone bool
	Identity  kv.Identity // Floor is not stored
	Expiry    int64       // wall milliseconds, 0: none (reserved, not interpreted yet)
	Value     []byte
}

// AppendKey appends the engine key of a version of key (timestamp 0: the bare
// prefix, key 0x00). The 64-bit timestamp goes into the 8-byte wall part.
func AppendKey(dst, key []byte, ts hlc.Timestamp) []byte { panic("unimplemented") }

// DecodeKey splits an engine key; ok is false if it is not a versioned key.
func DecodeKey(engineKey []byte) (key []byte, ts hlc.Timestamp, ok bool) { panic("unimplemented") }

// AppendValue appends header and value of a version. DecodeValue reads them.
func AppendValue(dst []byte, v Version) []byte { panic("unimplemented") }
func DecodeValue(data []byte) (Version, error) { panic("unimplemented") }

// Newest describes the newest version of a key, which a write needs for the
// statistics. The zero value means that the key has none.
type Newest struct {
	Found      bool
	Tombstone  bool
	Timestamp  hlc.Timestamp
	Identity   kv.Identity
	KeyBytes   int64 // encoded
	ValueBytes int64 // header and value
}

// Probe is what evaluation must know of a key before a write.
type Probe struct {
	Newest Newest
	// Duplicate is set when a version above the floor carries the identity: the
	// write has been applied already, at this timestamp.
	Duplicate   bool
	DuplicateAt hlc.Timestamp
}

// Iterator reads versions through one Pebble iterator, reused for many reads.
// Not safe for concurrent use. Close it before waiting for anything.
type Iterator struct{ it *pebble.Iterator }

// NewIterator returns an iterator over the versions of keys in [lower, upper),
// both internal keys.
func NewIterator(r Reader, lower, upper []byte) (*Iterator, error) { panic("unimplemented") }

func (it *Iterator) Close() error { panic("unimplemented") }

// Get returns the newest version at or below ts; found is false if there is
// none or it is a tombstone (v then still has its timestamp and identity).
// v.Value is valid until the next call.
func (it *Iterator) Get(key []byte, ts hlc.Timestamp) (v Version, found bool, err error) {
	panic("unimplemented")
}

// Probe looks at the newest version of key and, while versions are above
// id.Floor, for one that carries the identity. An identity of client 0 never matches.
func (it *Iterator) Probe(key []byte, id kv.Identity) (Probe, error) { panic("unimplemented") }

// ScanOptions bound a page. Rows are copies.
type ScanOptions struct {
	Start, End []byte
	Timestamp  hlc.Timestamp
	Limit      int
	MaxBytes   int
	Reverse    bool
	KeysOnly   bool
}

// Scan reads a page. resume is nil when the span is done: forward it is the
// next start, reverse the next (exclusive) end.
func (it *Iterator) Scan(o ScanOptions) (rows []kv.KeyValue, resume []byte, err error) {
	panic("unimplemented")
}

// Put writes a version to b and returns what changes. newest describes the
// key's newest version before; ts must be above it (asserted).
func Put(b *pebble.Batch, key []byte, v Version, newest Newest) (Delta, Newest, error) {
	panic("unimplemented")
}

// GCPage collects garbage at threshold: versions at or below it that a newer
// version at or below it shadows, and tombstones at or below it that nothing
// follows. It visits only versions between the old and the new threshold
// (time-interval filter) and what they shadow, deletes into b until maxBytes,
// and returns the change and where to resume (nil: done).
func GCPage(r Reader, b *pebble.Batch, start, end []byte, old, threshold hlc.Timestamp, maxBytes int) (d Delta, resume []byte, err error) {
	panic("unimplemented")
}

// Compute scans a span and returns its statistics and fingerprint from
// scratch: the slow, obviously right twin, for splits' checks and tests.
func Compute(r Reader, start, end []byte) (Delta, error) { panic("unimplemented") }
