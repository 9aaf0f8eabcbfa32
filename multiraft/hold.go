package multiraft

import "go.etcd.io/raft/v3/raftpb"

// Half of the messages of an entry only tell followers that it is committed,
// and are acknowledged. Nobody waits for that: a follower serves nothing that
// rests on what it has applied. So such a message is held back until another
// one to the same follower says the same (the next append does, and each
// heartbeat), or the next tick, which sends those of all groups together.
//
// What is held is one message for each peer; a message that is never sent is,
// to raft, one that the network lost. Only a leader that has applied an entry
// of its term holds, and only what tells of a commit index that this peer was
// not told before: an empty append that raft repeats is a probe, and leaves at
// once.
//
// A group that is to be ticked no longer must Hasten first.
//
// Entries that change who must hear of them, or bring something to life, ask
// to be told at once: see Hasten.

// mayHold says whether a message may wait.
func (g *Group) mayHold(p *peer, m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgApp && len(m.GetEntries()) == 0 &&
		g.status.IsLeader && m.GetTerm() == uint64(g.status.Term) &&
		g.appliedTerm == m.GetTerm() && m.GetCommit() > p.told
}

// supersedes says whether all that old would tell is told by m, too.
func supersedes(m, old *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgHeartbeat:
		return m.GetTerm() >= old.GetTerm() && m.GetCommit() >= old.GetCommit()
	}
	return false
}

// Hasten sends what is held back. A StateMachine calls it in Apply for an
// entry that the followers should apply soon, before it calls SetPeers.
func (g *Group) Hasten() {
	for i := range g.peers {
		if m := g.peers[i].held; m != nil {
			g.peers[i].held = nil
			g.emit(&g.peers[i], m)
		}
	}
}

// forgetHeld drops what is held: the leadership that it belongs to is over, or
// a new one begins.
func (g *Group) forgetHeld() {
	for i := range g.peers {
		g.peers[i].held, g.peers[i].told = nil, 0
	}
}
