package multiraft

import (
	"errors"
	"testing"

	"go.etcd.io/raft/v3"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

func (m *machine) read() *waiter {
	w := new(waiter)
	m.do(func() { m.g.Read(w) })
	return w
}

func TestReadsOfAPassShareOneRequest(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	ws := make([]waiter, 100)
	m.do(func() {
		for i := range ws {
			m.g.Read(&ws[i])
		}
	})
	if n := c.nodes[1].host.Metrics().ReadRequests; n != 1 {
		t.Fatalf("%d requests for one pass", n)
	}
	// These come while the first request is out: they wait for the next.
	late := m.read()
	if n := c.nodes[1].host.Metrics().ReadRequests; n != 1 {
		t.Fatalf("%d requests outstanding at once", n)
	}
	c.settle()
	for i := range ws {
		if ws[i].called != 1 || ws[i].err != nil {
			t.Fatalf("waiter %d: %+v", i, ws[i])
		}
	}
	if late.called != 1 || late.err != nil {
		t.Fatalf("late waiter: %+v", late)
	}
	if n := c.nodes[1].host.Metrics().ReadRequests; n != 2 {
		t.Fatalf("%d requests, want 2", n)
	}
}

func TestAnAnswerToAnEarlierRequestConfirmsNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	w := m.read()
	m.do(func() {
		// The request is given up; its answer comes all the same.
		for range readRetryTicks {
			m.g.tickRead()
		}
		m.g.askRead()
		m.g.confirmReads([]raft.ReadState{{Index: 1, RequestCtx: []byte{1, 0, 0, 0, 0, 0, 0, 0}}})
		if w.called != 0 {
			t.Error("confirmed by the answer to a request that was given up")
		}
	})
	c.settle()
	if w.called != 1 || w.err != nil {
		t.Fatalf("after the retry: %+v", w)
	}
}

func TestReadsFailWhenLeadershipEnds(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	cut := true
	c.drop = func(from, to ids.NodeID, _ *Message) bool { return cut && (from == 1 || to == 1) }
	first := m.read()
	second := m.read() // behind the first
	c.settle()
	if first.called != 0 || second.called != 0 {
		t.Fatal("confirmed without a quorum")
	}
	c.tick(25) // CheckQuorum ends the leadership
	for _, w := range []*waiter{first, second} {
		if w.called != 1 || !errors.Is(w.err, ErrNotLeader) {
			t.Fatalf("after the step-down: %+v", w)
		}
	}
	if w := m.read(); w.called != 1 || !errors.Is(w.err, ErrNotLeader) {
		t.Fatalf("at a follower: %+v", w)
	}
	cut = false
	c.tick(40)
	leaders := 0
	for _, id := range c.order {
		if o := c.nodes[id].machines[7]; o.status().IsLeader {
			leaders++
			w := o.read()
			c.settle()
			if w.called != 1 || w.err != nil {
				t.Fatalf("at the new leader: %+v", w)
			}
		}
	}
	if leaders != 1 {
		t.Fatalf("%d leaders after healing", leaders)
	}
}

func TestAReadSurvivesALostRound(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	w := m.read()
	c.wire = nil
	c.settle()
	if w.called != 0 {
		t.Fatal("confirmed by nobody")
	}
	c.tick(readRetryTicks + defaultHeartbeatTicks)
	if w.called != 1 || w.err != nil {
		t.Fatalf("after ticks: %+v", w)
	}
}

func TestAReadWaitsForWhatWasCommittedBeforeIt(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	n := c.nodes[1]
	n.holdSync = true // the followers commit "a", the leader cannot apply it
	m.propose("a")
	c.settle()
	w := m.read()
	c.settle()
	if w.called != 0 {
		t.Fatalf("read at %d, before %q was applied", m.index, "a")
	}
	n.holdSync = false
	c.settle()
	if w.called != 1 || w.err != nil || len(m.log) != 1 {
		t.Fatalf("after the apply: %+v", w)
	}
}

// The commit index is not written when it only moves, and a lone voter answers
// ReadIndex from it at once. So after a crash a read must wait for an entry of
// the new term.
func TestALoneVoterReadsNothingOldAfterACrash(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	c.bootstrap(7, 1)
	m := c.elect(7, 1)
	m.put("a")
	n := c.nodes[1]
	n.crash() // the entry is synced, that it was applied is not
	n.restart()
	m = n.machines[7]
	n.poll()
	n.holdSync = true
	if m.index >= startIndex+2 {
		t.Fatal("the store synced the applied state by itself")
	}
	m.do(m.g.Campaign)
	var w *waiter
	for range 4 { // syncs: the vote, then the entry of the term
		if m.status().IsLeader && w == nil {
			w = m.read()
		}
		if w != nil && w.called != 0 {
			break
		}
		n.sync()
	}
	if w == nil || w.called != 1 || w.err != nil {
		t.Fatalf("read: %+v", w)
	}
	if len(m.log) != 1 {
		t.Fatal("stale read: \"a\" was acknowledged and is not applied")
	}
}

func TestReadBoundRefusesLoudly(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	refused := 0
	m.do(func() {
		for range maxReadWaiters + 3 {
			w := new(waiter)
			m.g.Read(w)
			if errors.Is(w.err, ErrOverloaded) {
				refused++
			}
		}
	})
	if refused != 3 {
		t.Fatalf("%d refused, want 3", refused)
	}
}
