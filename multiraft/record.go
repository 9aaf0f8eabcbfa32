package multiraft

import (
	"bytes"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/support"
)

// record is the follower's side of a lease: under which epoch of the promise to
// the leader's node this replica follows a leader in a term. While the promise
// lives the replica votes for nobody else and campaigns not (R2); it needs no
// tick, no timer and no message.
//
// It is this record that binds, not the leader that raft remembers: any message
// of a higher term, a lost election or a restart makes raft forget it, while
// the leader still counts this replica.
type record struct {
	leader ids.ReplicaID // 0: none
	node   ids.NodeID
	term   ids.Term
	epoch  support.Epoch
	peer   *support.Peer
}

// held says whether a live promise binds this replica. Only a withdrawal ends a
// promise (R3), and it comes before the answer here changes: what this replica
// does after false rests on a clock that has passed the promise's ceiling.
func (g *Group) held() bool {
	if canary.On(canary.LeaseRefusesByLead) {
		p := g.peer(ids.ReplicaID(g.rn.BasicStatus().Lead))
		return p != nil && p.replica != g.cfg.Replica && p.support != nil &&
			p.support.Promise() != 0
	}
	r := &g.record
	return r.leader != 0 && r.peer.Promise() == r.epoch
}

// noteLeader makes or renews the record after a message of a leader was stepped
// (R1): if raft follows its sender in the message's term now.
func (g *Group) noteLeader(m *raftpb.Message) {
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap:
	default:
		return
	}
	r := &g.record
	sender, term := ids.ReplicaID(m.GetFrom()), ids.Term(m.GetTerm())
	if r.leader == sender && r.term == term && g.held() {
		return
	}
	p := g.peer(sender)
	st := g.rn.BasicStatus()
	if p == nil || p.support == nil || st.Lead != m.GetFrom() ||
		st.HardState.GetTerm() != m.GetTerm() || st.RaftState != raft.StateFollower {
		return
	}
	next := record{leader: sender, node: p.node, term: term, epoch: p.support.Promise(),
		peer: p.support}
	if next.epoch == 0 || g.applied == 0 {
		// Nothing is promised to that node at the moment; or this replica has no
		// state yet, may go with the snapshot that was to bring it, and come back
		// under the same id, without its record and with its ack still counted.
		next = record{}
	}
	g.setRecord(next)
	now := awaited{leader: sender, term: term}
	if next.leader == 0 && g.awaited.is(now) && g.host.cfg.Support != nil {
		return // the time to wait for it runs already, or is over
	}
	g.awaited = now
	g.deadline = g.shard.now + g.patience()
}

// awaited is a leader to whose node nothing is promised. It gets one patience to
// ask for support; after that, or if it had support and has lost it, its messages
// alone keep nobody from electing another: a node whose disk hangs asks no more,
// but goes on to send them.
type awaited struct {
	leader   ids.ReplicaID
	term     ids.Term
	forsaken bool // the wait is over
}

func (a awaited) is(b awaited) bool { return a.leader == b.leader && a.term == b.term }

// forsakes says whether raft's leader, if it has one, is one that is waited for no
// more.
func (g *Group) forsakes(lead uint64, term ids.Term) bool {
	return g.awaited.forsaken && g.awaited.is(awaited{leader: ids.ReplicaID(lead), term: term})
}

// setRecord replaces the record and keeps the digests true.
func (g *Group) setRecord(next record) {
	if old := g.record; old.leader != 0 {
		old.peer.NoteRecord(g.mark(g.cfg.Replica, old.term), -1)
	}
	g.record = next
	if next.leader != 0 {
		next.peer.NoteRecord(g.mark(g.cfg.Replica, next.term), 1)
	}
}

// ackEpoch is the epoch that a response carries, 0 if it acknowledges no
// leadership (R1). It is read when the response leaves, not when raft made it:
// in between the promise may have ended.
func (g *Group) ackEpoch(m *raftpb.Message) support.Epoch {
	r := &g.record
	if r.leader == ids.ReplicaID(m.GetTo()) && uint64(r.term) == m.GetTerm() && g.held() {
		return r.epoch
	}
	return 0
}

// mayVote is the one place where requests for votes are filtered (R2, R5, R6).
// One that comes while a promise holds is kept, one for each group: it is
// stepped when the promise ends, as if the network had been slow, so that an
// election does not wait for the candidate to ask again.
func (g *Group) mayVote(m *Message) bool {
	switch m.Raft.GetType() {
	case raftpb.MsgVote, raftpb.MsgPreVote:
	default:
		return true
	}
	// A leader that handed over has given its lease up before it asked somebody to
	// campaign at once (R5).
	forced := bytes.Equal(m.Raft.GetContext(), []byte("CampaignTransfer"))
	if forced && !canary.On(canary.LeaseHoldsForced) {
		return true
	}
	// What the former life of this process promised is not known any more (R6).
	if !g.host.cfg.Support.MayVote() {
		g.deferred, g.deferredAt = m.Raft, g.host.cfg.Support.Now()
		return false
	}
	if g.status.IsLeader && g.leadsPublishedTerm() {
		// Raft ignores it, but the sender may not know that there is a leader, or
		// be ahead in term: a heartbeat, and its answer, sort that out.
		g.stir()
		return true
	}
	if g.held() {
		if ids.ReplicaID(m.Raft.GetFrom()) != g.record.leader {
			g.deferred, g.deferredAt = m.Raft, g.host.cfg.Support.Now()
			return false
		}
		// The record's leader itself may ask, for a later term: it has left this one
		// then. What it asked before it led this term may come late, or twice.
		if ids.Term(m.Raft.GetTerm()) <= g.record.term {
			return false
		}
	}
	if g.record.leader != 0 {
		g.unfollow()
	} else if st := g.rn.BasicStatus(); st.Lead != 0 && (g.shard.now >= g.deadline ||
		g.forsakes(st.Lead, ids.Term(st.HardState.GetTerm()))) {
		g.forgetLeader()
	}
	return true
}

// unfollow ends the record: the promise was withdrawn, or the leader has left.
func (g *Group) unfollow() {
	g.setRecord(record{})
	if !g.live() {
		return
	}
	g.forgetLeader()
	g.stepDeferred()
	g.wake()
}

// forgetLeader makes raft ready to vote. It is refused unless it follows.
func (g *Group) forgetLeader() { _ = g.rn.ForgetLeader() }

// hasDeferred says whether a request for a vote came too early, and not so long
// ago that its sender has given up.
func (g *Group) hasDeferred() bool {
	timeout := g.host.cfg.TickInterval * time.Duration(g.host.cfg.ElectionTicks)
	return g.deferred != nil && g.host.cfg.Support.Now()-g.deferredAt < timeout
}

// stepDeferred steps that request now.
func (g *Group) stepDeferred() {
	if !g.host.cfg.Support.MayVote() {
		return // it is stepped when the boot wait is over (R6)
	}
	if g.hasDeferred() {
		_ = g.rn.Step(g.deferred)
		g.shard.queue(g)
	}
	g.deferred = nil
}

// released takes the news that a leader has left a term (R7). It names the term:
// news from before that leader's last election says nothing about a promise that
// was made after it.
func (g *Group) released(from ids.NodeID, left Departure) {
	r := &g.record
	if r.leader == 0 || r.leader != left.Replica || r.node != from {
		return
	}
	if left.Term < r.term && !canary.On(canary.LeaseReleaseUnnamed) {
		return
	}
	if canary.On(canary.ReleasePassesCeiling) {
		g.host.cfg.Support.PassCeiling(from)
	}
	// Its stamp, which this node's clock has taken over, is above all that the
	// leader served (R9e).
	g.unfollow()
	g.deadline = g.shard.now + releaseTicks*uint64(1+g.rank(left.Replica))
}

// announceDeparture tells all who may follow that this replica leads in a term
// no more (R7). The lease is gone already.
func (g *Group) announceDeparture(term ids.Term) {
	for i := range g.peers {
		p := &g.peers[i]
		if p.replica == g.cfg.Replica || p.node == 0 {
			continue
		}
		g.shard.emit(p.node, Message{
			Range: g.cfg.Range, Left: Departure{Replica: g.cfg.Replica, Term: term},
		})
	}
}

// answer replies to a follower that asks whether its leader still leads in a
// term (R7): with a heartbeat, which it acknowledges, or with the departure. The
// answer is given after the question came, so it is no older than the record.
func (g *Group) answer(from ids.NodeID, m *Message) {
	term := m.Ask
	switch {
	case g.live() && g.status.IsLeader && g.status.Term == term:
		if p := g.peer(ids.ReplicaID(m.Raft.GetFrom())); p != nil {
			g.greet(p)
			g.wake()
		}
	case g.status.Term >= term:
		g.shard.emit(from, Message{
			Range: g.cfg.Range, Left: Departure{Replica: g.cfg.Replica, Term: term},
		})
	}
}

// greet asks a follower to acknowledge this leadership under the present epoch,
// with a heartbeat that tells no commit index. Raft did not send it and does not
// mind its answer, which also tells raft that the follower lives.
func (g *Group) greet(p *peer) {
	if p.node == 0 || p.replica == g.cfg.Replica {
		return
	}
	g.emit(p, &raftpb.Message{
		Type: raftpb.MsgHeartbeat.Enum(),
		From: new(uint64(g.cfg.Replica)),
		To:   new(uint64(p.replica)),
		Term: new(uint64(g.status.Term)),
	})
}
