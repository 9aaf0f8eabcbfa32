package multiraft

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// unborn keeps messages for groups that this node does not have yet. The right
// half of a split exists at once where the split is applied first; its messages
// reach nodes that are about to apply the split too. If they were refused, the
// leader would send a snapshot of a range that the split is to create. So they
// wait for some ticks, and only then is the leader answered in a way that makes
// it send a snapshot. A replica that was added (a learner) has nothing to wait
// for and is answered at once.
//
// The answers come from no state: this node acknowledges nothing and votes for
// nothing in them.
type unborn struct {
	byRange map[ids.RangeID]*unbornRange // for lookup only
	order   []*unbornRange               // by first message
	limit   int
}

type unbornRange struct {
	id       ids.RangeID
	first    uint64 // tick of the first message
	last     uint64 // tick of the last one
	expired  bool
	bytes    int
	messages []unbornMessage
}

type unbornMessage struct {
	from ids.NodeID
	msg  Message
}

func (u *unborn) init(shards int) {
	u.byRange = make(map[ids.RangeID]*unbornRange)
	u.limit = max(1, maxUnbornRanges/shards)
}

// take returns and forgets what waited for a range.
func (u *unborn) take(r ids.RangeID) []unbornMessage {
	w := u.byRange[r]
	if w == nil {
		return nil
	}
	delete(u.byRange, r)
	u.order = slices.DeleteFunc(u.order, func(o *unbornRange) bool { return o == w })
	return w.messages
}

// record returns the record of a range, nil if there are too many.
func (u *unborn) record(r ids.RangeID, now uint64) *unbornRange {
	w := u.byRange[r]
	if w == nil {
		if len(u.order) >= u.limit {
			return nil
		}
		w = &unbornRange{id: r, first: now}
		u.byRange[r] = w
		u.order = append(u.order, w)
	}
	w.last = now
	return w
}

// expire frees the messages that waited long enough and forgets ranges of which
// nothing is heard any more.
func (u *unborn) expire(now uint64) {
	if len(u.order) == 0 {
		return
	}
	u.order = slices.DeleteFunc(u.order, func(w *unbornRange) bool {
		if now-w.first > unbornHoldTicks {
			w.expired, w.messages, w.bytes = true, nil, 0
		}
		forget := now-w.last > unbornForgetFactor*unbornHoldTicks
		if forget {
			delete(u.byRange, w.id)
		}
		return forget
	})
}

// receiveUnborn handles a message for a group that is not here.
func (s *shard) receiveUnborn(from ids.NodeID, m *Message) {
	to, sender := ids.ReplicaID(m.Raft.GetTo()), ids.ReplicaID(m.Raft.GetFrom())
	if next, gone := s.host.cfg.Gone(m.Range, sender); gone {
		s.tellGone(from, m.Range, sender, next)
		return
	}
	if m.Ask != 0 {
		// The leader that is asked for is not here any more (R7).
		s.emit(from, Message{Range: m.Range, Left: Departure{Replica: to, Term: m.Ask}})
		return
	}
	if _, gone := s.host.cfg.Gone(m.Range, to); gone || !isRequest(m.Raft.GetType()) {
		s.metrics.messagesDropped.Add(1)
		return
	}
	// A replica that was removed from this node is not about to be born. It must
	// not even be answered: a leader that was cut off and has missed the removal
	// would take it for a follower that lives, and count on it.
	next, err := s.host.cfg.Store.Log().Tombstone(m.Range)
	if err != nil || to < next {
		s.metrics.messagesDropped.Add(1)
		return
	}
	if m.ToLearner {
		s.answerUnborn(from, m)
		return
	}
	w := s.unborn.record(m.Range, s.now)
	s.stir()
	switch bytes := messageBytes(m.Raft); {
	case w == nil:
		s.metrics.messagesDropped.Add(1)
	case w.expired:
		s.answerUnborn(from, m)
	case len(w.messages) >= maxUnbornMessages || w.bytes+bytes > maxUnbornBytes:
		// The oldest are kept: a log is accepted from its start, and the leader
		// sends the rest again.
		s.metrics.messagesDropped.Add(1)
	default:
		w.bytes += bytes
		w.messages = append(w.messages, unbornMessage{from: from, msg: *m})
		s.metrics.messagesHeld.Add(1)
	}
}

// answerUnborn tells a leader, without any state, that this replica lives and
// has no log: a heartbeat's answer makes it probe, a rejection of the probe
// makes it go back to the start of its log, which is cut, so it sends a
// snapshot. The answer to a heartbeat must not carry its context: it would
// confirm a read.
func (s *shard) answerUnborn(from ids.NodeID, m *Message) {
	answer := &raftpb.Message{
		From: new(m.Raft.GetTo()),
		To:   new(m.Raft.GetFrom()),
		Term: new(m.Raft.GetTerm()),
	}
	switch m.Raft.GetType() {
	case raftpb.MsgApp:
		answer.Type = raftpb.MsgAppResp.Enum()
		answer.Index = new(m.Raft.GetIndex())
		answer.Reject = new(true)
		answer.RejectHint = new(uint64(0))
	case raftpb.MsgHeartbeat:
		answer.Type = raftpb.MsgHeartbeatResp.Enum()
	default:
		s.metrics.messagesDropped.Add(1)
		return
	}
	s.metrics.unbornAnswers.Add(1)
	s.emit(from, Message{Range: m.Range, Raft: answer})
}
