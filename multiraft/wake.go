package multiraft

import (
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// leaseTime is a reading of the lease clock.
type leaseTime = time.Duration

// Who is awake. A shard ticks the groups on its list of those that are awake and
// touches no other; a group that is at rest costs its memory and nothing else.
//
//   - A follower that is held by a promise is never on the list. Raft never
//     ticks a follower at all: when a group without a leader campaigns is
//     decided here (elect.go), where a node's groups can be given turns.
//   - A leader is on it until it is settled: everything is applied, every
//     follower whose node lives has acknowledged that and this leadership, and
//     the lease is held.
//
// A group wakes by a message, a proposal, a read that needs a quorum, a
// transfer, or because the support of a node began or ended.

// wake puts the group on the list.
func (g *Group) wake() {
	if g.active || !g.live() {
		return
	}
	g.active = true
	g.awake = 0
	g.shard.stir()
	g.shard.active = append(g.shard.active, g)
	if g.status.IsLeader {
		// How long a follower was silent while nobody spoke says nothing, unless its
		// node is dead: a group that sleeps between its writes would otherwise keep
		// its log for it for ever.
		now := g.host.cfg.Support.Now()
		for i := range g.peers {
			if p := &g.peers[i]; p.lives(now) {
				p.seen = g.shard.now
			}
		}
	}
}

// stir wakes a leader for at least one heartbeat.
func (g *Group) stir() {
	g.wake()
	g.stirred = g.shard.now + uint64(g.host.cfg.HeartbeatTicks) + 1
}

// tick advances all groups that are awake by one tick.
func (s *shard) tick() {
	s.now++
	s.logger.budget = maxWarningsPerTick
	s.unborn.expire(s.now)
	list := s.active
	s.active = s.spareActive[:0]
	s.metrics.ticks.Add(uint64(len(list)))
	for _, g := range list {
		g.active = false
		if g.live() && g.tick() && !g.active {
			g.active = true
			s.active = append(s.active, g)
		}
	}
	clear(list)
	s.spareActive = list[:0]
	s.metrics.awake.Store(int64(len(s.active)))
	if len(s.active) == 0 && len(s.unborn.order) == 0 {
		s.needsTicks.Store(false)
	}
}

// tick says whether the group stays awake.
func (g *Group) tick() bool {
	if g.status.IsLeader {
		return g.tickLeader()
	}
	g.askIfForgotten()
	if g.record.leader != 0 {
		if g.held() {
			return false
		}
		g.orphan() // the walk over the groups has not come here yet
	}
	return g.tickFollower()
}

func (g *Group) tickLeader() bool {
	g.Hasten()
	st := g.rn.BasicStatus()
	if g.settled(st.LeadTransferee != 0) {
		return false
	}
	g.awake++
	g.ticks++
	if g.ticks >= g.host.cfg.ElectionTicks {
		g.ticks = 0
		g.vouch()
	}
	g.rn.Tick()
	g.tickRead()
	g.stepAside(st.LeadTransferee != 0)
	if g.relinquished == g.status.Term && st.LeadTransferee == 0 && g.ticks == 1 {
		if canary.On(canary.LeaseResumes) {
			g.relinquished = 0
			g.publishLease()
		} else {
			if g.retries++; g.retries%retryTimeouts == 0 {
				g.retryTransfer()
			}
		}
	}
	if g.rn.HasReady() {
		g.shard.queue(g)
	}
	return true
}

// vouch runs before the tick at which raft asks whether a quorum was active
// since it asked last. A leader that slept in between heard nobody because
// nobody had to speak; for followers whose nodes support this one now, support
// vouches. Once it has been awake for a whole such time they speak for
// themselves.
func (g *Group) vouch() {
	if g.awake > uint64(g.host.cfg.ElectionTicks) {
		return
	}
	now := g.host.cfg.Support.Now()
	for i := range g.peers {
		p := &g.peers[i]
		if _, ok := p.supported(now); !ok || !p.member || p.replica == g.cfg.Replica {
			continue
		}
		_ = g.rn.Step(&raftpb.Message{
			Type: raftpb.MsgHeartbeatResp.Enum(), Term: new(uint64(g.status.Term)),
			From: new(uint64(p.replica)), To: new(uint64(g.cfg.Replica)),
		})
	}
}

// settled says whether a leader may fall asleep: nothing is under way, and
// nothing needs to be said to anybody who could hear it.
func (g *Group) settled(transferring bool) bool {
	last, _ := g.log.LastIndex()
	switch {
	case g.host.cfg.Support == nil: // nobody would say when a follower comes back
		return false
	case transferring || g.relinquished == g.status.Term || g.shard.now < g.stirred:
		return false
	case uint64(g.applied) != last || g.appliedTerm != uint64(g.status.Term):
		return false
	case len(g.conf.VotersOutgoing) > 0 || len(g.sending) > 0 || g.incoming != nil:
		return false
	case !g.reads.idle():
		return false
	}
	now := g.host.cfg.Support.Now()
	for i := range g.peers {
		p := &g.peers[i]
		if p.replica == g.cfg.Replica || !p.member {
			continue
		}
		// One whose node does not support this one is taken for dead: it is greeted
		// when support comes back.
		epoch, alive := p.supported(now)
		if alive && (p.ack != epoch || p.committed < last || p.held != nil || g.probes(p)) {
			return false
		}
	}
	return g.Lease(g.status.Term, 0) == LeaseHeld
}

// probes says whether raft is not sure how far a follower is: it turns to that
// state when frames may be lost, and leaves it by an answer to a heartbeat. As
// long as it is in it the follower is no target of a transfer or a promotion.
func (g *Group) probes(p *peer) (probes bool) {
	g.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		probes = probes || id == uint64(p.replica) && pr.State != tracker.StateReplicate
	})
	return probes
}

// retryTimeouts is how many election timeouts lie between two attempts: writes
// wait for one of them.
const retryTimeouts = 3

// retryTransfer tries to end a term whose lease was given up for a transfer
// that failed: with another target than the last, if there is one.
func (g *Group) retryTransfer() {
	now := g.host.cfg.Support.Now()
	best, match := ids.ReplicaID(0), uint64(0)
	g.rn.WithProgress(func(id uint64, t raft.ProgressType, pr tracker.Progress) {
		p := g.peer(ids.ReplicaID(id))
		if p == nil || t != raft.ProgressTypePeer || p.replica == g.cfg.Replica ||
			pr.State != tracker.StateReplicate {
			return
		}
		_, alive := p.supported(now)
		if alive && (best == 0 || best == g.heir || p.replica != g.heir && pr.Match > match) {
			best, match = p.replica, pr.Match
		}
	})
	if best != 0 {
		g.TransferLeader(best)
	}
}
