package placement

import (
	"encoding/binary"
	"fmt"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// threeZones returns a driver of nodes in three zones, one copy of each range in each of
// them, that has heard all and knows every key, and the reports that keep it so.
func threeZones(t *testing.T, nodes, ranges uint64) (*Driver, []*metapb.NodeReport) {
	t.Helper()
	d := NewDriver(Config{Self: 1, ClusterID: 7, KV: newMemKV(), DeadAfter: time.Minute})
	d.SetActive(true, 0)
	reports := make([]*metapb.NodeReport, nodes)
	for n := range reports {
		id := uint64(n + 1)
		desc := &metapb.NodeDescriptor{NodeId: id, StoreId: id, Address: "a:1",
			Locality: []string{fmt.Sprintf("zone=z%d", n%3)}}
		d.cluster.register(desc, 1)
		reports[n] = &metapb.NodeReport{Node: desc, Full: true, DiskBytes: 1 << 40,
			DiskFreeBytes: 1 << 39}
	}
	for i := range ranges {
		f := benchFact(nodes, i, 1, 1)
		if i == 0 {
			f.Descriptor_.Start = []byte{0x10}
		}
		if i == ranges-1 {
			f.Descriptor_.End = []byte{0x21}
		}
		r := reports[i%nodes]
		r.Facts = append(r.Facts, f)
		r.Leaders++
	}
	for _, r := range reports {
		d.Report(0, r)
		r.Facts, r.Full = nil, false
	}
	for now := time.Duration(0); now < time.Minute; now += time.Second {
		for _, r := range reports {
			d.Report(now, r)
		}
		d.Step(now)
	}
	for d.cluster.sweep.going || d.cluster.sweep.behind() {
		d.Step(time.Minute)
	}
	if s := d.Status(time.Minute); s.GetTolerates() != 1 || len(s.GetProblems()) > 0 {
		t.Fatalf("not at rest: %v", s)
	}
	return d, reports
}

// lostZone is a driver that is told of the loss of its first zone.
type lostZone struct {
	t       *testing.T
	d       *Driver
	reports []*metapb.NodeReport
	now     time.Duration
	lost    bool // the first zone
	behind  int  // steps after which not all was reviewed
}

// run lets time pass. No step may review more than it should, and no report anything.
func (z *lostZone) run(long time.Duration) {
	z.t.Helper()
	c := z.d.cluster
	z.behind = 0
	for end := z.now + long; z.now < end; z.now += 250 * time.Millisecond {
		before := c.reviews
		for n, r := range z.reports {
			if z.now%time.Second == 0 && (!z.lost || n%3 != 0) {
				z.d.Report(z.now, r)
			}
		}
		if c.reviews != before {
			z.t.Fatalf("reports that tell nothing had %d ranges reviewed", c.reviews-before)
		}
		z.d.Step(z.now)
		if got := c.reviews - before; got > maxReviewed+maxSwept {
			z.t.Fatalf("at %v one step reviewed %d ranges", z.now, got)
		}
		if c.sweep.behind() {
			z.behind++
		}
	}
	if c.sweep.behind() || c.sweep.going {
		z.t.Fatal("the reviews come to no end")
	}
	verify(z.t, c)
}

func TestALostZoneIsReviewedInPartsAndSoIsItsReturn(t *testing.T) {
	t.Parallel()
	const ranges = 3 * maxReviewed
	d, reports := threeZones(t, 9, ranges)
	d.Pause(true, "a test", func(*metapb.PlacementSettings, error) {}) // only reviews are counted
	c := d.cluster
	z := &lostZone{t: t, d: d, reports: reports, now: time.Minute, lost: true}
	want := func(when string, leaderless, unwell, parts int) {
		t.Helper()
		if c.leaderless.Len() != leaderless || c.unwell.Len() != unwell || z.behind < parts-1 {
			t.Fatalf("%s: %d of %d ranges without a leader, %d of %d need something; %d steps of %d",
				when, c.leaderless.Len(), leaderless, c.unwell.Len(), unwell, z.behind+1, parts)
		}
	}
	z.run(30 * time.Second)
	want("silent", ranges/3, 0, 3)
	z.run(time.Minute)
	want("given up", ranges/3, ranges, 3)
	z.lost = false
	z.run(30 * time.Second)
	want("back", 0, 0, 3)
}

// While a part of the ranges has not been looked at the counts are not those of the whole.
func TestStatusSaysThatNotAllRangesHaveBeenLookedAt(t *testing.T) {
	t.Parallel()
	d, _ := threeZones(t, 9, 3*maxReviewed)
	d.cluster.reviewOf(d.cluster.nodes[1])
	d.cluster.reviewOf(d.cluster.nodes[4])
	s := d.Status(time.Minute)
	if !d.cluster.sweep.behind() || s.GetTolerates() != 0 ||
		!strings.Contains(strings.Join(s.GetProblems(), "; "), "not all ranges have been looked at") {
		t.Fatalf("%v", s)
	}
}

// fiveCopies returns a cluster of eight nodes with many ranges of five copies: the last
// few have one on n6 and one on n7, all others one on n6.
func fiveCopies(many, few int) *cluster {
	c, _ := situation(5, "ssssssss", false, 1, voting(1, 2, 3, 4, 5)...)
	key := func(n int) []byte { return binary.BigEndian.AppendUint64([]byte{0x20}, uint64(n)) }
	for i := range many {
		d := &metapb.RangeDescriptor{RangeId: uint64(i + 100), Start: key(i), End: key(i + 1),
			Generation: 2, Replicas: voting(1, 2, 3, 4, 6)}
		if i >= many-few {
			d.Replicas = voting(1, 2, 3, 6, 7)
		}
		c.learn(1, &metapb.RangeFact{LeaderNode: 1, Term: 1, Descriptor_: d})
	}
	return c
}

func TestTheMostEndangeredComeFirstAlthoughTheyAreReviewedLast(t *testing.T) {
	t.Parallel()
	const many, few = 2*maxReviewed + 100, 10
	c := fiveCopies(many, few)
	last := c.dir.byID[many+99]
	began := c.now
	for _, id := range []ids.NodeID{6, 7} {
		c.nodes[id].lastReport = 0
		c.rephase(c.nodes[id])
	}
	for parts := 1; ; parts++ {
		before := c.reviews
		c.reviewSome()
		if got := c.reviews - before; got > maxReviewed {
			t.Fatalf("%d ranges are reviewed at once", got)
		}
		if !c.sweep.behind() {
			if parts < 3 {
				t.Fatalf("all is reviewed in %d parts", parts)
			}
			break
		}
		if r := c.nextNeedy(); r != nil && c.condition(r).need != needUrgent {
			t.Fatalf("%v is mended before all are known that are in more danger", r.id())
		}
		// What is decided of a range does not wait for its review.
		if parts == 1 && (last.health.need != needNothing || c.condition(last).need != needUrgent) {
			t.Fatalf("%+v, now %+v", last.health, c.condition(last))
		}
		c.now += 250 * time.Millisecond
	}
	c.wake()
	// The order is that of a review of all at once.
	var want []wanting
	for id, r := range c.dir.byID {
		if h := c.assess(r); h.need != needNothing {
			want = append(want, wanting{h.need, h.tolerates, began, id})
		}
	}
	sort.Slice(want, func(i, j int) bool { return wantingOrder(want[i], want[j]) })
	if len(want) != many || want[few-1].need != needUrgent || want[few].need != needRepair {
		t.Fatalf("%d ranges need something: %v", len(want), want[:few+1])
	}
	for i, w := range want {
		if r := c.nextNeedy(); r == nil || r.wanting() != w {
			t.Fatalf("place %d: %v, should be %+v", i, r, w)
		}
	}
	verify(t, c)
}

// A node changes while its ranges are gone through: those before that place must be gone
// through again, and the other nodes have their turn.
func TestANodeThatChangesDuringItsReviewIsReviewedAgain(t *testing.T) {
	t.Parallel()
	const many = 2*maxReviewed + 100
	c := fiveCopies(many, 10)
	n := c.nodes[6]
	for range 3 {
		n.lastReport = 0
		c.rephase(n)
		c.reviewSome()
		n.lastReport = c.now
		c.rephase(n)
		c.reviewSome()
		if len(c.sweep.nodes) > 2 {
			t.Fatalf("%d turns wait", len(c.sweep.nodes))
		}
	}
	n.lastReport = 0
	c.rephase(n)
	for c.sweep.behind() {
		c.reviewSome()
	}
	if c.unwell.Len() != many {
		t.Fatalf("%d of %d ranges need something", c.unwell.Len(), many)
	}
	verify(t, c)
}

// A zone is lost, and a third of all leaders are new ones: twenty seconds later all of
// them have measured.
func TestLoadsOfManyNewLeadersBeginToCountInParts(t *testing.T) {
	t.Parallel()
	const many = 2*maxSettled + 5
	c := fiveCopies(many, 0)
	tell := func(leader, term, cpu uint64) {
		for i := range uint64(many) {
			c.learn(ids.NodeID(leader), &metapb.RangeFact{LeaderNode: leader, Term: term,
				Descriptor_: c.dir.byID[ids.RangeID(i+100)].desc, CpuMicrosPerSecond: cpu})
		}
	}
	tell(1, 1, 400)
	tell(2, 2, 200)
	c.now += meterSettles
	for left, parts := many, 1; left > 0; parts++ {
		c.settle()
		settled := left - len(c.sched.settling)
		if left -= settled; settled > maxSettled || len(c.sched.settles) != left {
			t.Fatalf("%d settle at once, %d are left, %d in the queue", settled, left,
				len(c.sched.settles))
		}
		if got, want := c.nodes[2].load.cpu, int64(400*left+200*(many-left)); got != want {
			t.Fatalf("after %d parts n2 counts with %d, should be %d", parts, got, want)
		}
		verifyLoads(t, c)
	}
}

// Every step of a driver takes longer than SuspectAfter, for whatever reason. It hears
// the others again and again, and one node never.
func TestADriverWhoseStepsTakeLongFindsOutWhoIsGone(t *testing.T) {
	t.Parallel()
	d, reports := threeZones(t, 9, 90)
	n := d.cluster.nodes[1]
	now, suspected := time.Minute, time.Duration(0)
	for n.phase != phaseDead {
		now += 2*defaultSuspectAfter - time.Second
		for _, r := range reports[1:] {
			d.Report(now, r)
		}
		d.Step(now)
		if n.phase < phaseLive && suspected == 0 {
			suspected = now
		}
		if now > 20*time.Minute {
			t.Fatalf("n1 has been silent for %v and is in phase %d", now-time.Minute, n.phase)
		}
	}
	if suspected <= time.Minute+2*defaultSuspectAfter {
		t.Errorf("a single long step made n1 a suspect")
	}
	for id, o := range d.cluster.nodes {
		if id != 1 && o.falls > 0 {
			t.Errorf("%v was heard each time, and counts as fallen %d times", id, o.falls)
		}
	}
}
