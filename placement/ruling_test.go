package placement

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// zoned returns a cluster at rest whose nodes stand in the given zones.
func zoned(t *testing.T, seed uint64, ranges int, zones ...string) *world {
	t.Helper()
	w := newWorld(t, seed, ranges)
	w.nodes[0].desc.Locality = []string{"region=eu", "zone=" + zones[0]}
	w.run(2 * time.Second)
	for _, z := range zones[1:] {
		w.join("region=eu", "zone="+z)
	}
	w.runUntil(20*time.Minute, "three copies everywhere", w.allHave(3))
	w.runUntil(20*time.Minute, "leaders even", w.even)
	w.run(5 * time.Minute)
	return w
}

func (w *world) zone(node uint64) string {
	return rules.ParseLabels(w.node(ids.NodeID(node)).desc.GetLocality()).Value("zone")
}

// crowdedZone returns a range of which one zone has a majority, 0 if there is none.
func (w *world) crowdedZone() ids.RangeID {
	for _, id := range w.ids() {
		in := map[string]int{}
		voters := w.ranges[id].voters()
		for _, v := range voters {
			if in[w.zone(v)]++; 2*in[w.zone(v)] > len(voters) {
				return id
			}
		}
	}
	return 0
}

// set puts rules in force, over those that are.
func (w *world) set(all ...*metapb.Rule) *adminpb.SetRulesReply {
	w.t.Helper()
	d := w.node(w.driver).d
	var reply *adminpb.SetRulesReply
	d.SetRules(&adminpb.SetRulesRequest{
		Rules: &metapb.RuleSet{Version: d.Rules().GetVersion(), Rules: all},
	}, func(r *adminpb.SetRulesReply, err error) {
		if err != nil || len(r.GetFaults()) > 0 {
			w.t.Fatalf("%v %v", err, r)
		}
		reply = r
	})
	return reply
}

func TestNoZoneHoldsAMajorityOfAnyRangeEvenOnTheWay(t *testing.T) {
	t.Parallel()
	w := zoned(t, 80, 30, "a", "a", "b", "b", "c")
	if r := w.crowdedZone(); r != 0 {
		t.Fatalf("one zone holds a majority of %v", r)
	}
	// A sixth node comes and one goes: copies move, but never two into one zone.
	w.join("region=eu", "zone=c")
	w.must(3, standingDecommissioning)
	w.runUntil(30*time.Minute, "decommissioned", func() bool {
		if r := w.crowdedZone(); r != 0 {
			t.Fatalf("one zone holds a majority of %v on the way", r)
		}
		return w.progress(3).GetStatus().GetStanding() == standingDecommissioned
	})
	w.run(10 * time.Minute)
	w.quiet(10 * time.Minute)
}

func TestANewZoneDrawsOneCopyOfEachRange(t *testing.T) {
	t.Parallel()
	w := zoned(t, 81, 20, "a", "a", "b")
	if w.crowdedZone() == 0 {
		t.Fatal("two zones cannot hold three copies without a majority in one")
	}
	w.join("region=eu", "zone=c")
	w.runUntil(20*time.Minute, "no majority in one zone", func() bool {
		return w.crowdedZone() == 0 && w.status().GetOperators() == 0
	})
	w.run(10 * time.Minute)
	w.quiet(10 * time.Minute)
	verify(t, w.node(w.driver).d.cluster)
}

func TestALostZoneComesBack(t *testing.T) {
	t.Parallel()
	w := zoned(t, 82, 12, "a", "a", "b", "b", "c", "c")
	if w.driver > 4 {
		w.moveDriver(1)
		w.run(30 * time.Second)
	}
	for _, id := range []ids.NodeID{5, 6} {
		w.node(id).up = false
	}
	w.run(10 * time.Second)
	for id, r := range w.ranges {
		if r.leader == 0 || !w.isUp(uint64(r.leader)) {
			t.Fatalf("%v has no leader", id)
		}
	}
	w.runUntil(20*time.Minute, "three copies in two zones", func() bool {
		for _, r := range w.ranges {
			for _, v := range r.voters() {
				if v > 4 {
					return false
				}
			}
		}
		return w.allHave(3)()
	})
	for _, id := range []ids.NodeID{5, 6} {
		w.node(id).up, w.node(id).full = true, true
	}
	w.runUntil(30*time.Minute, "no majority in one zone", func() bool {
		return w.crowdedZone() == 0 && w.status().GetOperators() == 0
	})
	w.run(10 * time.Minute)
	w.quiet(10 * time.Minute)
}

func TestARuleMovesAPrefixIntoItsRegionAndCutsRangesAtItsBounds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 83, 10)
	w.nodes[0].desc.Locality = []string{"region=eu"}
	w.run(2 * time.Second)
	for _, region := range []string{"eu", "eu", "us", "us", "us"} {
		w.join("region=" + region)
	}
	w.runUntil(20*time.Minute, "three copies everywhere", w.allHave(3))
	w.run(10 * time.Minute)
	// Inside range 4, of keys 0x20 00 02 to 0x20 00 03, and the next range whole.
	prefix := []byte{0, 2, 0x40}
	all := &metapb.Rule{Name: "all", Replicas: 3}
	pinned := &metapb.Rule{Name: "pinned", Prefix: prefix, Replicas: 3,
		Require: []string{"region=us"}}
	whole := &metapb.Rule{Name: "whole", Prefix: []byte{0, 5}, Replicas: 3,
		Require: []string{"region=eu"}, Leaders: []string{"region=eu"}}
	w.set(all, pinned, whole)
	in := func(r *simRange, region string) bool {
		for _, v := range r.voters() {
			if !slices.Contains(w.node(ids.NodeID(v)).desc.GetLocality(), "region="+region) {
				return false
			}
		}
		return true
	}
	w.runUntil(20*time.Minute, "all stand by their rules", func() bool {
		cuts := 0
		for _, r := range w.ranges {
			start := r.desc.GetStart()
			switch {
			case slices.Equal(start, append([]byte{0x20}, prefix...)):
				if cuts++; !in(r, "us") {
					return false
				}
			case slices.Equal(start, []byte{0x20, 0, 2, 0x41}):
				cuts++
			case slices.Equal(start, []byte{0x20, 0, 5}):
				if cuts++; !in(r, "eu") {
					return false
				}
			}
		}
		return cuts == 3 && w.allHave(3)() && w.status().GetOperators() == 0
	})
	w.run(10 * time.Minute)
	w.quiet(10 * time.Minute)
	verify(t, w.node(w.driver).d.cluster)
	// Another driver reads them.
	w.moveDriver(w.driver%5 + 1)
	w.run(30 * time.Second)
	if got := w.node(w.driver).d.Rules(); got.GetVersion() != 1 || len(got.GetRules()) != 3 {
		t.Fatalf("the next driver has the rules %v", got)
	}
	w.quiet(10 * time.Minute)
}

func TestMoreAndFewerCopiesByRule(t *testing.T) {
	t.Parallel()
	w := grown(t, 84, 6, 5)
	w.run(10 * time.Minute)
	w.set(&metapb.Rule{Name: "all", Replicas: 5})
	w.runUntil(20*time.Minute, "five copies", w.allHave(5))
	w.runUntil(5*time.Minute, "healthy", func() bool { return w.status().GetTolerates() == 2 })
	w.set(&metapb.Rule{Name: "all", Replicas: 3})
	w.runUntil(20*time.Minute, "three copies", w.allHave(3))
	for id, r := range w.ranges {
		if r.pairFor > 3*time.Second {
			t.Fatalf("%v rested at two voters for %v", id, r.pairFor)
		}
	}
	w.run(10 * time.Minute)
	w.quiet(10 * time.Minute)
}

func TestRulesThatNobodyCanKeepAreRefusedAndAPreviewSaysWhatMoves(t *testing.T) {
	t.Parallel()
	w := zoned(t, 85, 10, "a", "b", "c", "a")
	d := w.node(w.driver).d
	ask := func(version uint64, dry bool, all ...*metapb.Rule) (
		r *adminpb.SetRulesReply, err error,
	) {
		d.SetRules(&adminpb.SetRulesRequest{DryRun: dry,
			Rules: &metapb.RuleSet{Version: version, Rules: all},
		}, func(got *adminpb.SetRulesReply, e error) { r, err = got, e })
		return r, err
	}
	writes := w.kv.writes
	for _, bad := range []*metapb.Rule{
		{Name: "all", Replicas: 2},
		{Name: "all", Replicas: 3, Require: []string{"zone=z"}},
		{Name: "all", Replicas: 3, Require: []string{"zone=a"}},
		{Name: "all", Replicas: 3, Require: []string{"zone=a"}, Forbid: []string{"zone=a"}},
		{Name: "part", Prefix: []byte("x"), Replicas: 3},
	} {
		r, err := ask(0, false, bad)
		if err != nil || len(r.GetFaults()) == 0 {
			t.Fatalf("%v was taken: %v %v", bad, r, err)
		}
	}
	if _, err := ask(3, false, &metapb.Rule{Name: "all", Replicas: 3}); err == nil ||
		!strings.Contains(err.Error(), "version 0") {
		t.Fatalf("over a version that is not in force: %v", err)
	}
	same, err := ask(0, true, &metapb.Rule{Name: "all", Replicas: 3})
	if err != nil || same.GetRangesAffected() != 0 {
		t.Fatalf("the same rules would move something: %v %v", same, err)
	}
	one, err := ask(0, true, &metapb.Rule{Name: "all", Replicas: 1, Require: []string{"zone=b"}})
	if err != nil || one.GetRangesAffected() != 11 || one.GetReplicasToMove() != 0 ||
		len(one.GetExamples()) != maxExamples {
		t.Fatalf("one copy in zone b, where each range has one: %v %v", one, err)
	}
	away, err := ask(0, true, &metapb.Rule{Name: "all", Replicas: 3, Forbid: []string{"zone=c"}})
	if err != nil || away.GetReplicasToMove() != 11 || away.GetBytesToMove() != 11*20<<20 {
		t.Fatalf("out of zone c: %v %v", away, err)
	}
	if w.kv.writes != writes {
		t.Fatal("something was written")
	}
	w.quiet(5 * time.Minute)
}
