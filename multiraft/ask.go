package multiraft

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// A removed voter that missed its removal campaigns, and is told by those whom
// it asks for votes. A learner never campaigns, and a leader that has removed
// it sends it nothing more: it would keep its data for ever, and with it a span
// in which no snapshot of another range is accepted. So a learner that has
// heard nothing for askTicks asks the replicas that it knows, again and again.
//
// The question is the answer to a heartbeat that nobody sent, in a term that is
// always over: raft drops it unread, and it confirms nothing. That it comes
// from this replica is all it says; whoever knows that this one is gone says
// so (receive), and to all others it is a sign of life.

// askTicks is how long a learner may hear nothing before it asks.
const askTicks = 50

// askTerm lies below every term in which a leader was elected.
const askTerm = 1

// askIfForgotten is called with each tick.
func (g *Group) askIfForgotten() {
	self := uint64(g.cfg.Replica)
	silent := g.shard.now - g.heard
	if silent < askTicks || silent%askTicks != 0 || g.incoming != nil ||
		slices.Contains(g.conf.Voters, self) || slices.Contains(g.conf.VotersOutgoing, self) {
		return
	}
	for i := range g.peers {
		p := &g.peers[i]
		if p.replica == g.cfg.Replica || p.node == 0 {
			continue
		}
		g.ask(p.node, p.replica, 0)
	}
}

// askLeader asks the leader that binds this replica by a promise whether it
// still leads (R7): the news that it does not may have been lost, and nothing
// else would ever be said.
func (g *Group) askLeader() { g.ask(g.record.node, g.record.leader, g.record.term) }

func (g *Group) ask(n ids.NodeID, replica ids.ReplicaID, leads ids.Term) {
	g.shard.emit(n, Message{Range: g.cfg.Range, Ask: leads, Raft: &raftpb.Message{
		Type: raftpb.MsgHeartbeatResp.Enum(), Term: new(uint64(askTerm)),
		From: new(uint64(g.cfg.Replica)), To: new(uint64(replica)),
	}})
}
