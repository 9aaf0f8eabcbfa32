package placement

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// situation builds a cluster value: nodes by phase letter (s settled, l live,
// q silent, d dead, f full, x stopping, D drained, L decommissioned, G gone), and one
// range with the given replicas.
func situation(factor int, nodes string, caughtUp bool, leader uint64,
	replicas ...*metapb.Replica) (*cluster, *rangeState) {
	c := newCluster(Config{ReplicationFactor: factor}.withDefaults(), 0)
	c.now = 10 * time.Minute
	for i, letter := range nodes {
		id := ids.NodeID(i + 1)
		n := c.node(id)
		c.register(&metapb.NodeDescriptor{NodeId: uint64(id), StoreId: uint64(id)}, 1)
		n.reported, n.full = true, true
		switch letter {
		case 's':
			n.liveSince = 0
		case 'q':
			n.lastReport = c.now - 10*time.Second
		case 'd':
			n.lastReport = 0
		case 'f':
			n.crowded = true
		case 'x':
			n.draining = true
		case 'D':
			c.setStanding(n, standingDraining, 1)
		case 'L':
			c.setStanding(n, standingDecommissioning, 1)
		case 'G':
			c.setStanding(n, standingDecommissioned, 1)
		}
		c.rephase(n)
	}
	c.sweepSome()
	f := &metapb.RangeFact{LeaderNode: leader, Term: 1, Descriptor_: &metapb.RangeDescriptor{
		RangeId: 7, Start: []byte{0x20}, End: []byte{0x21}, Generation: 1, Replicas: replicas}}
	for _, p := range replicas {
		if caughtUp && p.GetRole() == roleLearner {
			f.CaughtUp = append(f.CaughtUp, p.GetReplicaId())
		}
	}
	return c, c.learn(ids.NodeID(leader), f)
}

// story is a situation and the steps that it calls for.
type story struct {
	story    string
	factor   int
	nodes    string
	leader   uint64
	replicas []*metapb.Replica
	want     string
}

func stories() []story {
	v := func(n uint64) *metapb.Replica { return voter(n, n) }
	l := func(n uint64) *metapb.Replica { return learner(n, n) }
	incoming := &metapb.Replica{NodeId: 3, ReplicaId: 3,
		Role: metapb.ReplicaRole_REPLICA_ROLE_VOTER_INCOMING}
	type replicas = []*metapb.Replica
	return []story{
		{"alone", 3, "s", 1, replicas{v(1)}, ""},
		{"a second node gains nothing", 3, "ss", 1, replicas{v(1)}, ""},
		{"the third node makes three", 3, "sss", 1, replicas{v(1)},
			"add 2 add 3 wait 2 wait 3 vote 2 vote 3"},
		{"a full node is no target", 3, "ssf", 1, replicas{v(1)}, ""},
		{"nor is a draining one", 3, "ssx", 1, replicas{v(1)}, ""},
		{"nor a silent one", 3, "ssq", 1, replicas{v(1)}, ""},
		{"the emptiest nodes are chosen", 3, "ssss", 2, replicas{v(2)},
			"add 1 add 3 wait 1 wait 3 vote 1 vote 3"},
		{"learners left by another driver are used", 3, "ssss", 1, replicas{v(1), l(4)},
			"add 4 add 2 wait 4 wait 2 vote 4 vote 2"},
		{"a pair goes on to three", 3, "sss", 1, replicas{v(1), v(2), l(3)},
			"add 3 wait 3 vote 3"},
		{"a pair waits while the third is silent", 3, "ssq", 1, replicas{v(1), v(2)}, ""},
		{"a pair with no third goes back to one", 3, "ss", 1, replicas{v(1), v(2)},
			"unvote 2 remove 2"},
		{"a pair does not lose its leader", 3, "ss", 2, replicas{v(1), v(2)},
			"unvote 1 remove 1"},
		{"a pair gives up a dead third", 3, "ssd", 1, replicas{v(1), v(2)},
			"unvote 2 remove 2"},
		{"three are enough", 3, "ssss", 1, replicas{v(1), v(2), v(3)}, ""},
		{"a dead node is replaced", 3, "sdss", 1, replicas{v(1), v(2), v(3)},
			"add 4 wait 4 swap 4 for 2 remove 2"},
		{"a silent one is not", 3, "sqss", 1, replicas{v(1), v(2), v(3)}, ""},
		{"no spare, nothing", 3, "sds", 1, replicas{v(1), v(2), v(3)}, ""},
		{"four come down to three", 3, "ssss", 1, replicas{v(1), v(2), v(3), v(4)},
			"unvote 4 remove 4"},
		{"of four the dead one goes", 3, "sdss", 1, replicas{v(1), v(2), v(3), v(4)},
			"unvote 2 remove 2"},
		{"of four the silent one goes", 3, "ssqs", 1, replicas{v(1), v(2), v(3), v(4)},
			"unvote 3 remove 3"},
		{"a learner too many goes", 3, "ssss", 1, replicas{v(1), v(2), v(3), l(4)}, "remove 4"},
		{"also from a dead node", 3, "sssd", 1, replicas{v(1), v(2), v(3), l(4)}, "remove 4"},
		{"a demoted replica is removed", 3, "sdss", 1, replicas{v(1), l(2), v(3), v(4)},
			"remove 2"},
		{"a learner waits for the third node", 3, "ssq", 1, replicas{v(1), l(2)}, ""},
		{"and goes when there is none", 3, "ssd", 1, replicas{v(1), l(2)}, "remove 2"},
		{"nobody to order", 3, "qss", 1, replicas{v(1), v(2)}, ""},
		{"a joint configuration is left to its leader", 3, "ssss", 1,
			replicas{v(1), v(2), incoming}, ""},
		{"five of five nodes", 5, "sssss", 1, replicas{v(1), v(2), v(3)},
			"add 4 add 5 wait 4 wait 5 vote 4 vote 5"},
		{"four nodes hold three", 5, "ssss", 1, replicas{v(1), v(2), v(3)}, ""},
		{"an even factor counts as the odd one below", 4, "ssss", 1,
			replicas{v(1), v(2), v(3)}, ""},
		{"a factor of one needs one", 1, "sss", 1, replicas{v(1)}, ""},
		{"a drained node keeps its copies", 3, "sDss", 1, replicas{v(1), v(2), v(3)}, ""},
		{"and gets none if there is another node", 3, "ssDs", 1, replicas{v(1)},
			"add 2 add 4 wait 2 wait 4 vote 2 vote 4"},
		{"copies leave a node for good", 3, "sLss", 1, replicas{v(1), v(2), v(3)},
			"add 4 wait 4 swap 4 for 2 remove 2"},
		{"its leader hands over before", 3, "Lsss", 1, replicas{v(1), v(2), v(3)},
			"add 4 wait 4 lead 2 swap 4 for 1 remove 1"},
		{"of two that leave, not the leader's first", 3, "LLssss", 1,
			replicas{v(1), v(2), v(3)}, "add 4 wait 4 swap 4 for 2 remove 2"},
		{"nobody can lead instead", 3, "Lqqs", 1, replicas{v(1), v(2), v(3)}, ""},
		{"a single copy leaves through two", 1, "Ls", 1, replicas{v(1)},
			"add 2 wait 2 vote 2 lead 2 unvote 1 remove 1"},
		{"with nowhere to go it stays", 3, "sLs", 1, replicas{v(1), v(2), v(3)}, ""},
		{"a learner of a former driver is used to leave", 3, "sLsss", 1,
			replicas{v(1), v(2), v(3), l(5)}, "add 5 wait 5 swap 5 for 2 remove 2"},
		{"what is lost counts before what leaves", 3, "sLdss", 1, replicas{v(1), v(2), v(3)},
			"add 4 wait 4 swap 4 for 3 remove 3"},
		{"a decommissioned node that still has a copy lost it", 3, "sGss", 1,
			replicas{v(1), v(2), v(3)}, "add 4 wait 4 swap 4 for 2 remove 2"},
		{"five come down to three at once", 3, "sssss", 1,
			replicas{v(1), v(2), v(3), v(4), v(5)}, "unvote 5 unvote 4 remove 5 remove 4"},
		{"a lower factor sheds copies", 1, "sss", 2, replicas{v(1), v(2), v(3)},
			"unvote 3 unvote 1 remove 3 remove 1"},
	}
}

func TestWhatARangeNeedsFollowsFromItsStateAlone(t *testing.T) {
	t.Parallel()
	for _, s := range stories() {
		c, r := situation(s.factor, s.nodes, false, s.leader, s.replicas...)
		before := fmt.Sprint(*r, c.attention.Len(), c.ops.Len())
		got := ""
		if op := check(c, r).op; op != nil {
			got = brief(op)
			if op.reason == "" || op.String() == "" {
				t.Errorf("%s: no reason", s.story)
			}
		}
		if got != s.want {
			t.Errorf("%s: %q, want %q", s.story, got, s.want)
		}
		if after := fmt.Sprint(*r, c.attention.Len(), c.ops.Len()); after != before {
			t.Errorf("%s: the checker changed what it looks at", s.story)
		}
		if got != "" && r.health.need == needNothing {
			t.Errorf("%s: needs nothing, yet something is to be done", s.story)
		}
		verify(t, c)
	}
}

// brief shows the steps of an operator in few words.
func brief(op *operator) string {
	var all []string
	for _, s := range op.steps {
		text := fmt.Sprintf("%s %d", []string{"add", "wait", "vote", "unvote", "remove", "lead",
			"swap", "split", "merge"}[s.kind], s.node)
		if s.of != 0 {
			text = fmt.Sprintf("%v:%s", s.of, text)
		}
		if s.from != 0 {
			text += fmt.Sprintf(" for %d", s.from)
		}
		all = append(all, text)
	}
	return strings.Join(all, " ")
}

// Bug class: a change of membership drops the learner flag, and a learner
// counts in the quorum. Every role is compared with a count over all subsets of
// failed nodes.
func TestVotersAndQuorumAgreeWithANaiveModel(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(11, 5))
	for range 500 {
		var replicas []*metapb.Replica
		nodes := ""
		for i := range uint64(1 + rng.IntN(6)) {
			role := metapb.ReplicaRole(rng.IntN(5))
			if i == 0 {
				role = roleVoter
			}
			replicas = append(replicas,
				&metapb.Replica{NodeId: i + 1, ReplicaId: i + 1, Role: role})
			nodes += string("sqd"[rng.IntN(3)])
		}
		c, r := situation(3, nodes, false, 1, replicas...)
		want := naiveTolerance(replicas, nodes)
		if got := int(r.health.tolerates); got != want {
			t.Fatalf("%v on %q: tolerates %d, want %d", replicas, nodes, got, want)
		}
		verify(t, c)
	}
}

// naiveTolerance tries all sets of further failures.
func naiveTolerance(replicas []*metapb.Replica, nodes string) int {
	serves := func(failed int) bool {
		for _, half := range [][]metapb.ReplicaRole{{0, 2}, {0, 3, 4}} {
			all, up := 0, 0
			for i, p := range replicas {
				for _, role := range half {
					if p.GetRole() == role {
						all++
						if nodes[i] == 's' && failed&(1<<i) == 0 {
							up++
						}
					}
				}
			}
			if 2*up <= all {
				return false
			}
		}
		return true
	}
	if !serves(0) {
		return 0
	}
	least := len(replicas)
	for failed := range 1 << len(replicas) {
		count := 0
		for i := range replicas {
			count += failed >> i & 1
		}
		if !serves(failed) {
			least = min(least, count-1)
		}
	}
	return least
}

func TestOrdersGoOutAgainOnlyAfterAWhile(t *testing.T) {
	t.Parallel()
	c, r := situation(3, "sss", false, 1, voter(1, 1))
	op := check(c, r).op
	first := op.orderFor(c, 1)
	if first.GetKind() != metapb.OrderKind_ORDER_KIND_ADD_LEARNER || first.GetNodeId() != 2 ||
		first.GetGeneration() != 1 || first.GetReason() == "" {
		t.Fatalf("%v", first)
	}
	if again := op.orderFor(c, 1); again != nil {
		t.Fatalf("sent twice: %v", again)
	}
	if other := op.orderFor(c, 2); other != nil {
		t.Fatalf("sent to a follower: %v", other)
	}
	c.now += resendAfter
	if op.orderFor(c, 1) == nil {
		t.Fatal("not sent again")
	}
	// A new leader gets it at once.
	c.learn(2, &metapb.RangeFact{LeaderNode: 2, Term: 2, Descriptor_: r.desc})
	if op.orderFor(c, 2) == nil {
		t.Fatal("not sent to the new leader")
	}
}

// Bug classes: leadership moves while a snapshot flows, or to a replica that
// does not hold the log.
func TestLeadershipStaysWhileALearnerNeedsTheLog(t *testing.T) {
	t.Parallel()
	for _, s := range []struct {
		story    string
		caughtUp bool
		silent   []uint64
		want     int
	}{
		{"the learner waits for a snapshot", false, nil, 0},
		{"the learner has caught up", true, nil, 1},
		{"the taker does not answer its leader", true, []uint64{2}, 0},
	} {
		c, r := situation(3, "sss", s.caughtUp, 1, voter(1, 1), voter(2, 2), learner(3, 3))
		r.silent = s.silent
		c.nodes[1].pending.leaders = 5
		ops, _ := spreadLeaders(c, 8)
		if len(ops) != s.want {
			t.Errorf("%s: %d transfers, want %d", s.story, len(ops), s.want)
		}
	}
}

func TestTheSpreadOfLeadersEndsEvenWhateverTheStart(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 6))
		nodes := 3 + rng.IntN(5)
		letters := ""
		for range nodes {
			letters += "s"
		}
		c, _ := situation(3, letters, false, 1, voter(1, 1), voter(2, 2), voter(3, 3))
		ranges := 1 + rng.IntN(60)
		for i := range ranges {
			var replicas []*metapb.Replica
			for _, n := range rng.Perm(nodes)[:3] {
				replicas = append(replicas, voter(uint64(n+1), uint64(n+1)))
			}
			c.learn(1, &metapb.RangeFact{LeaderNode: replicas[rng.IntN(3)%(1+i%3)].GetNodeId(),
				Term: 1, Descriptor_: &metapb.RangeDescriptor{RangeId: uint64(100 + i),
					Start: []byte{0x22, byte(i)}, End: []byte{0x22, byte(i + 1)}, Generation: 1,
					Replicas: replicas}})
		}
		moved := 0
		for {
			c.influence()
			ops, _ := spreadLeaders(c, 8)
			if len(ops) == 0 {
				break
			}
			for _, op := range ops {
				r := c.dir.byID[op.rng]
				c.learn(op.steps[0].node, &metapb.RangeFact{LeaderNode: uint64(op.steps[0].node),
					Term: uint64(r.term) + 1, Descriptor_: r.desc})
			}
			if moved += len(ops); moved > 10*ranges {
				t.Fatalf("seed %d: %d moves of %d ranges", seed, moved, ranges)
			}
		}
		mean := float64(ranges+1) / float64(nodes)
		for id, n := range c.nodes {
			if got := float64(n.leads.Len()); got > mean+max(1, 0.05*mean) && helps(c, n) {
				t.Errorf("seed %d: %v leads %v of mean %v", seed, id, got, mean)
			}
		}
	}
}

// helps says whether any transfer away from n would make the spread more even.
func helps(c *cluster, n *node) (could bool) {
	n.leads.Scan(func(id ids.RangeID) bool {
		for _, p := range c.dir.byID[id].desc.GetReplicas() {
			could = could || n.leads.Len()-c.nodes[ids.NodeID(p.GetNodeId())].leads.Len() >= 2
		}
		return true
	})
	return could
}
