package sim

import (
	"fmt"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/support"
)

// undisturbed is a calm run over a good network with the default promises.
func undisturbed(seed uint64, nodes int) Options {
	o := calm(seed)
	o.Nodes = nodes
	o.Promise, o.AskEvery = support.DefaultDuration, support.DefaultInterval
	o.ReadPauses, o.Freezes, o.Drift = 0, false, maxDrift
	o.Disk = 200 * time.Microsecond
	return o
}

// tell plays a story for some seeds.
func tell(t *testing.T, nodes int, act func(s *Sim)) {
	t.Helper()
	for seed := uint64(201); seed <= 204; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := runStory(t, undisturbed(seed, nodes), func(s *Sim) {
				s.net.good()
				act(s)
			})
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		})
	}
}

// good makes the network that of a machine room on a good day.
func (w *network) good() {
	w.profile = profile{min: 100 * time.Microsecond, max: 2 * time.Millisecond}
}

// wait lets time pass.
func (s *Sim) wait(d time.Duration) { s.until(s.loop.now+d, func() bool { return false }) }

// within waits until the condition holds and fails when it takes longer than d;
// it returns how long it took.
func (s *Sim) within(d time.Duration, what string, holds func() bool) time.Duration {
	began := s.loop.now
	for s.err == nil && !holds() {
		if s.loop.now-began >= d {
			s.fail("%s took longer than %s:\n%s", what, d, s.describe())
		}
		s.wait(time.Millisecond)
	}
	return s.loop.now - began
}

// leased waits until every range that has a majority without gone has a leader
// there that holds its lease.
func (s *Sim) leased(d time.Duration, gone *node) time.Duration {
	return s.within(d, "a lease for every range", func() bool {
		return len(s.withoutLease(gone)) == 0
	})
}

// splitUp makes some ranges, and spreads their leaders.
func (s *Sim) splitUp() {
	for _, at := range []string{"k/4", "k/8", "k/c", "n/", "p/", "p/3", "s/", "s/8"} {
		n := s.leads(userKey("%s", at))
		if n == nil {
			s.fail("nobody leads %s", at)
			return
		}
		id, _, _ := pick(n, userKey("%s", at))
		n.run(func() {
			n.table.Split(id, userKey("%s", at), func(_, _ *metapb.RangeDescriptor, _ error) {})
		})
		s.wait(300 * time.Millisecond)
	}
	s.leased(5*time.Second, nil)
}

// busiest returns the machine that holds most leases.
func (s *Sim) busiest() *node {
	var most *node
	for _, n := range s.machines {
		if most == nil || n.leases() > most.leases() {
			most = n
		}
	}
	return most
}

func (n *node) leases() (held int) {
	if n.table != nil {
		held, _ = n.table.WalkLeases()
	}
	return held
}

// TestEveryRangeHasALeaseWithinASecondOfANodesSilence: a node dies, is cut off
// without a word, or stops; its ranges' other voters elect leaders, which get
// their leases.
func TestEveryRangeHasALeaseWithinASecondOfANodesSilence(t *testing.T) {
	var worst time.Duration
	for name, silence := range map[string]struct{ begin, end func(s *Sim, n *node) }{
		"killed": {
			func(_ *Sim, n *node) { n.crash() },
			func(s *Sim, n *node) { s.restart(n) },
		},
		"cut off": {
			func(s *Sim, n *node) { s.cut(n, true) },
			func(s *Sim, n *node) { s.cut(n, false) },
		},
		"stopped": {
			func(_ *Sim, n *node) { n.pause() },
			func(_ *Sim, n *node) { n.resume() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			tell(t, 3, func(s *Sim) {
				s.splitUp()
				for range 3 {
					n := s.busiest()
					silence.begin(s, n)
					worst = max(worst, s.leased(time.Second, n))
					s.wait(time.Second)
					silence.end(s, n)
					s.leased(3*time.Second, nil)
					s.wait(3 * time.Second)
				}
			})
		})
	}
	t.Logf("the longest took %s", worst)
}

// TestAReadNeedsNoMessageWhileTheLeaseIsHeld: reads at rest are answered at once
// and make no group do anything.
func TestAReadNeedsNoMessageWhileTheLeaseIsHeld(t *testing.T) {
	tell(t, 3, func(s *Sim) {
		s.rest()
		before, began := s.effort(), s.loop.now
		n := s.leads(userKey("k/"))
		answered := false
		n.run(func() {
			n.table.Submit(&kv.Request{Verb: kv.VerbGet, Key: userKey("k/0")},
				func(r *kv.Response) { answered = r.Code == kv.CodeOK || r.Code == kv.CodeNotFound })
		})
		if !answered {
			s.fail("a get at the leader of a range at rest was not answered at once")
		}
		s.wait(50 * time.Millisecond) // not longer: placement may move a leader
		if now := s.effort(); now != before {
			s.fail("a get at rest made groups work: %d, %d before, since %s", now, before, began)
		}
	})
}

// rest ends the workload and waits until no group does anything.
func (s *Sim) rest() {
	s.quiet = true
	s.within(20*time.Second, "rest", s.rested)
	s.fallSilent()
}

// TestAnIdleClusterWakes: a cluster that has been at rest for long takes a write
// at once, and elects a leader when one is gone.
func TestAnIdleClusterWakes(t *testing.T) {
	tell(t, 3, func(s *Sim) {
		s.splitUp()
		s.rest()
		s.wait(time.Minute)
		for _, key := range []string{"k/1", "n/9", "t/9"} {
			s.acknowledged(200*time.Millisecond, key)
		}
		s.fallSilent()
		s.wait(time.Minute)
		n := s.busiest()
		n.crash()
		s.leased(time.Second, n)
		s.acknowledged(200*time.Millisecond, "k/1")
		s.restart(n)
		s.leased(3*time.Second, nil)
	})
}

// acknowledged writes a key, at whoever leads it, and waits for the answer.
func (s *Sim) acknowledged(d time.Duration, key string) {
	n := s.leads(userKey("%s", key))
	if n == nil {
		s.fail("nobody leads %s", key)
		return
	}
	done := false
	n.run(func() {
		r := &kv.Request{Verb: kv.VerbPut, Key: userKey("%s", key), Value: []byte("v")}
		n.submit(r, func(r *kv.Response) { done = r.Code == kv.CodeOK })
	})
	s.within(d, "a write of "+key, func() bool { return done })
}

// TestTheLeaseOfATermDoesNotComeBack: see abortedTransfer.
func TestTheLeaseOfATermDoesNotComeBack(t *testing.T) { play(t, abortedTransfer) }

// TestATransferIsAbortedAndTriedAgain: the message that tells the target to
// campaign is lost. The old leader has given its lease up for this term (R5), and
// reads go by ReadIndex until the term has changed, which it sees to itself.
func TestATransferIsAbortedAndTriedAgain(t *testing.T) {
	tell(t, 3, func(s *Sim) {
		n := s.leads(userKey("k/"))
		id, _, _ := pick(n, userKey("k/"))
		if _, held := n.table.HoldsLease(id); !held {
			s.fail("the story did not begin: %s holds no lease", n)
			return
		}
		lost := 0
		s.net.block = func(_, _ ids.NodeID, m *multiraft.Message) bool {
			if m.Range == id && m.Raft != nil && m.Raft.GetType() == raftpb.MsgTimeoutNow {
				lost++
				return true
			}
			return false
		}
		s.orderTransfer(n, id)
		s.within(time.Second, "the order", func() bool { return lost > 0 })
		s.wait(7 * time.Second)
		if lost < 2 {
			s.fail("the transfer was tried %d times in 7 s", lost)
		}
		before, answered := s.counters["reads_by_index"], false
		n.run(func() {
			n.submit(&kv.Request{Verb: kv.VerbGet, Key: userKey("k/0")}, func(r *kv.Response) {
				answered = r.Code == kv.CodeOK || r.Code == kv.CodeNotFound
			})
		})
		s.within(time.Second, "a read without the lease", func() bool { return answered })
		if s.counters["reads_by_index"] == before {
			s.fail("the read was not confirmed by a quorum")
		}
		s.net.block = nil
		s.leased(5*time.Second, nil)
	})
}

// orderTransfer orders that a range be led by another of its voters.
func (s *Sim) orderTransfer(n *node, id ids.RangeID) *node {
	for _, f := range n.table.Facts() {
		if ids.RangeID(f.Descriptor_.RangeId) != id {
			continue
		}
		for _, r := range f.Descriptor_.Replicas {
			if ids.NodeID(r.NodeId) == n.id {
				continue
			}
			o := &metapb.Order{
				RangeId: uint64(id), Generation: f.Descriptor_.Generation, NodeId: r.NodeId,
				ReplicaId: r.ReplicaId, Kind: metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER,
			}
			n.run(func() { s.order(n, o) })
			return s.nodes[ids.NodeID(r.NodeId)]
		}
	}
	s.fail("%s does not lead %s", n, id)
	return nil
}

// TestAHangingDiskLosesItsLeaders: the node lives and answers, but its log's
// syncs do not end.
func TestAHangingDiskLosesItsLeaders(t *testing.T) {
	tell(t, 3, func(s *Sim) {
		s.splitUp()
		n := s.busiest()
		n.stalled, n.stalledAt = true, s.loop.now
		s.leased(diskPatience+1500*time.Millisecond, n)
		s.wait(2 * time.Second)
		n.stalled = false
		n.wake()
		s.leased(3*time.Second, nil)
	})
}

// TestABusyNodeIsNotWithdrawn: all processes are late again and again, by less
// than a promise lasts. Nobody takes anybody for dead.
func TestABusyNodeIsNotWithdrawn(t *testing.T) {
	tell(t, 3, func(s *Sim) {
		s.splitUp()
		s.wait(time.Second)
		before := s.counters["promises_expired"]
		for i := range 60 {
			n := s.machines[i%3]
			n.pause()
			s.wait(140 * time.Millisecond)
			n.resume()
			s.wait(20 * time.Millisecond)
		}
		if now := s.counters["promises_expired"]; now != before {
			s.fail("%d promises ended although all nodes lived", now-before)
		}
	})
}

// TestAStarvedSupporterDoesNotWithdraw: one that could not read for longer than a
// promise lasts finds the requests that waited for it first.
func TestAStarvedSupporterDoesNotWithdraw(t *testing.T) {
	tell(t, 3, func(s *Sim) {
		s.splitUp()
		for _, n := range s.machines {
			s.wait(time.Second)
			n.pause()
			s.wait(2 * support.DefaultDuration)
			before := s.counters["promises_expired"]
			n.resume()
			s.wait(20 * time.Millisecond)
			if now := s.counters["promises_expired"]; now != before {
				s.fail("%s withdrew from nodes that were well", n)
			}
		}
	})
}

// TestANodeRestartsWithinItsPromises: the others wait for their promises to end, or
// hear of its later life.
func TestANodeRestartsWithinItsPromises(t *testing.T) {
	tell(t, 3, func(s *Sim) {
		s.splitUp()
		for range 4 {
			n := s.busiest()
			n.crash()
			s.wait(20 * time.Millisecond)
			s.restart(n)
			s.leased(time.Second, nil)
			s.wait(2 * time.Second)
		}
	})
}

// TestTheWholeClusterRestarts: nobody knows what was promised; all wait for it.
func TestTheWholeClusterRestarts(t *testing.T) {
	tell(t, 5, func(s *Sim) {
		s.splitUp()
		for range 3 {
			for _, n := range s.machines {
				n.crash()
			}
			s.wait(50 * time.Millisecond)
			for _, n := range s.machines {
				s.restart(n)
			}
			s.leased(3*time.Second, nil)
			s.wait(time.Second)
		}
	})
}

// TestANodeStartsWithTheWrongTime: its wall clock is ten minutes off when it
// starts, and jumps while it runs. It takes part again all the same.
func TestANodeStartsWithTheWrongTime(t *testing.T) {
	for name, by := range map[string]time.Duration{
		"ahead": 10 * time.Minute, "behind": -10 * time.Minute,
	} {
		t.Run(name, func(t *testing.T) {
			tell(t, 3, func(s *Sim) {
				for _, n := range s.machines {
					n.physical.step(by) // while it runs
					s.wait(time.Second)
					s.leased(time.Second, nil)
					n.crash()
					s.wait(time.Second)
					s.restart(n) // believes it at first
					s.wait(2 * time.Second)
					other := s.machines[0]
					if other == n {
						other = s.machines[1]
					}
					s.cut(other, true) // so that n is needed
					s.leased(2*time.Second, other)
					s.cut(other, false)
					n.physical.step(-by)
					s.wait(time.Second)
				}
			})
		})
	}
}
