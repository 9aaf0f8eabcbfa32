package placement

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/placement/rules"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func TestADryRunSaysWhereARangeIsSplitAndWhatMovesThen(t *testing.T) {
	t.Parallel()
	w := zoned(t, 86, 10, "a", "b", "c", "a")
	d := w.node(w.driver).d
	try := func(all ...*metapb.Rule) (got *adminpb.SetRulesReply) {
		d.SetRules(&adminpb.SetRulesRequest{DryRun: true,
			Rules: &metapb.RuleSet{Version: d.Rules().GetVersion(), Rules: all},
		}, func(r *adminpb.SetRulesReply, err error) {
			if err != nil || len(r.GetFaults()) > 0 {
				t.Fatalf("%v %v", r, err)
			}
			got = r
		})
		return got
	}
	all := &metapb.Rule{Name: "all", Replicas: 3}
	// Inside range 4, of keys 0x20 00 02 to 0x20 00 03: its start stays under "all".
	away := &metapb.Rule{Name: "away", Prefix: []byte{0, 2, 0x40}, Replicas: 3,
		Forbid: []string{"zone=c"}}
	r := try(all, away)
	if r.GetRangesAffected() != 1 || r.GetRangesToSplit() != 1 || r.GetReplicasToMove() != 1 ||
		r.GetBytesToMove() != 20<<20/3 {
		t.Fatalf("a rule that begins inside a range: %v", r)
	}
	for _, words := range []string{`r4 is split at "\x00\x02@" (rule away), "\x00\x02A" (rule all)`,
		`its part from "\x00\x02@" under rule away: leaves n`, "rule away forbids zone=c"} {
		if !strings.Contains(r.GetExamples()[0], words) {
			t.Errorf("%q is not in %q", words, r.GetExamples()[0])
		}
	}
	if strings.Contains(r.GetExamples()[0], "under rule all") {
		t.Errorf("the parts of rule all stay: %q", r.GetExamples()[0])
	}
	// Split and nothing more.
	same := &metapb.Rule{Name: "same", Prefix: []byte{0, 2, 0x40}, Replicas: 3}
	if r = try(all, same); r.GetRangesAffected() != 1 || r.GetRangesToSplit() != 1 ||
		r.GetReplicasToMove()+r.GetBytesToMove()+r.GetLeadersToMove() != 0 {
		t.Fatalf("a rule that wants the same: %v", r)
	}
	// And so it comes.
	w.set(all, away)
	moved := w.swaps
	w.runUntil(10*time.Minute, "cut and moved", func() bool {
		cut := false
		for _, r := range w.ranges {
			cut = cut || slices.Equal(r.desc.GetStart(), []byte{0x20, 0, 2, 0x40})
		}
		return cut && w.swaps > moved && w.status().GetOperators() == 0
	})
	w.run(2 * time.Minute)
	if w.swaps-moved < 1 || w.swaps-moved > 2 { // and perhaps one for balance
		t.Errorf("%d copies moved", w.swaps-moved)
	}
}

// previewable is a driver at rest with so many ranges, whose later work waits.
func previewable(t testing.TB, ranges uint64) (d *Driver, work *[]func()) {
	work = new([]func())
	d = NewDriver(Config{Self: 1, ClusterID: 7, KV: newMemKV(),
		Later: func(f func()) { *work = append(*work, f) }})
	d.SetActive(true, 0)
	const nodes = 5
	for n := range uint64(nodes) {
		desc := &metapb.NodeDescriptor{NodeId: n + 1, StoreId: n + 1, Address: "a:1",
			Locality: []string{"zone=" + string(rune('a'+n))}}
		d.cluster.register(desc, 1)
		r := &metapb.NodeReport{Node: desc, Full: true}
		for i := n; i < ranges; i += nodes {
			r.Facts = append(r.Facts, benchFact(nodes, i, 1, 1))
		}
		d.Report(0, r)
	}
	d.planning = true
	return d, work
}

func rulesWithout(zone string) *adminpb.SetRulesRequest {
	return &adminpb.SetRulesRequest{DryRun: true, Rules: &metapb.RuleSet{
		Rules: []*metapb.Rule{{Name: "all", Replicas: 3, Forbid: []string{"zone=" + zone}}}}}
}

func TestADryRunLetsOtherWorkOfTheDriverBetween(t *testing.T) {
	t.Parallel()
	const ranges = 3*previewSlice + 100
	d, work := previewable(t, ranges)
	var answers []*adminpb.SetRulesReply
	answer := func(r *adminpb.SetRulesReply, err error) {
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, r)
	}
	d.SetRules(rulesWithout("a"), answer)
	d.SetRules(rulesWithout("a"), answer) // whoever asks for the same waits for the same walk
	parts := 1
	for ; len(*work) > 0; parts++ {
		if len(answers) > 0 || len(*work) != 1 {
			t.Fatalf("%d answers, %d pieces of work wait", len(answers), len(*work))
		}
		next := (*work)[0]
		*work = nil
		d.Step(time.Duration(parts) * time.Millisecond)
		next()
	}
	if parts != 4 || len(answers) != 2 || answers[0].GetRangesAffected() != ranges*3/5 {
		t.Fatalf("%d slices, answers %v", parts, answers)
	}
	// Only so many at a time, and none outlives the tenure.
	answers = nil
	for i := range maxPreviews {
		d.SetRules(rulesWithout(string(rune('a'+i))), func(_ *adminpb.SetRulesReply, err error) {
			if !errors.Is(err, ErrAskAgain) {
				t.Errorf("after the end of the tenure: %v", err)
			}
			answers = append(answers, nil)
		})
	}
	refused := false
	d.SetRules(rulesWithout("e"), func(_ *adminpb.SetRulesReply, err error) {
		refused = errors.Is(err, ErrAskAgain)
	})
	d.SetActive(false, time.Second)
	for _, f := range *work {
		f()
	}
	if !refused || len(answers) != maxPreviews {
		t.Fatalf("refused %v, %d answers", refused, len(answers))
	}
}

func labelsOf(nodes []*node) (all []rules.Labels) {
	for _, n := range nodes {
		all = append(all, n.labels)
	}
	return all
}

// slowTooNear tries every node, each time, and remembers nothing.
func slowTooNear(rule *rules.Rule, ideal int, nodes, held []rules.Labels) (moves int) {
	held = slices.Clone(held)
	for rule.Collisions(held) > ideal && moves < len(held) {
		at, to, best := -1, rules.Labels(nil), 0
		for i := range held {
			rest := slices.Delete(slices.Clone(held), i, i+1)
			for _, n := range nodes {
				gain := rule.Adds(rest, held[i]) - rule.Adds(rest, n)
				if rule.Allows(n) && gain > best {
					at, to, best = i, n, gain
				}
			}
		}
		if at < 0 {
			return moves
		}
		held[at] = to
		moves++
	}
	return moves
}

func TestADryRunCountsCopiesThatStandTooNearAsIfItTriedAll(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 21))
		c := newCluster(Config{}.withDefaults(), 0)
		for i := range 3 + rng.IntN(20) {
			at := []string{fmt.Sprintf("region=r%d", rng.IntN(3)), fmt.Sprintf("zone=z%d", rng.IntN(3)),
				fmt.Sprintf("host=h%d", rng.IntN(40))}
			c.register(&metapb.NodeDescriptor{NodeId: uint64(i + 1), StoreId: uint64(i + 1),
				Locality: at[:rng.IntN(4)]}, 1)
		}
		p := &metapb.Rule{Name: "all", Replicas: uint32(1 + 2*rng.IntN(3)),
			Spread: []string{"", "region", "zone", "host"}[rng.IntN(4)]}
		if rng.IntN(3) == 0 {
			p.Forbid = []string{"region=r0"}
		}
		set, faults := rules.New(&metapb.RuleSet{Rules: []*metapb.Rule{p}})
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		rule := set.Rules()[0]
		v := newPreview(c, set, &adminpb.SetRulesReply{})
		o := v.outlook(rule)
		for range 200 {
			var nodes []*node
			for _, i := range rng.Perm(len(c.order)) {
				n := c.nodes[c.order[i]]
				if rule.Allows(n.labels) && len(nodes) < rule.Replicas {
					nodes = append(nodes, n)
				}
			}
			if len(nodes) < rule.Replicas {
				break
			}
			v.sort(nodes)
			held := labelsOf(nodes)
			want := slowTooNear(rule, o.ideal, labelsOf(v.byPlace), held)
			if got := v.tooNear(rule, o, nodes); got != want {
				t.Fatalf("seed %d, rule %v: %d of %v are to move, want %d", seed, rule, got, held, want)
			}
		}
	}
}

// BenchmarkPreview is a dry run at a million ranges: the whole, and its longest slice.
func BenchmarkPreview(b *testing.B) {
	d, _ := millionDriver(b)
	var later []func()
	d.cfg.Later = func(f func()) { later = append(later, f) }
	longest := time.Duration(0)
	for b.Loop() {
		answered := false
		d.SetRules(&adminpb.SetRulesRequest{DryRun: true, Rules: &metapb.RuleSet{
			Rules: []*metapb.Rule{{Name: "all", Replicas: 5}}},
		}, func(_ *adminpb.SetRulesReply, err error) { answered = err == nil })
		for len(later) > 0 {
			next := later[0]
			later = later[1:]
			begun := time.Now()
			next()
			longest = max(longest, time.Since(begun))
		}
		if !answered {
			b.Fatal("no answer")
		}
	}
	b.ReportMetric(float64(longest.Microseconds()), "µs/slice")
}
