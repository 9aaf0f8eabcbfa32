package multiraft

import (
	"fmt"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// A rule's story tells what goes wrong without the rule. It returns what went
// wrong, "" if nothing did. With the rule in force nothing may; leaserules_test.go
// (build tag canary) runs the same stories with the rules switched off, one by
// one, where each must go wrong.
type ruleStory struct {
	name string
	off  canary.Bug
	tell func(t *testing.T) string
}

func ruleStories() []ruleStory {
	return []ruleStory{
		{"R1 supporter is unaware of the leader", canary.LeaseCountsNodes, supporterIsUnaware},
		{"R1 expiry outlives two configuration changes", canary.LeaseExpiryCached, expiryIsKept},
		{"R2 stray term makes raft forget the leader", canary.LeaseRefusesByLead, strayTerm},
		{"R5 old leader is cut off during a transfer", canary.LeaseKeptInTransfer, transferAndCut},
		{"R5 transfer is aborted, its message arrives", canary.LeaseResumes, transferAborted},
		{"R5 votes of a transfer are forced", canary.LeaseHoldsForced, forcedVotesWait},
		{"R7 stale news of a departure", canary.LeaseReleaseUnnamed, staleDeparture},
		{"R7 news of a departure is lost", canary.LeaseDigestUnread, lostDeparture},
		{"R8 leader has not applied its own term", canary.LeaseBeforeOwnTerm, ownTermNotApplied},
		{"R9e departures do not drive the clocks ahead", canary.ReleasePassesCeiling, departurePasses},
	}
}

func TestRulesOfTheLeaseHold(t *testing.T) {
	for _, s := range ruleStories() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			if wrong := s.tell(t); wrong != "" {
				t.Fatal(wrong)
			}
		})
	}
}

// Node 2 supports node 1, for other groups, but its replica never hears that node
// 1 leads this one: nothing binds it, so it must not be counted.
func supporterIsUnaware(t *testing.T) string {
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	l.bootstrap(8, 1, 2)
	l.lead(8, 1)
	old := l.lead(7, 3)
	l.lead(7, 1)
	m := l.nodes[1].machines[7]
	// From here on node 2 hears nothing of range 7, and node 3 is gone.
	l.drop = func(from, to ids.NodeID, msg *Message) bool {
		return msg.Range == 7 && (from == 2 || to == 2)
	}
	old.n.crash()
	l.pass(300 * time.Millisecond)
	// Its replica restarts, and with it goes what bound it.
	l.nodes[2].crash()
	l.nodes[2].restart()
	l.pass(350 * time.Millisecond)
	if m.status().IsLeader && m.g.Lease(m.status().Term, 0) == LeaseHeld {
		return "node 1 counts a voter that is bound to nobody"
	}
	return ""
}

// The leader's lease rests on nodes 2 and 3; two configuration changes replace
// them by 4 and 5, which have promised nothing to anybody.
func expiryIsKept(t *testing.T) string {
	l := newLeases(t, 5, nil)
	l.bootstrap(7, 1, 2, 3)
	for _, id := range []ids.NodeID{4, 5} {
		l.nodes[id].addGroup(GroupConfig{Range: 7, Replica: ids.ReplicaID(id)})
	}
	m := l.lead(7, 1)
	l.pass(100 * time.Millisecond)
	l.cut = func(_, to ids.NodeID) bool { return to > 3 }
	term := m.status().Term
	if m.g.Lease(term, 0) != LeaseHeld {
		return "no lease to begin with"
	}
	m.do(func() {
		for _, id := range []uint64{4, 5} {
			m.conf = m.g.ApplyConfChange(oneChange(raftpb.ConfChangeAddNode, id))
		}
		for _, id := range []uint64{2, 3} {
			m.conf = m.g.ApplyConfChange(oneChange(raftpb.ConfChangeRemoveNode, id))
		}
		m.g.SetPeers(peersOf(m.conf))
	})
	if m.g.Lease(term, 0) == LeaseHeld {
		return "the lease outlives the configuration it was computed for"
	}
	return ""
}

func oneChange(kind raftpb.ConfChangeType, id uint64) *raftpb.ConfChangeV2 {
	return &raftpb.ConfChangeV2{
		Changes: []*raftpb.ConfChangeSingle{{Type: kind.Enum(), NodeId: new(id)}},
		Context: []byte{1},
	}
}

// A late response of a higher term makes raft forget who leads. The promise is
// as it was, and the leader still counts it: a candidate must not get the vote.
func strayTerm(t *testing.T) string {
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	l.pass(100 * time.Millisecond)
	two, three := l.nodes[2].machines[7], l.nodes[3].machines[7]
	term := uint64(m.status().Term)
	l.inject(3, 2, Message{Range: 7, Raft: &raftpb.Message{
		Type: raftpb.MsgAppResp.Enum(), From: new(uint64(3)), To: new(uint64(2)),
		Term: new(term + 4),
	}})
	voted := false
	l.drop = func(from, to ids.NodeID, msg *Message) bool {
		resp := msg.Raft != nil && from == 2 && msg.Raft.GetType() == raftpb.MsgVoteResp
		voted = voted || resp && !msg.Raft.GetReject()
		return true // nobody else learns of anything
	}
	l.inject(3, 2, Message{Range: 7, Raft: vote(false, 3, 2, term+5, three)})
	_ = two
	if voted && m.g.Lease(ids.Term(term), 0) == LeaseHeld {
		return "node 2 votes while node 1 counts on it"
	}
	return ""
}

// The target of a transfer is elected with forced votes while the old leader is
// cut off and hears of nothing.
func transferAndCut(t *testing.T) string {
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	l.pass(100 * time.Millisecond)
	l.drop = func(from, to ids.NodeID, msg *Message) bool {
		now := msg.Raft != nil && msg.Raft.GetType() == raftpb.MsgTimeoutNow
		return from == 1 && !now || to == 1
	}
	m.do(func() { m.g.TransferLeader(2) })
	l.settle()
	if !l.nodes[2].machines[7].status().IsLeader {
		return "the target was not elected"
	}
	if m.g.Lease(m.status().Term, 0) == LeaseHeld {
		return "two nodes lead, and the old one holds its lease"
	}
	return ""
}

// The message that starts the target's election is late. The library gives the
// transfer up meanwhile; when the message arrives the target is elected all the
// same.
func transferAborted(t *testing.T) string {
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	term := m.status().Term
	var late *raftpb.Message
	l.drop = func(_, _ ids.NodeID, msg *Message) bool {
		if msg.Raft != nil && msg.Raft.GetType() == raftpb.MsgTimeoutNow {
			late = msg.Raft
			return true
		}
		return false
	}
	m.do(func() { m.g.TransferLeader(2) })
	l.pass(3 * time.Second)
	if late == nil || m.status().Term != term || !m.status().IsLeader {
		return fmt.Sprintf("the transfer was not held up: %+v", m.status())
	}
	if m.g.Lease(term, 0) == LeaseHeld {
		return "the lease came back although the message is still on its way"
	}
	// What it cannot have again in this term it gets rid of: the next attempt ends
	// the term, and its successor holds a lease.
	l.drop = nil
	l.pass(7 * time.Second)
	if l.leader(7).status().Term == term {
		return "the leader keeps a term in which it can have no lease"
	}
	return ""
}

func forcedVotesWait(t *testing.T) string {
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	l.pass(100 * time.Millisecond)
	l.drop = func(from, to ids.NodeID, _ *Message) bool { return from == 2 && to == 1 }
	m.do(func() { m.g.TransferLeader(2) })
	l.settle()
	if !l.nodes[2].machines[7].status().IsLeader {
		return "a transfer waits for a promise to end"
	}
	return ""
}

// Node 1 led in an earlier term, lost it, and leads again. News of the first
// departure arrives last.
func staleDeparture(t *testing.T) string {
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	earlier := m.status().Term
	l.lead(7, 2)
	l.lead(7, 1)
	l.pass(100 * time.Millisecond)
	two := l.nodes[2].machines[7]
	l.inject(1, 2, Message{Range: 7, Left: Departure{Replica: 1, Term: earlier}})
	if !two.g.held() && m.g.Lease(m.status().Term, 0) == LeaseHeld {
		return "node 2 is released by news of an earlier term"
	}
	return ""
}

// A new leader is acknowledged before it has applied an entry of its own term:
// what earlier leaders committed may be missing in its state.
func ownTermNotApplied(t *testing.T) string {
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	l.put(m, "acknowledged")
	two := l.nodes[2].machines[7]
	l.lead(7, 2)
	l.lead(7, 1)
	// Its log does not get through any more, its heartbeats do.
	l.drop = func(_, _ ids.NodeID, msg *Message) bool {
		return msg.Raft != nil && (len(msg.Raft.GetEntries()) > 0 ||
			msg.Raft.GetType() == raftpb.MsgAppResp)
	}
	m.do(func() { m.g.TransferLeader(2) })
	l.settle()
	term := two.status().Term
	for range 20 {
		l.pass(100 * time.Millisecond)
		if two.status().IsLeader && two.g.appliedTerm != uint64(term) &&
			two.g.Lease(term, 0) == LeaseHeld {
			return "node 2 holds a lease before it has applied an entry of its term"
		}
	}
	return ""
}

// Node 1 halts its replica and nobody hears of it; its node goes on being supported
// for the sake of range 8. The followers are to ask instead of waiting for ever.
func lostDeparture(t *testing.T) string {
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	l.bootstrap(8, 1, 2, 3)
	l.lead(8, 1)
	m := l.lead(7, 1)
	l.pass(time.Second)
	l.drop = func(_, _ ids.NodeID, msg *Message) bool { return msg.Left.Term != 0 }
	m.do(func() { m.g.halt("test", ErrStopped) })
	l.drop = nil
	l.pass(10 * time.Second)
	if held := l.holders(7); len(held) != 1 || held[0] == 1 {
		return fmt.Sprintf("10 s later the lease is held by %v: "+
			"the followers wait for a leader that is no more", held)
	}
	return ""
}

// A leader leaves its term by itself. Its followers' clocks must not be moved to
// the ceilings for that, or each transfer would drive the clocks ahead.
func departurePasses(t *testing.T) string {
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	l.pass(100 * time.Millisecond)
	m.do(func() { m.g.TransferLeader(2) })
	l.settle()
	for _, id := range l.order {
		if ahead := l.clocks[id].Peek().Wall() - l.Wall(); ahead > 0 {
			return fmt.Sprintf("node %d's clock is %d ms ahead after a transfer", id, ahead)
		}
	}
	return ""
}
