package placement

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func cold(int) load { return load{bytes: mib} }

// A tenant's ranges were all led by one node. Within half a minute every node bears
// its part, and leads as many ranges as before.
func TestAHotTenantSpreadsWithinHalfAMinute(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{3, 5} {
		l := newLab(t, 1, nodes)
		l.addMany(90, nodes, cold)
		l.run(20 * time.Second)
		for i, r := range l.ranges {
			if r.leader == 1 && i/nodes%2 == 0 {
				r.load.cpu = 100_000
				l.tell(r)
			}
		}
		total := cpuOf(l.c.nodes[1])
		if total < 500_000 {
			t.Fatalf("nothing is hot: %v", total)
		}
		l.run(30 * time.Second)
		l.within("leaders", 0.10, 1.01, leadsOf)
		for id, n := range l.c.nodes {
			if n.load.cpu > int64(total)*6/10 {
				l.dump()
				t.Errorf("%d nodes: %v still bears %d of %v", nodes, id, n.load.cpu, total)
			}
		}
		l.run(2 * time.Minute)
		mean := total / float64(nodes)
		for id, n := range l.c.nodes {
			if bears := cpuOf(n); bears > mean*1.2+110_000 {
				l.dump()
				t.Errorf("%d nodes: %v bears %v of %v", nodes, id, bears, total)
			}
		}
		l.rests(2 * time.Hour)
	}
}

// The new leader of a range measures from nothing. If that were believed its node
// would look idle and draw the next range, and the next.
func TestALeaderThatMeasuresSinceShortlyDrawsNoMore(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2, 3)
	l.addMany(60, 3, cold)
	for i := range 6 {
		l.ranges[3*i].load.cpu = 80_000 // led by node 1
		l.tell(l.ranges[3*i])
	}
	before := l.transfers
	l.run(3 * time.Minute)
	// Four of the six have to go, each perhaps in exchange for a cold one.
	if got := l.transfers - before; got < 3 || got > 8 {
		l.dump()
		t.Fatalf("%d transfers", got)
	}
	l.rests(time.Hour)
}

func TestLoadThatStaysTheSameCountsOnceItIsMeasured(t *testing.T) {
	t.Parallel()
	c, r := situation(3, "sss", true, 1, voter(1, 1), voter(2, 2), voter(3, 3))
	fact := func(leader, term, cpu uint64) {
		c.learn(ids.NodeID(leader), &metapb.RangeFact{Descriptor_: r.desc, LeaderNode: leader,
			Term: term, CpuMicrosPerSecond: cpu})
	}
	fact(1, 1, 500_000)
	fact(2, 2, 10)
	if got := c.nodes[2].load.cpu; got != 500_000 || c.nodes[1].load.cpu != 0 {
		t.Fatalf("after the transfer n2 counts with %d", got)
	}
	c.now += meterSettles / 2
	fact(2, 2, 300_000)
	c.settle()
	if got := c.nodes[2].load.cpu; got != 500_000 {
		t.Fatalf("half-way n2 counts with %d", got)
	}
	c.now += meterSettles
	c.settle()
	if got := c.nodes[2].load.cpu; got != 300_000 {
		t.Fatalf("in the end n2 counts with %d", got)
	}
	if len(c.sched.settling) != 0 || len(c.sched.settles) != 0 {
		t.Fatal("something is remembered for ever")
	}
	verifyLoads(t, c)
}

// Facts that are each a quarter off must move nothing, for hours.
func TestNoiseInTheLoadMovesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3, 5)
	l.addMany(100, 5, func(int) load {
		return load{bytes: mib, cpu: 30_000, writeBytes: 1 * mib, readBytes: 2 * mib}
	})
	l.noise = 0.25
	l.run(time.Minute)
	l.rests(30 * time.Minute)
}

// Load that one node bears for a second or two is no reason to move anything.
func TestAShortBurstMovesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, 4, 3)
	l.addMany(30, 3, cold)
	l.run(10 * time.Second)
	for range 20 {
		r := l.ranges[0]
		r.load.cpu = 300_000
		l.tell(r)
		l.run(time.Second)
		r.load.cpu = 0
		l.tell(r)
		l.run(10 * time.Second)
	}
	if l.transfers != 0 {
		t.Fatalf("%d transfers", l.transfers)
	}
}

// No voter of the hot ranges is on an idle node: a copy moves there, and leads.
func TestAHotNodeWithoutCoolVotersGivesCopiesAway(t *testing.T) {
	t.Parallel()
	l := newLab(t, 5, 6)
	for i := range 12 { // on three nodes, hot
		l.add(load{bytes: mib, cpu: 200_000}, uint64(1+i%3), uint64(1+(i+1)%3), uint64(1+(i+2)%3))
	}
	for i := range 12 { // on the others, cold
		l.add(load{bytes: mib}, uint64(4+i%3), uint64(4+(i+1)%3), uint64(4+(i+2)%3))
	}
	l.run(5 * time.Minute)
	mean := 12 * 200_000 / 6.0
	for id, n := range l.c.nodes {
		if cpuOf(n) > 1.5*mean+200_000 {
			l.dump()
			t.Errorf("%v bears %v, the mean is %v", id, cpuOf(n), mean)
		}
	}
	l.rests(time.Hour)
}

// Every copy takes in the writes: it is copies that must go.
func TestWritesSpreadByTheirCopies(t *testing.T) {
	t.Parallel()
	l := newLab(t, 6, 6)
	for i := range 18 {
		l.add(load{bytes: mib, writeBytes: 4 * mib}, uint64(1+i%3), uint64(1+(i+1)%3),
			uint64(1+(i+2)%3))
	}
	for i := range 18 {
		l.add(load{bytes: mib}, uint64(4+i%3), uint64(4+(i+1)%3), uint64(4+(i+2)%3))
	}
	l.run(10 * time.Minute)
	limit := hotWrites.limits()
	mean := 18 * 3 * 4 * mib / 6
	for id, n := range l.c.nodes {
		if n.load.applied > int64(mean)*(100+limit.percent)/100+limit.floor {
			l.dump()
			t.Errorf("%v takes in %s", id, size(n.load.applied))
		}
	}
	l.within("copies", 0.15, 2, copiesOf)
	l.rests(time.Hour)
	verifyLoads(t, l.c)
}

// Whatever the loads, each transfer of the scheduler lowers the sum of the squares,
// and the counts of leaders never leave their bounds for it.
func TestTransfersByLoadNeverMakeThingsWorse(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 9))
		nodes := 3 + rng.IntN(4)
		l := newLab(t, seed, nodes)
		for range 5 + rng.IntN(60) {
			at := rng.Perm(nodes)
			l.add(load{bytes: mib, cpu: int64(rng.ExpFloat64() * 100_000)}, uint64(at[0]+1),
				uint64(at[1]+1), uint64(at[2]+1))
		}
		l.run(30 * time.Second)
		for pass := 0; ; pass++ {
			for _, id := range l.c.order {
				l.c.nodes[id].sched.over[spreadCPU] = overload{true, -time.Hour}
			}
			clear(l.c.sched.settling)
			for _, r := range l.ranges {
				l.c.dir.byID[ids.RangeID(r.desc.GetRangeId())].restUntil = never
			}
			before, out := squares(l.c), outside(l.c)
			l.c.influence()
			p := newPass(l.c, budget{transfers: 2})
			if evenLoads(p); len(p.ops) == 0 {
				break
			}
			for _, op := range p.ops {
				r := l.byID[op.rng]
				r.leader, r.began = op.steps[0].node, -time.Hour
				r.term++
				l.tell(r)
			}
			if after := squares(l.c); after >= before {
				t.Fatalf("seed %d: %v by %v", seed, after-before, p.ops)
			}
			if o := outside(l.c); o > out+1e-9 {
				t.Fatalf("seed %d: counts leave their bounds: %v, %v before", seed, o, out)
			}
			if pass > 500 {
				t.Fatalf("seed %d: no end", seed)
			}
		}
	}
}

func squares(c *cluster) (sum float64) {
	for _, id := range c.order {
		sum += cpuOf(c.nodes[id]) * cpuOf(c.nodes[id])
	}
	return sum
}

// outside is by how much counts of leaders are out of their bounds.
func outside(c *cluster) (sum float64) {
	mean := 0.0
	for _, n := range c.nodes {
		mean += leadsOf(n) / float64(len(c.nodes))
	}
	for _, id := range c.order {
		off := leadsOf(c.nodes[id]) - mean
		sum += max(0, max(off, -off)-slackOf(mean))
	}
	return sum
}

// verifyLoads makes every sum and every set anew, slowly.
func verifyLoads(t testing.TB, c *cluster) {
	t.Helper()
	sums := make(map[ids.NodeID]load)
	warm, wet := make(map[ids.NodeID][]warmth), make(map[ids.NodeID][]warmth)
	misled := 0
	for id, r := range c.dir.byID {
		for _, p := range r.desc.GetReplicas() {
			n := ids.NodeID(p.GetNodeId())
			l := sums[n]
			l.add(r.load.held())
			if n == r.leader {
				l.add(r.load.led())
				if r.load.cpu >= warmCPU {
					warm[n] = append(warm[n], warmth{r.load.cpu, id})
				}
			}
			sums[n] = l
			if r.load.applied >= warmApplied {
				wet[n] = append(wet[n], warmth{r.load.applied, id})
			}
		}
		if c.misled(r) {
			if misled++; !c.sched.misled.Contains(id) {
				t.Fatalf("%v is not where its rule wants it, and that is not known", id)
			}
		}
	}
	if misled != c.sched.misled.Len() {
		t.Fatalf("%d ranges listed as misled, should be %d", c.sched.misled.Len(), misled)
	}
	same := func(id ids.NodeID, set *warmSet, want []warmth) {
		got := map[warmth]bool{}
		set.descend(maxLoad, func(w warmth) bool { got[w] = true; return true })
		lacks := func(w warmth) bool { return !got[w] }
		if len(got) != len(want) || slices.ContainsFunc(want, lacks) {
			t.Fatalf("%v: warm %v, should be %v", id, got, want)
		}
	}
	for id, n := range c.nodes {
		if n.load != sums[id] {
			t.Fatalf("%v bears %+v, should be %+v", id, n.load, sums[id])
		}
		same(id, &n.sched.warm, warm[id])
		same(id, &n.sched.wet, wet[id])
	}
}

// Facts, transfers, moves, evictions in any order: the sums stay right.
func TestSumsOfLoadStayRightWhateverHappens(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 10))
		l := newLab(t, seed, 5)
		l.rule(&metapb.Rule{Name: "default", Replicas: 3, Leaders: []string{"zone=x"}})
		l.addMany(40, 5, func(int) load { return load{bytes: mib, cpu: 5000} })
		for range 300 {
			r := l.ranges[rng.IntN(len(l.ranges))]
			switch rng.IntN(5) {
			case 0:
				r.load.cpu = int64(rng.IntN(3) * 700)
			case 1:
				r.load.writeBytes = int64(rng.IntN(3) * 100 << 10)
			case 2:
				l.obey(r, step{kind: transferLeader,
					node: ids.NodeID(r.desc.Replicas[rng.IntN(3)].NodeId)})
			case 3:
				r.load.bytes = int64(rng.IntN(mib))
			case 4:
				l.c.now += time.Second
				l.c.settle()
			}
			l.tell(r)
		}
		verifyLoads(t, l.c)
		verify(t, l.c)
		l.c.evict(l.c.dir.byID[7])
		verifyLoads(t, l.c)
	}
}

func TestScatterSpreadsASpanAndStops(t *testing.T) {
	t.Parallel()
	l := newLab(t, 11, 5)
	for range 40 { // a table that was just loaded: all on three nodes, led by one
		l.add(load{bytes: mib}, 1, 2, 3)
	}
	for i := range 60 { // the others make up for it
		at := []uint64{4, 5, uint64(1 + i%3)}
		l.add(load{bytes: mib}, at[i%3], at[(i+1)%3], at[(i+2)%3])
	}
	l.run(10 * time.Minute)
	start, end := l.ranges[0].desc.Start, l.ranges[39].desc.End
	l.c.influence()
	_, ops, note, err := scatter(l.c, start, end)
	if err != nil || note == "" || len(ops) == 0 {
		t.Fatalf("%d operators, %q, %v", len(ops), note, err)
	}
	for _, op := range ops {
		l.c.addOperator(op)
		l.count(op)
	}
	l.run(20 * time.Minute)
	leads, copies := map[ids.NodeID]int{}, map[ids.NodeID]int{}
	for _, r := range l.ranges[:40] {
		leads[r.leader]++
		for _, p := range r.desc.Replicas {
			copies[ids.NodeID(p.NodeId)]++
		}
	}
	for id := ids.NodeID(1); id <= 5; id++ {
		if leads[id] < 6 || leads[id] > 10 || copies[id] < 20 || copies[id] > 28 {
			t.Errorf("%v leads %d of the span and holds %d", id, leads[id], copies[id])
		}
	}
	l.within("leaders", 0.10, 2, leadsOf)
	l.c.influence()
	if _, again, note, err := scatter(l.c, start, end); err != nil || len(again) > 0 {
		t.Errorf("scattered again: %v %q %v", again, note, err)
	}
	if _, _, _, err := scatter(l.c, []byte{0x21}, []byte{0x22}); err == nil {
		t.Error("a span without ranges is scattered")
	}
	l.rests(time.Hour)
}

func TestTheSameSpanIsScatteredTheSameWay(t *testing.T) {
	t.Parallel()
	plan := func() (words []string) {
		l := newLab(t, 12, 5)
		for range 40 {
			l.add(load{bytes: mib}, 1, 2, 3)
		}
		_, ops, _, err := scatter(l.c, l.ranges[0].desc.Start, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, op := range ops {
			words = append(words, op.String())
		}
		return words
	}
	if a, b := plan(), plan(); len(a) == 0 || !slices.Equal(a, b) {
		t.Fatalf("%d and %d operators, not the same", len(a), len(b))
	}
}

// What is read is borne by the leader: leaders go, as for processor time.
func TestReadsSpreadByTheirLeaders(t *testing.T) {
	t.Parallel()
	l := newLab(t, 13, 3)
	for i := range 30 {
		what := load{bytes: mib}
		if i%3 == 0 {
			what.readBytes, what.cpu = 8*mib, 1200
		}
		l.add(what, uint64(1+i%3), uint64(1+(i+1)%3), uint64(1+(i+2)%3))
	}
	l.run(2 * time.Minute)
	for id, n := range l.c.nodes {
		if n.load.readBytes > 48*mib {
			l.dump()
			t.Errorf("%v still has %s read from it a second", id, size(n.load.readBytes))
		}
	}
	l.within("leaders", 0.10, 1, leadsOf)
	l.rests(time.Hour)
}

// A leader said that a replica does not answer, and tells nothing new since its range
// is quiet. That must not keep leaders away from the node for ever.
func TestThatAReplicaDoesNotAnswerIsNotBelievedForEver(t *testing.T) {
	t.Parallel()
	c, r := situation(3, "sss", true, 1, voter(1, 1), voter(2, 2), voter(3, 3))
	silent := func() bool { return c.mute(r, replicaOn(r.desc, 2)) }
	say := func() {
		c.learn(1, &metapb.RangeFact{Descriptor_: r.desc, LeaderNode: 1, Term: 1,
			Silent: []uint64{2}})
	}
	if say(); !silent() || c.mute(r, replicaOn(r.desc, 3)) {
		t.Fatal("the leader is not believed")
	}
	if c.now += muteFor; silent() {
		t.Fatal("believed for ever")
	}
	say()
	c.now += time.Second
	if c.nodes[2].liveSince = c.now; silent() {
		t.Fatal("believed although the node came up afterwards")
	}
}

// Copies do not get through to a node. Balancing tries it more and more rarely, as
// long as none does; repair may try at any time.
func TestBalancingLeavesANodeAloneThatCopiesDoNotReach(t *testing.T) {
	t.Parallel()
	c, _ := situation(3, "sss", true, 1, voter(1, 1))
	n := c.nodes[2]
	last := time.Duration(0)
	for range 5 {
		c.shun(n)
		if c.mayTake(n, 1) || !c.mayReceive(n, 1) {
			t.Fatal("shunned: balancing may not send, repair may")
		}
		if pause := n.sched.shunUntil - c.now; pause <= last {
			t.Fatalf("left alone for %v after %v", pause, last)
		} else {
			last = pause
		}
		if c.now += last; !c.mayTake(n, 1) {
			t.Fatal("never tried again")
		}
	}
	if c.shun(n); c.mayTake(n, 1) {
		t.Fatal("not shunned")
	}
	if c.trust(n); !c.mayTake(n, 1) {
		t.Fatal("a copy got through, and that is not noticed")
	}
}
