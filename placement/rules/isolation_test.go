package rules

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func isolated(copies uint32, key string) *metapb.Rule {
	return &metapb.Rule{Name: "strict", Replicas: copies, Isolation: key}
}

// Whatever nodes there are, and whichever of them get the copies one after the other:
// none that is let in gives a place a majority, and so many as Placeable says find room.
func TestIsolationNeverGivesAPlaceTheMajorityAndLeavesNoRoomUnused(t *testing.T) {
	t.Parallel()
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 4))
		copies := []uint32{1, 3, 5, 7}[rng.IntN(4)]
		r := must(t, isolated(copies, "zone")).Rules()[0]
		var nodes []Labels
		for range 1 + rng.IntN(12) {
			nodes = append(nodes, at([]string{"region=eu,zone=a", "region=eu,zone=b", "region=us,zone=a",
				"region=us"}[rng.IntN(4)]))
		}
		var placed []Labels
		for _, i := range rng.Perm(len(nodes)) {
			if why := r.WhyBarred(placed, nodes[i]); (why != "") != r.Bars(placed, nodes[i]) {
				t.Fatalf("seed %d: barred, but why is %q", seed, why)
			} else if why == "" {
				placed = append(placed, nodes[i])
			}
		}
		if len(placed) != r.Placeable(nodes) {
			t.Fatalf("seed %d: %d copies in %v, said were %d", seed, len(placed), nodes,
				r.Placeable(nodes))
		}
		if copies == 1 {
			continue
		}
		placed = placed[:min(len(placed), int(copies))]
		for i, a := range placed {
			in := slices.IndexFunc(placed[i+1:], func(b Labels) bool { return together(a, b, "zone") })
			if in >= 0 && copies == 3 {
				t.Fatalf("seed %d: two of three copies in one place: %v", seed, placed)
			}
		}
		if len(placed) == int(copies) && Majority(placed, "zone") != "" {
			t.Fatalf("seed %d: a majority in one place: %v", seed, placed)
		}
	}
}

func TestIsolationIsRefusedWhereTheCopiesWouldFindNoPlace(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		rule *metapb.Rule
		want string
	}{
		{isolated(3, "zone"), ""},
		{isolated(5, "zone"), ""},
		{isolated(7, "zone"), "rule strict wants 7 copies on different nodes"},
		{isolated(3, "region"), "rule strict isolates 3 copies by region, but only 1 find a place: " +
			"add nodes elsewhere, or leave isolation out"},
		{isolated(3, "rack"), "rule strict spreads by rack, but no node it allows has that label"},
		{isolated(1, "region"), ""},
		{isolated(3, "zone=a"), `isolation "zone=a" is not the key of a label`},
		{&metapb.Rule{Name: "strict", Replicas: 3, Isolation: "zone", Spread: "region"},
			"rule strict spreads by region and isolates by zone: copies can be kept apart by one of them"},
	} {
		set, faults := New(&metapb.RuleSet{Rules: []*metapb.Rule{x.rule}})
		if set != nil {
			faults, _ = Check(set, nil, fiveInThree())
		}
		if got := strings.Join(faults, "; "); (x.want == "") != (got == "") ||
			!strings.Contains(got, x.want) {
			t.Errorf("%v\n got %q\nwant %q", x.rule, got, x.want)
		}
	}
	strict, loose := must(t, isolated(3, "zone")), must(t, &metapb.Rule{Name: "strict", Replicas: 3,
		Spread: "zone"})
	if !strict.Differs(loose) {
		t.Error("isolation makes no difference")
	}
	if got := strict.Rules()[0].String(); got != "3 copies, apart by zone, never a majority in one zone" {
		t.Errorf("%q", got)
	}
}
