package placement

import (
	"encoding/binary"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// KV is the seam through which placement keeps its state: keys under
// kv.SystemPrefix, in range 1. Every done is called exactly once, on the
// goroutine that owns the driver, possibly before the call returns. An error
// leaves the outcome of a CompareAndSwap open.
type KV interface {
	// Get reads a key; version 0 means that it does not exist.
	Get(key []byte, done func(value []byte, version hlc.Timestamp, err error))
	// Scan reads [start, end), at most limit rows, in ascending order.
	Scan(start, end []byte, limit int, done func(rows []KeyValue, err error))
	// CompareAndSwap writes value if the key's version is still expect (0: absent).
	CompareAndSwap(key, value []byte, expect hlc.Timestamp, done func(swapped bool, err error))
}

// KeyValue is one row. The driver keeps no reference to its bytes.
type KeyValue struct {
	Key, Value []byte
	Version    hlc.Timestamp
}

// The keys of placement, all in range 1:
//
//	0x10 "n" node id (8 bytes, big endian)   metapb.NodeDescriptor
//	0x10 "s" store id (8 bytes, big endian)  the node id that this store won
//	0x10 "d" node id (8 bytes, big endian)   its metapb.NodeStanding; absent: active
//	0x10 "p/settings"                        metapb.PlacementSettings; absent: not paused
//	0x10 "p/rules"                           metapb.RuleSet; absent: one rule, by configuration
//	0x10 "c/nodes"                           next node id; absent: firstJoinedNode
//	0x10 "c/ranges"                          next range id; absent: firstFreeRange
//	0x10 "c/version"                         cluster version; written by the first driver
//
// Numbers are 8 bytes, big endian.
const (
	nodeTag     = 'n'
	storeTag    = 's'
	standingTag = 'd'
	nodesKey    = "\x10c/nodes"
	rangesKey   = "\x10c/ranges"
	versionKey  = "\x10c/version"
	settingsKey = "\x10p/settings"
	rulesKey    = "\x10p/rules"
)

// What a new cluster begins with: one node, the system range and the first
// user range, made by ranges.Bootstrap without placement.
const (
	founderNode     = ids.NodeID(1)
	firstJoinedNode = 2
	firstFreeRange  = 3
)

// ClusterVersion is the version that a new cluster gets. It gates formats and
// commands: a driver that meets a higher one does not drive.
const ClusterVersion = 1

func nodeKey(n ids.NodeID) []byte { return numberedKey(nodeTag, uint64(n)) }
func storeKey(store uint64) []byte {
	return numberedKey(storeTag, store)
}

func standingKey(n ids.NodeID) []byte { return numberedKey(standingTag, uint64(n)) }

func numberedKey(tag byte, number uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{kv.SystemPrefix, tag}, number)
}

// nodeSpan holds every node descriptor.
func nodeSpan() (start, end []byte) {
	return []byte{kv.SystemPrefix, nodeTag}, []byte{kv.SystemPrefix, nodeTag + 1}
}

// standingSpan holds every standing.
func standingSpan() (start, end []byte) {
	return []byte{kv.SystemPrefix, standingTag}, []byte{kv.SystemPrefix, standingTag + 1}
}

func encodeNumber(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func decodeNumber(key, value []byte) (uint64, error) {
	if len(value) != 8 {
		return 0, fmt.Errorf("read %q in range 1: %d bytes where 8 belong", key, len(value))
	}
	return binary.BigEndian.Uint64(value), nil
}

func encodeNode(d *metapb.NodeDescriptor) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(d)
}

func decodeNode(key, value []byte) (*metapb.NodeDescriptor, error) {
	d := &metapb.NodeDescriptor{}
	if err := proto.Unmarshal(value, d); err != nil {
		return nil, fmt.Errorf("read node %q in range 1: %w", key, err)
	}
	return d, nil
}

// never is a time long before any that an owner passes.
const never = time.Duration(-1 << 62)
