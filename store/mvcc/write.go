package mvcc

import (
	"fmt"
	"math/bits"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/internal/invariant"
)

// Put writes a version to b and returns what changes, and what is the key's
// newest version then (for the next write to it in the same batch). newest
// describes the key's newest version before; v.Timestamp must be above it
// (asserted). key and v.Value are copied. It allocates nothing if b has room.
func Put(b *pebble.Batch, key []byte, v Version, newest Newest) (Delta, Newest, error) {
	if v.Timestamp == 0 || (newest.Found && v.Timestamp <= newest.Timestamp) {
		invariant.Failf("version at %d is to be written above one at %d",
			v.Timestamp, newest.Timestamp)
	}
	keyLen, valueLen := len(key)+suffixLen, valueSize(v)
	op := b.SetDeferred(keyLen, valueLen)
	k := AppendKey(op.Key[:0:keyLen], key, v.Timestamp)
	raw := AppendValue(op.Value[:0:valueLen], v)
	if len(k) != keyLen || len(raw) != valueLen {
		invariant.Failf("version encodes to %d+%d bytes, not %d+%d",
			len(k), len(raw), keyLen, valueLen)
	}
	d := Delta{Fingerprint: fingerprint(k, raw)}
	if err := op.Finish(); err != nil {
		return Delta{}, newest, fmt.Errorf("put: %w", err)
	}
	if newest.Found && !newest.Tombstone {
		d.Stats.shadow(newest.KeyBytes, newest.ValueBytes)
	}
	d.Stats.add(v.Tombstone, int64(keyLen), int64(valueLen))
	now := Newest{
		Found:      true,
		Tombstone:  v.Tombstone,
		Timestamp:  v.Timestamp,
		Identity:   v.Identity,
		KeyBytes:   int64(keyLen),
		ValueBytes: int64(valueLen),
	}
	now.Identity.Floor = 0
	return d, now, nil
}

// valueSize is the length of what AppendValue appends.
func valueSize(v Version) int {
	n := 1
	if v.Identity.Client != 0 {
		n += clientLen + uvarintLen(v.Identity.Sequence)
		if v.Identity.Operation != 0 {
			n += uvarintLen(uint64(v.Identity.Operation))
		}
	}
	if v.Expiry > 0 {
		n += uvarintLen(uint64(v.Expiry))
	}
	if !v.Tombstone {
		n += len(v.Value)
	}
	return n
}

// uvarintLen is the length of x as a uvarint: seven bits a byte.
func uvarintLen(x uint64) int { return max(1, (bits.Len64(x)+6)/7) }
