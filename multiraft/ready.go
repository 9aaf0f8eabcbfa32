package multiraft

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// collect takes the Readys of all groups with work: publishes what changed,
// routes the messages and gathers the storage work.
func (s *shard) collect() {
	work := s.work
	s.work = s.spareWork[:0]
	for _, g := range work {
		g.queued = false
		if !g.live() {
			continue
		}
		if g.incoming != nil && g.incoming.running {
			continue // queued again when the install is over
		}
		g.askRead()
		if g.rn.HasReady() {
			g.collect()
		}
	}
	clear(work)
	s.spareWork = work[:0]
	s.rejectOffered()
}

// collect takes one Ready.
func (g *Group) collect() {
	rd := g.rn.Ready()
	g.publish(&rd)
	for _, m := range rd.Messages {
		switch m.GetType() {
		case raftpb.MsgStorageAppend:
			if m.GetSnapshot() != nil {
				g.install(m)
				continue
			}
			g.shard.appends = append(g.shard.appends, storageWork{group: g, msg: m})
		case raftpb.MsgStorageApply:
			g.shard.applies = append(g.shard.applies, storageWork{group: g, msg: m})
		case raftpb.MsgSnap:
			g.sendSnapshot(m)
		case raftpb.MsgTimeoutNow:
			g.relinquish()
			g.route(m)
		default:
			g.route(m)
		}
	}
	if len(rd.ReadStates) > 0 {
		g.confirmReads(rd.ReadStates)
	}
}

// publish is the one place where a change of term, leader or role becomes known
// above, before any message of the Ready that made it leaves: a leader that
// steps down must have given up what it promised before anyone can learn of the
// new term from it.
func (g *Group) publish(rd *raft.Ready) {
	before := g.status
	if hs := rd.HardState; !raft.IsEmptyHardState(hs) {
		g.status.Term = ids.Term(hs.GetTerm())
		g.status.Commit = ids.Index(hs.GetCommit())
	}
	if ss := rd.SoftState; ss != nil {
		g.status.Leader = ids.ReplicaID(ss.Lead)
		g.status.IsLeader = ss.RaftState == raft.StateLeader
	}
	st := &g.status
	sameTerm := st.Term == before.Term
	if sameTerm && st.Leader == before.Leader && st.IsLeader == before.IsLeader {
		return
	}
	if st.Leader != 0 {
		g.ended()
	}
	if before.IsLeader && !(st.IsLeader && sameTerm) {
		g.leaderNoMore(before.Term)
	}
	if st.IsLeader && !(before.IsLeader && sameTerm) {
		g.shard.metrics.elections.Add(1)
		g.leaderNow()
		// A new leader knows of no one's progress yet. Until it hears of all of
		// them, or they are silent for long, it must not cut its log.
		for i := range g.peers {
			g.peers[i].seen = g.shard.now
		}
	}
	g.forgetHeld()
	g.publishLease()
	g.cfg.Machine.Changed(g.Status())
}

// leaderNow begins a leadership.
func (g *Group) leaderNow() {
	g.leadTerm, g.ticks, g.retries, g.barred = g.status.Term, 0, 0, 0
	g.setRecord(record{}) // it follows nobody
	g.deferred = nil
	g.wake()
	g.awake = 0
}

// leaderNoMore ends the leadership of a term: the lease goes before the
// messages of this Ready can tell anybody of another term.
func (g *Group) leaderNoMore(term ids.Term) {
	g.leadTerm = 0
	g.lease.Store(nil)
	for i := range g.peers {
		if p := &g.peers[i]; p.support != nil {
			g.forgetAck(p, term)
		}
	}
	g.reads.fail(ErrNotLeader)
	g.endMatching(false)
	g.announceDeparture(term)
	g.deadline = g.shard.now + g.patience()
	g.wake()
}

// route sends a raft message to the node where its replica lives, or holds it.
func (g *Group) route(m *raftpb.Message) {
	p := g.peer(ids.ReplicaID(m.GetTo()))
	if p == nil || p.node == 0 {
		g.shard.metrics.messagesUnsent.Add(1)
		return
	}
	if old := p.held; old != nil {
		p.held = nil
		if !supersedes(m, old) {
			g.emit(p, old)
		}
	}
	if g.mayHold(p, m) {
		p.held, p.told = m, m.GetCommit()
		return
	}
	p.told = max(p.told, m.GetCommit())
	g.emit(p, m)
}

func (g *Group) emit(p *peer, m *raftpb.Message) {
	out := Message{Range: g.cfg.Range, Raft: m, ToLearner: p.learner}
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgHeartbeat:
		out.Truncate = min(g.cut.safe, g.applied)
	case raftpb.MsgAppResp, raftpb.MsgHeartbeatResp:
		out.Epoch = g.ackEpoch(m)
		// Raft leaves the commit index of a response empty and does not read it.
		// It tells the leader when this group may sleep.
		m.Commit = new(uint64(g.status.Commit))
	}
	g.shard.emit(p.node, out)
}
