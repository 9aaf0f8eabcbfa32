package rules

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Check says in words whether nodes can satisfy a set. Nodes are the localities of
// those that may hold copies: registered and not on their way out, live or not.
//
// Faults are what a change must be refused for. Warnings are what is worse than it
// looks, or comes true only with other nodes. What old (nil: nothing) asks for in
// the same words is no fault but a warning: a change is not refused for what was
// so before it, such as three copies in a cluster that still grows.
func Check(s, old *Set, nodes []Labels) (faulty, warnings []string) {
	c := checker{nodes: nodes, values: map[string]map[string]bool{}}
	for _, n := range nodes {
		for _, l := range n {
			if c.values[l.Key] == nil {
				c.values[l.Key] = map[string]bool{}
			}
			c.values[l.Key][l.Value] = true
		}
	}
	for _, r := range s.rules {
		c.refuse = &c.faults
		if old != nil && slices.ContainsFunc(old.rules, func(o *Rule) bool {
			return o.Name == r.Name && o.places(r)
		}) {
			c.refuse = &c.warnings
		}
		c.rule(r)
	}
	return c.faults.told(), c.warnings.told()
}

// checker checks rules against nodes.
type checker struct {
	nodes            []Labels
	values           map[string]map[string]bool // of labels, by key
	faults, warnings faults
	refuse           *faults // where what cannot be satisfied goes
}

func (c *checker) rule(r *Rule) {
	var allowed []Labels
	for _, n := range c.nodes {
		if r.Allows(n) {
			allowed = append(allowed, n)
		}
	}
	if len(allowed) < r.Replicas {
		c.tooFew(r, len(allowed))
	}
	for _, l := range r.Forbid {
		if !c.known(l) {
			c.warnings.add("rule %s forbids %v, which no node has%s", r.Name, l, c.instead(l))
		}
	}
	c.leaders(r, allowed)
	if r.Spread != "" && len(allowed) > 0 {
		c.spread(r, allowed)
	}
}

// tooFew says why there are not enough nodes, and what would help.
func (c *checker) tooFew(r *Rule, allowed int) {
	for _, l := range r.Require {
		if !c.known(l) {
			c.refuse.add("rule %s requires %v, which no node has%s", r.Name, l, c.instead(l))
			return
		}
	}
	which, what := "nodes are there", "add nodes or ask for fewer replicas"
	if len(r.Require)+len(r.Forbid) > 0 {
		which = "nodes satisfy its constraints"
		what = "add such nodes, ask for fewer replicas or relax the constraints"
	}
	c.refuse.add("rule %s wants %d copies on different nodes, but %d of %d %s: %s",
		r.Name, r.Replicas, allowed, len(c.nodes), which, what)
}

// leaders warns of preferences that lead nowhere.
func (c *checker) leaders(r *Rule, allowed []Labels) {
	for _, l := range r.Leaders {
		switch {
		case !c.known(l):
			c.warnings.add("rule %s wants leaders on %v, which no node has%s", r.Name, l,
				c.instead(l))
		case !slices.ContainsFunc(allowed, func(n Labels) bool { return n.Has(l) }):
			c.warnings.add("rule %s wants leaders on %v, but allows no copy there", r.Name, l)
		}
	}
}

// spread warns of a label by which copies cannot stand apart as one would think.
func (c *checker) spread(r *Rule, allowed []Labels) {
	places := map[string]int{}
	lack := 0
	for _, n := range allowed {
		if p := n.Place(r.Spread); p != "" {
			places[p]++
		} else {
			lack++
		}
	}
	switch {
	case len(places) == 0:
		tell := &c.warnings
		if r.Isolate != "" { // so few copies would find a place
			tell = c.refuse
		}
		tell.add("rule %s spreads by %s, but no node it allows has that label: start nodes "+
			"with --locality %s=…", r.Name, r.Spread, r.Spread)
		return
	case lack > 0:
		c.warnings.add("rule %s spreads by %s, which %d of its %d nodes lack: they count as one "+
			"place", r.Name, r.Spread, lack, len(allowed))
	}
	if lack > 0 {
		places[""] = lack
	}
	if r.Replicas == 1 {
		return
	}
	switch n := len(places); {
	case r.Isolate != "" && cramped(r, places):
		c.refuse.add("rule %s isolates %d copies by %s, but only %d find a place: add nodes "+
			"elsewhere, or leave isolation out", r.Name, r.Replicas, r.Isolate, r.Placeable(allowed))
	case n == 1:
		c.warnings.add("rule %s spreads by %s, but all its nodes are in one: its loss stops the "+
			"ranges", r.Name, r.Spread)
	case cramped(r, places):
		c.warnings.add("rule %s spreads %d copies by %s, but one of its %d places has to hold a "+
			"majority: that one's loss stops ranges", r.Name, r.Replicas, r.Spread, n)
	}
}

// cramped says whether one place must hold a majority, because the others have too
// few nodes for the rest.
func cramped(r *Rule, places map[string]int) bool {
	most := (r.Replicas - 1) / 2 // copies in one place without a majority
	room := 0
	for _, nodes := range places {
		room += min(nodes, most)
	}
	return room < r.Replicas
}

func (c *checker) known(l Label) bool { return c.values[l.Key][l.Value] }

// maxNamed bounds the values that a text names.
const maxNamed = 10

// instead says what there is where a label is not.
func (c *checker) instead(l Label) string {
	values := slices.Sorted(maps.Keys(c.values[l.Key]))
	if len(values) == 0 {
		if keys := slices.Sorted(maps.Keys(c.values)); len(keys) > 0 {
			return fmt.Sprintf(" (there is no %s; nodes have %s)", l.Key, some(keys))
		}
		return " (nodes have no labels at all: start them with --locality)"
	}
	return fmt.Sprintf(" (there is %s %s)", l.Key, some(values))
}

// some lists the first of many.
func some(all []string) string {
	more := ""
	if len(all) > maxNamed {
		more = fmt.Sprintf(" and %d more", len(all)-maxNamed)
		all = all[:maxNamed]
	}
	return strings.Join(all, ", ") + more
}
