package multiraft

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// A follower cannot apply an entry before something else has happened. It goes on
// to append and to acknowledge, and applies all in order when it is told.
func TestAppliesThatCannotBeYetAreParked(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	slow := c.nodes[3].machines[7]
	waits := true
	slow.notYet = func(p string) bool { return waits && p == "barrier" }
	m.put("before", "barrier", "after")
	c.tick(2)
	for i := range 20 {
		m.put(fmt.Sprint("later ", i))
		c.tick(1)
	}
	if !slices.Equal(slow.log, []string{"before"}) {
		t.Fatalf("applied %v", slow.log)
	}
	slow.g.ResumeApply() // in vain
	c.tick(1)
	if last := slow.status().LastIndex; last != m.status().LastIndex {
		t.Fatalf("its log ends at %d", last)
	}
	c.nodes[2].down = true // it is needed, and acknowledges
	m.put("with its voice")
	applies := slow.applies
	c.tick(5)
	if slow.applies != applies {
		t.Fatal("it tries again unasked")
	}
	waits = false
	slow.g.ResumeApply()
	c.settle()
	c.agree(7, 1, 3)
	if !slices.Equal(slow.log, m.log) {
		t.Fatalf("applied %v", slow.log)
	}
}

// A snapshot makes up for parked applies, which are then never offered again, and
// raft hands out what comes after it.
func TestSnapshotPassesOverParkedApplies(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *Config) { cfg.TruncateEntries = 4 })
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	slow := c.nodes[3].machines[7]
	slow.notYet = func(p string) bool { return p == "barrier" }
	m.put("before", "barrier", "after")
	c.tick(2)
	c.nodes[3].down = true
	for i := range 60 {
		m.put(fmt.Sprint("later ", i))
		c.tick(1)
	}
	c.nodes[3].down = false
	c.tick(20)
	if slow.restored == 0 {
		t.Fatal("no snapshot was sent: the story is not told")
	}
	c.agree(7, 1, 3)
	m.put("and on")
	c.agree(7, 1, 3)
	if slices.Contains(slow.log, "barrier") || !slices.Contains(slow.log, "and on") {
		t.Fatalf("applied %v", slow.log)
	}
}

func TestRemovedGroupForgetsWhatIsParked(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	c.bootstrap(7, 1)
	m := c.elect(7, 1)
	m.notYet = func(p string) bool { return p == "barrier" }
	m.propose("barrier")
	c.settle()
	g, ended := m.g, false
	c.nodes[1].host.RemoveGroup(7, func() { ended = true })
	g.ResumeApply()
	c.settle()
	if !ended || len(g.parked) != 0 || len(m.log) != 0 {
		t.Fatalf("ended %v, parked %d, applied %v", ended, len(g.parked), m.log)
	}
}

// Whoever has a seal on disk knows after a power cut that what was committed
// before is: it applies that by itself, alone.
func TestSealMakesTheCommitIndexDurable(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.seals = func(p []byte) bool { return string(p) == "seal" }
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	slow := c.nodes[3].machines[7]
	slow.notYet = func(string) bool { return true }
	m.put("freeze")
	freeze := m.index
	matched := ""
	m.put("seal")
	m.do(func() {
		m.g.AwaitMatch(m.index, func(ok bool) { matched = fmt.Sprint(ok) })
	})
	c.settle()
	if matched != "true" {
		t.Fatalf("waited for all replicas: %q", matched)
	}
	c.nodes[3].crash()
	c.nodes[1].down, c.nodes[2].down = true, true
	c.nodes[3].restart()
	c.tick(30)
	if now := c.nodes[3].machines[7]; now.index < freeze {
		t.Fatalf("applied %d of %d", now.index, freeze)
	}
	c.nodes[1].down, c.nodes[2].down = false, false
	c.tick(30)
}

func TestWaitForAllReplicas(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	c.nodes[3].down = true
	m.put("x")
	said := ""
	wait := func(m *machine) {
		said = ""
		m.do(func() { m.g.AwaitMatch(m.index, func(ok bool) { said = fmt.Sprint(ok) }) })
		c.settle()
	}
	wait(m)
	if said != "" {
		t.Fatalf("one is away: %q", said)
	}
	c.nodes[3].down = false
	c.tick(5)
	if said != "true" {
		t.Fatalf("all are here: %q", said)
	}
	c.nodes[3].down = true
	m.put("y")
	wait(m)
	m.do(m.g.EndAwait)
	if said != "false" {
		t.Fatalf("given up: %q", said)
	}
	wait(m)
	m.do(func() { m.g.TransferLeader(2) })
	c.tick(3)
	if said != "false" {
		t.Fatalf("leads no more: %q", said)
	}
	wait(m)
	if said != "false" {
		t.Fatalf("a follower: %q", said)
	}
}

// served says who leads a range and has applied an entry of its term; nil: nobody.
func (c *cluster) served(r ids.RangeID) *machine {
	for _, id := range c.order {
		m := c.nodes[id].machines[r]
		if !c.nodes[id].down && m.status().IsLeader &&
			m.g.appliedTerm == uint64(m.status().Term) {
			return m
		}
	}
	return nil
}

// What a parked replica waits for never comes, and it is elected: it goes on to send
// heartbeats, so nobody else would lead, and nobody serve.
func TestAParkedReplicaThatIsElectedHandsOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	slow := c.nodes[3].machines[7]
	slow.notYet = func(p string) bool { return p == "barrier" }
	m.put("barrier")
	c.tick(2)
	for range 3 {
		l := c.served(7)
		l.do(func() { l.g.TransferLeader(3) })
		c.tick(1)
		if !slow.status().IsLeader || c.served(7) != nil {
			t.Fatal("the story is not told: node 3 does not lead")
		}
		c.tick(slow.g.host.cfg.ElectionTicks)
		if l = c.served(7); l == nil {
			t.Fatalf("node 3 leads in term %d, parked at %d, and nobody serves",
				slow.status().Term, slow.index)
		}
		l.put(fmt.Sprint("in term ", l.status().Term))
	}
}

// All are parked: they hand over to one another, once in an election timeout each, and
// whoever can apply first serves.
func TestParkedReplicasTakeTurnsUntilOneCanServe(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 1)
	m.put("before")
	waits := map[ids.NodeID]bool{1: true, 2: true, 3: true}
	for _, id := range c.order {
		c.nodes[id].machines[7].notYet = func(p string) bool {
			return waits[id] && p == "barrier"
		}
	}
	m.propose("barrier")
	c.settle()
	m.do(func() { m.g.TransferLeader(2) })
	c.tick(1)
	term, led := m.status().Term, map[ids.NodeID]bool{}
	const timeouts = 12
	for range timeouts * m.g.host.cfg.ElectionTicks {
		c.tick(1)
		for _, id := range c.order {
			if c.nodes[id].machines[7].status().IsLeader {
				led[id] = true
			}
		}
	}
	if n := m.status().Term - term; n < timeouts/2 || n > timeouts {
		t.Errorf("%d terms in %d election timeouts", n, timeouts)
	}
	if len(led) < 3 {
		t.Errorf("only %v led", led)
	}
	waits[3] = false
	c.nodes[3].machines[7].g.ResumeApply()
	c.tick(3 * timeouts)
	if l := c.served(7); l == nil || l.n.id != 3 {
		t.Fatalf("%v serves, only node 3 can", l)
	}
}

// Both survivors may be the first in rank; the one that is parked is not.
func TestAParkedReplicaCampaignsLast(t *testing.T) {
	t.Parallel()
	const groups = 12
	l := newLeases(t, 3, nil)
	for r := ids.RangeID(1); r <= groups; r++ {
		l.bootstrap(r, 1, 2, 3)
		m := l.lead(r, 1)
		l.nodes[3].machines[r].notYet = func(p string) bool { return p == "barrier" }
		l.put(m, "barrier")
	}
	l.pass(time.Second)
	before := l.nodes[3].host.Metrics().Campaigns
	l.nodes[1].crash()
	l.pass(900 * time.Millisecond)
	for r := ids.RangeID(1); r <= groups; r++ {
		if held := l.holders(r); !slices.Equal(held, []ids.NodeID{2}) {
			t.Errorf("range %d: lease held by %v", r, held)
		}
	}
	if n := l.nodes[3].host.Metrics().Campaigns - before; n != 0 {
		t.Errorf("node 3 campaigned %d times", n)
	}
}
