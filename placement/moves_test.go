package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// actor plays the steps of an operator as the leader of a range would carry them out.
type actor struct {
	roles  map[ids.NodeID]metapb.ReplicaRole
	leader ids.NodeID
}

func (a *actor) voters() (all []ids.NodeID) {
	for id, role := range a.roles {
		if role == roleVoter {
			all = append(all, id)
		}
	}
	slices.Sort(all)
	return all
}

// do plays one step, and says what is wrong with it.
func (a *actor) do(s step) error {
	role, there := a.roles[s.node]
	switch s.kind {
	case addLearner:
		if there {
			return nil // finished already
		}
		a.roles[s.node] = roleLearner
	case catchUp:
		if !there {
			return fmt.Errorf("waits for nobody on %v", s.node)
		}
	case promote:
		if !there || role != roleLearner {
			return fmt.Errorf("promotes what is no learner on %v", s.node)
		}
		a.roles[s.node] = roleVoter
	case swap:
		if !there || role != roleLearner || a.roles[s.from] != roleVoter || a.leader == s.from {
			return fmt.Errorf("swaps %v for %v", s.from, s.node)
		}
		a.roles[s.node], a.roles[s.from] = roleVoter, roleLearner
	case demote:
		if role != roleVoter || a.leader == s.node {
			return fmt.Errorf("demotes %v", s.node)
		}
		a.roles[s.node] = roleLearner
	case removeLearner:
		if !there || role != roleLearner {
			return fmt.Errorf("removes what is no learner on %v", s.node)
		}
		delete(a.roles, s.node)
	case transferLeader:
		if !there || role != roleVoter {
			return fmt.Errorf("lets %v lead, which does not vote", s.node)
		}
		a.leader = s.node
	default:
		return fmt.Errorf("a step that does not belong here: %v", s)
	}
	return nil
}

// Whatever the range and the target are: each step can be carried out, no odd number
// of voters becomes even on the way unless there is but one, and in the end the range
// is where it should be.
func TestEveryRelocationCanBeCarriedOutAndPassesNoEvenNumberOfVoters(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 9))
		count := 1 + 2*rng.IntN(3)
		nodes := "ssssssssssss"[:2*count+rng.IntN(2)]
		perm := rng.Perm(len(nodes))
		var replicas []*metapb.Replica
		a := actor{roles: map[ids.NodeID]metapb.ReplicaRole{}}
		for i, n := range perm[:min(len(perm), count+rng.IntN(2))] {
			p := voter(uint64(n+1), uint64(i+1))
			if i >= count {
				p.Role = roleLearner
			}
			replicas = append(replicas, p)
			a.roles[ids.NodeID(n+1)] = p.Role
		}
		a.leader = ids.NodeID(replicas[rng.IntN(count)].GetNodeId())
		c, r := situation(count, nodes, false, uint64(a.leader), replicas...)
		var target []ids.NodeID
		for _, n := range rng.Perm(len(nodes))[:count] {
			target = append(target, ids.NodeID(n+1))
		}
		for _, s := range c.relocation(r, target, target[0]) {
			if err := a.do(s); err != nil {
				t.Fatalf("seed %d: %v to %v: %v", seed, replicas, target, err)
			}
			if n := len(a.voters()); n%2 == 0 && count > 1 {
				t.Fatalf("seed %d: %v to %v: %d voters after %v", seed, replicas, target, n, s)
			}
		}
		want := slices.Clone(target)
		slices.Sort(want)
		if !slices.Equal(a.voters(), want) || len(a.roles) != count || a.leader != target[0] {
			t.Fatalf("seed %d: %v to %v ends with %v led by %v", seed, replicas, target, a.roles,
				a.leader)
		}
	}
}

func TestAQuietStepAllocatesNothing(t *testing.T) {
	d := activeDriver(t, newMemKV())
	var reports []*metapb.NodeReport
	for n := uint64(1); n <= 3; n++ {
		desc := &metapb.NodeDescriptor{NodeId: n, StoreId: n, Address: "a:1"}
		d.cluster.register(desc, 1)
		reports = append(reports, &metapb.NodeReport{Node: desc, Full: true})
	}
	for i := range uint64(999) {
		f := benchFact(3, i, 1, 1)
		reports[i%3].Facts = append(reports[i%3].Facts, f)
		reports[i%3].Leaders++
	}
	now := time.Duration(0)
	for ; now < time.Minute; now += time.Second {
		for _, r := range reports {
			d.Report(now, r)
			r.Facts, r.Full = nil, false
		}
		d.Step(now)
	}
	if n := d.cluster.ops.Len(); n != 0 {
		t.Fatalf("%d operators", n)
	}
	if got := testing.AllocsPerRun(1000, func() { d.Step(now - time.Second) }); got != 0 {
		t.Fatalf("a step at rest allocates %v times", got)
	}
}

func TestAChangeThatDoesNotEndIsTold(t *testing.T) {
	t.Parallel()
	incoming := &metapb.Replica{NodeId: 3, ReplicaId: 3,
		Role: metapb.ReplicaRole_REPLICA_ROLE_VOTER_INCOMING}
	c, r := situation(3, "sss", false, 1, voter(1, 1), voter(2, 2), incoming)
	r.changedAt = c.now
	if got := c.stuckChanges(); len(got) != 0 {
		t.Fatalf("told at once: %q", got)
	}
	c.now += stuckAfter + 5*time.Second
	if got := c.stuckChanges(); len(got) != 1 ||
		got[0] != "r7 has been between two configurations for 1 min 5 s" {
		t.Fatalf("%q", got)
	}
	verify(t, c)
}

// A swap whose halves came about apart is finished all the same, whichever half that is.
func TestASwapIsFinishedFromWhereverItIs(t *testing.T) {
	t.Parallel()
	for _, s := range []struct {
		story    string
		replicas []*metapb.Replica
		kind     metapb.OrderKind
		id, drop uint64
		done     bool
	}{
		{"both to be done", append(voting(1, 3, 2), learner(4, 4)),
			metapb.OrderKind_ORDER_KIND_PROMOTE, 4, 2, false},
		{"the old one votes no more", append(voting(1, 3), learner(2, 2), learner(4, 4)),
			metapb.OrderKind_ORDER_KIND_PROMOTE, 4, 0, false},
		{"the new one votes already", voting(1, 3, 2, 4),
			metapb.OrderKind_ORDER_KIND_DEMOTE, 2, 0, false},
		{"done", append(voting(1, 3, 4), learner(2, 2)), 0, 0, 0, true},
		{"done, and tidied", []*metapb.Replica{voter(1, 1), voter(4, 4)}, 0, 0, 0, true},
	} {
		c, r := situation(3, "ssss", true, 1, s.replicas...)
		st := step{kind: swap, node: 4, from: 2}
		if st.finished(r) != s.done {
			t.Errorf("%s: finished %v", s.story, !s.done)
		}
		if s.done {
			continue
		}
		if o := st.order(c, r, "why"); o.GetKind() != s.kind || o.GetReplicaId() != s.id ||
			o.GetDemoteReplicaId() != s.drop || st.hindrance(c, r) != "" {
			t.Errorf("%s: %v %q", s.story, o, st.hindrance(c, r))
		}
	}
}

// What a driver reads must not undo what it has learned since it asked.
func TestAReadThatWasOvertakenChangesNothing(t *testing.T) {
	t.Parallel()
	c, _ := situation(3, "sss", false, 1, voter(1, 1))
	n := c.nodes[2]
	c.setStanding(n, standingDraining, 20)
	if c.setStanding(n, standingActive, 10); n.standing != standingDraining {
		t.Fatal("an older version was believed")
	}
	d := activeDriver(t, newMemKV())
	d.Pause(true, "eva", func(*metapb.PlacementSettings, error) {})
	if err := d.takeSettings(nil, 0); err != nil || !d.cluster.settings.GetPaused() {
		t.Fatal("an older version was believed")
	}
}

func TestSettingsSurviveRefusalsOfRangeOne(t *testing.T) {
	t.Parallel()
	kv := newMemKV()
	d := activeDriver(t, kv)
	failures := 3
	kv.failing = func() bool { failures--; return failures >= 0 }
	var got *metapb.PlacementSettings
	d.Pause(true, "eva", func(s *metapb.PlacementSettings, err error) {
		if err != nil {
			t.Fatal(err)
		}
		got = s
	})
	for now := time.Duration(0); got == nil && now < time.Minute; now += time.Second {
		d.Step(now)
	}
	if !got.GetPaused() || d.Status(0).GetPausedBy() != "eva" {
		t.Fatalf("%v", got)
	}
	// While it cannot read what people want, a new driver does not drive.
	kv.failing = func() bool { return true }
	next := NewDriver(Config{Self: 2, ClusterID: 7, KV: kv})
	next.SetActive(true, 0)
	if next.Step(time.Second); next.Active() {
		t.Fatal("drives without knowing of the pause")
	}
	kv.failing = nil
	if next.Step(2 * time.Second); !next.Active() || !next.cluster.settings.GetPaused() {
		t.Fatal("does not know of the pause")
	}
}

func TestRulesThatANodeDoesNotUnderstandKeepItFromDriving(t *testing.T) {
	t.Parallel()
	kv := newMemKV()
	bad, err := marshal(&metapb.RuleSet{Version: 5, Rules: []*metapb.Rule{{Name: "x", Replicas: 4}}})
	if err != nil {
		t.Fatal(err)
	}
	kv.CompareAndSwap([]byte(rulesKey), bad, 0, func(bool, error) {})
	d := NewDriver(Config{Self: 1, ClusterID: 7, KV: kv})
	d.SetActive(true, 0)
	if d.Step(time.Second); d.Active() || len(d.Status(0).GetProblems()) != 1 {
		t.Fatalf("drives by other rules: %v", d.Status(0))
	}
	d.SetRules(&adminpb.SetRulesRequest{}, func(_ *adminpb.SetRulesReply, err error) {
		if err == nil {
			t.Fatal("took new ones over those that it does not understand")
		}
	})
}
