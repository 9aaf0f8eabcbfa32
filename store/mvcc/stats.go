package mvcc

import (
	"bytes"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Stats are the statistics of a span of versions, or a change to them. Byte
// counts are of encoded keys and of values with their headers, before
// compression.
type Stats struct {
	// Keys counts keys whose newest version is a value.
	Keys int64
	// Versions counts all versions, tombstones included.
	Versions int64
	// Tombstones counts versions that are tombstones.
	Tombstones int64
	// KeyBytes and ValueBytes are of all versions.
	KeyBytes, ValueBytes int64
	// LiveBytes are key and value bytes of newest versions that are values.
	LiveBytes int64
	// Intents counts provisional versions: none yet.
	Intents int64
	// GarbageBytes are key and value bytes of every version that a newer one
	// of its key shadows, and of every tombstone: all bytes that are not live.
	GarbageBytes int64
}

// Delta is what a write changes beside the data: statistics and fingerprint.
// The fingerprint is a sum (mod 2^64) of one hash per version (engine key and
// value), so deltas add up in any order.
type Delta struct {
	Stats       Stats
	Fingerprint uint64
}

// Add adds o to d.
func (d *Delta) Add(o Delta) { d.combine(o, 1) }

// Sub subtracts o from d: what is left of a span when a part of it goes.
func (d *Delta) Sub(o Delta) { d.combine(o, -1) }

func (d *Delta) combine(o Delta, sign int64) {
	s := &d.Stats
	s.Keys += sign * o.Stats.Keys
	s.Versions += sign * o.Stats.Versions
	s.Tombstones += sign * o.Stats.Tombstones
	s.KeyBytes += sign * o.Stats.KeyBytes
	s.ValueBytes += sign * o.Stats.ValueBytes
	s.LiveBytes += sign * o.Stats.LiveBytes
	s.Intents += sign * o.Stats.Intents
	s.GarbageBytes += sign * o.Stats.GarbageBytes
	d.Fingerprint += uint64(sign) * o.Fingerprint
}

// Proto returns s as it is stored and sent.
func (s Stats) Proto() *metapb.RangeStats {
	return &metapb.RangeStats{
		Keys:         s.Keys,
		Versions:     s.Versions,
		Tombstones:   s.Tombstones,
		KeyBytes:     s.KeyBytes,
		ValueBytes:   s.ValueBytes,
		LiveBytes:    s.LiveBytes,
		Intents:      s.Intents,
		GarbageBytes: s.GarbageBytes,
	}
}

// StatsFromProto is the inverse of Proto; nil gives zero.
func StatsFromProto(p *metapb.RangeStats) Stats {
	return Stats{
		Keys:         p.GetKeys(),
		Versions:     p.GetVersions(),
		Tombstones:   p.GetTombstones(),
		KeyBytes:     p.GetKeyBytes(),
		ValueBytes:   p.GetValueBytes(),
		LiveBytes:    p.GetLiveBytes(),
		Intents:      p.GetIntents(),
		GarbageBytes: p.GetGarbageBytes(),
	}
}

// add counts a version of the given sizes that becomes the newest of its key,
// and shadowed takes one from live to garbage.
func (s *Stats) add(tombstone bool, keyBytes, valueBytes int64) {
	s.Versions++
	s.KeyBytes += keyBytes
	s.ValueBytes += valueBytes
	if tombstone {
		s.Tombstones++
		s.GarbageBytes += keyBytes + valueBytes
		return
	}
	s.Keys++
	s.LiveBytes += keyBytes + valueBytes
}

func (s *Stats) shadow(keyBytes, valueBytes int64) {
	s.Keys--
	s.LiveBytes -= keyBytes + valueBytes
	s.GarbageBytes += keyBytes + valueBytes
}

// collected counts the removal of a version that was garbage.
func (s *Stats) collected(tombstone bool, keyBytes, valueBytes int64) {
	s.Versions--
	s.KeyBytes -= keyBytes
	s.ValueBytes -= valueBytes
	s.GarbageBytes -= keyBytes + valueBytes
	if tombstone {
		s.Tombstones--
	}
}

// fingerprint hashes one version. The key's hash is the seed of the value's,
// not a summand: in a sum of sums, values exchanged between two keys would
// cancel out.
func fingerprint(engineKey, value []byte) uint64 {
	var d xxhash.Digest
	d.ResetWithSeed(xxhash.Sum64(engineKey))
	_, _ = d.Write(value) // never fails
	return d.Sum64()
}

// Compute reads all versions of keys in [start, end) (internal keys; an empty
// end: no bound) and returns their statistics and fingerprint from scratch:
// what the right half of a split takes with it, and the slow, obviously right
// twin of the deltas.
func Compute(r Reader, start, end []byte) (Delta, error) {
	it, err := newPebbleIterator(r, start, end, nil)
	if err != nil {
		return Delta{}, err
	}
	d, err := compute(it)
	if closeErr := it.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return Delta{}, fmt.Errorf("compute statistics: %w", err)
	}
	return d, nil
}

func compute(it *pebble.Iterator) (d Delta, err error) {
	var previous []byte // key of the version before, which shadows this one if it has the same
	seen := false
	for it.First(); it.Valid(); it.Next() {
		e, err := currentEntry(it)
		if err != nil {
			return Delta{}, err
		}
		d.Stats.add(e.version.Tombstone, e.keyBytes, e.valueBytes)
		if seen && bytes.Equal(e.key, previous) && !e.version.Tombstone {
			d.Stats.shadow(e.keyBytes, e.valueBytes)
		}
		d.Fingerprint += e.fingerprint()
		previous, seen = append(previous[:0], e.key...), true
	}
	return d, it.Error()
}
