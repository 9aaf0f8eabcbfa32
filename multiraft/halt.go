package multiraft

import (
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// A replica that halted is silent, and its node lives: the support that the node
// goes on to give vouches for it, and to its leader it looks like one at rest. So
// it says that it has halted, once to all it knows, and again to each leader that
// sends it something, since the news may be lost: a Departure without a term.
//
// That says nothing about terms, and releases nobody (R7). It only ends what is
// believed of this replica because of its node: its leader counts it no longer as
// active, for its lease or for a change of the configuration, and tells the
// StateMachine's owner (Config.OnHalted). The next word of the replica itself ends
// that: it was loaded anew, and the news is of its former life. A leader at rest
// asks for that word when it hears the news.

// tellHalted tells one node that this replica has halted.
func (g *Group) tellHalted(to ids.NodeID) {
	g.shard.emit(to, Message{Range: g.cfg.Range, Left: Departure{Replica: g.cfg.Replica}})
}

// announceHalt tells all.
func (g *Group) announceHalt() {
	for i := range g.peers {
		if p := &g.peers[i]; p.replica != g.cfg.Replica && p.node != 0 {
			g.tellHalted(p.node)
		}
	}
}

// isOfLeader says whether only a leader sends such messages.
func isOfLeader(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgApp || m.GetType() == raftpb.MsgHeartbeat
}

// halted takes the news that a replica on a node has halted.
func (g *Group) halted(from ids.NodeID, id ids.ReplicaID) {
	p := g.peer(id)
	if p == nil || p.node != from || p.halted || id == g.cfg.Replica {
		return
	}
	p.halted = true
	if !g.live() || !g.status.IsLeader {
		return
	}
	if p.support != nil {
		g.forgetAck(p, g.status.Term)
		g.publishLease()
	}
	g.greet(p)
	g.wake()
	g.host.cfg.OnHalted(g.cfg.Range)
}
