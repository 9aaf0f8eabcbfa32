// Package rules says where the copies of a range may stand: how many of them
// there are, which nodes are allowed, how far apart copies should be and where
// leaders are wanted, each for a prefix of users' keys.
//
//	metapb.RuleSet ── New ──► Set ── Of(key) ──► Rule ── Allows, Adds, Preference ──► placement
//	                          │
//	                          ├── Bounds(start, end): keys at which another rule begins
//	                          └── Check: can the nodes that there are satisfy it?
//
// # What holds
//
//   - A Set is immutable and complete: every internal key has exactly one rule.
//     The longest prefix of a user's key decides; the rule with the empty prefix
//     is always there, and the system range obeys it, too.
//   - Everything is a pure function of the set and of the labels of nodes.
//     Nothing here knows a node's id, load or health: who calls brings in the
//     nodes that count.
//   - Of is a binary search and allocates nothing; neither do Allows, Adds,
//     Collisions and Preference. They stand in the loops that choose a node.
//
// # Labels
//
// A node's locality is a list of tiers, key=value, from large to small. Two nodes
// share a tier if they agree on it and on all larger ones: zone a of one region is
// not zone a of another. Two nodes that both lack the label by which copies are
// to be spread share it, since nothing says that they stand apart.
//
// # Threads
//
// None. Values may be read from any goroutine.
//
// # Rejected
//
//   - An expression language, or lists of alternatives per label: what people ask
//     for is "these nodes", "not those", "apart" and "lead here".
//   - Rules for arbitrary spans, with priorities: prefixes nest, so the longest
//     one decides and nobody has to know an order.
//   - Different constraints for single copies ("two here, one there"): spreading
//     and a preference for leaders say what is meant, and go on to say it when a
//     node or a zone is lost.
package rules
