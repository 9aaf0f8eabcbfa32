// Package multiraft makes many groups agree. It knows no key.
//
// CONTRACT STUB: signatures are fixed, bodies are to be written (host.go,
// shard.go, poll.go, ready.go, group.go, proposal.go, readindex.go,
// truncate.go, snapshot.go, unborn.go, waiter.go, budget.go, doc.go).
package multiraft

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// Errors of proposals and reads.
var (
	ErrNotLeader  = errors.New("this replica does not lead")
	ErrDropped    = errors.New("proposal dropped: uncommitted budget is used up or leadership is moving")
	ErrStopped    = errors.New("group removed or host stopped")
	ErrOverloaded = errors.New("inbox over its byte budget")
)

// Message is one raft message between replicas of a group, or a notice.
type Message struct {
	Range     ids.RangeID
	Raft      *raftpb.Message // immutable once sent or stepped; From and To are replica ids
	ToLearner bool            // the sender's configuration has the receiver as a learner
	Truncate  ids.Index       // from a leader: entries at or below may be cut
	Gone      ids.ReplicaID   // notice (Raft nil): replicas of Range below this id are removed for ever
}

// Frame is what one node sends another: all that was queued, one stamp.
type Frame struct {
	From     ids.NodeID
	Stamp    hlc.Timestamp
	Messages []Message
}

// Transport is the seam of the network. Implementations stamp each frame with
// the clock's Peek after its last message was put in.
type Transport interface {
	// Send queues messages for a node and never blocks. It owns msgs' elements
	// (not the slice) afterwards. False: dropped, queue full or node unknown;
	// the host then reports the peer unreachable to raft.
	Send(to ids.NodeID, msgs []Message) bool
	// SendSnapshot streams a snapshot, closes it, and calls done exactly once,
	// on any goroutine. nil means that the receiver took it into its log.
	SendSnapshot(to ids.NodeID, h *metapb.SnapshotHeader, s *store.OutgoingSnapshot, done func(error))
}

// Status is the host's own copy of what a group's last Ready said.
type Status struct {
	Term       ids.Term
	Leader     ids.ReplicaID // 0: unknown
	Self       ids.ReplicaID
	IsLeader   bool
	Commit     ids.Index
	Applied    ids.Index
	FirstIndex ids.Index
	LastIndex  ids.Index
}

// StateMachine is the seam of meaning: what a group replicates. Every method is
// called on the group's shard, never two at once for one group.
type StateMachine interface {
	// Flush is called once in every pass in which the group ran tasks, after
	// messages and tasks and before Ready: what was evaluated is proposed now,
	// with Group.Propose, in the term that evaluated it.
	Flush()
	// Apply stages committed entries, in order, into b and returns how many it
	// took. Fewer than all means that the last one taken was structural: the
	// host commits b at once, calls Applied, and goes on with a fresh batch.
	// An error halts the group (logged once), not the node.
	Apply(b *store.Batch, entries []*raftpb.Entry) (int, error)
	// Applied is called when all that Apply staged is visible: publish state,
	// deliver results.
	Applied()
	// Changed reports a change of term, leader or own role, before any message
	// of the Ready that changed it leaves.
	Changed(s Status)
	// Restored reports that a snapshot was installed (state reloaded from the store).
	Restored() error
}

// Task is work that must run on a group's shard: a request to evaluate, an
// order. Run must not block.
type Task interface{ Run() }

// TaskFunc adapts a function to Task.
type TaskFunc func()

// Run calls f.
func (f TaskFunc) Run() { f() }

// ReadWaiter waits for a ReadIndex. ReadReady is called on the shard, once:
// with nil when the group leads (confirmed by a quorum after Read was called)
// and has applied all that was committed then, else with an error.
type ReadWaiter interface{ ReadReady(err error) }

// Config configures a host. Zero values mean the defaults named.
type Config struct {
	Node           ids.NodeID
	Store          *store.Store
	Clock          *hlc.Hybrid
	Transport      Transport
	Shards         int           // default max(1, GOMAXPROCS/2)
	TickInterval   time.Duration // default 100 ms
	ElectionTicks  int           // default 10
	HeartbeatTicks int           // default 2
	Logger         *slog.Logger
	// Gone says whether replica id of range r is known to be removed for ever,
	// and the next id that may live (descriptor or tombstone). Any goroutine.
	Gone func(r ids.RangeID, replica ids.ReplicaID) (next ids.ReplicaID, gone bool)
	// OnGone tells that this node's replica of r is removed if its id is below next. On a shard.
	OnGone func(r ids.RangeID, next ids.ReplicaID)
	// Background runs a job that blocks on disk (snapshot install). Default: a
	// pool of two goroutines of Run. The simulator queues it as an event.
	Background func(job func())
	// Budgets; defaults in budget.go.
	InboxBytes       int64  // node-wide, raft in and requests; beyond: messages dropped, tasks refused
	MaxEntryBytes    uint64 // MaxSizePerMsg
	UncommittedBytes uint64 // per group
	InflightMessages int
	InflightBytes    uint64
	TruncateEntries  int   // cut when at least this many may go, default 64
	MaxLogBytes      int64 // per group: beyond, laggards are cut off and get a snapshot, default 16 MiB
}

// Host drives all groups of a node.
type Host struct{}

// NewHost makes a host; nothing runs before Run or Poll.
func NewHost(cfg Config) (*Host, error) { panic("unimplemented") }

// Run starts workers, sync waiters, the ticker and the background pool, and
// blocks until ctx ends and all have stopped.
func (h *Host) Run(ctx context.Context) error { panic("unimplemented") }

// Poll runs one pass of a shard and reports whether more work is pending.
// Production calls it from the shard's worker, the simulator from its loop.
func (h *Host) Poll(shard int) (more bool) { panic("unimplemented") }

// CompleteSync waits for the oldest log sync in flight of a shard and hands its
// responses to the shard's inbox; false if there is none. Production calls it
// from the shard's waiter.
func (h *Host) CompleteSync(shard int) bool { panic("unimplemented") }

// Tick advances logical time by one tick for all groups.
func (h *Host) Tick() { panic("unimplemented") }

// Shards returns the number of shards; PendingWork tells the simulator whether
// Poll (work) or CompleteSync (syncs in flight) has something to do.
func (h *Host) Shards() int                                  { panic("unimplemented") }
func (h *Host) PendingWork(shard int) (work bool, syncs int) { panic("unimplemented") }

// Receive takes a frame from the network: adopts the stamp first (a frame too
// far ahead is dropped whole), then queues the messages. Any goroutine.
func (h *Host) Receive(f Frame) { panic("unimplemented") }

// Unreachable reports that frames to a node were lost (stream broke).
func (h *Host) Unreachable(n ids.NodeID) { panic("unimplemented") }

// DeliverSnapshot hands over a received snapshot for a group that exists (a new
// replica's group is added uninitialised before). done is called once, on the
// shard: installed false means that raft did not want it; it is discarded then.
func (h *Host) DeliverSnapshot(in *store.IncomingSnapshot, done func(installed bool, err error)) {
	panic("unimplemented")
}

// GroupConfig describes a group to add.
type GroupConfig struct {
	Range    ids.RangeID
	Replica  ids.ReplicaID
	Applied  ids.Index         // 0: uninitialised, waits for a snapshot
	Conf     *raftpb.ConfState // as applied
	Peers    map[ids.ReplicaID]ids.NodeID
	Machine  StateMachine
	Campaign bool // campaign at once (split's right half where the left led; a bootstrapped single replica)
	// Span returns the user span that this replica occupies, to be cleared when
	// a snapshot replaces it (empty: none).
	Span func() (start, end []byte)
}

// AddGroup adds a group; it enters its shard through the inbox. Messages that
// waited for its birth are delivered. Any goroutine, a shard included.
func (h *Host) AddGroup(cfg GroupConfig) (*Group, error) { panic("unimplemented") }

// RemoveGroup removes a group; its tasks, reads and proposals fail with
// ErrStopped. Any goroutine. done (may be nil) is called on the shard when
// nothing of the group will touch the store any more.
func (h *Host) RemoveGroup(r ids.RangeID, done func()) { panic("unimplemented") }

// Group is one raft group on this node.
type Group struct{}

// Enqueue queues a task for the group's shard. Any goroutine. ErrOverloaded or
// ErrStopped: not queued. bytes counts against the inbox budget.
func (g *Group) Enqueue(t Task, bytes int) error { panic("unimplemented") }

// The methods below are for the group's shard only (tasks and StateMachine).

// Propose proposes payloads as entries in one MsgProp, in the current term.
// The payloads belong to raft afterwards. ErrNotLeader, ErrDropped: none was.
func (g *Group) Propose(payloads [][]byte) error { panic("unimplemented") }

// ProposeConfChange proposes a configuration change; context is in the entry.
func (g *Group) ProposeConfChange(cc *raftpb.ConfChangeV2) error { panic("unimplemented") }

// ApplyConfChange is called from Apply for a configuration entry (also for a
// refused one, with a zero change) and returns the new configuration.
func (g *Group) ApplyConfChange(cc *raftpb.ConfChangeV2) *raftpb.ConfState { panic("unimplemented") }

// Read waits for a ReadIndex begun after this call.
func (g *Group) Read(w ReadWaiter) { panic("unimplemented") }

// SetPeers tells where the replicas live (after a descriptor change).
func (g *Group) SetPeers(peers map[ids.ReplicaID]ids.NodeID) { panic("unimplemented") }

func (g *Group) TransferLeader(to ids.ReplicaID) { panic("unimplemented") }
func (g *Group) Campaign()                       { panic("unimplemented") }
func (g *Group) Status() Status                  { panic("unimplemented") }

// PeerProgress is the leader's view of one replica.
type PeerProgress struct {
	Replica      ids.ReplicaID
	Match        ids.Index
	State        string // probe, replicate, snapshot
	RecentActive bool
	Learner      bool
}

// Progress returns the leader's view of all replicas (nil elsewhere).
func (g *Group) Progress() []PeerProgress { panic("unimplemented") }
