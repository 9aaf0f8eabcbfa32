package rules

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func TestRulesThatContradictThemselvesAreRefusedInWords(t *testing.T) {
	t.Parallel()
	rule := func(change func(r *metapb.Rule)) []*metapb.Rule {
		r := &metapb.Rule{Name: "x", Prefix: []byte("x"), Replicas: 3}
		change(r)
		return []*metapb.Rule{everywhere(), r}
	}
	for _, x := range []struct {
		all  []*metapb.Rule
		want string
	}{
		{nil, "no rule has the empty prefix: add one"},
		{rule(func(*metapb.Rule) {})[1:], "no rule has the empty prefix"},
		{rule(func(r *metapb.Rule) { r.Replicas = 2 }), "rule x: 2 replicas: ask for 1, 3, 5 or 7"},
		{rule(func(r *metapb.Rule) { r.Replicas = 0 }), "rule x: 0 replicas"},
		{rule(func(r *metapb.Rule) { r.Replicas = 9 }), "rule x: 9 replicas"},
		{rule(func(r *metapb.Rule) { r.Name = "" }), "rule 2 has no name"},
		{rule(func(r *metapb.Rule) { r.Name = "a b" }), `the name "a b" may have letters`},
		{rule(func(r *metapb.Rule) { r.Name = strings.Repeat("n", 65) }), "the name has 65 bytes, at most 64"},
		{rule(func(r *metapb.Rule) { r.Name = "default" }), "two rules have the name default: rename one"},
		{rule(func(r *metapb.Rule) { r.Prefix = nil }), `rules default and x have the same prefix ""`},
		{rule(func(r *metapb.Rule) { r.Prefix = make([]byte, 1025) }), "the prefix has 1025 bytes"},
		{rule(func(r *metapb.Rule) { r.Require = []string{"zone"} }),
			`rule x: require: "zone" is not a label; it is written key=value`},
		{rule(func(r *metapb.Rule) { r.Leaders = []string{"=a"} }), `leaders: "=a" is not a label`},
		{rule(func(r *metapb.Rule) { r.Forbid = []string{"a=b", "a=b"} }), "forbid names a=b twice"},
		{rule(func(r *metapb.Rule) { r.Forbid = make([]string, 17) }), "forbid has 17 labels, at most 16"},
		{rule(func(r *metapb.Rule) { r.Forbid = []string{"a=" + strings.Repeat("b", 127)} }),
			"a label of forbid has 129 bytes"},
		{rule(func(r *metapb.Rule) { r.Spread = "zone=a" }), `spread "zone=a" is not the key of a label`},
		{rule(func(r *metapb.Rule) { r.Require = []string{"region=eu", "region=us"} }),
			"rule x requires region=eu and region=us, but a node has one region"},
		{rule(func(r *metapb.Rule) { r.Require, r.Forbid = []string{"zone=a"}, []string{"zone=a"} }),
			"rule x requires and forbids zone=a"},
		{rule(func(r *metapb.Rule) { r.Leaders, r.Forbid = []string{"zone=a"}, []string{"zone=a"} }),
			"rule x wants leaders on zone=a, which it forbids"},
		{rule(func(r *metapb.Rule) { r.Require, r.Leaders = []string{"region=eu"}, []string{"region=us"} }),
			"wants leaders on region=us, but requires region=eu of every copy"},
	} {
		s, faults := New(&metapb.RuleSet{Rules: x.all})
		if text := strings.Join(faults, "; "); s != nil || !strings.Contains(text, x.want) {
			t.Errorf("%v\n got %q\nwant %q", x.all, text, x.want)
		}
	}
}

func TestThereAreBoundsOnRulesAndOnFaults(t *testing.T) {
	t.Parallel()
	many := &metapb.RuleSet{Rules: []*metapb.Rule{everywhere()}}
	for i := range MaxRules {
		many.Rules = append(many.Rules, &metapb.Rule{
			Name: fmt.Sprint(i), Prefix: fmt.Append(nil, i), Replicas: 2,
		})
	}
	if s, faults := New(many); s != nil || len(faults) != 1 ||
		faults[0] != "1001 rules are too many: at most 1000" {
		t.Errorf("%v", faults)
	}
	many.Rules = many.Rules[:MaxRules]
	_, faults := New(many)
	if len(faults) != MaxFaults+1 || faults[MaxFaults] != "and 979 more" {
		t.Errorf("%d faults, the last %q", len(faults), faults[len(faults)-1])
	}
}

// fiveInThree is five nodes in three zones of one region.
func fiveInThree() []Labels {
	var all []Labels
	for _, zone := range []string{"a", "a", "b", "b", "c"} {
		all = append(all, at("region=eu,zone="+zone))
	}
	return all
}

func TestWhatNodesCannotSatisfyIsAFaultAndWhatIsRiskyAWarning(t *testing.T) {
	t.Parallel()
	base := metapb.Rule{Name: "x", Prefix: []byte("x"), Replicas: 3}
	for name, x := range map[string]struct {
		change       func(r *metapb.Rule)
		nodes        []Labels
		fault, warns string
	}{
		"fine":   {func(r *metapb.Rule) { r.Spread = "zone" }, fiveInThree(), "", ""},
		"few":    {func(r *metapb.Rule) { r.Replicas = 7 }, fiveInThree(), "rule x wants 7 copies on different nodes, but 5 of 5 nodes are there: add nodes or ask for fewer replicas", ""},
		"zone":   {func(r *metapb.Rule) { r.Require = []string{"zone=a"} }, fiveInThree(), "rule x wants 3 copies on different nodes, but 2 of 5 nodes satisfy its constraints", ""},
		"value":  {func(r *metapb.Rule) { r.Require = []string{"zone=d"} }, fiveInThree(), "rule x requires zone=d, which no node has (there is zone a, b, c)", ""},
		"key":    {func(r *metapb.Rule) { r.Require = []string{"zoen=a"} }, fiveInThree(), "rule x requires zoen=a, which no node has (there is no zoen; nodes have region, zone)", ""},
		"none":   {func(r *metapb.Rule) { r.Require = []string{"zone=a"} }, make([]Labels, 3), "which no node has (nodes have no labels at all: start them with --locality)", ""},
		"forbid": {func(r *metapb.Rule) { r.Forbid = []string{"zone=d"} }, fiveInThree(), "", "rule x forbids zone=d, which no node has"},
		"lead":   {func(r *metapb.Rule) { r.Leaders = []string{"zone=d"} }, fiveInThree(), "", "rule x wants leaders on zone=d, which no node has"},
		"lead2": {func(r *metapb.Rule) { r.Require, r.Leaders = []string{"zone=a"}, []string{"zone=b"} },
			append(fiveInThree(), at("region=eu,zone=a")), "wants leaders on zone=b, but requires zone=a", ""},
		"lead3": {func(r *metapb.Rule) { r.Forbid, r.Leaders = []string{"region=us"}, []string{"zone=z"} },
			append(fiveInThree(), at("region=us,zone=z")), "", "rule x wants leaders on zone=z, but allows no copy there"},
		"one zone":  {func(r *metapb.Rule) { r.Spread = "region" }, fiveInThree(), "", "rule x spreads by region, but all its nodes are in one"},
		"two zones": {func(r *metapb.Rule) { r.Spread = "zone" }, fiveInThree()[:4], "", "one of its 2 places has to hold a majority"},
		"cramped": {func(r *metapb.Rule) { r.Spread, r.Replicas = "zone", 5 },
			append(fiveInThree()[:2], at("region=eu,zone=a"), at("region=eu,zone=b"), at("region=eu,zone=c")),
			"", "one of its 3 places has to hold a majority"},
		"lack":    {func(r *metapb.Rule) { r.Spread = "zone" }, append(fiveInThree(), nil), "", "which 1 of its 6 nodes lack"},
		"no rack": {func(r *metapb.Rule) { r.Spread = "rack" }, fiveInThree(), "", "no node it allows has that label: start nodes with --locality rack=…"},
		"single":  {func(r *metapb.Rule) { r.Spread, r.Replicas = "region", 1 }, fiveInThree(), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &metapb.Rule{Name: base.Name, Prefix: base.Prefix, Replicas: base.Replicas}
			x.change(r)
			s, faults := New(&metapb.RuleSet{Rules: []*metapb.Rule{everywhere(), r}})
			var warnings []string
			if s != nil {
				faults, warnings = Check(s, nil, x.nodes)
			}
			for _, y := range []struct{ got, want string }{
				{strings.Join(faults, "; "), x.fault}, {strings.Join(warnings, "; "), x.warns},
			} {
				if !strings.Contains(y.got, y.want) || y.want == "" && y.got != "" {
					t.Errorf("got %q, want %q", y.got, y.want)
				}
			}
		})
	}
}

func TestAChangeIsNotRefusedForWhatWasSoBefore(t *testing.T) {
	t.Parallel()
	one := []Labels{at("zone=a")}
	old := must(t, everywhere())
	grown := must(t, everywhere(), &metapb.Rule{Name: "x", Prefix: []byte("x"), Replicas: 1})
	faults, warnings := Check(grown, old, one)
	if len(faults) > 0 || len(warnings) != 1 || !strings.Contains(warnings[0], "rule default wants 3 copies") {
		t.Errorf("faults %q, warnings %q", faults, warnings)
	}
	if faults, _ = Check(must(t, &metapb.Rule{Name: "default", Replicas: 5}), old, one); len(faults) != 1 {
		t.Errorf("asking for more than there can be is let through: %q", faults)
	}
}
