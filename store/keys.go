package store

import (
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2/cockroachkvs"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// The whole keyspace of the engine.
//
// An engine key is a raw key, the sentinel byte 0x00 and, for versioned data, a
// version with its length. Everything below is raw; integers are big endian, so
// that the order of the bytes is the order of the numbers.
//
//	raw key                       value                            written by
//	----------------------------- -------------------------------- ---------------
//	node-local (this node only)
//	01 'i'                        identity record, inside copy     identity.go
//	01 'm' slot(1)                mark of a memtable, uint64       marks.go
//	01 'n' name                   small records by name            State.PutLocal
//	01 'p' node(8)                life, mark of a peer             peers.go
//	01 'w'                        filler, means nothing            open.go
//
//	range-local by range id
//	02 range(8) 01                tombstone: next replica id       Log.PutTombstone
//	   replicated (equal on all replicas at one applied index)
//	02 range(8) 10                own replica id, descriptor       State.PutDescriptor
//	02 range(8) 11                applied state                    State.PutApplied
//	   unreplicated
//	02 range(8) 20                hard state                       GroupLog
//	02 range(8) 21                truncated state: index, term     GroupLog
//	02 range(8) 22 index(8)       log entry                        GroupLog
//
//	range-local by key (moves with the key when a range splits)
//	03 key                        transaction records (reserved)
//	04 key                        locks (reserved)
//
//	versioned data
//	10 …                          system range                     mvcc
//	20 …                          users' keys                      mvcc
//
// A replica's own span is 02 range 10 … 02 range ff. The tombstone stands below
// it, so that whatever clears a replica (destruction, a snapshot's range
// tombstone) cannot clear the tombstone with it.
const (
	prefixNode  = 0x01
	prefixRange = 0x02
	prefixByKey = 0x03
	prefixLock  = 0x04
	prefixData  = kv.SystemPrefix

	nodeIdentity = 'i'
	nodeMark     = 'm'
	nodeName     = 'n'
	nodePeer     = 'p'
	nodeFiller   = 'w'

	rangeTombstone  = 0x01
	rangeOwnStart   = 0x10 // start of what belongs to one incarnation
	rangeDescriptor = 0x10
	rangeApplied    = 0x11
	rangeHardState  = 0x20
	rangeTruncated  = 0x21
	rangeLog        = 0x22
	rangeLogEnd     = 0x23
	rangeOwnEnd     = 0xff

	sentinel     = 0x00
	rangeKeyLen  = 1 + 8 + 1 + 1 // prefix, range, sub-byte, sentinel
	logKeyLen    = rangeKeyLen + 8
	minRawPrefix = prefixByKey // lowest first byte that a replicated write may have
)

// engineKey appends the sentinel to a raw key, in a fresh slice.
func engineKey(raw ...byte) []byte {
	return append(append(make([]byte, 0, len(raw)+1), raw...), sentinel)
}

// spaceKey is the engine key of key in the space of a prefix byte; the data
// space has no prefix of its own.
func spaceKey(space byte, key []byte) []byte {
	k := make([]byte, 0, len(key)+2)
	if space != prefixData {
		k = append(k, space)
	}
	return append(append(k, key...), sentinel)
}

func nodeKey(kind byte, raw ...byte) []byte {
	return engineKey(append([]byte{prefixNode, kind}, raw...)...)
}

func peerKey(n ids.NodeID) []byte {
	return nodeKey(nodePeer, binary.BigEndian.AppendUint64(nil, uint64(n))...)
}

// rangeKey is the key of one of a range's single records.
func rangeKey(r ids.RangeID, sub byte) []byte {
	k := make([]byte, rangeKeyLen)
	putRangeKey(k, r, sub)
	return k
}

// putRangeKey writes the key into k, which has rangeKeyLen bytes.
func putRangeKey(k []byte, r ids.RangeID, sub byte) {
	k[0] = prefixRange
	binary.BigEndian.PutUint64(k[1:9], uint64(r))
	k[9], k[10] = sub, sentinel
}

// logKey is the key of a log entry.
func logKey(r ids.RangeID, index uint64) []byte {
	k := make([]byte, logKeyLen)
	putLogKey(k, r, index)
	return k
}

// putLogKey writes the key into k, which has logKeyLen bytes.
func putLogKey(k []byte, r ids.RangeID, index uint64) {
	k[0] = prefixRange
	binary.BigEndian.PutUint64(k[1:9], uint64(r))
	k[9] = rangeLog
	binary.BigEndian.PutUint64(k[10:18], index)
	k[18] = sentinel
}

// decodeLogKey returns the index of a log key.
func decodeLogKey(k []byte) (index uint64, ok bool) {
	if len(k) != logKeyLen || k[0] != prefixRange || k[9] != rangeLog || k[18] != sentinel {
		return 0, false
	}
	return binary.BigEndian.Uint64(k[10:18]), true
}

// decodeRangeKey returns the range and sub-byte of a key by range id.
func decodeRangeKey(k []byte) (r ids.RangeID, sub byte, ok bool) {
	if len(k) < rangeKeyLen || k[0] != prefixRange {
		return 0, 0, false
	}
	return ids.RangeID(binary.BigEndian.Uint64(k[1:9])), k[9], true
}

// span is a half-open interval of engine keys.
type span struct{ lo, hi []byte }

// ownSpan is everything of a replica by range id but its tombstone.
func ownSpan(r ids.RangeID) span {
	return span{rangeKey(r, rangeOwnStart), rangeKey(r, rangeOwnEnd)}
}

// logSpan is all log entries of a range.
func logSpan(r ids.RangeID) span {
	return span{rangeKey(r, rangeLog), rangeKey(r, rangeLogEnd)}
}

// keySpaces are the spaces in which a range owns an interval of keys, in
// engine order.
func keySpaces() [3]byte { return [3]byte{prefixByKey, prefixLock, prefixData} }

// keySpan is the interval [start, end) in one of the key spaces.
func keySpan(space byte, start, end []byte) span {
	return span{spaceKey(space, start), spaceKey(space, end)}
}

// checkReplicatedKey says what is wrong with a key that a replicated write or a
// snapshot carries: such keys come from other machines, and a malformed key
// would make the comparer panic on every replica.
func checkReplicatedKey(k []byte) error {
	if len(k) == 0 || k[0] < minRawPrefix {
		return fmt.Errorf("key outside the replicated spaces")
	}
	_, version, ok := cockroachkvs.DecodeEngineKey(k)
	if !ok {
		return fmt.Errorf("key is not an engine key")
	}
	switch len(version) {
	case 0, 8, 12, 13, 17:
		return nil
	}
	return fmt.Errorf("key has a version of %d bytes", len(version))
}
