package multiraft

import (
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Two ways in which one group waits for another on the same node, without a
// timer and without a poll.
//
// Parked applies. A StateMachine that cannot apply its next entry yet (ErrNotYet)
// has it, and all that comes after, kept here. Raft goes on beside it: entries
// are appended and acknowledged, votes are given. What is kept is bounded by
// raft's own limit for entries handed out and not applied (maxCommittedBytes). A
// parked replica that is elected leads without having applied an entry of its
// term, so it has no lease and confirms no read. What it waits for may never come
// (the other group's replica here halted), and its heartbeats would keep everybody
// else from leading. So it comes last when the group elects (rank), and if it leads
// all the same, and has served nothing for an election timeout, it hands over, to
// one after the other. It is not forbidden to lead: all may be parked.
//
// A wait for all replicas. A leader may ask to be called when every replica of
// the configuration is known to have an index on disk.

// park keeps a MsgStorageApply of which entries are left, behind those that wait
// already.
func (g *Group) park(m *raftpb.Message, left []*raftpb.Entry) {
	g.parked = append(g.parked, &raftpb.Message{
		Type: m.Type, From: m.From, To: m.To, Entries: left, Responses: m.Responses,
	})
}

// installs says whether a snapshot is being installed: nothing is applied beside
// it.
func (g *Group) installs() bool { return g.incoming != nil && g.incoming.running }

// ResumeApply has the entries that Apply could not take yet (ErrNotYet) offered
// again, in a later pass. Any goroutine, any number of times. Whoever makes the
// condition come true calls it afterwards: Apply's look at the condition and the
// parking are one step of the shard, and this comes to the shard through the
// inbox, so either Apply saw the condition or the entries are parked by then.
func (g *Group) ResumeApply() {
	g.shard.inbox.push(item{kind: itemControl, control: func(s *shard) { s.resumeApply(g) }})
}

func (s *shard) resumeApply(g *Group) {
	if !g.live() || g.installs() || len(g.parked) == 0 {
		return
	}
	for _, m := range g.parked {
		s.applies = append(s.applies, storageWork{group: g, msg: m})
	}
	g.parked = nil
	s.resumed = true
	s.queue(g) // so that the pass comes to the applies
}

// stepAside is called with each tick of a leader: one that is parked and has applied
// nothing of its term for an election timeout hands over, once in such a time.
func (g *Group) stepAside(transferring bool) {
	if len(g.parked) == 0 || g.appliedTerm == uint64(g.status.Term) {
		g.barred = 0
		return
	}
	if g.barred++; g.barred < g.host.cfg.ElectionTicks || transferring {
		return
	}
	g.barred = 0
	if to := g.nextHeir(); to != 0 {
		g.host.cfg.Logger.Warn("leader cannot apply its log yet, it hands over",
			"range", g.cfg.Range, "replica", g.cfg.Replica, "term", g.status.Term,
			"index", g.applied, "to", to)
		g.TransferLeader(to)
	}
}

// nextHeir returns the next voter, in order of ids, after the last one that this
// replica tried to hand over to, of those that could take over; 0: there is none.
func (g *Group) nextHeir() (next ids.ReplicaID) {
	now, last := g.host.cfg.Support.Now(), g.heir
	if last == 0 {
		last = g.cfg.Replica
	}
	for i := range g.peers {
		p := &g.peers[i]
		if p.replica == g.cfg.Replica || !g.isVoter(uint64(p.replica)) || !p.lives(now) ||
			g.probes(p) {
			continue
		}
		// The first above the last; or, if nobody is above it, the first of all.
		if next == 0 || next <= last && p.replica > last {
			next = p.replica
		}
	}
	return next
}

// hasStaged says whether something of a group is staged and not committed.
func (s *shard) hasStaged(g *Group) bool {
	return slices.ContainsFunc(s.staged, func(st stagedApply) bool { return st.group == g })
}

// passOver tells raft that parked entries are done with: an installed snapshot
// stands for them, and raft counts their bytes until it hears of them.
func (g *Group) passOver() {
	for _, m := range g.parked {
		for _, response := range m.GetResponses() {
			_ = g.rn.Step(response)
		}
	}
	g.parked = nil
}

// matching is a wait for all replicas.
type matching struct {
	index ids.Index
	done  func(matched bool)
}

// AwaitMatch calls done once, on the shard, perhaps at once: with true when all
// replicas of the configuration, learners too, are known to have the log up to
// index on disk, with false when this replica leads no more. One wait at a time;
// a new one ends the old with false. done must only pass the news on.
func (g *Group) AwaitMatch(index ids.Index, done func(matched bool)) {
	g.endMatching(false)
	if !g.live() || !g.status.IsLeader {
		done(false)
		return
	}
	g.matching = &matching{index: index, done: done}
	g.stir()
	g.checkMatching()
}

// EndAwait gives up the wait of AwaitMatch, if there is one: done(false).
func (g *Group) EndAwait() { g.endMatching(false) }

// checkMatching is called when the progress of a replica may have moved.
func (g *Group) checkMatching() {
	m := g.matching
	if m == nil {
		return
	}
	all := true
	g.rn.WithProgress(func(_ uint64, _ raft.ProgressType, pr tracker.Progress) {
		all = all && ids.Index(pr.Match) >= m.index
	})
	// Raft may have stepped down in this pass, before that was published; what it
	// knew of the others' logs is still true, but it is blank then.
	if all && g.leadsPublishedTerm() {
		g.endMatching(true)
	}
}

func (g *Group) endMatching(matched bool) {
	if m := g.matching; m != nil {
		g.matching = nil
		m.done(matched)
	}
}
