package rules

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Bounds of a set: what a person can oversee, and what fits into one value of
// range 1. A set beyond one of them is refused.
const (
	MaxRules      = 1000
	MaxReplicas   = 7
	MaxNameBytes  = 64
	MaxLabelBytes = 128  // of key=value
	MaxLabels     = 16   // in one list of a rule
	MaxPrefix     = 1024 // bytes
	// MaxFaults is how many faults New and Check tell; the next ones are counted.
	MaxFaults = 20
)

// New compiles a set. Faults say in words what is wrong with it by itself, and
// what to do; there is no set then. p is copied.
func New(p *metapb.RuleSet) (*Set, []string) {
	var f faults
	if n := len(p.GetRules()); n > MaxRules {
		f.add("%d rules are too many: at most %d", n, MaxRules)
		return nil, f.told()
	}
	var all []*Rule
	for i, x := range p.GetRules() {
		all = append(all, compile(&f, i, x))
	}
	slices.SortStableFunc(all, func(a, b *Rule) int { return bytes.Compare(a.Prefix, b.Prefix) })
	f.duplicates(all)
	if len(all) == 0 || len(all[0].Prefix) > 0 {
		f.add("no rule has the empty prefix: add one, it is for all keys that no other rule covers")
	}
	if f.count > 0 {
		return nil, f.told()
	}
	return &Set{
		proto: proto.CloneOf(p), rules: all, segments: layOut(all),
	}, nil
}

// compile checks one rule, the i-th as given.
func compile(f *faults, i int, p *metapb.Rule) *Rule {
	who := "rule " + strconv.Itoa(i+1)
	switch name := p.GetName(); {
	case name == "":
		f.add("%s has no name: give it one", who)
	case len(name) > MaxNameBytes:
		f.add("%s: the name has %d bytes, at most %d", who, len(name), MaxNameBytes)
	case !plain(name):
		f.add("%s: the name %q may have letters, digits and . _ - / only", who, name)
	default:
		who = "rule " + name
	}
	if n := len(p.GetPrefix()); n > MaxPrefix {
		f.add("%s: the prefix has %d bytes, at most %d", who, n, MaxPrefix)
	}
	if n := p.GetReplicas(); n > MaxReplicas || n%2 == 0 {
		f.add("%s: %d replicas: ask for 1, 3, 5 or 7", who, n)
	}
	r := &Rule{
		Name: p.GetName(), Prefix: bytes.Clone(p.GetPrefix()),
		Replicas: int(min(p.GetReplicas(), MaxReplicas)),
		Require:  f.labels(who, "require", p.GetRequire()),
		Forbid:   f.labels(who, "forbid", p.GetForbid()),
		Leaders:  f.labels(who, "leaders", p.GetLeaders()),
		Spread:   p.GetSpread(),
	}
	if r.Spread != "" && (len(r.Spread) > MaxLabelBytes || !plain(r.Spread)) {
		f.add("%s: spread %q is not the key of a label, such as zone", who, r.Spread)
	}
	f.isolation(who, r, p.GetIsolation())
	f.contradictions(who, r)
	return r
}

// isolation notes by which label a rule isolates places: copies stand apart by the same
// one, or they could be brought nearer by it for the sake of another.
func (f *faults) isolation(who string, r *Rule, key string) {
	switch {
	case key == "":
		return
	case len(key) > MaxLabelBytes || !plain(key):
		f.add("%s: isolation %q is not the key of a label, such as zone", who, key)
	case r.Spread != "" && r.Spread != key:
		f.add("%s spreads by %s and isolates by %s: copies can be kept apart by one of them only",
			who, r.Spread, key)
	}
	r.Spread, r.Isolate = key, key
}

// plain says whether a name or the key of a label has no odd characters.
func plain(s string) bool {
	for _, c := range []byte(s) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && !bytes.ContainsRune([]byte("._-/"), rune(c)) {
			return false
		}
	}
	return true
}

// faults collects what is wrong, in words, up to a bound.
type faults struct {
	all   []string
	count int
}

func (f *faults) add(format string, args ...any) {
	if f.count++; f.count <= MaxFaults {
		f.all = append(f.all, fmt.Sprintf(format, args...))
	}
}

// told returns the faults, and how many more there are.
func (f *faults) told() []string {
	if f.count > MaxFaults {
		return append(f.all, fmt.Sprintf("and %d more", f.count-MaxFaults))
	}
	return f.all
}

// labels parses one list of a rule.
func (f *faults) labels(who, list string, texts []string) []Label {
	if len(texts) > MaxLabels {
		f.add("%s: %s has %d labels, at most %d", who, list, len(texts), MaxLabels)
		return nil
	}
	var all []Label
	for _, text := range texts {
		l, ok := parseLabel(text)
		switch {
		case len(text) > MaxLabelBytes:
			f.add("%s: a label of %s has %d bytes, at most %d", who, list, len(text), MaxLabelBytes)
		case !ok || !plain(l.Key):
			f.add("%s: %s: %q is not a label; it is written key=value, such as zone=a",
				who, list, text)
		case slices.Contains(all, l):
			f.add("%s: %s names %v twice", who, list, l)
		default:
			all = append(all, l)
		}
	}
	return all
}

// contradictions finds what no cluster could satisfy.
func (f *faults) contradictions(who string, r *Rule) {
	for i, l := range r.Require {
		if slices.Contains(r.Forbid, l) {
			f.add("%s requires and forbids %v: leave one out", who, l)
		}
		for _, o := range r.Require[:i] {
			if o.Key == l.Key {
				f.add("%s requires %v and %v, but a node has one %s: require one of them, "+
					"or forbid all others", who, o, l, l.Key)
			}
		}
	}
	for _, l := range r.Leaders {
		if slices.Contains(r.Forbid, l) {
			f.add("%s wants leaders on %v, which it forbids: leave one out", who, l)
		}
		for _, o := range r.Require {
			if o.Key == l.Key && o != l {
				f.add("%s wants leaders on %v, but requires %v of every copy: "+
					"no copy can be there", who, l, o)
			}
		}
	}
}

// duplicates finds what two rules must not share. The rules come by prefix.
func (f *faults) duplicates(all []*Rule) {
	for i := 1; i < len(all); i++ {
		if a, b := all[i-1], all[i]; bytes.Equal(a.Prefix, b.Prefix) {
			f.add("rules %s and %s have the same prefix %q: make one rule of them",
				a.Name, b.Name, a.Prefix)
		}
	}
	names := slices.SortedFunc(slices.Values(all), func(a, b *Rule) int {
		return cmp.Compare(a.Name, b.Name)
	})
	for i := 1; i < len(names); i++ {
		if n := names[i].Name; n != "" && n == names[i-1].Name {
			f.add("two rules have the name %s: rename one", n)
		}
	}
}
