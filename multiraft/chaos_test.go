package multiraft

import (
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"testing"
	"testing/cryptotest"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// chaos drives a cluster with seeded accidents: messages lost, doubled and out
// of order, syncs late, nodes crashed, leaders moved, a learner that comes and
// goes. After every apply the state at an index must be the same everywhere,
// across crashes too: an applied entry that a disk lost would come back as
// another one. Reads must see what was applied anywhere before they began.
type chaos struct {
	*cluster
	rng     *rand.Rand
	ranges  []ids.RangeID
	states  map[string]uint64 // range/index → hash
	leaders map[string]ids.ReplicaID
	applied map[ids.RangeID]ids.Index // the highest anywhere
	reads   int
	next    int
	learner ids.ReplicaID // the id that node 4 gets next
	trace   uint64
}

func newChaos(t *testing.T, seed uint64) *chaos {
	c := &chaos{
		cluster: newCluster(t, 4, func(cfg *Config) { cfg.TruncateEntries = 6 }),
		rng:     rand.New(rand.NewPCG(seed, 1)),
		states:  make(map[string]uint64),
		leaders: make(map[string]ids.ReplicaID),
		applied: make(map[ids.RangeID]ids.Index),
		ranges:  []ids.RangeID{3, 4, 6},
		learner: 104,
	}
	c.dead = make(map[ids.ReplicaID]bool)
	for _, id := range c.order {
		c.watch(c.nodes[id])
	}
	for _, r := range c.ranges {
		c.bootstrap(r, 1, 2, 3)
	}
	return c
}

func (c *chaos) watch(n *node) {
	n.onAdd = func(m *machine) {
		m.applied = func() { c.check(m) }
		m.events = func(e string) {
			c.note(e)
			c.checkLeader(m)
		}
	}
	n.onGone = func(r ids.RangeID, next ids.ReplicaID) {
		m := n.machines[r]
		if m == nil || m.g.cfg.Replica >= next {
			return
		}
		n.host.RemoveGroup(r, func() {
			b := n.store.NewBatch()
			defer b.Close()
			if err := n.store.State().DestroyReplica(b, r, nil, nil); err != nil {
				c.t.Fatal(err)
			}
			if err := n.store.CommitNoSync(b); err != nil {
				c.t.Fatal(err)
			}
			if n.machines[r] == m {
				delete(n.machines, r)
			}
		})
	}
}

func (c *chaos) note(e string) {
	h := fnv.New64a()
	fmt.Fprintf(h, "%x %s", c.trace, e)
	c.trace = h.Sum64()
}

func (c *chaos) check(m *machine) {
	key := fmt.Sprint(m.r, "/", m.index)
	if want, ok := c.states[key]; ok && want != m.hash {
		c.t.Fatalf("node %d: state %x at %s, elsewhere %x", m.n.id, m.hash, key, want)
	}
	c.states[key] = m.hash
	c.applied[m.r] = max(c.applied[m.r], m.index)
}

func (c *chaos) checkLeader(m *machine) {
	if !m.ts.IsLeader {
		return
	}
	key := fmt.Sprint(m.r, "/", m.ts.Term)
	if l, ok := c.leaders[key]; ok && l != m.ts.Self {
		c.t.Fatalf("%d and %d lead in one term: %s", l, m.ts.Self, key)
	}
	c.leaders[key] = m.ts.Self
}

// chaosRead checks that a read is no older than what was applied when it began.
type chaosRead struct {
	c     *chaos
	m     *machine
	floor ids.Index
	done  bool
}

func (r *chaosRead) ReadReady(err error) {
	if r.done {
		r.c.t.Fatal("a waiter is called twice")
	}
	r.done = true
	if err != nil {
		return
	}
	r.c.reads++
	if r.m.index < r.floor {
		r.c.t.Fatalf("stale read at node %d range %d: %d, %d was applied before",
			r.m.n.id, r.m.r, r.m.index, r.floor)
	}
}

func (c *chaos) step() {
	n := c.nodes[c.order[c.rng.IntN(len(c.order))]]
	if n.down {
		if c.rng.IntN(30) == 0 {
			n.restart()
		}
		return
	}
	shard := c.rng.IntN(n.host.Shards())
	switch p := c.rng.IntN(1000); {
	case p < 400:
		n.host.Poll(shard)
	case p < 550:
		n.host.CompleteSync(shard)
	case p < 850:
		c.deliverSome()
	case p < 862:
		n.host.Tick()
	case p < 900:
		if len(n.jobs) > 0 {
			job := n.jobs[0]
			n.jobs = n.jobs[1:]
			job()
		}
	case p < 996:
		if m := n.machines[c.ranges[c.rng.IntN(len(c.ranges))]]; m != nil {
			c.act(m)
		}
	case p < 997:
		n.crash()
	case p < 998:
		n.host.Unreachable(ids.NodeID(1 + c.rng.IntN(4)))
	}
}

func (c *chaos) deliverSome() {
	for range 4 {
		if len(c.wire) == 0 {
			return
		}
		i := 0
		if c.rng.IntN(10) == 0 {
			i = c.rng.IntN(len(c.wire))
		}
		p := c.wire[i]
		if c.rng.IntN(20) > 0 || p.snapshot != nil { // sometimes it stays: a duplicate
			c.wire = append(c.wire[:i], c.wire[i+1:]...)
		}
		if c.rng.IntN(12) > 0 || p.snapshot != nil { // sometimes it is lost
			c.deliverPacket(p)
		}
	}
}

// act is what the users of a replica do.
func (c *chaos) act(m *machine) {
	what := c.rng.IntN(40)
	pick := ids.ReplicaID(1 + c.rng.IntN(3))
	task := func() {
		switch {
		case what < 20:
			c.next++
			m.pending = append(m.pending, fmt.Append(nil, m.r, "-", c.next))
		case what < 34:
			m.g.Read(&chaosRead{c: c, m: m, floor: c.applied[m.r]})
		case what < 35:
			m.g.TransferLeader(pick)
		case what < 36:
			m.g.Campaign()
		case m.status().IsLeader:
			c.changeLearner(m)
		}
	}
	if err := m.g.Enqueue(TaskFunc(task), 0); err != nil {
		c.note(err.Error())
	}
}

// changeLearner adds a learner on node 4, or removes the one that is there.
func (c *chaos) changeLearner(m *machine) {
	cc := &raftpb.ConfChangeV2{Context: []byte("learner")}
	if len(m.conf.Learners) > 0 {
		cc.Changes = []*raftpb.ConfChangeSingle{{
			Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(m.conf.Learners[0])}}
		c.dead[ids.ReplicaID(m.conf.Learners[0])] = true
	} else {
		cc.Changes = []*raftpb.ConfChangeSingle{{
			Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(uint64(c.learner))}}
		c.learner += 100
	}
	if err := m.g.ProposeConfChange(cc); err != nil {
		c.note(err.Error())
	}
}

func (c *chaos) heal() {
	for _, id := range c.order {
		if n := c.nodes[id]; n.down {
			n.restart()
		}
	}
	c.tick(80)
	for _, r := range c.ranges {
		led := false
		for _, id := range c.order[:3] {
			if m := c.nodes[id].machines[r]; m.status().IsLeader {
				led = true
				m.put(fmt.Sprint("healed", r))
			}
		}
		if !led {
			c.t.Fatalf("range %d has no leader after healing", r)
		}
		c.tick(3)
		c.agree(r, 1, 2, 3)
	}
}

func (c *chaos) run(steps int) (trace uint64, summary string) {
	for range steps {
		c.step()
	}
	c.heal()
	var sum Metrics
	for _, id := range c.order {
		m := c.nodes[id].host.Metrics()
		sum.SnapshotsInstalled += m.SnapshotsInstalled
		sum.Elections += m.Elections
		sum.Truncations += m.Truncations
		sum.HaltedReplicas += m.HaltedReplicas
	}
	if sum.HaltedReplicas != 0 {
		c.t.Fatalf("%d replicas halted", sum.HaltedReplicas)
	}
	return c.trace, fmt.Sprintf("reads %d, states %d, terms %d, at the end: snapshots %d, "+
		"elections %d, cuts %d", c.reads, len(c.states), len(c.leaders),
		sum.SnapshotsInstalled, sum.Elections, sum.Truncations)
}

var chaosSeeds = flag.Int("chaos-seeds", 8, "seeds of the chaos test")

func TestChaosKeepsStatesEqualAndReadsFresh(t *testing.T) {
	seeds, steps := uint64(*chaosSeeds), 20_000
	if testing.Short() {
		seeds = min(seeds, 2)
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, seed)
			_, summary := newChaos(t, seed).run(steps)
			t.Log(summary)
		})
	}
}

func TestASeedGivesTheSameTraceTwice(t *testing.T) {
	var traces []uint64
	for range 2 {
		t.Run("seed=42", func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, 42)
			trace, _ := newChaos(t, 42).run(3000)
			traces = append(traces, trace)
		})
	}
	if len(traces) == 2 && traces[0] != traces[1] {
		t.Fatalf("traces %x differ", traces)
	}
}
