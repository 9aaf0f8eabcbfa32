// Package store keeps bytes: one Pebble database per node behind two handles,
// the raft log (Log) and the replicated state (State), and beside it the
// records that recognise a rolled-back store (Identity).
//
// CONTRACT STUB: signatures are fixed, bodies are to be written (store.go,
// options.go, keys.go, batch.go, raftlog.go, entrycache.go, identity.go,
// reserve.go, snapshot.go, metrics.go).
package store

import (
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Options configure a store. The zero value of a field means its default.
type Options struct {
	Dir             string
	FS              vfs.FS // default: the operating system's, with disk health checks
	Create          bool   // make a store where none is; otherwise a missing one is an error
	CacheBytes      int64  // Pebble block cache, default 256 MiB
	MemTableBytes   uint64 // default 64 MiB
	EntryCacheBytes int64  // node-wide, default 64 MiB
	ReserveBytes    int64  // disk kept free; read-only mode begins above it (default 512 MiB, tests smaller)
	Logger          *slog.Logger
	// Fatal is called when the store cannot keep a promise; it must not return
	// in production (default: log and os.Exit(7)).
	Fatal func(msg string)
	// Simulated stores start a sync only when it is waited for and compact only
	// when told, so that a crash loses what was not waited for, replayably.
	Simulated bool
	Random    func() uint64 // store id, marks; default crypto/rand
}

// Store is a node's Pebble with its two handles. Safe for concurrent use.
type Store struct{ db *pebble.DB }

// Open opens or creates a store. Errors name the directory and the remedy:
// ErrNoStore, ErrLocked (another process), ErrRolledBack, ErrUnreadable.
func Open(o Options) (*Store, error) { panic("unimplemented") }

func (s *Store) Close() error        { panic("unimplemented") }
func (s *Store) Log() *Log           { panic("unimplemented") }
func (s *Store) State() *State       { panic("unimplemented") }
func (s *Store) Identity() *Identity { panic("unimplemented") }

// ReadOnly says that the disk is so full that writes must be refused.
func (s *Store) ReadOnly() bool { panic("unimplemented") }

// WriteStalled says that Pebble is about to stall or stalls writes: proposals
// are refused and incoming appends dropped meanwhile.
func (s *Store) WriteStalled() bool { panic("unimplemented") }

// CheckDisk measures free space and switches read-only mode; called every few
// seconds from a Run loop of server.
func (s *Store) CheckDisk() (total, free uint64, err error) { panic("unimplemented") }

// Batch collects writes of both handles (today one Pebble, so one batch is
// atomic across them). Not safe for concurrent use. Close releases it.
type Batch struct{ b *pebble.Batch }

func (s *Store) NewBatch() *Batch { panic("unimplemented") }

func (b *Batch) Pebble() *pebble.Batch { panic("unimplemented") }
func (b *Batch) Len() int              { panic("unimplemented") } // bytes
func (b *Batch) Empty() bool           { panic("unimplemented") }
func (b *Batch) Close()                { panic("unimplemented") }

// ApplyRepr merges an encoded batch (the payload of an entry). The payload is
// copied, never aliased.
func (b *Batch) ApplyRepr(repr []byte) error { panic("unimplemented") }

// CommitNoSync commits; visible on return, durable with any later sync. The batch may be reused after Reset/Close.
func (s *Store) CommitNoSync(b *Batch) error { panic("unimplemented") }

// PendingSync is a commit whose sync runs.
type PendingSync struct{}

// CommitSync commits and starts the sync without waiting: visible on return.
// The batch belongs to the PendingSync until Wait returns.
func (s *Store) CommitSync(b *Batch) (*PendingSync, error) { panic("unimplemented") }

// Wait blocks until the commit is durable. Latency goes to the metric.
func (p *PendingSync) Wait() error { panic("unimplemented") }

// Flush and Compact are for tests, tools and the simulator.
func (s *Store) Flush() error { panic("unimplemented") }

// State is the handle of replicated state.
type State struct{}

// DB gives reads (NewIter, NewSnapshot) to mvcc; nobody writes through it.
func (st *State) DB() *pebble.DB { panic("unimplemented") }

// ReplicaState is what is stored of one replica.
type ReplicaState struct {
	Descriptor *metapb.RangeDescriptor
	Replica    ids.ReplicaID
	Applied    *metapb.AppliedState
}

// Put... stage into b; Get... read.
func (st *State) PutDescriptor(b *Batch, r ids.RangeID, self ids.ReplicaID, d *metapb.RangeDescriptor) error {
	panic("unimplemented")
}
func (st *State) PutApplied(b *Batch, r ids.RangeID, a *metapb.AppliedState) error {
	panic("unimplemented")
}
func (st *State) Replica(r ids.RangeID) (*ReplicaState, error) { panic("unimplemented") } // nil: none

// Replicas lists all replicas of the store in order of range id (start-up).
func (st *State) Replicas() ([]*ReplicaState, error) { panic("unimplemented") }

// DestroyReplica stages the removal of everything of a replica but its
// tombstone: descriptor, applied state, log, hard state and, if span is not
// empty, the user data in it.
func (st *State) DestroyReplica(b *Batch, r ids.RangeID, start, end []byte) error {
	panic("unimplemented")
}

// Tombstones: the next replica id that range r may have on this node. A
// replica with a lower id never lives (again).
func (l *Log) Tombstone(r ids.RangeID) (next ids.ReplicaID, err error)        { panic("unimplemented") }
func (l *Log) PutTombstone(b *Batch, r ids.RangeID, next ids.ReplicaID) error { panic("unimplemented") }

// PutLocal and GetLocal keep small node-local records (bootstrap progress, the
// system range's descriptor, peers' lives and marks) under a name.
func (st *State) PutLocal(b *Batch, name string, value []byte) error { panic("unimplemented") }
func (st *State) GetLocal(name string) ([]byte, error)               { panic("unimplemented") } // nil: none

// Log is the handle of the raft logs.
type Log struct{}

// GroupLog is the log of one group; it implements raft.Storage. First and last
// index and their terms are in memory, recent entries in the node-wide cache.
// Owned by the group's shard; the staging methods change the in-memory view at
// once (raft may read what is staged as soon as its append is answered).
type GroupLog struct{}

// Group loads a group's log. A group without one has first index 1, last 0.
func (l *Log) Group(r ids.RangeID) (*GroupLog, error) { panic("unimplemented") }

// InitialGroup stages the start of a new group's log: truncated at index/term,
// hard state {term, commit: index} unless a newer one is there, whose term and
// vote are kept (bug class 20).
func (l *Log) InitialGroup(b *Batch, r ids.RangeID, index ids.Index, term ids.Term) error {
	panic("unimplemented")
}

func (g *GroupLog) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	panic("unimplemented")
}
func (g *GroupLog) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) { panic("unimplemented") }
func (g *GroupLog) Term(i uint64) (uint64, error)                           { panic("unimplemented") }
func (g *GroupLog) LastIndex() (uint64, error)                              { panic("unimplemented") }
func (g *GroupLog) FirstIndex() (uint64, error)                             { panic("unimplemented") }

// Snapshot returns the metadata that OnSnapshot gives, or
// raft.ErrSnapshotTemporarilyUnavailable while there is no OnSnapshot.
func (g *GroupLog) Snapshot() (*raftpb.Snapshot, error) { panic("unimplemented") }

// OnSnapshot sets who answers Snapshot, and SetConfState what InitialState returns.
func (g *GroupLog) OnSnapshot(f func() (*raftpb.Snapshot, error)) { panic("unimplemented") }
func (g *GroupLog) SetConfState(cs *raftpb.ConfState)             { panic("unimplemented") }

// Append stages entries (contiguous with the log, empty log included:
// asserted; a conflicting tail is deleted). The entries are kept in the cache
// and must not change any more.
func (g *GroupLog) Append(b *Batch, entries []*raftpb.Entry) error { panic("unimplemented") }

// SetHardState stages the hard state; term never regresses, nor commit, nor the vote
// within a term (asserted).
func (g *GroupLog) SetHardState(b *Batch, hs *raftpb.HardState) error { panic("unimplemented") }

// Truncate stages the removal of entries at or below index.
func (g *GroupLog) Truncate(b *Batch, index ids.Index) error { panic("unimplemented") }

// Reset makes the log start after a snapshot (called when the snapshot's install is staged).
func (g *GroupLog) Reset(b *Batch, index ids.Index, term ids.Term, hs *raftpb.HardState) error {
	panic("unimplemented")
}

// Bytes returns the size of the retained entries. Close drops the group from the cache.
func (g *GroupLog) Bytes() int64 { panic("unimplemented") }
func (g *GroupLog) Close()       { panic("unimplemented") }

// Identity are the records beside Pebble: two alternating, checksummed, fsynced files.
type Identity struct{}

// IdentityRecord is what they hold.
type IdentityRecord struct {
	StoreID   uint64 // random, drawn at creation
	ClusterID uint64 // 0 until joined
	Node      ids.NodeID
	Life      ids.Life      // raised at every open before Open returns
	Mark      uint64        // random, drawn with each life
	Bound     hlc.Timestamp // upper bound of issued timestamps
	Counter   uint64        // also inside Pebble; inside < outside means rolled back
}

func (id *Identity) Record() IdentityRecord { panic("unimplemented") }

// Join makes cluster and node id durable, once; another value is an error.
func (id *Identity) Join(cluster uint64, node ids.NodeID) error { panic("unimplemented") }

// ExtendBound makes a higher clock bound durable (blocks for two fsyncs) and moves the counter.
func (id *Identity) ExtendBound(b hlc.Timestamp) error { panic("unimplemented") }

// MetPeer durably remembers a peer's life and mark; it returns an error for an
// earlier life, or for a second mark of the same life (a copied store).
func (id *Identity) MetPeer(n ids.NodeID, life ids.Life, mark uint64) error { panic("unimplemented") }

// Snapshot out: a consistent view of one replica, taken at once and cheap.
type OutgoingSnapshot struct{}

// NewSnapshot pins the replica's state as applied now.
func (s *Store) NewSnapshot(r ids.RangeID) (*OutgoingSnapshot, error) { panic("unimplemented") }

func (o *OutgoingSnapshot) State() *ReplicaState { panic("unimplemented") }

// Next returns the next chunk (about 256 KiB: count, then key/value pairs in
// engine order, with a checksum), io.EOF at the end.
func (o *OutgoingSnapshot) Next() ([]byte, error) { panic("unimplemented") }
func (o *OutgoingSnapshot) Close()                { panic("unimplemented") }

// IncomingSnapshot is a snapshot being received: small ones stay in memory,
// large ones go to SSTs in the store's snapshot directory (emptied at Open).
type IncomingSnapshot struct{}

func (s *Store) ReceiveSnapshot(h *metapb.SnapshotHeader) (*IncomingSnapshot, error) {
	panic("unimplemented")
}
func (in *IncomingSnapshot) Header() *metapb.SnapshotHeader { panic("unimplemented") }
func (in *IncomingSnapshot) Add(chunk []byte) error         { panic("unimplemented") }

// Finish ends the data; afterwards Install may be called.
func (in *IncomingSnapshot) Finish() error { panic("unimplemented") }

// Install replaces the replica by the snapshot in one atomic, durable step
// (ingest-and-excise, or one synced batch below the threshold): user span,
// descriptor, applied state, and the raft state (log empty, truncated at the
// snapshot, hard state hs). also lists wider spans to be cleared (a replica
// that held more before). Blocks for disk I/O; runs off the shard.
func (in *IncomingSnapshot) Install(hs *raftpb.HardState, self ids.ReplicaID, clearStart, clearEnd []byte) error {
	panic("unimplemented")
}

// Discard drops a snapshot that is not installed.
func (in *IncomingSnapshot) Discard() { panic("unimplemented") }

// SyncLatency etc. are in metrics.go: func (s *Store) Metrics() Metrics
type Metrics struct {
	Syncs          uint64
	SyncLatency    time.Duration // sum
	CompactionDebt uint64
	ReadAmp        int
}

func (s *Store) Metrics() Metrics { panic("unimplemented") }
