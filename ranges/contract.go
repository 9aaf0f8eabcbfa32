// Package ranges gives agreement a meaning: descriptors, routing, replicas,
// evaluation, apply, split, replica changes.
//
// CONTRACT STUB: signatures are fixed, bodies are to be written (doc.go,
// table.go, replica.go, state.go, submit.go, latch.go, recent.go, evaluate.go,
// entry.go, apply.go, read.go, split.go, replicas.go, snapshot.go, load.go,
// maintain.go, bootstrap.go, facts.go).
package ranges

import (
	"log/slog"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// Config configures the replicas of a node.
type Config struct {
	Node          ids.NodeID
	Store         *store.Store
	Clock         *hlc.Hybrid
	Physical      hlc.Clock
	RangeSize     int64         // split above, default 64 MiB
	MaxValueBytes int           // default kv.DefaultMaxValueBytes
	GCWindow      time.Duration // default 10 minutes
	Logger        *slog.Logger
	// Execute runs a read job off the shard (default in server: a small pool;
	// the simulator: at once or as an event). Must not block the caller.
	Execute func(job func())
	// NextRangeID takes an id from this node's block; false: none left, try later.
	NextRangeID func() (ids.RangeID, bool)
	// OnFact reports what changed of a range that this node leads. On a shard; must not block.
	OnFact func(*metapb.RangeFact)
}

// Table is all replicas of a node: the routing table and what they share.
type Table struct{}

// New loads nothing yet; Start (after the host exists) loads every replica of
// the store and adds its group.
func New(cfg Config) (*Table, error)           { panic("unimplemented") }
func (t *Table) Start(h *multiraft.Host) error { panic("unimplemented") }

// Bootstrap stages and commits a new cluster in an empty store: range 1 (the
// system range) and range 2 (the first user range), one replica each, here.
// Idempotent after a crash in between.
func Bootstrap(s *store.Store, node ids.NodeID) error { panic("unimplemented") }

// Submit routes and runs a request; done is called exactly once, on any
// goroutine (also before Submit returns). Never blocks. The request must not
// change until done; the response may alias it.
func (t *Table) Submit(req *kv.Request, done func(*kv.Response)) { panic("unimplemented") }

// Order carries out a step of placement, or refuses it: stale generation, not
// leader, another change in progress, lagging target (all typed).
func (t *Table) Order(o *metapb.Order, done func(error)) { panic("unimplemented") }

// Split splits a range at key (nil: where its middle is). For the Admin service.
func (t *Table) Split(r ids.RangeID, key []byte, done func(left, right *metapb.RangeDescriptor, err error)) {
	panic("unimplemented")
}

// Route returns the descriptor of the local replica that holds key, and the
// node believed to lead it (0: unknown).
func (t *Table) Route(key []byte) (d *metapb.RangeDescriptor, leader ids.NodeID, ok bool) {
	panic("unimplemented")
}

// Leads says whether this node leads range r and has applied its own term.
func (t *Table) Leads(r ids.RangeID) bool { panic("unimplemented") }

// Facts returns a fact for every range that this node leads (full report), and
// Describe what this node knows of one replica.
func (t *Table) Facts() []*metapb.RangeFact { panic("unimplemented") }
func (t *Table) Describe(r ids.RangeID, done func(*adminpb.ReplicaInfo, *adminpb.RangeInfo, bool)) {
	panic("unimplemented")
}
func (t *Table) Counts() (replicas, leaders int) { panic("unimplemented") }

// Gone and OnGone are the host's callbacks.
func (t *Table) Gone(r ids.RangeID, replica ids.ReplicaID) (ids.ReplicaID, bool) {
	panic("unimplemented")
}
func (t *Table) OnGone(r ids.RangeID, next ids.ReplicaID) { panic("unimplemented") }

// AdmitSnapshot reserves the span of an incoming snapshot (refused: overlap
// with another replica, tombstone, no token). Then the transport receives into
// the returned snapshot, and calls Deliver or Abandon exactly once.
func (t *Table) AdmitSnapshot(h *metapb.SnapshotHeader) (*Admission, error) { panic("unimplemented") }

// Admission is an admitted snapshot.
type Admission struct{ Incoming *store.IncomingSnapshot }

func (a *Admission) Deliver(done func(error)) { panic("unimplemented") }
func (a *Admission) Abandon()                 { panic("unimplemented") }

// Maintain is one step of what time drives: size splits that could not start,
// garbage collection, rates, stuck changes. Called about once a second; cost grows with what
// changed, not with what exists.
func (t *Table) Maintain() { panic("unimplemented") }

// TransferAway hands leadership of every range led here to another caught-up replica
// (graceful stop); returns how many are still led.
func (t *Table) TransferAway() int { panic("unimplemented") }
