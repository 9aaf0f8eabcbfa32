package multiraft

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store"
)

// Host drives all groups of a node.
type Host struct {
	cfg    Config
	shards []*shard

	inboxBytes atomic.Int64
	snapshots  snapshotTurns // being sent
	installs   atomic.Int64
	stopped    atomic.Bool
	failure    atomic.Pointer[error] // the store could not keep a promise

	jobs    jobQueue
	stirred chan struct{} // a token: some shard needs ticks again

	groupsMu sync.Mutex
	groups   map[ids.RangeID]*Group // for uniqueness and RemoveGroup only
}

// NewHost makes a host; nothing runs before Run or Poll. An error names the
// setting that is missing or wrong.
func NewHost(cfg Config) (*Host, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	h := &Host{cfg: cfg, groups: make(map[ids.RangeID]*Group)}
	h.stirred = make(chan struct{}, wakeTokens)
	h.jobs.notify = make(chan struct{}, backgroundWorkers)
	if h.cfg.Background == nil {
		h.cfg.Background = h.jobs.push
	}
	for i := range cfg.Shards {
		h.shards = append(h.shards, newShard(h, i))
	}
	return h, nil
}

// Shards returns the number of shards.
func (h *Host) Shards() int { return len(h.shards) }

// PendingWork tells the simulator whether Poll (work) or CompleteSync (syncs in
// flight) of a shard has something to do.
func (h *Host) PendingWork(shard int) (work bool, syncs int) {
	if h.failure.Load() != nil {
		return false, 0
	}
	s := h.shards[shard]
	work, syncs = s.inbox.pending()
	return work || s.more.Load(), syncs
}

// Tick advances logical time by one tick for all groups. Any goroutine.
func (h *Host) Tick() {
	for _, s := range h.shards {
		s.inbox.addTick()
	}
}

// CompleteSync waits for the oldest log sync in flight of a shard and hands its
// responses to the shard's inbox; false if there is none. Production calls it
// from the shard's waiter. One goroutine at a time for each shard.
func (h *Host) CompleteSync(shard int) bool {
	in := &h.shards[shard].inbox
	f, ok := in.oldest()
	if !ok {
		return false
	}
	err := f.sync.Wait()
	f.batch.Close()
	if err != nil {
		h.fail(fmt.Errorf("sync raft log: %w", err))
	}
	// After a failure nothing is delivered any more: what was not synced must
	// not be acknowledged, and a later sync that succeeds proves nothing.
	in.land(h.failure.Load() == nil)
	return true
}

// fail stops the host for good. The store has called its Fatal already, which
// does not return in production.
func (h *Host) fail(err error) {
	if h.failure.CompareAndSwap(nil, &err) {
		h.cfg.Logger.Error("raft storage failed, all groups of this node stop",
			"op", "multiraft", "error", err)
	}
	h.stopped.Store(true)
	for _, s := range h.shards {
		wake(s.inbox.notify)
	}
}

// shardOf returns the shard of a range.
func (h *Host) shardOf(r ids.RangeID) *shard {
	return h.shards[uint64(r)%uint64(len(h.shards))]
}

// AddGroup adds a group; it enters its shard through the inbox. Messages that
// waited for its birth are delivered. Any goroutine, a shard included. Its log
// is loaded on the shard, so after a RemoveGroup of the same range it is loaded
// when nothing of the removed one is left. ErrExists, ErrStopped.
func (h *Host) AddGroup(cfg GroupConfig) (*Group, error) {
	if cfg.Range == 0 || cfg.Replica == 0 || cfg.Machine == nil {
		return nil, errors.New("add group: range, replica and machine must be given")
	}
	g := &Group{host: h, shard: h.shardOf(cfg.Range), cfg: cfg}
	g.status.Self = cfg.Replica
	h.groupsMu.Lock()
	defer h.groupsMu.Unlock()
	if h.stopped.Load() {
		return nil, ErrStopped
	}
	if old := h.groups[cfg.Range]; old != nil {
		return nil, fmt.Errorf("add group of range %d: %w (replica %d)",
			cfg.Range, ErrExists, old.cfg.Replica)
	}
	h.groups[cfg.Range] = g
	g.shard.inbox.push(item{kind: itemControl, control: func(s *shard) { s.addGroup(g) }})
	return g, nil
}

// RemoveGroup removes a group; its tasks, reads and proposals fail with
// ErrStopped. Any goroutine, the group's StateMachine included. done (may be
// nil) is called on the shard when nothing of the group will touch the store
// any more; also if there is no such group.
func (h *Host) RemoveGroup(r ids.RangeID, done func()) {
	h.groupsMu.Lock()
	defer h.groupsMu.Unlock()
	g := h.groups[r]
	delete(h.groups, r)
	if g != nil {
		g.stopped.Store(true)
	}
	h.shardOf(r).inbox.push(item{kind: itemControl, control: func(s *shard) {
		s.removeGroup(g, done)
	}})
}

// Receive takes a frame from the network: adopts the stamp first (a frame whose
// stamp cannot be adopted is dropped whole, since what it carries may depend on
// it), then queues the messages. Any goroutine. The messages belong to the host
// afterwards.
func (h *Host) Receive(f Frame) {
	if h.stopped.Load() || len(f.Messages) == 0 {
		return
	}
	if h.cfg.Clock != nil && !canary.On(canary.StampsIgnored) {
		err := h.cfg.Clock.Update(f.Stamp)
		if err != nil && !canary.On(canary.StampRefusedStepped) {
			h.shardOf(f.Messages[0].Range).metrics.framesRefused.Add(1)
			h.cfg.Logger.Debug("frame dropped: its stamp cannot be adopted",
				"node", f.From, "error", err)
			return
		}
	}
	for i, s := range h.shards {
		h.receiveShard(uint64(i), s, &f)
	}
}

// receiveShard queues the messages of one shard under one lock.
func (h *Host) receiveShard(index uint64, s *shard, f *Frame) {
	shards := uint64(len(h.shards))
	queued := false
	s.inbox.mu.Lock()
	for i := range f.Messages {
		m := &f.Messages[i]
		if uint64(m.Range)%shards != index {
			continue
		}
		bytes := messageBytes(m.Raft)
		if !h.admitMessage(m, bytes) {
			s.metrics.messagesDropped.Add(1)
			continue
		}
		s.inbox.items = append(s.inbox.items,
			item{kind: itemMessage, from: f.From, bytes: bytes, msg: *m})
		queued = true
	}
	s.inbox.mu.Unlock()
	if queued {
		wake(s.inbox.notify)
	}
}

// admitMessage counts a message against the inbox budget.
func (h *Host) admitMessage(m *Message, bytes int) bool {
	limit := 2 * h.cfg.InboxBytes
	if len(m.Raft.GetEntries()) > 0 {
		limit = h.cfg.InboxBytes
	}
	if h.inboxBytes.Add(int64(bytes)) > limit {
		h.inboxBytes.Add(-int64(bytes))
		return false
	}
	return true
}

// DeliverSnapshot hands over a received snapshot for a group that exists (a new
// replica's group is added uninitialised before). done is called once, on the
// shard: installed false means that raft did not want it; it is discarded then.
// Any goroutine.
func (h *Host) DeliverSnapshot(
	in *store.IncomingSnapshot, done func(installed bool, err error),
) {
	r := ids.RangeID(in.Header().GetRangeId())
	h.shardOf(r).inbox.push(item{kind: itemControl, control: func(s *shard) {
		s.deliverSnapshot(in, done)
	}})
}
