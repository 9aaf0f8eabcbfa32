package multiraft

import (
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store"
)

// Status is the host's own copy of what a group's last Ready said.
type Status struct {
	Term       ids.Term
	Leader     ids.ReplicaID // 0: unknown
	Self       ids.ReplicaID
	IsLeader   bool
	Halted     bool // an error stopped this replica until the node restarts
	Commit     ids.Index
	Applied    ids.Index
	FirstIndex ids.Index
	LastIndex  ids.Index
	LogBytes   int64 // of the entries that are kept, encoded
}

// StateMachine is the seam of meaning: what a group replicates. Every method is
// called on the group's shard, never two at once for one group.
type StateMachine interface {
	// Flush is called once in every pass in which the group ran tasks, after
	// messages and tasks and before Ready: what was evaluated is proposed now,
	// with Group.Propose, in the term that evaluated it. It is called for a
	// halted or removed group too, where Propose returns ErrStopped.
	Flush()
	// Apply stages committed entries, in order, into b and returns how many it
	// took. Fewer than all means that the last one taken was structural: the
	// host commits b at once, calls Applied, and goes on with a fresh batch.
	// An error (or none taken) halts the group (logged once), not the node;
	// what the failing call staged is taken out of b again. ErrNotYet, with none
	// taken and nothing staged, parks the group's applies instead: its entries are
	// offered again, from the same one on, after Group.ResumeApply, or never, if a
	// snapshot makes up for them. Meanwhile the group appends, votes and
	// acknowledges as ever.
	Apply(b *store.Batch, entries []*raftpb.Entry) (int, error)
	// Applied is called when all that Apply staged is visible: publish state,
	// deliver results.
	Applied()
	// Changed reports a change of term, leader or own role, before any message
	// of the Ready that changed it leaves. It is also called once when the group
	// enters its shard, and when it halts.
	Changed(s Status)
	// Restored reports that a snapshot was installed (state reloaded from the
	// store). An error halts the group.
	Restored() error
}

// Task is work that must run on a group's shard: a request to evaluate, an
// order. Run must not block. It also runs, exactly once, when the group was
// halted or removed in the meantime; what it proposes is refused then.
type Task interface{ Run() }

// TaskFunc adapts a function to Task.
type TaskFunc func()

// Run calls f.
func (f TaskFunc) Run() { f() }

// ReadWaiter waits for a ReadIndex. ReadReady is called on the shard, once:
// with nil when the group leads (confirmed by a quorum after Read was called)
// and has applied all that was committed then, else with ErrNotLeader,
// ErrStopped or ErrOverloaded. It may be called before Read returns.
type ReadWaiter interface{ ReadReady(err error) }

// PeerProgress is the leader's view of one replica.
type PeerProgress struct {
	Replica      ids.ReplicaID
	Match        ids.Index
	State        string // probe, replicate, snapshot
	RecentActive bool
	Learner      bool
}

// GroupConfig describes a group to add.
type GroupConfig struct {
	Range    ids.RangeID
	Replica  ids.ReplicaID
	Applied  ids.Index         // 0: uninitialised, waits for a snapshot
	Conf     *raftpb.ConfState // as applied; nil: empty
	Peers    map[ids.ReplicaID]ids.NodeID
	Machine  StateMachine
	Campaign bool // at once (split's right half where the left led; a lone first replica)
	// Born is called on the shard with the group before any method of Machine,
	// which may be before AddGroup returns. May be nil.
	Born func(g *Group)
	// Seals says, by its payload, of an entry whose append is to make the commit
	// index durable with it: whoever has that entry on disk knows, after any crash,
	// that all entries up to those committed when it was proposed are. Called on
	// the shard for every appended entry; nil: of none. See stageAppend.
	Seals func(payload []byte) bool
	// Span returns the user span that this replica occupies, to be cleared when
	// a snapshot replaces it (nil or empty: none). Called on the shard.
	Span func() (start, end []byte)
}
