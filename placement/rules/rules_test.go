package rules

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func at(locality string) Labels { return ParseLabels(strings.Split(locality, ",")) }

func must(t *testing.T, all ...*metapb.Rule) *Set {
	t.Helper()
	s, faults := New(&metapb.RuleSet{Version: 7, Rules: all})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return s
}

func everywhere() *metapb.Rule { return &metapb.Rule{Name: "default", Replicas: 3} }

// slowOf decides as people would: the longest prefix that the key has.
func slowOf(all []*Rule, key []byte) *Rule {
	var best *Rule
	user, isUser := kv.StripUserKey(key)
	for _, r := range all {
		fits := len(r.Prefix) == 0 || isUser && bytes.HasPrefix(user, r.Prefix)
		if fits && (best == nil || len(r.Prefix) > len(best.Prefix)) {
			best = r
		}
	}
	return best
}

// Prefixes and keys come from an alphabet in which nesting, equal ends and keys at
// the very end of a prefix are common.
func TestTheLongestPrefixDecidesAndBoundsAreWhereItChanges(t *testing.T) {
	t.Parallel()
	text := rapid.StringOfN(rapid.SampledFrom([]rune("\x00a\u00ff")), 0, 4, -1)
	toBytes := func(s string) []byte {
		var b []byte
		for _, r := range s {
			b = append(b, byte(r))
		}
		return b
	}
	rapid.Check(t, func(t *rapid.T) {
		p := &metapb.RuleSet{}
		for i, prefix := range rapid.SliceOfNDistinct(text, 0, 8, rapid.ID[string]).Draw(t, "prefixes") {
			if prefix != "" {
				p.Rules = append(p.Rules, &metapb.Rule{
					Name: fmt.Sprint("r", i), Prefix: toBytes(prefix), Replicas: 1,
				})
			}
		}
		p.Rules = append(p.Rules, everywhere())
		s, faults := New(p)
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		key := rapid.Custom(func(t *rapid.T) []byte {
			first := rapid.SampledFrom([]byte{kv.SystemPrefix, kv.UserPrefix, kv.UserPrefix,
				kv.UserPrefix, kv.EndPrefix}).Draw(t, "first")
			return append([]byte{first}, toBytes(text.Draw(t, "rest"))...)
		})
		start, end := key.Draw(t, "start"), key.Draw(t, "end")
		if got, want := s.Of(start), slowOf(s.Rules(), start); got != want {
			t.Fatalf("key %x has rule %s, want %s", start, got.Name, want.Name)
		}
		bounds := s.Bounds(start, end)
		for i, b := range bounds {
			if bytes.Compare(b, start) <= 0 || bytes.Compare(b, end) >= 0 ||
				i > 0 && bytes.Compare(b, bounds[i-1]) <= 0 {
				t.Fatalf("bound %x of [%x, %x) is not inside, or out of order", b, start, end)
			}
			if slowOf(s.Rules(), b) == slowOf(s.Rules(), justBelow(b)) {
				t.Fatalf("at %x no other rule begins", b)
			}
		}
		// Between two bounds the rule is one: any key there has that of the stretch.
		probe := key.Draw(t, "probe")
		if bytes.Compare(start, probe) <= 0 && bytes.Compare(probe, end) < 0 {
			from := start
			for _, b := range bounds {
				if bytes.Compare(b, probe) <= 0 {
					from = b
				}
			}
			if got, want := slowOf(s.Rules(), from), slowOf(s.Rules(), probe); got != want {
				t.Fatalf("a bound is missing between %x (%s) and %x (%s)", from, got.Name, probe,
					want.Name)
			}
		}
	})
}

// justBelow returns a key that is less than b and so near that no short prefix
// begins between them.
func justBelow(b []byte) []byte {
	last := len(b) - 1
	if b[last] == 0 {
		return b[:last]
	}
	return append(append(bytes.Clone(b[:last]), b[last]-1), bytes.Repeat([]byte{0xff}, 8)...)
}

func TestTheSystemRangeObeysTheRuleOfAllKeys(t *testing.T) {
	t.Parallel()
	s := must(t, everywhere(), &metapb.Rule{Name: "all", Prefix: []byte{0}, Replicas: 5})
	if r := s.Of([]byte{kv.SystemPrefix}); r.Name != "default" {
		t.Errorf("the system range has rule %s", r.Name)
	}
	if b := s.Bounds([]byte{kv.SystemPrefix}, []byte{kv.UserPrefix}); b != nil {
		t.Errorf("the system range has bounds %x", b)
	}
}

// Not parallel, because allocations are counted.
func TestWhatIsAskedForEveryNodeAllocatesNothing(t *testing.T) {
	r := &metapb.Rule{Name: "x", Prefix: []byte("x"), Replicas: 3, Require: []string{"region=eu"},
		Forbid: []string{"zone=z"}, Spread: "zone", Leaders: []string{"zone=c"}}
	s := must(t, everywhere(), r)
	copies, node := []Labels{at("region=eu,zone=a"), at("region=eu,zone=b")}, at("region=eu,zone=a")
	key := []byte{kv.UserPrefix, 'x', 'y'}
	if got := testing.AllocsPerRun(10, func() {
		rule := s.Of(key)
		if !rule.Allows(node) || rule.Preference(node) != 1 || rule.Adds(copies, node) == 0 ||
			rule.Collisions(copies) == 0 || s.Bounds(nil, []byte{kv.UserPrefix}) != nil {
			t.Error("wrong answer")
		}
	}); got > 0 {
		t.Errorf("%v allocations", got)
	}
}

func TestDefaultIsARuleForAllKeysWithAnOddFactor(t *testing.T) {
	t.Parallel()
	for factor, want := range map[int]int{-1: 1, 0: 1, 1: 1, 2: 1, 3: 3, 4: 3, 5: 5, 6: 5, 9: 7} {
		s := Default(factor)
		if s == nil || len(s.Rules()) != 1 || s.Rules()[0].Replicas != want || s.Version() != 0 {
			t.Errorf("factor %d: %v", factor, s.Proto())
		}
	}
}

func TestAllowsAndWhyAgree(t *testing.T) {
	t.Parallel()
	r := must(t, everywhere(), &metapb.Rule{
		Name: "eu", Prefix: []byte("e"), Replicas: 1, Require: []string{"region=eu"},
		Forbid: []string{"disk=slow", "zone=c"},
	}).Rules()[1]
	for locality, want := range map[string]string{
		"region=eu,zone=a":           "",
		"region=eu":                  "",
		"region=us,zone=a":           "rule eu requires region=eu, the node has us",
		"zone=a":                     "rule eu requires region=eu, the node has none",
		"region=eu,zone=c":           "rule eu forbids zone=c",
		"region=eu,zone=b,disk=slow": "rule eu forbids disk=slow",
	} {
		if got := r.Why(at(locality)); got != want || r.Allows(at(locality)) != (want == "") {
			t.Errorf("%s: %q, allowed %v", locality, got, r.Allows(at(locality)))
		}
	}
}

func TestLeadersGoWhereTheFirstPreferenceIs(t *testing.T) {
	t.Parallel()
	r := must(t, &metapb.Rule{
		Name: "default", Replicas: 3, Leaders: []string{"zone=b", "region=eu"},
	}).Rules()[0]
	for locality, want := range map[string]int{
		"region=eu,zone=b": 0, "region=eu,zone=a": 1, "region=us,zone=a": 2, "": 2,
	} {
		if got := r.Preference(at(locality)); got != want {
			t.Errorf("%q has preference %d, want %d", locality, got, want)
		}
	}
}

// The slow twin compares level by level, as the text of Collisions says.
func TestFewerSharedLargePlacesAlwaysWeighMore(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := &Rule{Spread: rapid.SampledFrom([]string{"", "zone", "rack"}).Draw(t, "spread")}
		copies := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Labels {
			var l Labels
			for _, key := range []string{"region", "zone", "host"} {
				if rapid.IntRange(0, 9).Draw(t, "lacks") > 0 {
					v := rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "value")
					l = append(l, Label{key, v})
				}
			}
			return l
		}), 14, 14)
		a, b := copies.Draw(t, "a"), copies.Draw(t, "b")
		want := slices.Compare(slowLevels(r, a), slowLevels(r, b))
		got := 0
		if x, y := r.Collisions(a), r.Collisions(b); x < y {
			got = -1
		} else if x > y {
			got = 1
		}
		if got != want {
			t.Fatalf("%v against %v: %d, want %d", a, b, got, want)
		}
		if r.Collisions(a) != r.Collisions(a[1:])+r.Adds(a[1:], a[0]) {
			t.Fatal("what a copy adds is not what it added")
		}
	})
}

// slowLevels counts the pairs that share a level, the largest level first.
func slowLevels(r *Rule, copies []Labels) []int {
	levels := make([]int, maxTiers+1)
	for i, a := range copies {
		for _, b := range copies[:i] {
			if r.Spread != "" && a.Place(r.Spread) == b.Place(r.Spread) {
				levels[0]++
			}
			for tier := range min(len(a), len(b), maxTiers) {
				if slices.Equal(a[:tier+1], b[:tier+1]) {
					levels[tier+1]++
				}
			}
		}
	}
	return levels
}

func TestMajorityOfAPlaceAndWhatPlacesAre(t *testing.T) {
	t.Parallel()
	a, b, c := at("region=eu,zone=a"), at("region=eu,zone=b"), at("region=us,zone=a")
	for _, x := range []struct {
		copies []Labels
		key    string
		want   string
	}{
		{[]Labels{a, b, c}, "zone", ""},
		{[]Labels{a, b, c}, "region", "region=eu"},
		{[]Labels{a, a, c}, "zone", "region=eu,zone=a"},
		{[]Labels{a, a, b, b, c}, "zone", ""},
		{[]Labels{b, a, a, a, c}, "zone", "region=eu,zone=a"},
		{nil, "zone", ""},
	} {
		if got := Majority(x.copies, x.key); got != x.want {
			t.Errorf("%v by %s: %q, want %q", x.copies, x.key, got, x.want)
		}
	}
	r := &Rule{}
	for _, x := range []struct {
		nodes []Labels
		want  string
	}{
		{nil, ""}, {[]Labels{a, a}, ""}, {[]Labels{a, b}, "zone"}, {[]Labels{a, b, c}, "region"},
		{[]Labels{nil, nil}, ""},
	} {
		if got := r.Isolation(x.nodes); got != x.want {
			t.Errorf("%v stand apart by %q, want %q", x.nodes, got, x.want)
		}
	}
}

func TestSetsDifferIfTheyPlaceAnyKeyDifferently(t *testing.T) {
	t.Parallel()
	pinned := func(name string, replicas uint32) *metapb.Rule {
		return &metapb.Rule{Name: name, Prefix: []byte("p"), Replicas: replicas}
	}
	a := must(t, everywhere(), pinned("x", 5))
	if a.Differs(must(t, pinned("y", 5), everywhere())) {
		t.Error("a name makes a difference")
	}
	if !a.Differs(must(t, everywhere(), pinned("x", 1))) || !a.Differs(must(t, everywhere())) {
		t.Error("another number of copies makes none")
	}
}

func TestTheSetKeepsACopyOfWhatItWasMadeFrom(t *testing.T) {
	t.Parallel()
	p := &metapb.RuleSet{Version: 3, Rules: []*metapb.Rule{everywhere()}}
	s, _ := New(p)
	p.Rules[0].Replicas = 7
	if s.Proto().GetRules()[0].GetReplicas() != 3 || s.Version() != 3 {
		t.Error("the set changes with its source")
	}
}
