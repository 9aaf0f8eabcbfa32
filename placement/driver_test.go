package placement

import (
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func (w *world) status() *adminpb.StatusReply { return w.node(w.driver).d.Status(w.now) }

func (w *world) founded() bool { return len(w.status().GetNodes()) == 1 }

// grown returns a cluster of n nodes at rest.
func grown(t *testing.T, seed uint64, ranges, nodes int) *world {
	t.Helper()
	w := newWorld(t, seed, ranges)
	w.run(2 * time.Second)
	for len(w.nodes) < nodes {
		w.join()
	}
	w.runUntil(5*time.Minute, "three copies everywhere", w.allHave(3))
	w.runUntil(2*time.Minute, "leaders even", w.even)
	w.run(30 * time.Second)
	return w
}

func TestOneNodeGrowsToThreeAsNodesJoinOneByOne(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		w := newWorld(t, seed, 11)
		w.run(10 * time.Second)
		s := w.status()
		if len(s.GetProblems()) != 0 || s.GetTolerates() != 0 || s.GetRanges() != 12 ||
			len(s.GetNodes()) != 1 {
			t.Fatalf("a cluster of one: %v", s)
		}
		w.join()
		w.run(30 * time.Second)
		if !w.allHave(1)() || w.sent != 0 {
			t.Fatalf("with two nodes nothing can be gained, but %d orders went out", w.sent)
		}
		if s := w.status(); len(s.GetProblems()) != 0 || s.GetTolerates() != 0 {
			t.Fatalf("a cluster of two: %v", s)
		}
		w.join()
		w.run(1 * time.Second)
		if s := w.status(); s.GetUnderReplicated() != 12 {
			t.Fatalf("three nodes, nothing copied yet: %v", s)
		}
		w.runUntil(2*time.Minute, "three copies everywhere", w.allHave(3))
		w.runUntil(time.Minute, "leaders even", w.even)
		for id, r := range w.ranges {
			if r.pairFor > 3*time.Second {
				t.Fatalf("%v rested at two voters for %v", id, r.pairFor)
			}
		}
		w.run(10 * time.Second)
		if s := w.status(); len(s.GetProblems()) != 0 || s.GetTolerates() != 1 ||
			s.GetOperators() != 0 {
			t.Fatalf("a cluster of three: %v", s)
		}
		w.quiet(20 * time.Minute)
	}
}

func TestNodesThatJoinAQuietClusterGetTheirShareAndNothingFlaps(t *testing.T) {
	t.Parallel()
	w := grown(t, 1, 40, 3)
	w.join()
	w.join()
	w.runUntil(20*time.Minute, "leaders even among five", w.even)
	w.run(5 * time.Minute)
	// Each new node gets a fifth of 41 times three copies.
	if moved := w.swaps; moved < 40 || moved > 1.2*50 {
		t.Fatalf("%d copies moved", moved)
	}
	w.quiet(20 * time.Minute)
}

func TestOrdersAndReportsGetLost(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		w := newWorld(t, seed, 15)
		w.loss = 0.3
		w.runUntil(time.Minute, "registered", w.founded)
		w.join()
		w.join()
		w.runUntil(5*time.Minute, "three copies everywhere", w.allHave(3))
		w.runUntil(2*time.Minute, "leaders even", w.even)
	}
}

func TestAnotherDriverFinishesWhatOneBegan(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		w := newWorld(t, seed, 9)
		w.loss = 0.1
		w.runUntil(time.Minute, "registered", w.founded)
		w.join()
		w.join()
		w.join()
		for range 12 { // in the midst of everything
			w.run(time.Duration(1+w.rng.IntN(60)) * tick * 3)
			w.moveDriver(ids.NodeID(1 + w.rng.IntN(4)))
		}
		w.loss = 0
		w.runUntil(5*time.Minute, "three copies everywhere", w.allHave(3))
		w.runUntil(2*time.Minute, "leaders even", w.even)
		w.run(30 * time.Second)
		w.quiet(10 * time.Minute)
	}
}

func TestCopiesOfADeadNodeGoToASpareOne(t *testing.T) {
	t.Parallel()
	w := grown(t, 3, 20, 4)
	w.run(5 * time.Minute)
	swaps := w.swaps
	dead := w.node(2)
	dead.up = false
	w.run(20 * time.Second)
	if w.swaps != swaps {
		t.Fatal("replaced a node that is only silent")
	}
	s := w.status()
	if s.GetUnderReplicated() == 0 || !strings.HasPrefix(s.GetProblems()[0], "n2 silent for ") {
		t.Fatalf("one node silent: %v", s)
	}
	w.runUntil(10*time.Minute, "no copy on the dead node", func() bool {
		for _, r := range w.ranges {
			if replicaOn(r.desc, 2) != nil {
				return false
			}
		}
		return w.allHave(3)()
	})
	if s := w.status(); s.GetUnderReplicated() != 0 || s.GetTolerates() != 1 {
		t.Fatalf("after repair: %v", s)
	}
	dead.up = true
	w.runUntil(10*time.Minute, "it has its share again", w.even)
	w.run(5 * time.Minute)
	w.quiet(10 * time.Minute)
}

func TestWithoutASpareNodeADeadOneKeepsItsCopies(t *testing.T) {
	t.Parallel()
	w := grown(t, 4, 20, 3)
	w.node(3).up = false
	w.run(10 * time.Second)
	w.run(time.Minute)
	changes := w.executed[metapb.OrderKind_ORDER_KIND_ADD_LEARNER]
	w.run(10 * time.Minute)
	if w.executed[metapb.OrderKind_ORDER_KIND_ADD_LEARNER] != changes ||
		w.swaps != 0 || !w.allHave(3)() {
		t.Fatal("changed replicas although there is nowhere to go")
	}
	s := w.status()
	if s.GetUnderReplicated() != s.GetRanges() || s.GetTolerates() != 0 || s.GetLeaderless() != 0 {
		t.Fatalf("two of three nodes: %v", s)
	}
	if p := strings.Join(s.GetProblems(), "; "); p !=
		"n3 silent for 11 min 10 s; 21 of 21 ranges under-replicated" {
		t.Fatalf("problems: %q", p)
	}
	w.node(3).up = true
	w.runUntil(time.Minute, "leaders even again", w.even)
	w.run(30 * time.Second)
	if s := w.status(); len(s.GetProblems()) != 0 {
		t.Fatalf("healed: %v", s)
	}
	w.quiet(10 * time.Minute)
}

// A learner that can never catch up must not hold up the range for ever, nor
// may it stay behind.
func TestALearnerThatNeverCatchesUpIsGivenUpForAnotherNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5, 3)
	w.run(2 * time.Second)
	w.join().noSnaps = true
	w.join()
	w.run(20 * time.Second)
	w.join()
	w.runUntil(30*time.Minute, "three copies without the sick node", func() bool {
		for _, r := range w.ranges {
			if replicaOn(r.desc, 2) != nil {
				return false
			}
		}
		return w.allHave(3)()
	})
	w.runUntil(5*time.Minute, "nothing runs", func() bool {
		return w.status().GetOperators() == 0
	})
}

func TestANodeThatComesAndGoesDrawsNoLeaders(t *testing.T) {
	t.Parallel()
	w := grown(t, 6, 30, 3)
	flapping := w.node(3)
	if w.driver == 3 {
		w.moveDriver(1)
	}
	flapping.up = false
	w.run(25 * time.Second) // leaders of the failed node even out among the others
	settled := w.executed[metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER]
	for range 20 {
		flapping.up = true
		w.run(4 * time.Second)
		flapping.up = false
		w.run(5 * time.Second)
	}
	if got := w.executed[metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER]; got != settled {
		t.Fatalf("%d transfers while the node flapped", got-settled)
	}
}

func TestLostQuorumIsToldByRange(t *testing.T) {
	t.Parallel()
	w := grown(t, 7, 3, 3)
	if w.driver != 1 {
		w.moveDriver(1)
	}
	w.node(2).up, w.node(3).up = false, false
	w.run(10 * time.Second)
	s := w.status()
	if s.GetTolerates() != 0 || s.GetUnderReplicated() != 4 {
		t.Fatalf("%v", s)
	}
	// A new driver never hears of ranges that nobody leads: it sees the gaps.
	w.moveDriver(1)
	w.node(1).d.SetActive(false, w.now)
	w.node(1).d.SetActive(true, w.now)
	w.run(10 * time.Second)
	s = w.status()
	if p := strings.Join(s.GetProblems(), "; "); !strings.Contains(p, "to no known range") {
		t.Fatalf("problems: %q", p)
	}
}

func TestTheFirstReplyToEveryNodeAsksForAll(t *testing.T) {
	t.Parallel()
	w := grown(t, 8, 5, 3)
	w.moveDriver(2)
	d := w.node(2).d
	for _, n := range w.nodes {
		reply := d.Report(w.now, &metapb.NodeReport{Node: n.desc})
		if !reply.GetWantFull() || len(reply.GetNodes()) != 3 {
			t.Fatalf("%v: %v", n.id, reply)
		}
	}
	for _, n := range w.nodes {
		n.full = true
		w.report(n)
		if reply := d.Report(w.now, &metapb.NodeReport{
			Node: n.desc, Leaders: uint32(d.cluster.nodes[n.id].leads.Len()),
		}); reply.GetWantFull() {
			t.Fatalf("%v is asked again", n.id)
		}
	}
	if got := d.Status(w.now); got.GetRanges() != 6 || got.GetLeaderless() != 0 {
		t.Fatalf("%v", got)
	}
}

func TestOperatorsAndTransfersKeepTheirLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 9, 60)
	w.run(2 * time.Second)
	w.join()
	w.join()
	d := w.node(1).d
	w.runUntil(10*time.Minute, "even", func() bool {
		moves, transfers := 0, 0
		d.cluster.ops.Scan(func(_ uint64, op *operator) bool {
			if op.from != 0 {
				transfers++
			} else {
				moves++
			}
			return true
		})
		if moves > defaultMaxMoves || transfers > defaultMaxTransfers {
			t.Fatalf("%d moves, %d transfers at a time", moves, transfers)
		}
		return w.allHave(3)() && w.even()
	})
}

// Nodes die and return, reports and replies are lost, ranges split, the driver
// moves, all at once. Afterwards everything finds its place and rests.
func TestTurmoilEndsInRest(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		w := grown(t, 100+seed, 12, 5)
		w.loss = 0.1
		next := ids.RangeID(1000)
		var down *simNode
		for range 60 {
			switch w.rng.IntN(4) {
			case 0:
				if down == nil {
					down = w.nodes[w.rng.IntN(len(w.nodes))]
					down.up = false
				}
			case 1:
				if down != nil {
					down.up, down.full, down = true, true, nil
				}
			case 2:
				all := w.ids()
				w.split(all[w.rng.IntN(len(all))], next)
				next++
			}
			if to := w.nodes[w.rng.IntN(len(w.nodes))]; to.up &&
				(!w.node(w.driver).up || w.rng.IntN(5) == 0) {
				w.moveDriver(to.id)
			}
			w.run(time.Duration(w.rng.IntN(30)) * time.Second)
		}
		if down != nil {
			down.up, down.full = true, true
		}
		w.loss = 0
		w.runUntil(20*time.Minute, "three copies everywhere", w.allHave(3))
		w.run(5 * time.Minute)
		s := w.status()
		if len(s.GetProblems()) != 0 || s.GetTolerates() != 1 || s.GetOperators() != 0 ||
			int(s.GetRanges()) != len(w.ranges) {
			w.dump()
			t.Fatalf("seed %d: not at rest: %v", seed, s)
		}
		c := w.node(w.driver).d.cluster
		mean := float64(len(w.ranges)) / float64(len(w.nodes))
		for id, n := range c.nodes {
			if float64(n.leads.Len()) > mean+1 && helps(c, n) {
				t.Errorf("seed %d: %v leads %d, mean %v", seed, id, n.leads.Len(), mean)
			}
		}
		w.quiet(10 * time.Minute)
	}
}

func TestInAClusterOfManyRangesMoreLeadersMoveAtATime(t *testing.T) {
	t.Parallel()
	for _, ranges := range []uint64{600, 20 * rangesPerTransfer} {
		d := activeDriver(t, newMemKV())
		var reports []*metapb.NodeReport
		for n := uint64(1); n <= 3; n++ {
			desc := &metapb.NodeDescriptor{NodeId: n, StoreId: n, Address: "a:1"}
			d.cluster.register(desc, 1)
			reports = append(reports, &metapb.NodeReport{Node: desc, Full: true})
		}
		for i := range ranges { // the first node leads all of them
			f := benchFact(3, i, 1, 1)
			f.LeaderNode = 1
			reports[0].Facts = append(reports[0].Facts, f)
		}
		most := 0
		for now := time.Duration(0); now < time.Minute; now += time.Second {
			for _, r := range reports {
				d.Report(now, r)
				r.Facts, r.Full, r.Leaders = nil, false, uint32(d.cluster.nodes[ids.NodeID(
					r.GetNode().GetNodeId())].leads.Len())
			}
			d.Step(now)
			most = max(most, d.cluster.ops.Len())
		}
		if want := max(defaultMaxTransfers, int(ranges/rangesPerTransfer)); most != want {
			t.Errorf("%d ranges: %d leaders move at a time, want %d", ranges, most, want)
		}
	}
}
