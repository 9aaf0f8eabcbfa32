package multiraft

import (
	"fmt"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/support"
)

func TestGroupsAtRestSayAndDoNothing(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	for r := ids.RangeID(1); r <= 20; r++ {
		l.bootstrap(r, 1, 2, 3)
	}
	l.pass(3 * time.Second)
	if !l.asleep() {
		t.Fatal("groups are awake after three quiet seconds")
	}
	said, ticked := 0, uint64(0)
	l.drop = func(_, _ ids.NodeID, m *Message) bool { said++; return false }
	for _, id := range l.order {
		ticked -= l.nodes[id].host.Metrics().Ticks
	}
	l.pass(time.Minute)
	for _, id := range l.order {
		ticked += l.nodes[id].host.Metrics().Ticks
	}
	if said != 0 || ticked != 0 {
		t.Fatalf("in a quiet minute %d messages and %d ticks of groups", said, ticked)
	}
	for r := ids.RangeID(1); r <= 20; r++ {
		if held := l.holders(r); len(held) != 1 {
			t.Fatalf("range %d: lease held by %v", r, held)
		}
	}
}

func TestSleepingLeaderWakesForAProposalAndStaysLeader(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	term := m.status().Term
	for i := range 40 {
		// The pauses are such that raft's look at who was active falls everywhere.
		l.pass(time.Duration(1000+70*i) * time.Millisecond)
		if !l.put(m, fmt.Sprint("entry ", i)) {
			t.Fatalf("entry %d was not applied", i)
		}
	}
	l.pass(time.Second)
	if st := m.status(); st.Term != term || !l.asleep() {
		t.Fatalf("term %d became %+v, asleep %v", term, st, l.asleep())
	}
	l.agree(7, 1, 2, 3)
}

func TestFollowersHearOfTheLastCommitBeforeTheLeaderSleeps(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	lost := 0
	l.drop = func(_, to ids.NodeID, msg *Message) bool {
		// The news that the entry is committed is lost four times.
		r := msg.Raft
		if r != nil && to == 3 && len(r.GetEntries()) == 0 && lost < 4 &&
			r.GetType() == raftpb.MsgApp {
			lost++
			return true
		}
		return false
	}
	l.put(m, "last words")
	l.pass(2 * time.Second)
	if !l.asleep() || l.nodes[3].machines[7].index != m.index {
		t.Fatalf("asleep %v, node 3 has applied %d of %d",
			l.asleep(), l.nodes[3].machines[7].index, m.index)
	}
}

func TestRestartedFollowerIsToldWhatItForgot(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	term := m.status().Term
	for i := range 5 {
		l.put(m, fmt.Sprint("entry ", i))
	}
	l.pass(time.Second)
	l.nodes[3].crash()
	l.pass(time.Second)
	l.put(m, "while it was down")
	l.pass(time.Second)
	if !l.asleep() {
		t.Fatal("a dead follower keeps the leader awake")
	}
	l.nodes[3].restart()
	l.pass(2 * time.Second)
	if !l.asleep() || l.nodes[3].machines[7].index != m.index || m.status().Term != term {
		t.Fatalf("asleep %v, node 3 at %d of %d, term %d then %d", l.asleep(),
			l.nodes[3].machines[7].index, m.index, term, m.status().Term)
	}
}

func TestGroupsOfADeadNodeElectInTurnAndOnce(t *testing.T) {
	t.Parallel()
	const groups = 60
	l := newLeases(t, 3, nil)
	for r := ids.RangeID(1); r <= groups; r++ {
		l.bootstrap(r, 1, 2, 3)
		l.lead(r, 1)
	}
	l.pass(time.Second)
	before := l.nodes[2].host.Metrics().Campaigns + l.nodes[3].host.Metrics().Campaigns
	l.nodes[1].crash()
	l.pass(320 * time.Millisecond)
	led := map[ids.NodeID]int{}
	for r := ids.RangeID(1); r <= groups; r++ {
		held := l.holders(r)
		if len(held) != 1 {
			t.Fatalf("range %d: lease held by %v 320 ms after its leader's node fell silent", r, held)
		}
		led[held[0]]++
	}
	campaigns := l.nodes[2].host.Metrics().Campaigns + l.nodes[3].host.Metrics().Campaigns - before
	if campaigns > groups+groups/5 {
		t.Errorf("%d campaigns for %d groups", campaigns, groups)
	}
	if led[2] < groups/4 || led[3] < groups/4 {
		t.Errorf("the survivors lead %v", led)
	}
}

func TestVoteThatCameTooEarlyIsStepped(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	l.lead(7, 1)
	l.pass(time.Second)
	l.nodes[1].crash()
	// Node 2 is told of node 1's end at once, node 3 waits out its promise: what
	// node 2 asks meanwhile must not be asked again a timeout later.
	l.isolate()
	two := l.nodes[2]
	l.tables[2].HandleRequest(1, support.Request{
		Life: 1000, Sequence: 1, Duration: support.DefaultDuration,
	})
	two.machines[7].do(two.machines[7].g.orphan)
	l.settle()
	l.pass(300 * time.Millisecond)
	if held := l.holders(7); len(held) != 1 {
		t.Fatalf("lease held by %v", held)
	}
}

func TestCutOffLeaderStepsDownAndItsLeaseEndsBeforeTheNextBegins(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 5, nil)
	l.bootstrap(7, 1, 2, 3, 4, 5)
	m := l.lead(7, 1)
	l.pass(time.Second)
	l.isolate(1, 2)
	for range 60 {
		l.pass(10 * time.Millisecond)
		if held := l.holders(7); len(held) > 1 {
			t.Fatalf("lease held by %v", held)
		}
	}
	if held := l.holders(7); len(held) != 1 || held[0] <= 2 {
		t.Fatalf("lease held by %v", held)
	}
	l.pass(3 * time.Second)
	if m.status().IsLeader {
		t.Fatal("the old leader still believes that it leads")
	}
	l.heal()
	l.pass(3 * time.Second)
	if !l.asleep() || len(l.holders(7)) != 1 {
		t.Fatalf("asleep %v, lease held by %v", l.asleep(), l.holders(7))
	}
}

func TestVanishedLeaderReleasesWhoAsks(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	l.bootstrap(8, 1, 2, 3)
	l.lead(8, 1)
	l.lead(7, 1)
	l.pass(time.Second)
	l.drop = func(_, _ ids.NodeID, msg *Message) bool { return msg.Left.Term != 0 }
	l.nodes[1].host.RemoveGroup(7, nil)
	l.nodes[1].poll()
	delete(l.nodes[1].machines, 7)
	l.drop = nil
	l.pass(4 * time.Second)
	if held := l.holders(7); len(held) != 1 || held[0] == 1 {
		t.Fatalf("lease held by %v", held)
	}
}

func TestWholeClusterRestartsAndLeadsAgain(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	for r := ids.RangeID(1); r <= 10; r++ {
		l.bootstrap(r, 1, 2, 3)
		l.leader(r)
	}
	for _, id := range l.order {
		l.nodes[id].crash()
	}
	for _, id := range l.order {
		l.nodes[id].restart()
	}
	l.pass(1500 * time.Millisecond)
	for r := ids.RangeID(1); r <= 10; r++ {
		if held := l.holders(r); len(held) != 1 {
			t.Errorf("range %d: lease held by %v", r, held)
		}
	}
}

// Digests that differ at rest would be asked about for ever.
func TestDigestsAgreeAtRest(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 4, nil)
	for r := ids.RangeID(1); r <= 12; r++ {
		l.bootstrap(r, 1, 2, 3)
		l.lead(r, ids.NodeID(1+r%3))
	}
	l.nodes[2].crash()
	l.pass(time.Second)
	l.nodes[2].restart()
	for r := ids.RangeID(1); r <= 12; r++ {
		m := l.leader(r)
		if r%2 == 0 {
			m.do(func() { m.g.TransferLeader(ids.ReplicaID(1 + (m.n.id)%3)) })
		}
	}
	l.pass(5 * time.Second)
	for _, id := range l.order {
		for _, st := range l.tables[id].Status() {
			if st.Mismatches > 0 {
				t.Errorf("node %d and %v differ %d times", id, st.Node, st.Mismatches)
			}
		}
	}
	if !l.asleep() {
		t.Error("groups are awake")
	}
}
