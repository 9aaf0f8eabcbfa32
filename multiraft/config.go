package multiraft

import (
	"errors"
	"log/slog"
	"runtime"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/support"
)

// Errors of proposals, reads and tasks.
var (
	// ErrNotLeader says that this replica does not lead (any more).
	ErrNotLeader = errors.New("this replica does not lead")
	// ErrDropped says that nothing was proposed and that a later try may succeed.
	ErrDropped = errors.New(
		"proposal dropped: no room for it now, or leadership is moving")
	// ErrStopped says that the group or the host will do nothing any more.
	ErrStopped = errors.New("group removed, halted, or host stopped")
	// ErrOverloaded says that a bound of this node is reached; try later.
	ErrOverloaded = errors.New("node overloaded: a queue is at its bound")
	// ErrNotYet is what StateMachine.Apply returns when an entry cannot be applied
	// before something else has happened on this node; see there.
	ErrNotYet = errors.New("the next entry cannot be applied yet")
	// ErrExists says that the host has a group of that range already.
	ErrExists = errors.New("group exists already")
)

// Config configures a host. Zero values mean the defaults named.
type Config struct {
	Node           ids.NodeID
	Store          *store.Store
	Clock          *hlc.Hybrid // nil: stamps of frames are not adopted (tests)
	Transport      Transport
	Support        *support.Table // nil: no promises, no leases
	Shards         int            // default max(1, GOMAXPROCS/2)
	TickInterval   time.Duration  // default 100 ms
	ElectionTicks  int            // default 10
	HeartbeatTicks int            // default 2
	Logger         *slog.Logger   // default slog.Default()
	// Gone says whether replica id of range r is known to be removed for ever,
	// and the next id that may live (descriptor or tombstone; of use to others only
	// if it is ids.EveryReplica: the range is gone). Any goroutine. It must say gone
	// only of ids that were given out and removed, never of one that is to come.
	// nil: nothing is known.
	Gone func(r ids.RangeID, replica ids.ReplicaID) (next ids.ReplicaID, gone bool)
	// OnGone tells that this node's replica of r is removed if its id is below
	// next; ids.EveryReplica: that the whole range is gone, which the node obeys only
	// if nothing of its own still needs the data. Called on the range's shard; must
	// not block. nil: ignored.
	OnGone func(r ids.RangeID, next ids.ReplicaID)
	// OnHalted tells that a replica of r, which this node leads, said that it has
	// halted: Progress shows it as inactive. Called on the range's shard; must not
	// block. nil: ignored.
	OnHalted func(r ids.RangeID)
	// Background runs a job that blocks on disk (snapshot install). Must not
	// block itself. Default: a pool of two goroutines of Run. The simulator
	// queues it as an event.
	Background func(job func())
	// Budgets; defaults and what happens at the bound are in budget.go.
	InboxBytes       int64  // node-wide, raft messages in and tasks
	MaxEntryBytes    uint64 // MaxSizePerMsg: entries of one MsgApp
	UncommittedBytes uint64 // per group
	InflightMessages int    // per follower
	InflightBytes    uint64 // per follower
	TruncateEntries  int    // cut when at least this many may go, default 64
	MaxLogBytes      int64  // per group: beyond, laggards are cut off and get a snapshot
	SnapshotsOut     int    // snapshots being sent at once by this node, default 2
}

// withDefaults fills the zero values and checks what has no default.
func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Node == 0:
		return c, errors.New("configure host: no node id")
	case c.Store == nil:
		return c, errors.New("configure host: no store")
	case c.Transport == nil:
		return c, errors.New("configure host: no transport")
	}
	orDefault(&c.Shards, max(1, runtime.GOMAXPROCS(0)/2))
	orDefault(&c.TickInterval, defaultTickInterval)
	orDefault(&c.ElectionTicks, defaultElectionTicks)
	orDefault(&c.HeartbeatTicks, defaultHeartbeatTicks)
	orDefault(&c.InboxBytes, defaultInboxBytes)
	orDefault(&c.MaxEntryBytes, defaultMaxEntryBytes)
	orDefault(&c.UncommittedBytes, defaultUncommittedBytes)
	orDefault(&c.InflightMessages, defaultInflightMessages)
	orDefault(&c.InflightBytes, defaultInflightBytes)
	orDefault(&c.TruncateEntries, defaultTruncateEntries)
	orDefault(&c.MaxLogBytes, defaultMaxLogBytes)
	orDefault(&c.SnapshotsOut, defaultSnapshotsOut)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Gone == nil {
		c.Gone = func(ids.RangeID, ids.ReplicaID) (ids.ReplicaID, bool) { return 0, false }
	}
	if c.OnGone == nil {
		c.OnGone = func(ids.RangeID, ids.ReplicaID) {}
	}
	if c.OnHalted == nil {
		c.OnHalted = func(ids.RangeID) {}
	}
	if c.ElectionTicks <= c.HeartbeatTicks {
		return c, errors.New("configure host: election ticks must exceed heartbeat ticks")
	}
	if c.InflightBytes < c.MaxEntryBytes {
		return c, errors.New("configure host: bytes in flight must hold one message")
	}
	return c, nil
}

// orDefault sets *v to d if it is zero.
func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
