// Package placement decides where ranges live. Its state (node registry, id
// blocks) lives in range 1 through the normal key-value path; the directory of
// ranges is a cache, filled by facts and merged by generation. Whoever leads
// range 1 drives it. The driver is a step function: no goroutine, no clock, no I/O of its own.
//
// CONTRACT STUB: signatures are fixed, bodies are to be written (doc.go,
// cluster.go (the value), directory.go, registry.go, ids.go, operator.go, repair.go,
// balance.go, driver.go, status.go).
package placement

import (
	"log/slog"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// KV is the seam through which placement keeps its state (keys under
// kv.SystemPrefix, in range 1). done is called once, possibly before the call returns.
type KV interface {
	// Get reads a key; version 0 means that it does not exist.
	Get(key []byte, done func(value []byte, version hlc.Timestamp, err error))
	// Scan reads [start, end), at most limit rows.
	Scan(start, end []byte, limit int, done func(rows []KeyValue, err error))
	// CompareAndSwap writes value if the key's version is still expect (0: absent).
	CompareAndSwap(key, value []byte, expect hlc.Timestamp, done func(swapped bool, err error))
}

// KeyValue is one row.
type KeyValue struct {
	Key, Value []byte
	Version    hlc.Timestamp
}

// Config configures the driver.
type Config struct {
	Self              ids.NodeID
	ClusterID         uint64
	KV                KV
	ReplicationFactor int           // default 3
	DeadAfter         time.Duration // node silent for longer is replaced (default 5 min)
	SuspectAfter      time.Duration // not a target any more (default 3 s)
	MaxMoves          int           // replica changes in flight, default 4
	MaxTransfers      int           // leader transfers in flight, default 8
	Logger            *slog.Logger
}

// Driver runs on every node and acts only while that node leads range 1. Not
// safe for concurrent use: its owner (a goroutine of server, or the simulator)
// calls it.
type Driver struct{}

func NewDriver(cfg Config) *Driver { panic("unimplemented") }

// SetActive says whether this node leads range 1. Becoming active forgets all
// that was cached, reads the registry and asks every node for a full report.
func (d *Driver) SetActive(active bool, now time.Duration) { panic("unimplemented") }

// Active says whether the driver drives and has read its registry.
func (d *Driver) Active() bool { panic("unimplemented") }

// Step advances the driver: finishes and times out operators, plans new ones.
// Called a few times a second with monotonic time; cost grows with what changed.
func (d *Driver) Step(now time.Duration) { panic("unimplemented") }

// Report takes a node's report and answers it with orders for that node (for ranges it leads).
func (d *Driver) Report(now time.Duration, r *metapb.NodeReport) *metapb.NodeReportReply {
	panic("unimplemented")
}

// Join registers a node by compare-and-swap on its store id, and AllocateIDs
// hands out a block of range ids. done is called once.
func (d *Driver) Join(r *adminpb.JoinRequest, done func(*adminpb.JoinReply, error)) {
	panic("unimplemented")
}
func (d *Driver) AllocateIDs(n ids.NodeID, count uint32, done func(first uint64, count uint32, err error)) {
	panic("unimplemented")
}

// Lookup, List and Status answer from the directory.
func (d *Driver) Lookup(r *adminpb.LookupRequest) *adminpb.LookupReply       { panic("unimplemented") }
func (d *Driver) List(r *adminpb.ListRangesRequest) *adminpb.ListRangesReply { panic("unimplemented") }
func (d *Driver) Status(now time.Duration) *adminpb.StatusReply              { panic("unimplemented") }
func (d *Driver) Range(r ids.RangeID) *adminpb.RangeInfo                     { panic("unimplemented") }
