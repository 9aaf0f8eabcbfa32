package multiraft

import (
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/support"
)

// Stories of the places where package support and raft meet: what a reviewer
// broke, and could have broken without a test that fails.

// R2: a request for votes that the leader sent before it led comes late, or
// twice. It does not say that the leader has left the term that it won by it.
func TestLateVoteRequestOfTheLeaderReleasesNobody(t *testing.T) {
	t.Parallel()
	for _, pre := range []bool{false, true} {
		l := newLeases(t, 3, nil)
		l.bootstrap(7, 1, 2, 3)
		m := l.lead(7, 1)
		l.pass(100 * time.Millisecond)
		term := m.status().Term
		// 1 and 3 are cut from one another: 3 withdraws, 2 goes on supporting 1.
		away := func(a, b ids.NodeID) bool { return a+b == 4 }
		l.cut = away
		l.drop = func(from, to ids.NodeID, _ *Message) bool { return away(from, to) }
		l.pass(3 * time.Second)
		l.inject(1, 2, Message{Range: 7, Raft: vote(pre, 1, 2, uint64(term), m)})
		if !l.nodes[2].machines[7].g.held() {
			t.Fatalf("pre-vote %v: node 2 is released", pre)
		}
		for range 100 {
			l.pass(10 * time.Millisecond)
			three := l.nodes[3].machines[7].status()
			if three.IsLeader && m.g.Lease(term, 0) == LeaseHeld {
				t.Fatalf("3 leads term %d while 1 holds the lease of %d", three.Term, term)
			}
		}
	}
}

// R1: a replica without a state may go with the snapshot that was to bring it,
// and come back under the same id. It must not have acknowledged anybody.
func TestReplicaWithoutAStateAcknowledgesNobody(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	for _, v := range []uint64{1, 2} {
		n := l.nodes[ids.NodeID(v)]
		n.addReplica(n.stage(7, ids.ReplicaID(v), 1, 2, 3), false)
	}
	m := l.lead(7, 1)
	l.drop = func(from, _ ids.NodeID, m *Message) bool { // snapshots do not get through
		return from == 3 && m.Raft != nil && m.Raft.GetType() == raftpb.MsgAppResp
	}
	l.nodes[3].addGroup(GroupConfig{
		Range: 7, Replica: 3, Peers: map[ids.ReplicaID]ids.NodeID{1: 1, 2: 2, 3: 3},
	})
	l.pass(500 * time.Millisecond)
	if three := l.nodes[3].machines[7]; three.g.held() || m.g.peer(3).ack != 0 {
		t.Fatalf("held %v, acknowledged epoch %d", three.g.held(), m.g.peer(3).ack)
	}
}

// R2: a leader hears in one pass of its successor, of a stray term and of a
// candidate. What it has published still says that it leads.
func TestDeposedLeaderDoesNotVoteAgainstWhomItAcknowledges(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	l.pass(100 * time.Millisecond)
	l.drop = func(from, to ids.NodeID, _ *Message) bool { return from == 1 || to == 1 }
	l.cut = func(from, _ ids.NodeID) bool { return from == 1 } // nobody hears 1 ask
	for range 300 {
		l.pass(10 * time.Millisecond)
		if x := l.nodes[2].machines[7]; x.status().IsLeader {
			x.do(func() { x.g.TransferLeader(3) })
		}
		if l.nodes[3].machines[7].status().IsLeader {
			break
		}
	}
	three := l.nodes[3].machines[7]
	if !three.status().IsLeader || !m.status().IsLeader {
		t.Fatalf("not what the story needs: %+v, %+v", m.status(), three.status())
	}
	l.settle()
	term := uint64(three.status().Term)
	last, _ := m.g.log.LastIndex()
	lastTerm, _ := m.g.log.Term(last)
	app := &raftpb.Message{
		Type: raftpb.MsgApp.Enum(), From: new(uint64(3)), To: new(uint64(1)), Term: new(term),
		LogTerm: new(lastTerm), Index: new(last), Commit: new(last),
	}
	stray := &raftpb.Message{
		Type: raftpb.MsgAppResp.Enum(), From: new(uint64(2)), To: new(uint64(1)),
		Term: new(term + 4),
	}
	var ack support.Epoch
	voted := false
	l.drop = func(from, _ ids.NodeID, x *Message) bool {
		if from == 1 && x.Raft != nil {
			ack = max(ack, x.Epoch)
			voted = voted || x.Raft.GetType() == raftpb.MsgVoteResp && !x.Raft.GetReject()
		}
		return true
	}
	n, candidate := l.nodes[1], vote(false, 2, 1, term+5, l.nodes[2].machines[7])
	n.host.Receive(Frame{From: 3, Messages: []Message{{Range: 7, Raft: app}}})
	n.host.Receive(Frame{From: 2, Messages: []Message{
		{Range: 7, Raft: stray}, {Range: 7, Raft: candidate},
	}})
	n.poll()
	n.sync()
	if voted && ack != 0 {
		t.Fatal("node 1 acknowledges a leader and votes against it")
	}
}

// R6: in the boot wait a replica neither votes nor campaigns, whatever is asked of
// it and however long it has waited for a leader.
func TestNobodyVotesOrCampaignsInTheBootWait(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	l.pass(time.Second)
	l.nodes[2].crash()
	l.nodes[2].restart()
	two, three := l.nodes[2].machines[7], l.nodes[3].machines[7]
	voted, asked := false, false
	l.drop = func(from, _ ids.NodeID, x *Message) bool {
		if from == 2 && x.Raft != nil {
			switch x.Raft.GetType() {
			case raftpb.MsgVoteResp, raftpb.MsgPreVoteResp:
				voted = voted || !x.Raft.GetReject()
			case raftpb.MsgVote, raftpb.MsgPreVote:
				asked = true
			}
		}
		return true
	}
	l.cut = func(_, _ ids.NodeID) bool { return true }
	l.nodes[2].poll()
	term := uint64(m.status().Term)
	l.inject(3, 2, Message{Range: 7, Raft: vote(false, 3, 2, term+1, three)})
	two.do(func() { two.g.shard.nominate(two.g) })
	two.do(func() { two.g.deadline = 0 })
	l.pass(200 * time.Millisecond)
	if l.tables[2].MayVote() || voted || asked {
		t.Fatalf("may vote %v, voted %v, asked for votes %v", l.tables[2].MayVote(), voted, asked)
	}
	l.pass(200 * time.Millisecond)
	if !voted && !asked {
		t.Fatal("nor does it after the boot wait")
	}
}

// R1: in a joint configuration both halves must count.
func TestBothHalvesOfAJointConfigurationCount(t *testing.T) {
	t.Parallel()
	self, other := holder{}, holder{peer: nobody()}
	for _, c := range []struct {
		voters, outgoing []holder
		want             LeaseState
	}{
		{[]holder{self}, nil, LeaseHeld},
		{[]holder{self, other, other}, nil, LeaseNone},
		{[]holder{self}, []holder{self, other, other}, LeaseNone},
		{[]holder{self, other, other}, []holder{self}, LeaseNone},
		{[]holder{self}, []holder{self}, LeaseHeld},
	} {
		l := newLeases(t, 1, nil)
		l.bootstrap(7, 1)
		m := l.leader(7)
		term := m.status().Term
		m.g.lease.Store(&lease{term: term, voters: c.voters, outgoing: c.outgoing})
		if got := m.g.Lease(term, 0); got != c.want {
			t.Errorf("%d and %d voters: %v, want %v", len(c.voters), len(c.outgoing), got, c.want)
		}
	}
}

// R1: an ack counts for the term of its message only, and never replaces one of a
// newer epoch.
func TestLateAcksChangeNothing(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	l.pass(time.Second)
	term, ack := m.status().Term, m.g.peer(2).ack
	resp := func(term ids.Term, e support.Epoch) Message {
		return Message{Range: 7, Epoch: e, Raft: &raftpb.Message{
			Type: raftpb.MsgHeartbeatResp.Enum(), From: new(uint64(2)), To: new(uint64(1)),
			Term: new(uint64(term)),
		}}
	}
	l.inject(2, 1, resp(term, ack-1))
	l.inject(2, 1, resp(term-1, ack+1))
	if got := m.g.peer(2).ack; got != ack {
		t.Fatalf("acknowledged epoch %d became %d", ack, got)
	}
	l.inject(2, 1, resp(term, ack+1))
	if got := m.g.peer(2).ack; got != ack+1 {
		t.Fatalf("a newer epoch is not taken: %d, not %d", got, ack+1)
	}
}
