package multiraft

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// poisoned has node 1 lead range 7, whose replica on node 3 halts by an entry.
func poisoned(t *testing.T) (*leases, *machine) {
	t.Helper()
	l := newLeases(t, 3, nil)
	l.bootstrap(7, 1, 2, 3)
	m := l.lead(7, 1)
	l.pass(time.Second)
	l.nodes[3].machines[7].refuse = func(p string) error {
		if p == "bad" {
			return errors.New("unknown format")
		}
		return nil
	}
	return l, m
}

// active says who answers the leader, as far as that knows.
func (m *machine) active() (all []ids.ReplicaID) {
	m.n.c.t.Helper()
	for _, p := range m.g.Progress() {
		if p.RecentActive {
			all = append(all, p.Replica)
		}
	}
	return all
}

// The node of a replica that halted lives, and goes on to support the leader's node.
// That must not make the replica look alive.
func TestAHaltedReplicaIsNotVouchedForByItsNode(t *testing.T) {
	t.Parallel()
	l, m := poisoned(t)
	var told []ids.RangeID
	m.g.host.cfg.OnHalted = func(r ids.RangeID) { told = append(told, r) }
	l.put(m, "bad")
	l.pass(2 * time.Second)
	if !l.nodes[3].machines[7].status().Halted {
		t.Fatal("the story is not told")
	}
	if got := m.active(); !slices.Equal(got, []ids.ReplicaID{1, 2}) {
		t.Fatalf("active: %v", got)
	}
	if !slices.Equal(told, []ids.RangeID{7}) {
		t.Fatalf("told of %v", told)
	}
	if held := l.holders(7); len(held) != 1 || held[0] != 1 || !l.asleep() {
		t.Fatalf("lease held by %v, asleep %v", held, l.asleep())
	}
	for _, st := range l.tables[3].Status() {
		if st.Mismatches > 0 {
			t.Errorf("digests of nodes 3 and %v differ", st.Node)
		}
	}
	m.do(func() { m.g.TransferLeader(3) })
	if !l.put(m, "goes on") {
		t.Fatal("leadership is on its way to a replica that halted")
	}
	l.isolate(2)
	l.pass(4 * time.Second)
	if held := l.holders(7); len(held) > 0 || m.status().IsLeader {
		t.Fatalf("one of three is left: lease held by %v, leads %v", held, m.status().IsLeader)
	}
}

func TestAHaltedReplicaSaysSoAgainIfThatWasLost(t *testing.T) {
	t.Parallel()
	l, m := poisoned(t)
	l.drop = func(_, _ ids.NodeID, msg *Message) bool { return msg.Left.Replica == 3 }
	l.put(m, "bad")
	l.pass(time.Second)
	l.drop = nil
	l.put(m, "more")
	l.pass(2 * time.Second)
	if got := m.active(); !slices.Equal(got, []ids.ReplicaID{1, 2}) || !l.asleep() {
		t.Fatalf("active: %v, asleep %v", got, l.asleep())
	}
}

// What an earlier life said of itself comes late.
func TestAReplicaThatIsLoadedAnewIsAliveWhateverItsFormerLifeSaid(t *testing.T) {
	t.Parallel()
	l, m := poisoned(t)
	l.put(m, "bad")
	l.pass(time.Second)
	l.nodes[3].crash()
	l.pass(time.Second)
	l.nodes[3].restart() // with a program that knows the format
	l.pass(2 * time.Second)
	for range 2 {
		if got := m.active(); len(got) != 3 || !l.asleep() {
			t.Fatalf("active: %v, asleep %v", got, l.asleep())
		}
		l.inject(3, 1, Message{Range: 7, Left: Departure{Replica: 3}})
		l.pass(time.Second)
	}
	l.agree(7, 1, 2, 3)
}
