package placement

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// spreadLeaders is the scheduler of leaders by count alone.
func spreadLeaders(c *cluster, limit int) (ops []*operator, stuck bool) {
	p := newPass(c, budget{transfers: limit})
	v := evenCounts(p)
	return p.ops, v == blocked
}

func sized(bytes int64) func(int) load {
	return func(int) load { return load{bytes: bytes} }
}

func TestTwoNodesJoinThreeWithFiveHundredRanges(t *testing.T) {
	t.Parallel()
	for _, bytes := range []int64{2 * mib, 64 * mib, 0} {
		l := newLab(t, 1, 3)
		l.limit = 32
		l.addMany(500, 3, sized(bytes))
		l.rests(5 * time.Minute)
		l.join(nil)
		l.join(nil)
		l.run(40 * time.Minute)
		l.within("leaders", 0.10, 0, leadsOf)
		l.within("bytes", 0.15, 0, bytesOf)
		l.within("copies", 0.15, 0, copiesOf)
		if perfect := 2 * 500 * 3 / 5; l.moves > perfect*12/10 || l.moves < perfect*9/10 {
			t.Errorf("%d moves where %d make it perfectly even", l.moves, perfect)
		}
		if l.transfers > 500 {
			t.Errorf("%d transfers", l.transfers)
		}
		verify(t, l.c)
		l.rests(time.Hour)
	}
}

// A few ranges hold nearly everything: it is they that move, not a crowd of others.
func TestSkewedSizesAreEvenedOutByFewMoves(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		l := newLab(t, seed, 3)
		rng := rand.New(rand.NewPCG(seed, 8))
		l.addMany(300, 3, func(i int) load {
			if i%10 == 0 {
				return load{bytes: int64(32+rng.IntN(32)) * mib}
			}
			return load{bytes: int64(rng.IntN(512)) << 10}
		})
		l.join(nil)
		fewest := l.fewestMoves()
		l.run(40 * time.Minute)
		l.within("bytes", 0.15, 0, bytesOf)
		l.within("leaders", 0.10, 1, leadsOf)
		// The new node has to hold as many copies as it is to lead, too.
		if least := max(fewest, 300/4*9/10); l.moves > least*12/10 {
			t.Errorf("seed %d: %d moves, %d could do", seed, l.moves, least)
		}
		l.rests(time.Hour)
	}
}

func TestNodesWithLargerDisksHoldMore(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2, 5)
	for i, size := range []uint64{400, 400, 600, 600, 800} {
		l.c.nodes[ids.NodeID(i+1)].disk = size * gib
		l.c.nodes[ids.NodeID(i+1)].diskFree = size * gib / 2
	}
	l.limit = 32
	l.addMany(400, 3, sized(64*mib)) // on the small ones above all
	l.run(30 * time.Minute)
	l.within("bytes by the size of the disk", 0.15, 0, func(n *node) float64 {
		return bytesOf(n) / float64(n.disk/gib)
	})
	l.within("leaders", 0.10, 1, leadsOf)
	l.rests(time.Hour)
}

func TestAFullDiskDrawsNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3, 3)
	l.addMany(60, 3, sized(mib))
	full := l.join(nil)
	full.diskFree = full.disk / 100
	l.hear(full)
	l.run(5 * time.Minute)
	if l.moves != 0 {
		t.Fatalf("%d copies moved to a node whose disk is nearly full", l.moves)
	}
}

// Sizes that waver around a bound must not send copies to and fro.
func TestSizesThatWaverMoveNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, 4, 5)
	l.addMany(100, 5, sized(32*mib))
	l.run(2 * time.Minute)
	before := l.moves
	for range 200 {
		for _, r := range l.ranges {
			r.load.bytes = int64(28+l.rng.IntN(8)) * mib
			l.tell(r)
		}
		l.run(20 * time.Second)
	}
	if l.moves-before > 5 {
		t.Fatalf("%d moves because of noise", l.moves-before)
	}
}

func TestNodesThatDrainGiveAwayTheirLeadersAndGetNone(t *testing.T) {
	t.Parallel()
	l := newLab(t, 5, 4)
	l.addMany(80, 4, sized(mib))
	n := l.c.nodes[2]
	n.draining = true
	l.c.usable()
	l.run(40 * time.Second)
	if n.leads.Len() != 0 {
		t.Fatalf("still leads %d", n.leads.Len())
	}
	for _, r := range l.ranges {
		if r.leader == 2 {
			t.Fatalf("%v leads r%d", r.leader, r.desc.RangeId)
		}
	}
	if l.moves != 0 {
		t.Fatalf("%d copies left a node that only drains", l.moves)
	}
}

func TestLeadersGoWhereTheRuleWantsThemAndStayEven(t *testing.T) {
	t.Parallel()
	at := func(zone string) []string { return []string{"zone=" + zone} }
	l := newLab(t, 6, 6, at("a"), at("a"), at("b"), at("b"), at("c"), at("c"))
	for i := range 120 {
		a, b, c := uint64(1+i%2), uint64(3+i/2%2), uint64(5+i/4%2)
		l.add(load{bytes: mib}, b, a, c)
	}
	l.run(10 * time.Second)
	l.rule(&metapb.Rule{Name: "default", Replicas: 3, Spread: "zone",
		Leaders: []string{"zone=a", "zone=c"}})
	l.run(5 * time.Minute)
	if a, b := leadsOf(l.c.nodes[1]), leadsOf(l.c.nodes[2]); a+b != 120 || max(a, b) > 66 {
		t.Fatalf("n1 leads %v, n2 %v", a, b)
	}
	l.rests(time.Hour)
	// The zone fails for leading: the next best takes over, and gives back.
	for _, id := range []ids.NodeID{1, 2} {
		l.c.nodes[id].draining = true
	}
	l.c.usable()
	l.run(100 * time.Second)
	if e, f := leadsOf(l.c.nodes[5]), leadsOf(l.c.nodes[6]); e+f != 120 {
		t.Fatalf("n5 leads %v, n6 %v", e, f)
	}
	for _, id := range []ids.NodeID{1, 2} {
		l.c.nodes[id].draining = false
	}
	l.c.usable()
	l.run(5 * time.Minute)
	if a, b := leadsOf(l.c.nodes[1]), leadsOf(l.c.nodes[2]); a+b != 120 {
		t.Fatalf("back: n1 leads %v, n2 %v", a, b)
	}
}

// Bytes are evened out without ever bringing two copies into one zone.
func TestBalancingKeepsCopiesApart(t *testing.T) {
	t.Parallel()
	at := func(zone string) []string { return []string{"zone=" + zone} }
	l := newLab(t, 7, 5, at("a"), at("b"), at("c"), at("a"), at("b"))
	for i := range 200 {
		l.add(load{bytes: 8 * mib}, uint64(1+i%3), uint64(1+(i+1)%3), uint64(1+(i+2)%3))
	}
	l.rule(&metapb.Rule{Name: "default", Replicas: 3, Spread: "zone"})
	zones := []string{"", "a", "b", "c", "a", "b"}
	for range 60 {
		l.run(10 * time.Second)
		for _, r := range l.ranges {
			seen := map[string]bool{}
			for _, p := range r.desc.Replicas {
				if z := zones[p.NodeId]; seen[z] {
					t.Fatalf("r%d has two copies in zone %s", r.desc.RangeId, z)
				} else {
					seen[z] = true
				}
			}
		}
	}
	for _, pair := range [][2]ids.NodeID{{1, 4}, {2, 5}} {
		a, b := copiesOf(l.c.nodes[pair[0]]), copiesOf(l.c.nodes[pair[1]])
		if a+b != 200 || max(a, b) > 115 {
			t.Errorf("one zone: %v holds %v, %v %v", pair[0], a, pair[1], b)
		}
	}
	l.rests(time.Hour)
}

// What has been planned counts at once: asked again and again before anything has
// happened, the schedulers do not plan the same relief twice.
func TestPlannedMovesCountBeforeTheyAreDone(t *testing.T) {
	t.Parallel()
	l := newLab(t, 8, 4)
	l.addMany(40, 3, func(i int) load { return load{bytes: mib, cpu: 1000} })
	for range 50 {
		l.c.advanceTo(l.c.now + time.Millisecond)
		l.c.unbalanced = true
		l.plan()
	}
	transfers, moves := l.running()
	if n := l.c.nodes[4]; n.pending.receiving > receiveLimit || moves != receiveLimit {
		t.Fatalf("n4 is sent %d copies at a time, %d move", n.pending.receiving, moves)
	}
	if transfers > labTransfers {
		t.Fatalf("%d transfers at a time", transfers)
	}
}

func TestBalancingLeavesRoomForRepair(t *testing.T) {
	t.Parallel()
	l := newLab(t, 9, 12)
	l.addMany(300, 3, sized(mib)) // three nodes hold all, nine nothing
	l.plan()
	if _, moves := l.running(); moves != l.limit-l.limit/balanceShare {
		t.Fatalf("%d moves of %d", moves, l.limit)
	}
	for _, id := range l.c.order {
		n := l.c.nodes[id]
		if n.pending.sending > sendLimit || n.pending.receiving > receiveLimit {
			t.Fatalf("%v sends %d and receives %d", id, n.pending.sending, n.pending.receiving)
		}
		if n.id > 3 && !l.c.mayReceive(n, mib) {
			t.Fatalf("%v has no room for repair", id)
		}
	}
}

func TestReasonsSayWhatIsUneven(t *testing.T) {
	t.Parallel()
	for bytes, want := range map[int64]string{
		0:        "n1 holds 100 copies, n4 0",
		64 * mib: "n1 holds 6.2 GiB, n4 0 B",
	} {
		l := newLab(t, 10, 3)
		l.addMany(100, 3, sized(bytes))
		l.join(nil)
		l.plan()
		found := false
		l.c.ops.Scan(func(_ uint64, op *operator) bool {
			found = found || strings.Contains(op.reason, want)
			return true
		})
		if !found {
			l.dump()
			t.Errorf("no reason says: %s", want)
		}
	}
}
