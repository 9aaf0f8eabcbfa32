package multiraft

import (
	"fmt"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Stories of news that nobody hears: a group must wake, or find its leader, or cut
// its log all the same.

// Support lapses and comes back under the same promise before Expire has looked. A
// leader that looked in between took the follower for dead and fell asleep without
// it; the grant must wake it.
func TestALapseThatExpireDidNotSeeIsTold(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	l.pass(2 * time.Second)
	if !l.asleep() {
		t.Fatal("not at rest")
	}
	l.isolate(3)
	l.put(m, "missed by 3")
	until := l.tables[1].Peer(3).View().Until
	// As pass does, but the Expire of node 1 is late by some milliseconds.
	for l.now < until+10*time.Millisecond {
		l.now += 10 * time.Millisecond
		if l.now%(50*time.Millisecond) == 0 {
			l.beat()
		}
		for _, id := range l.order {
			if id != 1 || l.now < until {
				l.tables[id].Expire(0)
			}
			l.nodes[id].host.Tick()
		}
		l.settle()
	}
	epoch := l.tables[1].Peer(3).View().Epoch
	l.heal()
	l.beat() // the next request of node 1 is answered
	if got := l.tables[1].Peer(3).View(); got.Epoch != epoch {
		t.Fatalf("node 3 had withdrawn: epoch %v, now %v", epoch, got.Epoch)
	}
	l.tables[1].Expire(0)
	l.settle()
	l.pass(5 * time.Second)
	if got := l.nodes[3].machines[7]; got.index != m.index {
		t.Fatalf("node 3 has applied %d of %d; at rest: %v", got.index, m.index, l.asleep())
	}
}

// A follower that halted acknowledges nothing while its leader counts its ack: the
// digests differ for ever, and no question mends that. It must not keep all groups
// of the two nodes awake.
func TestAHaltedFollowerDoesNotKeepItsNeighboursAwake(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	const groups = 50
	for r := ids.RangeID(1); r <= groups; r++ {
		l.bootstrap(r, 1, 2, 3)
		l.lead(r, 1)
	}
	l.pass(3 * time.Second)
	h := l.nodes[3].machines[1]
	h.do(func() { h.g.halt("test", fmt.Errorf("boom")) })
	l.pass(10 * time.Second)
	said := 0
	l.drop = func(_, _ ids.NodeID, _ *Message) bool { said++; return false }
	l.pass(time.Minute)
	if said > 12*groups { // three questions about each and what they lead to
		t.Fatalf("%d messages of %d groups in a quiet minute", said, groups)
	}
}

// The news that a leader left is lost, while another group of the same nodes moves
// to and fro, so that the digests never stay the same for long.
func TestLostNewsAreAskedForWhileDigestsMove(t *testing.T) {
	t.Parallel()
	l := newLeases(t, 3, nil)
	for r := ids.RangeID(7); r <= 9; r++ {
		l.bootstrap(r, 1, 2, 3)
	}
	l.lead(9, 1)
	l.lead(8, 1)
	m := l.lead(7, 1)
	l.pass(time.Second)
	l.drop = func(_, _ ids.NodeID, msg *Message) bool { return msg.Left.Term != 0 }
	m.do(func() { m.g.halt("test", ErrStopped) })
	l.drop = nil
	for i := range 20 {
		from := l.nodes[ids.NodeID(1+i%2)].machines[8]
		from.do(func() { from.g.TransferLeader(ids.ReplicaID(2 - i%2)) })
		l.pass(400 * time.Millisecond)
		if len(l.holders(7)) == 1 {
			return
		}
	}
	t.Fatalf("no leader of range 7 for 8 s; mismatches told: %d and %d",
		l.tables[2].Status()[0].Mismatches, l.tables[3].Status()[0].Mismatches)
}

// The node of a follower is dead, and the group sleeps between its writes. How long
// the follower was silent counts all the same, and the log is cut.
func TestTheLogOfAGroupThatSleepsBetweenWritesIsCut(t *testing.T) {
	t.Parallel()
	for _, every := range []time.Duration{0, 200 * time.Millisecond, 5 * time.Second} {
		l := newLeases(t, 3, nil)
		l.bootstrap(7, 1, 2, 3)
		m := l.lead(7, 1)
		l.pass(2 * time.Second)
		first := m.status().FirstIndex
		l.nodes[3].crash()
		l.pass(10 * time.Second)
		for i := range 300 {
			if !l.put(m, fmt.Sprint("entry ", i)) {
				t.Fatal("not applied")
			}
			l.pass(every)
		}
		if st := m.status(); st.FirstIndex == first {
			t.Errorf("a write every %v: the log still holds %d to %d", every, st.FirstIndex, st.LastIndex)
		}
	}
}
