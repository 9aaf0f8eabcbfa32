package sim

import (
	"fmt"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Stories of rule R9 and of time that nobody has counted. In each of them the
// checkers find the violation if the rule is switched off: canary_lease_test.go.

// aside is a story without a workload of its own on three nodes with good links.
func aside(t *testing.T, seed uint64, act func(s *Sim, n *node, id ids.RangeID)) error {
	t.Helper()
	o := undisturbed(seed, 3)
	o.Drift = 0
	return runStory(t, o, func(s *Sim) {
		s.net.good()
		s.rest()
		s.holdPlacement()
		n := s.leads(userKey("k/"))
		if n == nil {
			s.fail("nobody leads")
			return
		}
		id, _, _ := pick(n, userKey("k/"))
		act(s, n, id)
	}).Err
}

// holdPlacement has placement begin nothing until the story has ended.
func (s *Sim) holdPlacement() {
	for s.err == nil && !s.people.paused {
		if n := s.people.driver(); n != nil {
			n.run(func() { s.people.pause(n, true, func() {}) })
		}
		s.wait(time.Second)
	}
}

// play tells a story for some seeds.
func play(t *testing.T, act func(s *Sim, n *node, id ids.RangeID)) {
	t.Helper()
	for seed := uint64(301); seed <= 303; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			if err := aside(t, seed, act); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// get reads a key at a node, at a timestamp or now, and says whether it was
// answered within a moment.
func (s *Sim) get(n *node, key string, at hlc.Timestamp) (served bool) {
	n.run(func() {
		n.submit(&kv.Request{Verb: kv.VerbGet, Key: userKey("%s", key), Timestamp: at},
			func(r *kv.Response) { served = r.Code == kv.CodeOK || r.Code == kv.CodeNotFound })
	})
	s.wait(20 * time.Millisecond)
	return served
}

// put writes a key at a node, if it leads.
func (s *Sim) put(n *node, key string) {
	n.run(func() {
		n.submit(&kv.Request{Verb: kv.VerbPut, Key: userKey("%s", key), Value: []byte("v")},
			func(*kv.Response) {})
	})
	s.wait(20 * time.Millisecond)
}

// handOver makes another node lead.
func (s *Sim) handOver(n *node, id ids.RangeID) *node {
	to := s.orderTransfer(n, id)
	for range 100 {
		if to != nil && to.table.Leads(id) {
			return to
		}
		s.wait(time.Millisecond)
	}
	return to
}

// transferToASlowClock: the leader's clock is ahead; it reads and hands over. The
// new leader knows how far the reads went by the stamps of frames alone.
func transferToASlowClock(s *Sim, n *node, id ids.RangeID) {
	n.physical.step(900 * time.Millisecond)
	n.physical.adopt(900 * time.Millisecond)
	s.wait(time.Second)
	s.get(n, "k/0", 0)
	s.put(s.handOver(n, id), "k/0")
}

func TestTransferToASlowClock(t *testing.T) { play(t, transferToASlowClock) }

// stampIsRefused: the clocks of the leader and of one follower are further ahead
// than the third node accepts. It is told to lead, and must not have heard.
func stampIsRefused(s *Sim, n *node, id ids.RangeID) {
	to := s.targetOf(n, id)
	for _, m := range s.machines {
		if m != to {
			m.physical.step(maxAhead + 500*time.Millisecond)
			m.physical.adopt(maxAhead + 500*time.Millisecond)
		}
	}
	s.wait(400 * time.Millisecond) // for bounds
	s.get(n, "k/0", 0)
	s.orderTransfer(n, id)
	s.wait(30 * time.Millisecond)
	s.put(to, "k/0")
	s.wait(100 * time.Millisecond)
	to.physical.step(maxAhead + 500*time.Millisecond)
	to.physical.adopt(maxAhead + 500*time.Millisecond)
}

func TestStampIsRefusedAndTheFrameWithIt(t *testing.T) { play(t, stampIsRefused) }

// targetOf is the node to which orderTransfer would go.
func (s *Sim) targetOf(n *node, id ids.RangeID) *node {
	for _, m := range s.voters()[id] {
		if m != n {
			return m
		}
	}
	s.fail("%s has no other voter", id)
	return n
}

// slowSupporters: the leader's clock is ahead, and it reads until its lease ends;
// the others have heard of its clock when it was last in touch, and no later.
func slowSupporters(s *Sim, n *node, id ids.RangeID) {
	n.physical.step(900 * time.Millisecond)
	n.physical.adopt(900 * time.Millisecond)
	s.wait(time.Second)
	s.cut(n, true)
	for range 8 {
		s.get(n, "k/0", 0)
		s.get(n, "k/1", hlc.New(n.physical.Wall()+1500, 0)) // above the ceiling, below the clock's bound
	}
	s.leased(time.Second, n)
	if next := s.leads(userKey("k/")); next != nil && next != n {
		s.put(next, "k/0")
	}
	for _, m := range s.machines {
		if m != n {
			s.put(m, "k/0")
		}
	}
	s.cut(n, false)
}

func TestTheNextLeaderHasASlowClock(t *testing.T) { play(t, slowSupporters) }

// readInTheFuture: the leader serves a read ahead of its clock, and then a write.
func readInTheFuture(s *Sim, n *node, _ ids.RangeID) {
	s.wait(time.Second)
	if !s.get(n, "k/0", hlc.New(n.physical.Wall()+100, 0)) {
		s.fail("no read below the ceiling was served")
	}
	s.put(n, "k/0")
}

func TestAWriteLiesAboveAReadInTheFuture(t *testing.T) { play(t, readInTheFuture) }

// abortedTransfer: see TestATransferIsAbortedAndTriedAgain.
func abortedTransfer(s *Sim, n *node, id ids.RangeID) {
	s.net.block = func(_, _ ids.NodeID, m *multiraft.Message) bool {
		return m.Raft != nil && m.Raft.GetType() == raftpb.MsgTimeoutNow
	}
	term, _ := n.table.HoldsLease(id)
	s.orderTransfer(n, id)
	s.wait(50 * time.Millisecond)
	for range 300 {
		if now, held := n.table.HoldsLease(id); held && now == term {
			s.fail("the lease of term %d came back after a transfer began", term)
		}
		s.wait(10 * time.Millisecond)
	}
	s.net.block = nil
}

// transferOutOfReach: the old leader is cut off once it has told another to lead.
// The third node's vote must not wait for the end of its promise (R5).
func transferOutOfReach(s *Sim, n *node, id ids.RangeID) {
	told := false
	s.net.block = func(from, to ids.NodeID, m *multiraft.Message) bool {
		if m.Raft != nil && m.Raft.GetType() == raftpb.MsgTimeoutNow {
			told = true
			return false
		}
		return told && (from == n.id || to == n.id)
	}
	to := s.orderTransfer(n, id)
	s.within(50*time.Millisecond, "a transfer without the old leader", func() bool {
		_, held := to.table.HoldsLease(id)
		return told && held
	})
	s.put(to, "k/0")
	s.get(n, "k/0", 0)
	s.net.block = nil
}

func TestATransferNeedsNoVoteOfTheOldLeader(t *testing.T) { play(t, transferOutOfReach) }

// frozenMachine: a hypervisor stops a leader's machine, clocks and all, for longer
// than its promises last, while it is out of reach; it lets it go on, and sets the
// wall clock right.
func frozenMachine(length time.Duration) func(s *Sim, n *node, id ids.RangeID) {
	return func(s *Sim, n *node, id ids.RangeID) {
		s.wait(time.Second)
		s.cut(n, true)
		n.pause()
		n.physical.freeze()
		s.wait(length)
		n.physical.thaw()
		n.resume()
		for range 400 {
			for _, m := range s.machines {
				if m != n && m.table.Leads(id) {
					s.put(m, "k/1")
				}
			}
			n.run(func() { n.leasesMoved = true })
			s.wait(time.Millisecond)
		}
		s.cut(n, false)
	}
}

func TestAFrozenMachineHoldsNoLease(t *testing.T) {
	for _, ms := range []int{15, 30, 60, 90, 120, 200, 400, 5000} {
		t.Run(fmt.Sprint(ms), func(t *testing.T) {
			play(t, frozenMachine(time.Duration(ms)*time.Millisecond))
		})
	}
}
