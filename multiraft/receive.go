package multiraft

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// receive handles one message from the network.
func (s *shard) receive(from ids.NodeID, m *Message) {
	s.metrics.messagesIn.Add(1)
	g := s.groups[m.Range]
	switch {
	case m.Raft == nil:
		s.notice(g, from, m)
	case !acceptable(m.Raft):
		s.metrics.messagesDropped.Add(1)
	case g == nil:
		s.receiveUnborn(from, m)
	default:
		g.receive(from, m)
	}
}

// notice handles the news that older replicas of this node are gone, that a leader
// has left its term, or that a replica has halted. A notice is never answered with a
// notice, so that two nodes cannot keep one another busy.
func (s *shard) notice(g *Group, from ids.NodeID, m *Message) {
	if g == nil {
		return
	}
	if g.cfg.Replica < m.Gone {
		s.host.cfg.OnGone(m.Range, m.Gone)
	}
	switch {
	case m.Left.Term != 0:
		g.released(from, m.Left)
	case m.Left.Replica != 0:
		g.halted(from, m.Left.Replica)
	}
}

// tellGone tells a node that the replica it sends from is gone, and with it all
// older ones of that node. It says no more: ids are counted over all nodes of a
// range, so the next one that may live somewhere else says nothing about a
// newer replica of that node. For the same reason a message *to* a replica that
// is gone is dropped in silence: its sender may be well. Only if the whole range
// is gone there is no newer replica, and that is told.
func (s *shard) tellGone(to ids.NodeID, r ids.RangeID, sender, next ids.ReplicaID) {
	s.metrics.goneNotices.Add(1)
	if next != ids.EveryReplica {
		next = sender + 1
	}
	s.emit(to, Message{Range: r, Gone: next})
}

// receive steps a message, unless it is not for this replica or must be
// dropped.
func (g *Group) receive(from ids.NodeID, m *Message) {
	s := g.shard
	if to := ids.ReplicaID(m.Raft.GetTo()); to != g.cfg.Replica {
		g.misaddressed(from, m, to)
		return
	}
	g.heard = s.now
	sender := ids.ReplicaID(m.Raft.GetFrom())
	if p := g.peer(sender); p != nil {
		p.seen, p.halted = s.now, false
		if p.learned {
			g.place(p, from)
		}
	} else {
		// Not in the descriptor: either removed, or added by an entry that this
		// replica has yet to apply.
		if next, gone := s.host.cfg.Gone(m.Range, sender); gone {
			s.tellGone(from, m.Range, sender, next)
			return
		}
		g.learn(sender, from)
	}
	if m.Ask != 0 {
		g.answer(from, m)
	}
	if g.status.Halted && isOfLeader(m.Raft) {
		g.tellHalted(from)
	}
	if !g.live() || g.refuses(m.Raft) || !g.mayVote(m) {
		s.metrics.messagesDropped.Add(1)
		return
	}
	if m.Truncate > g.cut.safe && m.Raft.GetTerm() >= uint64(g.status.Term) {
		g.cut.safe = m.Truncate
	}
	// Errors are those of messages that no longer matter: a response of a
	// replica that is not in the configuration.
	_ = g.rn.Step(m.Raft)
	g.noteLeader(m.Raft)
	g.hasten(m.Raft)
	switch m.Raft.GetType() {
	case raftpb.MsgAppResp, raftpb.MsgHeartbeatResp:
		g.noteAck(sender, m)
		g.checkMatching()
	}
	if g.status.IsLeader || !g.held() {
		g.wake()
	}
	s.queue(g)
}

// misaddressed handles a message to another replica id of this node. One to an
// older replica changes nothing here. But its sender may have been removed, and know
// only replicas that have all been replaced since, on nodes that hold newer ones: it
// must be told, or it would ask for ever.
func (g *Group) misaddressed(from ids.NodeID, m *Message, to ids.ReplicaID) {
	g.shard.metrics.messagesDropped.Add(1)
	if to < g.cfg.Replica {
		sender := ids.ReplicaID(m.Raft.GetFrom())
		if next, gone := g.host.cfg.Gone(m.Range, sender); gone {
			g.shard.tellGone(from, m.Range, sender, next)
		}
	}
	if to > g.cfg.Replica {
		// A leader sends only to replicas of a configuration that it applied, so
		// one that is committed. It gave this node a newer replica, and a node
		// has one replica of a range at most: this one was removed.
		g.host.cfg.OnGone(m.Range, to)
	}
}

// refuses says whether a message must not be stepped now.
func (g *Group) refuses(m *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgApp:
		// The leader probes and sends again: nothing is lost by the drop.
		return len(m.GetEntries()) > 0 && (g.shard.refuseAppends || g.incoming != nil)
	case raftpb.MsgHeartbeat:
		// A leader tells a commit index that this replica has acknowledged. If the
		// log ends before it, entries were lost from this disk, and raft would
		// panic. What was acknowledged is staged in the log, so its last index
		// is a fair judge; while a snapshot is pending nothing was acknowledged.
		last, _ := g.log.LastIndex()
		if m.GetTerm() >= uint64(g.status.Term) && m.GetCommit() > last && g.incoming == nil {
			g.halt("heartbeat", fmt.Errorf(
				"leader says that this replica acknowledged index %d, but its log ends at %d: "+
					"entries were lost; remove this replica and add a new one",
				m.GetCommit(), last))
			return true
		}
	}
	return false
}
