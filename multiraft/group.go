package multiraft

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/support"
)

// Group is one raft group on this node. Only Enqueue may be called from any
// goroutine; the other methods are for the group's shard, that is for tasks and
// for the StateMachine.
type Group struct {
	host    *Host
	shard   *shard
	cfg     GroupConfig
	stopped atomic.Bool // RemoveGroup was called, or the host stopped

	rn          *raft.RawNode // nil: not loaded
	log         *store.GroupLog
	status      Status
	leadTerm    ids.Term // in which this replica leads as published, 0: none
	term, vote  uint64   // of the hard state as written last
	applied     ids.Index
	appliedTerm uint64
	conf        *raftpb.ConfState
	peers       []peer // by replica id
	reads       reads
	cut         truncation
	sending     []sending
	incoming    *incoming
	parked      []*raftpb.Message // to be applied later, in order; see park.go
	matching    *matching         // who waits for all replicas; see park.go
	heard       uint64            // the shard's tick when another replica was heard last

	lease        atomic.Pointer[lease] // nil unless this replica leads; see lease.go
	kept         keptExpiry            // nothing, but in builds with canaries
	relinquished ids.Term              // in which the lease was given up (R5)
	heir         ids.ReplicaID         // of the last transfer begun here
	retries      int                   // looks at a transfer that failed, in this term
	barred       int                   // ticks for which it leads and cannot serve; see park.go
	record       record                // whom this replica follows; see record.go
	awaited      awaited               // a leader to whom nothing is promised
	deferred     *raftpb.Message       // a request for a vote that came too early
	deferredAt   leaseTime             // when it came

	// Who is awake and who campaigns; see wake.go and elect.go. In ticks.
	awake    uint64 // since it woke
	ticks    int    // a leader's, since raft last asked for an active quorum
	stirred  uint64 // a leader stays awake until then
	deadline uint64 // without a leader by then, this replica campaigns
	tries    uint32 // makes each wait differ from the one before

	queued    bool // on the shard's list of work
	active    bool // on the shard's list of those that are awake
	nominated bool // on the shard's list of those that are to campaign
	electing  bool // counted among the shard's elections
	ranTasks  bool
	detached  bool // no longer on the shard
}

// A peer is another replica and where it lives.
type peer struct {
	replica ids.ReplicaID
	node    ids.NodeID
	learner bool
	learned bool   // known from its messages only
	halted  bool   // as it said itself; see halt.go
	member  bool   // in the configuration as applied, in any role
	wanted  bool   // counted by package support: a group is shared with its node
	seen    uint64 // the shard's tick when it was last heard

	support   *support.Peer // what is promised between its node and this one
	ack       support.Epoch // under which it follows this leader in this term
	committed uint64        // as it said in this term

	held *raftpb.Message // see hold.go
	told uint64          // highest commit index sent or held in this term
}

// storage is what raft sees of the log: a commit index that only moved is not
// written, so the stored one may lie below what is applied.
type storage struct {
	*store.GroupLog
	hard *raftpb.HardState
	conf *raftpb.ConfState
}

// InitialState returns the hard state with its commit index raised.
func (st storage) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	return st.hard, st.conf, nil
}

// live says whether raft may be called.
func (g *Group) live() bool { return g.rn != nil && !g.status.Halted && !g.detached }

// load makes the RawNode. What cannot be loaded is halted: the node goes on.
func (g *Group) load() {
	g.conf = g.cfg.Conf
	if g.conf == nil {
		g.conf = &raftpb.ConfState{}
	}
	g.applied = g.cfg.Applied
	g.SetPeers(g.cfg.Peers)
	if err := g.loadRaft(); err != nil {
		g.halt("load", err)
		return
	}
	// Whoever leads is heard before that, or there is nobody; then the first in
	// rank begins.
	timeout := uint64(g.host.cfg.ElectionTicks)
	g.deadline = g.shard.now + timeout/2 + timeout*uint64(g.rank(0))
	g.wake()
	g.cfg.Machine.Changed(g.Status())
}

func (g *Group) loadRaft() error {
	log, err := g.host.cfg.Store.Log().Group(g.cfg.Range)
	if err != nil {
		return fmt.Errorf("load raft log: %w", err)
	}
	g.log = log
	log.SetConfState(g.conf)
	log.OnSnapshot(g.snapshotMetadata)
	hs, _, err := log.InitialState()
	if err != nil {
		return fmt.Errorf("load hard state: %w", err)
	}
	last, err := log.LastIndex()
	if err != nil {
		return fmt.Errorf("load last index: %w", err)
	}
	commit := max(hs.GetCommit(), uint64(g.applied))
	if commit > last {
		return fmt.Errorf("raft log ends at %d, but %d is committed: entries were lost",
			last, commit)
	}
	if g.applied > 0 {
		if g.appliedTerm, err = log.Term(uint64(g.applied)); err != nil {
			return fmt.Errorf("load term of applied index %d: %w", g.applied, err)
		}
	}
	g.term, g.vote = hs.GetTerm(), hs.GetVote()
	var hard *raftpb.HardState
	if g.term != 0 || g.vote != 0 || commit != 0 {
		hard = &raftpb.HardState{Term: new(g.term), Vote: new(g.vote), Commit: new(commit)}
	}
	cfg := &g.host.cfg
	g.rn, err = raft.NewRawNode(&raft.Config{
		ID:                        uint64(g.cfg.Replica),
		ElectionTick:              cfg.ElectionTicks,
		HeartbeatTick:             cfg.HeartbeatTicks,
		Storage:                   storage{GroupLog: log, hard: hard, conf: g.conf},
		Applied:                   uint64(g.applied),
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             cfg.MaxEntryBytes,
		MaxCommittedSizePerReady:  maxCommittedBytes,
		MaxUncommittedEntriesSize: cfg.UncommittedBytes,
		MaxInflightMsgs:           cfg.InflightMessages,
		MaxInflightBytes:          cfg.InflightBytes,
		CheckQuorum:               true,
		PreVote:                   true,
		ReadOnlyOption:            raft.ReadOnlySafe,
		Logger:                    &g.shard.logger,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
	})
	g.status.Term, g.status.Commit = ids.Term(g.term), ids.Index(commit)
	return err
}

// halt ends a group that cannot go on. Its replica falls silent, but for saying so;
// the others elect a leader without it.
func (g *Group) halt(op string, err error) {
	if g.status.Halted {
		return
	}
	g.status.Halted, g.status.IsLeader = true, false
	g.shard.metrics.halted.Add(1)
	g.host.cfg.Logger.Error("replica halted, the node goes on without it",
		"op", op, "range", g.cfg.Range, "replica", g.cfg.Replica, "term", g.status.Term,
		"index", g.applied, "error", err)
	g.retire()
	g.announceHalt()
	g.reads.fail(ErrStopped)
	g.cfg.Machine.Changed(g.Status())
}

// retire ends what this replica was to others: a leader, a follower, a
// candidate.
func (g *Group) retire() {
	g.publishLease()
	g.endMatching(false)
	g.parked = nil
	if g.leadTerm != 0 {
		g.announceDeparture(g.leadTerm)
		g.leadTerm = 0
	}
	for i := range g.peers {
		g.dropPeer(&g.peers[i])
	}
	g.setRecord(record{})
	g.deferred = nil
	g.ended()
}

// close frees what a detached group holds.
func (g *Group) close() {
	if g.log != nil {
		g.log.Close()
	}
	if in := g.incoming; in != nil {
		g.incoming = nil
		in.discard(ErrStopped)
	}
}

// Enqueue queues a task for the group's shard. Any goroutine. ErrOverloaded or
// ErrStopped: not queued, and Run will not be called. bytes counts against the
// inbox budget until the task runs.
func (g *Group) Enqueue(t Task, bytes int) error {
	if g.stopped.Load() || g.host.stopped.Load() {
		return ErrStopped
	}
	bytes += taskOverhead
	if g.host.inboxBytes.Add(int64(bytes)) > g.host.cfg.InboxBytes {
		g.host.inboxBytes.Add(-int64(bytes))
		g.shard.metrics.tasksRefused.Add(1)
		return ErrOverloaded
	}
	g.shard.inbox.push(item{kind: itemTask, group: g, task: t, bytes: bytes})
	return nil
}

// Status returns what the group's last Ready said, and the log's bounds.
func (g *Group) Status() Status {
	st := g.status
	st.Applied = g.applied
	if g.log != nil {
		first, _ := g.log.FirstIndex()
		last, _ := g.log.LastIndex()
		st.FirstIndex, st.LastIndex = ids.Index(first), ids.Index(last)
		st.LogBytes = g.log.Bytes()
	}
	return st
}

// SetPeers tells where the replicas live (after a descriptor change). The map
// is not kept. Replicas known only from their messages are forgotten.
func (g *Group) SetPeers(peers map[ids.ReplicaID]ids.NodeID) {
	old := g.peers
	g.peers = make([]peer, 0, len(peers))
	for _, id := range slices.Sorted(maps.Keys(peers)) {
		p := peer{replica: id, seen: g.shard.now}
		if i, ok := findPeer(old, id); ok {
			p = old[i]
			old[i].support, old[i].wanted = nil, false
		}
		g.place(&p, peers[id])
		p.learned = false
		g.peers = append(g.peers, p)
	}
	for i := range old {
		g.dropPeer(&old[i])
	}
	g.markRoles()
}

// markRoles copies the roles of the configuration to the peers, and makes the
// lease again: it is always that of the configuration applied now.
func (g *Group) markRoles() {
	for i := range g.peers {
		id := uint64(g.peers[i].replica)
		g.peers[i].learner = slices.Contains(g.conf.Learners, id) ||
			slices.Contains(g.conf.LearnersNext, id)
		g.peers[i].member = g.isMember(id)
	}
	g.want()
	g.publishLease()
}

func findPeer(peers []peer, id ids.ReplicaID) (int, bool) {
	return slices.BinarySearchFunc(peers, id, func(p peer, id ids.ReplicaID) int {
		return cmp.Compare(p.replica, id)
	})
}

// peer returns what is known of a replica, nil if nothing.
func (g *Group) peer(id ids.ReplicaID) *peer {
	// Linear: there are a handful, and this is asked for every message.
	for i := range g.peers {
		if g.peers[i].replica == id {
			return &g.peers[i]
		}
	}
	return nil
}

// learn notes where a replica lives that this one's descriptor does not know
// (yet). A replica that lags must be able to answer and to vote for one that was
// added after its last applied entry, or the group could have no leader at all.
func (g *Group) learn(id ids.ReplicaID, node ids.NodeID) {
	learned, oldest := 0, -1
	for i := range g.peers {
		if !g.peers[i].learned {
			continue
		}
		learned++
		if oldest < 0 || g.peers[i].seen < g.peers[oldest].seen {
			oldest = i
		}
	}
	if learned >= maxLearnedPeers {
		g.dropPeer(&g.peers[oldest])
		g.peers = slices.Delete(g.peers, oldest, oldest+1)
	}
	p := peer{replica: id, learned: true, seen: g.shard.now}
	g.place(&p, node)
	i, _ := findPeer(g.peers, id)
	g.peers = slices.Insert(g.peers, i, p)
	g.markRoles()
}

// TransferLeader starts a transfer. It is ignored unless this replica leads and
// the target is a voter that follows closely: one that needs a snapshot would
// leave the group without a leader for long. The library aborts a transfer that
// does not finish within an election timeout.
func (g *Group) TransferLeader(to ids.ReplicaID) {
	if !g.live() || !g.status.IsLeader {
		return
	}
	ready := false
	if p := g.peer(to); p == nil || !p.lives(g.host.cfg.Support.Now()) {
		return
	}
	g.rn.WithProgress(func(id uint64, t raft.ProgressType, pr tracker.Progress) {
		if id == uint64(to) {
			ready = t == raft.ProgressTypePeer && pr.State == tracker.StateReplicate
		}
	})
	if !ready {
		g.host.cfg.Logger.Debug("leader transfer refused: target is not a close follower",
			"range", g.cfg.Range, "replica", to)
		return
	}
	g.heir = to
	g.rn.TransferLeader(uint64(to))
	g.ticks = 0 // raft gives a transfer a whole election timeout
	g.wake()
	g.shard.queue(g)
}

// Campaign starts an election. It is ignored while configuration changes are
// committed and not applied, and where this replica is no voter.
func (g *Group) Campaign() {
	if !g.live() {
		return
	}
	if err := g.rn.Campaign(); err != nil {
		g.host.cfg.Logger.Debug("campaign refused", "range", g.cfg.Range, "error", err)
	}
	g.wake()
	g.shard.queue(g)
}

// recentlyActive says whether a replica was heard lately, or need not speak
// because its node supports this one. One that has halted is not active.
func (g *Group) recentlyActive(id ids.ReplicaID, heard bool) bool {
	p := g.peer(id)
	if p != nil && p.halted {
		return false
	}
	if heard || p == nil {
		return heard
	}
	_, alive := p.supported(g.host.cfg.Support.Now())
	return alive && p.ack != 0
}

// Progress returns the leader's view of all replicas, itself included, in order
// of their ids (nil elsewhere).
func (g *Group) Progress() []PeerProgress {
	if !g.live() || !g.status.IsLeader {
		return nil
	}
	var all []PeerProgress
	g.rn.WithProgress(func(id uint64, t raft.ProgressType, pr tracker.Progress) {
		p := PeerProgress{
			Replica:      ids.ReplicaID(id),
			Match:        ids.Index(pr.Match),
			RecentActive: g.recentlyActive(ids.ReplicaID(id), pr.RecentActive),
			Learner:      t == raft.ProgressTypeLearner,
		}
		switch pr.State {
		case tracker.StateProbe:
			p.State = "probe"
		case tracker.StateReplicate:
			p.State = "replicate"
		case tracker.StateSnapshot:
			p.State = "snapshot"
		}
		all = append(all, p)
	})
	return all
}
