package multiraft

import (
	"cmp"
	"slices"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// A shard is a share of the groups and all that one pass needs. Everything but
// the inbox, more and the metrics belongs to the goroutine that polls it.
type shard struct {
	host  *Host
	inbox inbox
	more  atomic.Bool // the last pass left work
	// needsTicks says that a group is awake, or a message waits for a birth.
	needsTicks atomic.Bool
	metrics    metrics
	logger     raftLogger

	groups map[ids.RangeID]*Group // for lookup only
	order  []*Group               // by range id: ticks and everything that walks
	now    uint64                 // ticks seen
	work   []*Group               // groups that may have a Ready, in order of arrival
	unborn unborn
	walks  []news

	active      []*Group // awake: ticked
	spareActive []*Group
	nominees    []*Group // to campaign, in turn
	electing    int      // elections under way

	closing []*Group // removed, but an install of theirs still runs

	// State of the pass.
	refuseAppends   bool // appends with entries are dropped
	refuseProposals bool
	flushes         []*Group // ran tasks
	out             []outbound
	appends         []storageWork
	applies         []storageWork
	staged          []stagedApply
	resumed         bool     // applies holds what was parked
	offered         []*Group // groups with a delivered snapshot that was just stepped

	// What is written and not covered by a sync in flight; see logwrite.go.
	owed      []response
	owedBytes int

	// Buffers for reuse.
	spareItems []item
	spareWork  []*Group
	responses  []response
}

// storageWork is a MsgStorageAppend or MsgStorageApply.
type storageWork struct {
	group *Group
	msg   *raftpb.Message
}

// outbound collects the messages for one node.
type outbound struct {
	node     ids.NodeID
	messages []Message
}

func newShard(h *Host, index int) *shard {
	s := &shard{host: h, groups: make(map[ids.RangeID]*Group)}
	s.inbox.init()
	s.unborn.init(h.cfg.Shards)
	s.logger = raftLogger{logger: h.cfg.Logger, budget: maxWarningsPerTick}
	return s
}

// stir has the ticks begin again if they had stopped.
func (s *shard) stir() {
	if !s.needsTicks.Load() {
		s.needsTicks.Store(true)
		wake(s.host.stirred)
	}
}

// queue puts a group on the list of those that may have a Ready.
func (s *shard) queue(g *Group) {
	if !g.queued {
		g.queued = true
		s.work = append(s.work, g)
	}
}

// position finds a range in order.
func (s *shard) position(r ids.RangeID) (int, bool) {
	return slices.BinarySearchFunc(s.order, r, func(g *Group, r ids.RangeID) int {
		return cmp.Compare(g.cfg.Range, r)
	})
}

// addGroup brings a group to life.
func (s *shard) addGroup(g *Group) {
	if g.stopped.Load() {
		// Removed before it was born: its removal comes next in the inbox.
		g.detached = true
		return
	}
	for _, old := range s.closing {
		if old.cfg.Range == g.cfg.Range {
			// Its predecessor's install still writes: born when that is over.
			old.incoming.after = append(old.incoming.after, func() { s.addGroup(g) })
			return
		}
	}
	i, _ := s.position(g.cfg.Range)
	s.order = slices.Insert(s.order, i, g)
	s.groups[g.cfg.Range] = g
	g.heard = s.now
	s.metrics.groups.Add(1)
	if g.cfg.Born != nil {
		g.cfg.Born(g)
	}
	g.load()
	for _, w := range s.unborn.take(g.cfg.Range) {
		g.receive(w.from, &w.msg)
	}
	if g.cfg.Campaign && g.live() {
		s.nominate(g)
	}
	s.queue(g)
}

// removeGroup ends a group (nil: there was none). An install that runs is
// waited for, as it writes to the store.
func (s *shard) removeGroup(g *Group, done func()) {
	if done == nil {
		done = func() {}
	}
	if g == nil {
		done()
		return
	}
	if s.groups[g.cfg.Range] == g {
		i, _ := s.position(g.cfg.Range)
		s.order = slices.Delete(s.order, i, i+1)
		delete(s.groups, g.cfg.Range)
		s.metrics.groups.Add(-1)
	}
	g.detached = true
	g.retire()
	g.reads.fail(ErrStopped)
	if g.incoming != nil && g.incoming.running {
		g.incoming.after = append(g.incoming.after, done)
		s.closing = append(s.closing, g)
		return
	}
	g.close()
	done()
}

// emit queues a message for a node; it leaves with the next send.
func (s *shard) emit(to ids.NodeID, m Message) {
	for i := range s.out {
		if s.out[i].node == to {
			s.out[i].messages = append(s.out[i].messages, m)
			return
		}
	}
	s.out = append(s.out, outbound{node: to, messages: []Message{m}})
}

// send hands the collected messages to the transport, one call for each node.
func (s *shard) send() {
	for i := range s.out {
		o := &s.out[i]
		if len(o.messages) == 0 {
			continue
		}
		if s.host.cfg.Transport.Send(o.node, o.messages) {
			s.metrics.messagesOut.Add(uint64(len(o.messages)))
		} else {
			s.unsent(o.messages)
		}
		clear(o.messages)
		o.messages = o.messages[:0]
	}
}

// unsent tells raft of appends that were dropped, so that it probes.
func (s *shard) unsent(messages []Message) {
	s.metrics.messagesUnsent.Add(uint64(len(messages)))
	for i := range messages {
		m := &messages[i]
		if m.Raft == nil || m.Raft.GetType() != raftpb.MsgApp {
			continue
		}
		if g := s.groups[m.Range]; g != nil && g.live() {
			g.rn.ReportUnreachable(m.Raft.GetTo())
		}
	}
}

// stop fails what still waits when the host ends.
func (s *shard) stop() {
	for _, g := range s.order {
		g.stopped.Store(true)
		g.reads.fail(ErrStopped)
	}
}
