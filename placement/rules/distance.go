package rules

import "fmt"

// How near copies are is one number, so that it can be compared, added and kept.
// Each level has bits of its own: sharing one place at a larger level weighs more
// than sharing all smaller ones in every pair of copies. The label by which a rule
// spreads is the largest level of all.
const (
	// levelBits hold the pairs of copies that share a level: 16 copies, more than
	// a range ever has (7 voters, and 7 to replace them), make 120 pairs.
	levelBits = 7
	// maxTiers is how many tiers of a locality count; with the level of Spread
	// they fill 56 bits. Smaller tiers only break ties and are left out.
	maxTiers = 7
)

// Near returns how near two nodes are for this rule: 0 if they share nothing.
func (r *Rule) Near(a, b Labels) int {
	near := 0
	if r.Spread != "" && together(a, b, r.Spread) {
		near = 1 << (levelBits * maxTiers)
	}
	for tier := range min(shared(a, b), maxTiers) {
		near += 1 << (levelBits * (maxTiers - 1 - tier))
	}
	return near
}

// Adds returns how near a node is to copies, all pairs added up: what a copy there
// adds to Collisions. Less is better.
func (r *Rule) Adds(copies []Labels, node Labels) int {
	sum := 0
	for _, c := range copies {
		sum += r.Near(c, node)
	}
	return sum
}

// Collisions returns how near copies are to one another, all pairs added up.
// Placement is better the less this is; fewer pairs that share the spread label
// (else a large tier) always weigh more than anything smaller.
func (r *Rule) Collisions(copies []Labels) int {
	sum := 0
	for i, c := range copies {
		sum += r.Adds(copies[:i], c)
	}
	return sum
}

// PerPlace returns how many copies may be in one place by Isolate: as many as leave a
// majority elsewhere.
func (r *Rule) PerPlace() int { return max(1, (r.Replicas-1)/2) }

// Bars says whether the isolation of the rule keeps a node from getting a copy: its
// place has as many of the others as it may.
func (r *Rule) Bars(others []Labels, node Labels) bool {
	if r.Isolate == "" {
		return false
	}
	in := 1
	for _, o := range others {
		if together(o, node, r.Isolate) {
			in++
		}
	}
	return in > r.PerPlace()
}

// WhyBarred says in words why Bars keeps a node from getting a copy, "" if it does not.
func (r *Rule) WhyBarred(others []Labels, node Labels) string {
	if !r.Bars(others, node) {
		return ""
	}
	place := node.Place(r.Isolate)
	if place == "" {
		place = "what has no " + r.Isolate
	}
	return fmt.Sprintf("%s has as many copies as rule %s allows one %s", place, r.Name, r.Isolate)
}

// Placeable returns how many copies of the rule find a place on nodes: all of them, or
// as many as its isolation lets each place have.
func (r *Rule) Placeable(nodes []Labels) int {
	if r.Isolate == "" {
		return len(nodes)
	}
	in := make(map[string]int)
	for _, n := range nodes {
		in[n.Place(r.Isolate)]++
	}
	count := 0
	for _, n := range in { // order-free: a sum
		count += min(n, r.PerPlace())
	}
	return count
}

// Isolation returns the key of the label by whose values copies stand apart: the
// rule's Spread, else the largest tier in which the allowed nodes differ; "" if
// they differ in none.
func (r *Rule) Isolation(nodes []Labels) string {
	if r.Spread != "" {
		return r.Spread
	}
	var first Labels
	common, found := 0, false // tiers that all share
	for _, n := range nodes {
		switch {
		case !r.Allows(n):
		case !found:
			first, common, found = n, len(n), true
		default:
			common = min(common, shared(first, n))
		}
	}
	if common == len(first) {
		return ""
	}
	return first[common].Key
}

// Majority returns the place that holds more than half of the copies, such as
// region=eu,zone=a for the key zone; "" if none does, or it has no name.
func Majority(copies []Labels, key string) string {
	for i, c := range copies {
		n := 1
		for _, o := range copies[i+1:] {
			if together(c, o, key) {
				n++
			}
		}
		if 2*n > len(copies) {
			return c.Place(key)
		}
	}
	return ""
}
