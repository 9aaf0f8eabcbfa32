package ranges

import (
	"errors"
	"log/slog"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// Errors of orders, splits and snapshots.
var (
	ErrNoReplica       = errors.New("no such replica on this node")
	ErrNotLeader       = errors.New("this replica does not lead, or not yet")
	ErrStaleGeneration = errors.New("the descriptor has another generation")
	ErrBusy            = errors.New("another change of this range is in progress")
	ErrLagging         = errors.New("the target has not caught up with the log")
	ErrRefused         = errors.New("change refused")
	ErrNoID            = errors.New("no range id at hand, try again later")
	ErrNoSplitKey      = errors.New("no key to split at")
	ErrDropped         = errors.New("not proposed, try again later")
	ErrUnknownOutcome  = errors.New("leadership was lost, the change may still happen")
	ErrSnapshotRefused = errors.New("snapshot refused")
	ErrSnapshotUnused  = errors.New("snapshot was not needed any more")
)

// Bounds and defaults.
const (
	defaultRangeSize = 64 << 20
	defaultGCWindow  = 10 * time.Minute

	// maxPayloadBytes closes the entry under construction; one operation may be
	// larger and then stands alone.
	maxPayloadBytes = 512 << 10
	// maxAtomicBytes bounds the keys and values of an atomic batch: above the
	// largest value, below the frame between nodes.
	maxAtomicBytes = 12 << 20
	// recentEntries bounds one of the two generations of what a leader
	// remembers of its writes.
	recentEntries = 1024
	// maxReadsPerJob bounds the reads that share one iterator.
	maxReadsPerJob = 256
	// maxLag is how many entries a replica may be behind to count as caught up.
	maxLag = 64
	// maxSnapshotsIn bounds the snapshots that a node receives at once; beyond
	// it they are refused and the sender tries again.
	maxSnapshotsIn = 2
	// deleteRangeKeys and deleteRangeVisits bound a page of a range deletion.
	deleteRangeKeys   = 1000
	deleteRangeVisits = 10_000
	// gcPageBytes bounds a page of garbage collection, and gcTriggerBytes is
	// the garbage from which it pays to collect.
	gcPageBytes    = 256 << 10
	gcTriggerBytes = 1 << 20

	retrySoonMillis = 10
	// retryMovingMillis is the advice while leadership is handed over, which
	// takes two messages and a sync.
	retryMovingMillis = 2
	retryMillis       = 100
)

// Config configures the replicas of a node.
type Config struct {
	Node ids.NodeID
	// Store must stay open until the host has stopped.
	Store *store.Store
	Clock *hlc.Hybrid
	// Physical measures rates and the age of versions.
	Physical hlc.Clock
	// RangeSize in bytes of keys and values: split above. Default 64 MiB.
	RangeSize int64
	// LoadSplitCPU is the time that goroutines may spend on a range per second:
	// split above. Default 100 ms; negative: no limit.
	LoadSplitCPU time.Duration
	// LoadSplitOps is how many operations per second a range may serve: split
	// above. Default 2,500; negative: no limit.
	LoadSplitOps float64
	// MaxValueBytes limits a value. Default kv.DefaultMaxValueBytes.
	MaxValueBytes int
	// GCWindow is how long old versions are kept. Default 10 minutes.
	GCWindow time.Duration
	// Logger, default slog.Default.
	Logger *slog.Logger
	// Execute runs a read job off the shard (default in server: a small pool;
	// the simulator: at once or as an event). Must not block the caller.
	Execute func(job func())
	// NextRangeID takes an id from this node's block; false: none left, try later.
	NextRangeID func() (ids.RangeID, bool)
	// Witness sees every read served and every write evaluated; nil: nobody looks.
	// For the simulator's checks.
	Witness Witness
	// Pause, if not nil, is called before each step of a read on its caller's
	// goroutine, and the read goes on when resume is called, once, on any
	// goroutine. For the simulator: in between anything may happen.
	Pause func(step string, resume func())
	// QuorumReads has every read ask a quorum, as if no lease were ever held. For
	// measurements of what leases save.
	QuorumReads bool
	// RowCacheBytes bounds the cache of hot rows; 0: none. Close ends it.
	RowCacheBytes int64
	// CheckEvery is how often one of the ranges that this node leads is compared with
	// its other replicas (check.go). 0: never.
	CheckEvery time.Duration
	// Compare fetches what the other replicas held, and judges. Called for each
	// comparison that this node leads; must not block. nil: no replica is compared.
	Compare func(Comparison)
	// OnFact reports what changed of a range that this node leads. On a shard; must not block.
	OnFact func(*metapb.RangeFact)
}

// withDefaults returns the configuration with defaults filled in, or an error
// that names everything that is missing.
func (c Config) withDefaults() (Config, error) {
	var faults []error
	need := func(ok bool, name string) {
		if !ok {
			faults = append(faults, errors.New("ranges configuration lacks "+name))
		}
	}
	need(c.Node != 0, "Node")
	need(c.Store != nil, "Store")
	need(c.Clock != nil, "Clock")
	need(c.Physical != nil, "Physical")
	need(c.Execute != nil, "Execute")
	if c.RangeSize <= 0 {
		c.RangeSize = defaultRangeSize
	}
	if c.LoadSplitCPU == 0 {
		c.LoadSplitCPU = defaultLoadSplitCPU
	}
	if c.LoadSplitOps == 0 {
		c.LoadSplitOps = defaultLoadSplitOps
	}
	if c.MaxValueBytes <= 0 {
		c.MaxValueBytes = kv.DefaultMaxValueBytes
	}
	if c.GCWindow <= 0 {
		c.GCWindow = defaultGCWindow
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.NextRangeID == nil {
		c.NextRangeID = func() (ids.RangeID, bool) { return 0, false }
	}
	if c.OnFact == nil {
		c.OnFact = func(*metapb.RangeFact) {}
	}
	return c, errors.Join(faults...)
}

// Witness watches what replicas serve, for tests and the simulator. Its methods
// are called on the goroutine that serves or evaluates; they must not block.
type Witness interface {
	// Read is called when a read at ts is about to be answered; lease: without
	// ReadIndex.
	Read(id ids.RangeID, term ids.Term, ts hlc.Timestamp, lease bool)
	// Write is called when a write was evaluated at ts, before it is proposed.
	Write(id ids.RangeID, term ids.Term, ts hlc.Timestamp)
}
