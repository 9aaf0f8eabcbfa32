package multiraft

import (
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/support"
)

// When a group without a leader campaigns is not left to raft's timers: a node
// that dies leaves ten thousand groups at once, and a timer in each of them is
// a storm of colliding elections. Instead the voters of a group have ranks that
// each of them works out alone. The first campaigns at once, in its turn: a
// shard has at most maxElections elections under way and begins another when one
// is over. The others wait for it, rank by rank, and longer the more groups
// wait for their turn. Ranks are only about who goes first: if two voters see
// them differently, or the first cannot win, elections collide or wait a little.

// rank is this replica's place among the voters that may follow a leader that is
// gone (0: none in particular), 0 for the first. Voters whose nodes are known to
// live go before the others; the rest is a shuffle that differs from range to
// range, so that the groups of a dead node are spread over the survivors. Who cannot
// serve, being parked, goes behind all of them.
func (g *Group) rank(gone ids.ReplicaID) int {
	now := g.host.cfg.Support.Now()
	mine := shuffle(g.cfg.Range, g.cfg.Replica)
	rank, others := 0, 0
	for i := range g.peers {
		p := &g.peers[i]
		if p.replica == g.cfg.Replica || p.replica == gone || !g.isVoter(uint64(p.replica)) ||
			!p.lives(now) {
			continue
		}
		others++
		if other := shuffle(g.cfg.Range, p.replica); other < mine {
			rank++
		}
	}
	if len(g.parked) > 0 {
		rank += others + 1
	}
	return rank
}

// lives says whether a peer is not known to have halted, nor its node to be dead:
// that supports this node or is promised something, or neither was ever so.
func (p *peer) lives(now leaseTime) bool {
	if p.support == nil || p.halted {
		return false
	}
	v := p.support.View()
	return p.support.Promise() != 0 || now < v.Until || v.Epoch == 0
}

func shuffle(r ids.RangeID, id ids.ReplicaID) uint64 { return support.Mark(r, id, 0) }

// patience is how many ticks this replica waits for a leader from which it has
// just heard, or for an election to end: one to two election timeouts, and one more
// if it could not serve.
func (g *Group) patience() uint64 {
	e := uint64(g.host.cfg.ElectionTicks)
	g.tries++
	if len(g.parked) > 0 {
		return 2*e + support.Mark(g.cfg.Range, g.cfg.Replica, ids.Term(g.tries))%e
	}
	return e + support.Mark(g.cfg.Range, g.cfg.Replica, ids.Term(g.tries))%e
}

// orphan ends the record of a leader whose node is not supported any more, and
// gives the group its turn to elect another.
func (g *Group) orphan() {
	gone := g.record.leader
	voted := g.hasDeferred()
	g.awaited = awaited{leader: gone, term: g.record.term, forsaken: true}
	g.unfollow()
	if !g.live() || !g.promotable() {
		return
	}
	rank := uint64(g.rank(gone))
	if voted {
		rank++ // somebody else campaigns already
	}
	if rank == 0 {
		g.shard.nominate(g)
		return
	}
	g.deadline = g.shard.now + rank*backupTicks +
		uint64(len(g.shard.nominees))/nomineesPerTick
}

// promotable says whether raft would let this replica campaign.
func (g *Group) promotable() bool {
	return g.isVoter(uint64(g.cfg.Replica)) && g.applied > 0 && g.incoming == nil
}

// tickFollower nominates a group that has waited long enough for a leader.
func (g *Group) tickFollower() bool {
	if !g.host.cfg.Support.MayVote() {
		return true
	}
	if g.promotable() && g.shard.now >= g.deadline {
		g.ended()
		g.awaited.forsaken = true
		g.shard.nominate(g)
	}
	return true
}

// nominate queues a group for its election.
func (s *shard) nominate(g *Group) {
	g.forgetLeader()
	g.deadline = s.now + g.patience()
	if !g.nominated {
		g.nominated = true
		s.nominees = append(s.nominees, g)
	}
}

// elect begins elections of nominated groups, as many as may be under way.
func (s *shard) elect() {
	n := 0
	for n < len(s.nominees) && s.electing < maxElections && n < campaignsPerPass {
		g := s.nominees[n]
		s.nominees[n] = nil
		n++
		g.nominated = false
		// Much may have happened while it waited for its turn: a leader spoke up.
		if !g.live() || g.held() || !g.promotable() {
			continue
		}
		st := g.rn.BasicStatus()
		if st.Lead != 0 && !g.forsakes(st.Lead, ids.Term(st.HardState.GetTerm())) {
			continue
		}
		if !s.host.cfg.Support.MayVote() {
			g.deadline = s.now // when the boot wait is over (R6)
			continue
		}
		s.begin(g)
	}
	s.nominees = s.nominees[n:]
	if len(s.nominees) == 0 {
		s.nominees = nil
	}
}

// mayElect says whether somebody's turn has come.
func (s *shard) mayElect() bool { return len(s.nominees) > 0 && s.electing < maxElections }

// begin begins an election.
func (s *shard) begin(g *Group) {
	if !g.electing {
		g.electing = true
		s.electing++
	}
	s.metrics.campaigns.Add(1)
	g.deadline = s.now + g.patience()
	g.Campaign()
}

// ended says that this group's election is over, won, lost or given up.
func (g *Group) ended() {
	if g.electing {
		g.electing = false
		g.shard.electing--
	}
}

// hasten brings this replica's turn forward when a candidate asks that it must
// reject for its log: that one cannot win, and this one can. A candidate that is
// rejected for another reason (two campaigned at once) changes nothing, or both
// would go on colliding.
func (g *Group) hasten(m *raftpb.Message) {
	switch m.GetType() {
	case raftpb.MsgPreVote, raftpb.MsgVote:
	default:
		return
	}
	if g.status.Leader != 0 || g.electing || g.held() || !g.promotable() {
		return
	}
	last, _ := g.log.LastIndex()
	term, err := g.log.Term(last)
	if err != nil {
		return
	}
	if m.GetLogTerm() < term || m.GetLogTerm() == term && m.GetIndex() < last {
		g.deadline = min(g.deadline, g.shard.now+1)
		g.wake()
	}
}
