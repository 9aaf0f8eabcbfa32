package mvcc

import (
	"bytes"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Reader is what versions are read from: *pebble.DB or *pebble.Snapshot.
type Reader interface {
	// NewIter opens an iterator; the options are not kept.
	NewIter(o *pebble.IterOptions) (*pebble.Iterator, error)
}

// Newest describes the newest version of a key, which a write needs for the
// statistics. The zero value means that the key has none.
type Newest struct {
	Found      bool
	Tombstone  bool
	Timestamp  hlc.Timestamp
	Identity   kv.Identity // Floor is not stored
	KeyBytes   int64       // encoded
	ValueBytes int64       // header and value
}

// Probe is what evaluation must know of a key before a write.
type Probe struct {
	// Newest is the key's newest version, whatever the floor.
	Newest Newest
	// Duplicate is set when a version above the floor carries the identity: the
	// write has been applied already, at this timestamp.
	Duplicate   bool
	DuplicateAt hlc.Timestamp
}

// inlineKey is the room for keys in an Iterator itself, so that one allocation
// makes it and short keys need no other.
const inlineKey = 96

// Iterator reads versions through one Pebble iterator, reused for many reads:
// Get and Probe allocate nothing in the steady state. It sees the state of the
// moment in which it was made. Not safe for concurrent use. It pins memtables
// and files: close it before waiting for anything.
type Iterator struct {
	it    *pebble.Iterator
	upper []byte // exclusive bound of keys, empty: none
	key   []byte // scratch: the engine key sought
	saved []byte // scratch: the key that a scan stands at
	value []byte // scratch: a value that the iterator has left behind
	room  [inlineKey]byte
}

// NewIterator returns an iterator over the versions of keys in [lower, upper),
// both internal keys, copied; an empty upper means no bound. Points outside
// are an error, not absent.
func NewIterator(r Reader, lower, upper []byte) (*Iterator, error) {
	p, err := newPebbleIterator(r, lower, upper, nil)
	if err != nil {
		return nil, err
	}
	it := &Iterator{it: p}
	it.key = it.room[:0]
	it.upper = bytes.Clone(upper)
	return it, nil
}

// newPebbleIterator opens an iterator with encoded bounds; the comparer panics
// on bounds that do not end in 0x00.
func newPebbleIterator(
	r Reader, lower, upper []byte, filters []sstable.BlockPropertyFilter,
) (*pebble.Iterator, error) {
	o := pebble.IterOptions{KeyTypes: pebble.IterKeyTypePointsOnly, PointKeyFilters: filters}
	if len(lower) > 0 {
		o.LowerBound = AppendKey(make([]byte, 0, len(lower)+1), lower, 0)
	}
	if len(upper) > 0 {
		o.UpperBound = AppendKey(make([]byte, 0, len(upper)+1), upper, 0)
	}
	it, err := r.NewIter(&o)
	if err != nil {
		return nil, fmt.Errorf("open iterator: %w", err)
	}
	return it, nil
}

// Close releases the iterator; it must not be used any more.
func (it *Iterator) Close() error { return it.it.Close() }

// entry is the version that a Pebble iterator stands at. Its bytes are valid
// until the iterator moves.
type entry struct {
	engineKey, raw       []byte
	key                  []byte
	version              Version
	keyBytes, valueBytes int64
}

func (e *entry) fingerprint() uint64 { return fingerprint(e.engineKey, e.raw) }

func currentEntry(it *pebble.Iterator) (e entry, err error) {
	e.engineKey = it.Key()
	key, ts, ok := DecodeKey(e.engineKey)
	if !ok {
		return e, fmt.Errorf("%w: engine key of %d bytes is no version", ErrCorrupt,
			len(e.engineKey))
	}
	if e.raw, err = it.ValueAndErr(); err != nil {
		return e, fmt.Errorf("read value: %w", err)
	}
	if e.version, err = DecodeValue(e.raw); err != nil {
		return e, err
	}
	e.key, e.version.Timestamp = key, ts
	e.keyBytes, e.valueBytes = int64(len(e.engineKey)), int64(len(e.raw))
	return e, nil
}

// seek goes to the newest version of key at or below ts (0: to the newest of
// all) and says whether there is one. Only versions of key are visible
// afterwards: the seek is in prefix mode, which lets the engine skip tables by
// their bloom filters.
func (it *Iterator) seek(key []byte, ts hlc.Timestamp) (bool, error) {
	// At the upper bound itself Pebble would find nothing without an error.
	if len(it.upper) > 0 && bytes.Compare(key, it.upper) >= 0 {
		return false, fmt.Errorf("seek: key is at or above the iterator's upper bound")
	}
	it.key = AppendKey(it.key[:0], key, ts)
	if !it.it.SeekPrefixGE(it.key) {
		if err := it.it.Error(); err != nil {
			return false, fmt.Errorf("seek: %w", err)
		}
		return false, nil
	}
	return true, nil
}

// Get returns the newest version at or below ts; found is false if there is
// none or it is a tombstone (v then still has its timestamp and identity).
// v.Value is valid until the next call.
func (it *Iterator) Get(key []byte, ts hlc.Timestamp) (v Version, found bool, err error) {
	if ts == 0 {
		return v, false, nil // seek would take it for "the newest"
	}
	ok, err := it.seek(key, ts)
	if !ok || err != nil {
		return v, false, err
	}
	e, err := currentEntry(it.it)
	if err != nil {
		return v, false, fmt.Errorf("get: %w", err)
	}
	return e.version, !e.version.Tombstone, nil
}

// Probe looks at the newest version of key and, while versions are above
// id.Floor, for one that carries the identity. An identity of client 0 never
// matches.
func (it *Iterator) Probe(key []byte, id kv.Identity) (p Probe, err error) {
	ok, err := it.seek(key, 0)
	if !ok || err != nil {
		return p, err
	}
	e, err := currentEntry(it.it)
	if err != nil {
		return Probe{}, fmt.Errorf("probe: %w", err)
	}
	p.Newest = Newest{
		Found:      true,
		Tombstone:  e.version.Tombstone,
		Timestamp:  e.version.Timestamp,
		Identity:   e.version.Identity,
		KeyBytes:   e.keyBytes,
		ValueBytes: e.valueBytes,
	}
	if id.Client == 0 {
		return p, nil
	}
	for e.version.Timestamp > id.Floor {
		if sameWrite(e.version.Identity, id) {
			p.Duplicate, p.DuplicateAt = true, e.version.Timestamp
			return p, nil
		}
		if !it.it.Next() {
			break
		}
		// Values of older versions lie in blocks of their own: do not fetch
		// one that the floor rules out.
		if _, ts, ok := DecodeKey(it.it.Key()); ok && ts <= id.Floor {
			break
		}
		if e, err = currentEntry(it.it); err != nil {
			return Probe{}, fmt.Errorf("probe: %w", err)
		}
	}
	if err := it.it.Error(); err != nil {
		return Probe{}, fmt.Errorf("probe: %w", err)
	}
	return p, nil
}

func sameWrite(a, b kv.Identity) bool {
	return a.Client == b.Client && a.Sequence == b.Sequence && a.Operation == b.Operation
}
