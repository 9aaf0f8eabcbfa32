package multiraft

import (
	"slices"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/support"
)

// The leader's side of a lease (docs/LEASES.md). A lease is never granted as a
// whole and has no end that could be written down: whether it is held is worked
// out anew for each read, from what this file publishes (who acknowledged this
// leadership, under which promise) and from what package support knows (which
// promises still count). Nothing of a group is refreshed by time.

// LeaseState is the answer of Group.Lease.
type LeaseState uint8

// The states of a lease. Only LeaseHeld lets a read be served locally.
const (
	LeaseNone  LeaseState = iota // not held: use Read (ReadIndex)
	LeaseShort                   // held, but not for reads at so high a timestamp: use Read
	LeaseHeld
)

// lease is what a leader publishes: an immutable value. It is there only while
// this replica leads, has applied an entry of its term (R8) and has not begun
// to transfer leadership in it (R5).
type lease struct {
	term ids.Term
	// voters and outgoing are the halves of the configuration as it is applied
	// now; outgoing is empty unless it is joint. An expiry computed under an
	// earlier configuration is never kept (R1): the leader's applied one is at
	// most one behind that of any replica that can be elected, neighbours
	// intersect, two changes need not.
	voters, outgoing []holder
}

// holder is one voter. For this replica itself peer is nil and it always counts.
type holder struct {
	peer  *support.Peer
	epoch support.Epoch // acknowledged in this term, 0: not
}

// Lease says whether this replica holds the lease of a term for a read at ts
// (0: for no read in particular). The caller has fixed ts, and moved the clock
// to it, before (R9c). Any goroutine; lock-free.
//
// The order matters (R8): the published value is loaded first, the clock is read
// after it. What was published before a message that ended this leadership left
// is seen by whoever reads after that message had any effect.
func (g *Group) Lease(term ids.Term, ts hlc.Timestamp) LeaseState {
	l := g.lease.Load()
	if l == nil || l.term != term {
		return LeaseNone
	}
	t := g.host.cfg.Support
	now := t.Now()
	held, short := quorum(l.voters, now, ts)
	if held || short {
		heldOut, shortOut := quorum(l.outgoing, now, ts)
		held, short = held && heldOut, (held || short) && (heldOut || shortOut)
	}
	switch {
	case g.kept.holds(term, l, now), held:
		return LeaseHeld
	case short:
		t.AskNow()
		return LeaseShort
	}
	return LeaseNone
}

// quorum says whether a majority of one half counts for ts, or would if only
// the ceilings were higher (R1, R4, R9c).
func quorum(half []holder, now leaseTime, ts hlc.Timestamp) (held, short bool) {
	if len(half) == 0 {
		return true, true
	}
	counted, low := 0, 0
	for i := range half {
		h := &half[i]
		if h.peer == nil {
			counted++
			continue
		}
		epoch := h.epoch
		if canary.On(canary.LeaseCountsNodes) {
			epoch = h.peer.View().Epoch
		}
		if epoch == 0 {
			continue
		}
		ok, onlyCeiling := h.peer.Counts(epoch, now, ts)
		if ok {
			counted++
		} else if onlyCeiling {
			low++
		}
	}
	need := len(half)/2 + 1
	return counted >= need, counted+low >= need
}

// publishLease makes the lease again from what is known now. Called whenever
// one of its parts changes, always before a message that tells of the change
// leaves.
func (g *Group) publishLease() {
	ownTerm := g.appliedTerm == uint64(g.status.Term) || canary.On(canary.LeaseBeforeOwnTerm)
	if !g.status.IsLeader || g.status.Halted || g.detached || !ownTerm ||
		g.relinquished == g.status.Term {
		if g.lease.Load() != nil {
			g.lease.Store(nil)
		}
		return
	}
	l := &lease{term: g.status.Term}
	l.voters = g.holders(g.conf.Voters)
	l.outgoing = g.holders(g.conf.VotersOutgoing)
	g.lease.Store(l)
}

func (g *Group) holders(voters []uint64) []holder {
	if len(voters) == 0 {
		return nil
	}
	half := make([]holder, 0, len(voters))
	for _, v := range voters {
		switch p := g.peer(ids.ReplicaID(v)); {
		case ids.ReplicaID(v) == g.cfg.Replica:
			half = append(half, holder{})
		case p == nil || p.support == nil:
			half = append(half, holder{peer: nobody(), epoch: 0})
		default:
			half = append(half, holder{peer: p.support, epoch: p.ack})
		}
	}
	return half
}

// nobody stands for a voter of which it is not known where it lives.
func nobody() *support.Peer { return (*support.Table)(nil).Peer(0) }

// noteAck takes what a follower's response says beside raft's part of it: under
// which epoch it follows (R1), and how far it knows the log to be committed.
func (g *Group) noteAck(sender ids.ReplicaID, m *Message) {
	p := g.peer(sender)
	if p == nil || !g.status.IsLeader || m.Raft.GetTerm() != uint64(g.status.Term) {
		return
	}
	p.committed = max(p.committed, m.Raft.GetCommit())
	// A late response must not replace the ack of a newer epoch: in a group that
	// is idle nothing would ever repair it.
	if m.Epoch <= p.ack || p.support == nil {
		return
	}
	// A new epoch may be that of a new life, which knows less.
	p.committed = m.Raft.GetCommit()
	if p.ack == 0 {
		p.support.NoteAck(g.mark(sender, g.status.Term), 1)
	}
	p.ack = m.Epoch
	g.publishLease()
}

// forgetAck drops what one follower acknowledged in a term.
func (g *Group) forgetAck(p *peer, term ids.Term) {
	if p.ack != 0 {
		p.support.NoteAck(g.mark(p.replica, term), -1)
	}
	p.ack, p.committed = 0, 0
}

func (g *Group) mark(follower ids.ReplicaID, term ids.Term) uint64 {
	return support.Mark(g.cfg.Range, follower, term)
}

// relinquish gives the lease of this term up for good, because leadership is
// about to be handed over (R5). Called before the MsgTimeoutNow leaves: whoever
// obeys it is elected with votes that no promise refuses. It does not come back
// when raft aborts the transfer, since the message may still arrive; a leader
// without a lease goes on trying to hand over (retryTransfer), or serves by
// ReadIndex, until the term changes.
func (g *Group) relinquish() {
	if canary.On(canary.LeaseKeptInTransfer) || g.relinquished == g.status.Term {
		return
	}
	g.relinquished = g.status.Term
	g.publishLease()
	g.wake()
}

// want tells package support with which nodes this group is shared. A follower
// needs no support, but who asks for it is known to live (rank).
func (g *Group) want() {
	for i := range g.peers {
		p := &g.peers[i]
		shared := !g.detached && p.member && p.replica != g.cfg.Replica
		if shared != p.wanted && p.node != 0 {
			g.wantPeer(p, shared)
		}
	}
}

func (g *Group) wantPeer(p *peer, wanted bool) {
	p.wanted = wanted
	delta := -1
	if wanted {
		delta = 1
	}
	g.host.cfg.Support.Want(p.node, delta)
}

// place sets the node of a peer and what package support knows of that node.
func (g *Group) place(p *peer, n ids.NodeID) {
	if p.node == n && p.support != nil {
		return
	}
	if p.support != nil {
		g.forgetAck(p, g.status.Term)
	}
	if p.wanted {
		g.wantPeer(p, false)
	}
	p.node, p.support = n, nil
	if n != 0 {
		p.support = g.host.cfg.Support.Peer(n)
	}
}

// dropPeer forgets a peer that is no replica of the range any more.
func (g *Group) dropPeer(p *peer) {
	if p.support != nil {
		g.forgetAck(p, g.status.Term)
	}
	if p.wanted {
		g.wantPeer(p, false)
	}
}

// supported says whether the node of a follower supports this one now, and
// under which epoch. That says nothing of a follower that has halted.
func (p *peer) supported(now leaseTime) (support.Epoch, bool) {
	if p.support == nil || p.halted {
		return 0, false
	}
	v := p.support.View()
	return v.Epoch, v.Epoch != 0 && now < v.Until
}

// isMember says whether a replica is in a configuration in any role.
func (g *Group) isMember(id uint64) bool {
	c := g.conf
	return slices.Contains(c.Voters, id) || slices.Contains(c.VotersOutgoing, id) ||
		slices.Contains(c.Learners, id) || slices.Contains(c.LearnersNext, id)
}

func (g *Group) isVoter(id uint64) bool {
	return slices.Contains(g.conf.Voters, id) || slices.Contains(g.conf.VotersOutgoing, id)
}
