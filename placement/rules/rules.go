package rules

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// DefaultName is the name of the rule that a cluster begins with.
const DefaultName = "default"

// Rule says how ranges of a span are placed. It is immutable; its slices must not
// be changed.
type Rule struct {
	Name     string
	Prefix   []byte  // of users' keys; empty: all that no other rule covers
	Replicas int     // voters: 1, 3, 5 or 7
	Require  []Label // every copy's node has all of them
	Forbid   []Label // no copy's node has any of them
	Spread   string  // copies stand apart by the value of this key; "": by locality alone
	Isolate  string  // Spread, if no place by it is ever given a majority; else ""
	Leaders  []Label // where leaders should be, the best first
}

// Allows says whether a node may hold a copy.
func (r *Rule) Allows(node Labels) bool {
	for _, l := range r.Require {
		if !node.Has(l) {
			return false
		}
	}
	for _, l := range r.Forbid {
		if node.Has(l) {
			return false
		}
	}
	return true
}

// Why says in words which constraint a node breaks, "" if none.
func (r *Rule) Why(node Labels) string {
	for _, l := range r.Require {
		if node.Has(l) {
			continue
		}
		has := "has none"
		if v := node.Value(l.Key); v != "" {
			has = "has " + v
		}
		return fmt.Sprintf("rule %s requires %v, the node %s", r.Name, l, has)
	}
	for _, l := range r.Forbid {
		if node.Has(l) {
			return fmt.Sprintf("rule %s forbids %v", r.Name, l)
		}
	}
	return ""
}

// Preference ranks a node as a leader: 0 is best, len(r.Leaders) is where no
// preference applies.
func (r *Rule) Preference(node Labels) int {
	for i, l := range r.Leaders {
		if node.Has(l) {
			return i
		}
	}
	return len(r.Leaders)
}

// Allowed counts the nodes that may hold a copy.
func (r *Rule) Allowed(nodes []Labels) int {
	n := 0
	for _, node := range nodes {
		if r.Allows(node) {
			n++
		}
	}
	return n
}

// String describes the rule in one line, without its prefix.
func (r *Rule) String() string {
	noun := "copies"
	if r.Replicas == 1 {
		noun = "copy"
	}
	parts := []string{fmt.Sprintf("%d %s", r.Replicas, noun)}
	if len(r.Require) > 0 {
		parts = append(parts, "on "+join(r.Require, " and "))
	}
	if len(r.Forbid) > 0 {
		parts = append(parts, "not on "+join(r.Forbid, " or "))
	}
	if r.Spread != "" {
		parts = append(parts, "apart by "+r.Spread)
	}
	if r.Isolate != "" {
		parts = append(parts, "never a majority in one "+r.Isolate)
	}
	if len(r.Leaders) > 0 {
		parts = append(parts, "leaders on "+join(r.Leaders, ", else "))
	}
	return strings.Join(parts, ", ")
}

func join(all []Label, by string) string {
	var texts []string
	for _, l := range all {
		texts = append(texts, l.String())
	}
	return strings.Join(texts, by)
}

// places says whether two rules ask for the same.
func (r *Rule) places(o *Rule) bool {
	return r.Replicas == o.Replicas && r.Spread == o.Spread && r.Isolate == o.Isolate &&
		slices.Equal(r.Require, o.Require) && slices.Equal(r.Forbid, o.Forbid) &&
		slices.Equal(r.Leaders, o.Leaders)
}

// Set is all rules, compiled. It is immutable.
type Set struct {
	proto    *metapb.RuleSet
	rules    []*Rule // by prefix
	segments []segment
}

// segment is a stretch of the internal keyspace: from start to the start of the
// next one. The first starts at the empty key, and two neighbours differ.
type segment struct {
	start []byte
	rule  *Rule
}

// Default returns the set that a cluster begins with: one rule without
// constraints. The factor is made odd and between 1 and 7.
func Default(factor int) *Set {
	factor = min(max(factor, 1), MaxReplicas)
	factor -= 1 - factor%2
	s, _ := New(&metapb.RuleSet{
		Rules: []*metapb.Rule{{Name: DefaultName, Replicas: uint32(factor)}},
	})
	return s
}

// Proto returns the set as it is stored; it must not be changed.
func (s *Set) Proto() *metapb.RuleSet { return s.proto }

// Version returns the version of the set as it is stored, 0 for one that never
// was.
func (s *Set) Version() uint64 { return s.proto.GetVersion() }

// Rules returns all rules by prefix, the one with the empty prefix first. The
// slice must not be changed.
func (s *Set) Rules() []*Rule { return s.rules }

// Of returns the rule of an internal key, never nil. Keys of the system range have
// the rule with the empty prefix.
func (s *Set) Of(internalKey []byte) *Rule {
	return s.segments[s.at(internalKey)].rule
}

// at returns the segment that holds a key.
func (s *Set) at(key []byte) int {
	i, found := slices.BinarySearchFunc(s.segments, key, func(g segment, key []byte) int {
		return bytes.Compare(g.start, key)
	})
	if !found {
		i--
	}
	return i
}

// Bounds returns the internal keys strictly inside [start, end) at which another
// rule begins, in order; an empty end means to the last key. The keys must not be
// changed. Nil, without an allocation, if the span has one rule.
func (s *Set) Bounds(start, end []byte) [][]byte {
	var bounds [][]byte
	for _, g := range s.segments[s.at(start)+1:] {
		if len(end) > 0 && bytes.Compare(g.start, end) >= 0 {
			break
		}
		bounds = append(bounds, g.start)
	}
	return bounds
}

// Differs says whether two sets place any key differently; versions and names do
// not count.
func (s *Set) Differs(o *Set) bool {
	return !slices.EqualFunc(s.segments, o.segments, func(a, b segment) bool {
		return bytes.Equal(a.start, b.start) && a.rule.places(b.rule)
	})
}

// layOut cuts the internal keyspace into segments. Rules come sorted by prefix, so
// that a rule comes after those whose prefixes begin its own: the innermost open
// prefix decides, and when it ends the one around it goes on.
func layOut(sorted []*Rule) []segment {
	type open struct {
		end  []byte
		rule *Rule
	}
	segments := []segment{{rule: sorted[0]}}
	begin := func(start []byte, r *Rule) {
		if last := &segments[len(segments)-1]; bytes.Equal(last.start, start) {
			last.rule = r // an empty segment: the one before ended where this begins
			return
		}
		segments = append(segments, segment{start, r})
	}
	around := []open{{rule: sorted[0]}}
	closeUpTo := func(key []byte) { // nil: all
		for len(around) > 1 {
			top := around[len(around)-1]
			if key != nil && bytes.Compare(top.end, key) > 0 {
				return
			}
			around = around[:len(around)-1]
			begin(top.end, around[len(around)-1].rule)
		}
	}
	for _, r := range sorted[1:] {
		start := kv.UserKey(nil, r.Prefix)
		closeUpTo(start)
		begin(start, r)
		around = append(around, open{end: prefixEnd(start), rule: r})
	}
	closeUpTo(nil)
	return slices.CompactFunc(segments, func(a, b segment) bool { return a.rule == b.rule })
}

// prefixEnd returns the first key behind all that begin with an internal key of a
// user, whose first byte is never 0xff.
func prefixEnd(key []byte) []byte {
	end := bytes.Clone(bytes.TrimRight(key, "\xff"))
	end[len(end)-1]++
	return end
}
