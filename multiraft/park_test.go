package multiraft

import (
	"fmt"
	"slices"
	"testing"
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
