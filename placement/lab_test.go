package placement

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// lab is a cluster value in virtual time whose ranges do what the schedulers plan:
// the world that they need to be seen at work, and no more.
type lab struct {
	t      testing.TB
	rng    *rand.Rand
	c      *cluster
	ranges []*labRange
	byID   map[ids.RangeID]*labRange
	limit  int     // operators that change replicas at a time
	noise  float64 // of what leaders tell of their load, as a part of it

	moves, transfers int
	moved            int64 // bytes of copies that went to another node
}

// labRange is a range as it really is. Its leader measures the load from nothing,
// with a memory of ten seconds, and tells of it when it has changed by a quarter.
type labRange struct {
	desc   *metapb.RangeDescriptor
	leader ids.NodeID
	term   uint64
	load   load
	began  time.Duration // of measuring
	told   int64
}

const (
	labTick      = 500 * time.Millisecond
	labTransfer  = time.Second
	labMove      = 3 * time.Second
	labTransfers = 8
	gib          = 1 << 30
	mib          = 1 << 20
)

// newLab returns nodes that have been there for long. Each locality makes one.
func newLab(t testing.TB, seed uint64, nodes int, localities ...[]string) *lab {
	t.Helper()
	t.Logf("seed %d", seed)
	l := &lab{
		t: t, rng: rand.New(rand.NewPCG(seed, 3)), limit: 8,
		c:    newCluster(Config{}.withDefaults(), 0),
		byID: make(map[ids.RangeID]*labRange),
	}
	l.c.now = 10 * time.Minute
	for i := range nodes {
		var at []string
		if i < len(localities) {
			at = localities[i]
		}
		l.join(at)
	}
	return l
}

// join adds a node that may lead and hold at once.
func (l *lab) join(locality []string) *node {
	id := uint64(len(l.c.nodes) + 1)
	d := &metapb.NodeDescriptor{NodeId: id, StoreId: id, Address: "a:1", Locality: locality}
	l.c.register(d, 1)
	n := l.c.node(ids.NodeID(id))
	n.disk, n.diskFree = 1000*gib, 900*gib
	n.reported, n.full, n.wantFull, n.liveSince = true, true, false, 0
	l.hear(n)
	return n
}

func (l *lab) hear(n *node) {
	l.c.heard(n, &metapb.NodeReport{Node: n.desc, DiskBytes: n.disk, DiskFreeBytes: n.diskFree,
		Draining: n.draining, UptimeSeconds: l.c.now.Seconds()})
}

// rule sets the rules.
func (l *lab) rule(all ...*metapb.Rule) {
	l.t.Helper()
	set, faults := rules.New(&metapb.RuleSet{Version: 1, Rules: all})
	if len(faults) > 0 {
		l.t.Fatal(faults)
	}
	l.c.setRules(set)
	for range 100 {
		l.c.sweepSome()
	}
}

// add makes a range with voters on the given nodes, led by the first.
func (l *lab) add(what load, nodes ...uint64) *labRange {
	i := len(l.ranges)
	key := func(n int) []byte { return []byte{0x20, byte(n >> 16), byte(n >> 8), byte(n)} }
	r := &labRange{
		desc: &metapb.RangeDescriptor{RangeId: uint64(i + 2), Start: key(i), End: key(i + 1),
			Generation: 1, NextReplicaId: 100},
		leader: ids.NodeID(nodes[0]), term: 1, load: what, began: -time.Hour,
	}
	for j, n := range nodes {
		r.desc.Replicas = append(r.desc.Replicas, voter(n, uint64(j+1)))
	}
	l.ranges = append(l.ranges, r)
	l.byID[ids.RangeID(r.desc.GetRangeId())] = r
	l.tell(r)
	return r
}

// addMany spreads ranges over the first nodes: range i on i, i+1 and i+2.
func (l *lab) addMany(count, nodes int, what func(i int) load) {
	for i := range count {
		at := func(j int) uint64 { return uint64((i+j)%nodes + 1) }
		l.add(what(i), at(0), at(1), at(2))
	}
}

func (l *lab) measured(r *labRange) load {
	part := 1 - math.Exp(-(l.c.now-r.began).Seconds()/10)
	if l.noise > 0 {
		part *= 1 + l.noise*(2*l.rng.Float64()-1)
	}
	of := func(v int64) int64 { return int64(float64(v) * part) }
	m := r.load
	m.cpu, m.writeBytes, m.readBytes = of(m.cpu), of(m.writeBytes), of(m.readBytes)
	return m
}

func (l *lab) tell(r *labRange) {
	m := l.measured(r)
	r.told = m.cpu + m.writeBytes + m.readBytes
	l.c.learn(r.leader, &metapb.RangeFact{
		Descriptor_: r.desc, LeaderNode: uint64(r.leader), Term: r.term,
		Stats:              &metapb.RangeStats{ValueBytes: m.bytes},
		CpuMicrosPerSecond: uint64(m.cpu), WriteBytesPerSecond: uint64(m.writeBytes),
		ReadBytesPerSecond: uint64(m.readBytes),
	})
}

// run lets time pass.
func (l *lab) run(d time.Duration) {
	l.t.Helper()
	for end := l.c.now + d; l.c.now < end; {
		l.c.advanceTo(l.c.now + labTick)
		for _, id := range l.c.order {
			if l.c.now%time.Second == 0 {
				l.hear(l.c.nodes[id])
			}
		}
		for _, r := range l.ranges {
			if l.c.now%time.Second == 0 && r.load.led() != (load{}) {
				m := l.measured(r)
				now := m.cpu + m.writeBytes + m.readBytes
				if now-r.told > r.told/4 || r.told-now > r.told/4 {
					l.tell(r)
				}
			}
		}
		l.finish()
		l.plan()
	}
}

func (l *lab) running() (transfers, moves int) {
	l.c.ops.Scan(func(_ uint64, op *operator) bool {
		if op.from != 0 {
			transfers++
		} else {
			moves++
		}
		return true
	})
	return transfers, moves
}

func (l *lab) plan() {
	l.t.Helper()
	transfers, moves := l.running()
	l.c.reviewSome()
	l.c.influence()
	ops, _ := l.c.schedule(budget{labTransfers - transfers, l.limit - moves, l.limit})
	for _, op := range ops {
		if op.reason == "" || l.c.busy(op.rng) {
			l.t.Fatalf("planned: %v", op)
		}
		l.c.addOperator(op)
		l.count(op)
	}
}

func (l *lab) count(op *operator) {
	for _, s := range op.steps {
		switch s.kind {
		case addLearner:
			l.moves++
			l.moved += l.byID[op.rng].load.bytes
		case transferLeader:
			l.transfers++
		}
	}
}

// finish lets the operators that have run for long enough take effect.
func (l *lab) finish() {
	var due []*operator
	l.c.ops.Scan(func(_ uint64, op *operator) bool {
		took := l.c.now - op.created
		if op.from != 0 && took >= labTransfer || took >= labMove {
			due = append(due, op)
		}
		return true
	})
	for _, op := range due {
		r := l.byID[op.rng]
		for _, s := range op.steps {
			l.obey(r, s)
		}
		l.tell(r)
		if result, why := op.advance(l.c); result != succeeded {
			l.t.Fatalf("%v: %v %s", op, result, why)
		}
		l.c.removeOperator(op)
		if op.from != 0 || op.kind == kindBytes || op.kind == kindHot {
			l.c.giveRest(l.c.dir.byID[op.rng], restAfter)
		}
		l.c.review(l.c.dir.byID[op.rng])
		l.c.unbalanced = true
	}
}

// obey does one step to the range as it really is.
func (l *lab) obey(r *labRange, s step) {
	if s.kind == transferLeader {
		r.leader, r.began = s.node, l.c.now
		r.term++
		return
	}
	next := &metapb.RangeDescriptor{RangeId: r.desc.RangeId, Start: r.desc.Start, End: r.desc.End,
		Generation: r.desc.Generation + 1, NextReplicaId: r.desc.NextReplicaId}
	for _, p := range r.desc.Replicas {
		id := ids.NodeID(p.NodeId)
		role := p.Role
		switch {
		case s.kind == removeLearner && id == s.node:
			continue
		case (s.kind == promote || s.kind == swap) && id == s.node:
			role = roleVoter
		case s.kind == demote && id == s.node, s.kind == swap && id == s.from:
			role = roleLearner
			if r.leader == id {
				l.t.Fatalf("r%d: its leader loses its vote", r.desc.RangeId)
			}
		}
		next.Replicas = append(next.Replicas,
			&metapb.Replica{NodeId: p.NodeId, ReplicaId: p.ReplicaId, Role: role})
	}
	if s.kind == addLearner {
		next.Replicas = append(next.Replicas, learner(uint64(s.node), next.NextReplicaId))
		next.NextReplicaId++
	}
	r.desc = next
}

// rests fails if anything is planned for a long time.
func (l *lab) rests(d time.Duration) {
	l.t.Helper()
	moves, transfers := l.moves, l.transfers
	l.run(d)
	if l.moves != moves || l.transfers != transfers {
		l.dump()
		l.t.Fatalf("%d copies and %d leaders moved in a cluster at rest", l.moves-moves,
			l.transfers-transfers)
	}
}

func (l *lab) dump() {
	for _, id := range l.c.order {
		n := l.c.nodes[id]
		l.t.Logf("%v leads %d holds %d %s cpu %d ms writes %s", id, n.leads.Len(), n.holds.Len(),
			size(n.load.bytes), n.load.cpu/1000, size(n.load.applied))
	}
	l.c.ops.Scan(func(_ uint64, op *operator) bool {
		l.t.Logf("running at %d: %v", op.at, op)
		return true
	})
}

// within fails if a node's measure is farther from the mean than a part of it, and
// than floor.
func (l *lab) within(what string, part, floor float64, measure func(*node) float64) {
	l.t.Helper()
	sum := 0.0
	for _, n := range l.c.nodes {
		sum += measure(n)
	}
	mean := sum / float64(len(l.c.nodes))
	failed := false
	for id, n := range l.c.nodes {
		if off := math.Abs(measure(n) - mean); off > max(part*mean, floor) {
			failed = true
			l.t.Errorf("%v: %s is %.0f, the mean %.0f", id, what, measure(n), mean)
		}
	}
	if failed {
		l.dump()
	}
}

func leadsOf(n *node) float64  { return float64(n.leads.Len()) }
func copiesOf(n *node) float64 { return float64(n.holds.Len()) }
func bytesOf(n *node) float64  { return float64(n.load.bytes) }
func cpuOf(n *node) float64    { return float64(n.load.cpu) }

// fewestMoves is a bound below which no way to even out the bytes can come: what
// each emptier node lacks, carried by the largest ranges there are.
func (l *lab) fewestMoves() (fewest int) {
	sum := 0.0
	for _, n := range l.c.nodes {
		sum += bytesOf(n)
	}
	var sizes []float64
	for _, r := range l.ranges {
		sizes = append(sizes, float64(r.load.bytes))
	}
	slices.Sort(sizes)
	for _, n := range l.c.nodes {
		lacks := sum/float64(len(l.c.nodes)) - bytesOf(n)
		for _, size := range slices.Backward(sizes) {
			if lacks <= 0 {
				break
			}
			lacks -= size
			fewest++
		}
	}
	return fewest
}
