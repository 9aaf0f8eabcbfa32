package rules

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
