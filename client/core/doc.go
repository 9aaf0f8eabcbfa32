// Package core is the client's routing and retry logic as a step function: no
// goroutine, no clock, no I/O. Package client drives it with real streams, the
// simulator with simulated ones.
//
// # What it does
//
//	Call ─► operation ─► leg ─► route (range cache) ─► attempt ─► Effects.Send
//	                      ▲    │                          │
//	                      │    └─► gate: follows a probe  │
//	                      └── verdict (one switch) ◄── Response, Lost, Tick
//
// A Call is what a user asked for. Its operation is one leg (a request of one
// range) or, for scans and range deletions, several: first one leg per range
// that fixes the instant, then pages one after another. A leg is sent in
// attempts; all attempts of a write carry the same identity.
//
// When a leader is gone, three things find the next one within a round trip of
// its election: a dead node is noticed (link.go: at once when its stream breaks,
// after 200 ms when it falls silent), all its ranges are routed anew together, and
// of all requests that wait for a range one looks for its leader (gate.go), every
// few milliseconds. A node that is merely slow costs the others next to nothing.
//
// # Invariants
//
//  1. A call's Done runs exactly once.
//  2. The identity of a write (client, sequence, operation, floor) is fixed
//     before its first attempt and never changes. The floor is a server's
//     stamp, received at most StampMaxAge before the first attempt.
//  3. A write fails with anything but UnknownOutcome only if no attempt of it
//     can still apply: each attempt was never sent, was answered "not applied",
//     or could not succeed any more (see settled in verdict.go).
//  4. A descriptor in the cache is never replaced by an older one.
//  5. A scan's rows all come from one timestamp at or above the timestamp of
//     every write acknowledged before the scan began (the argument is in
//     span.go).
//  6. A closed gate has a probe, which has an attempt out or a pause that ends:
//     whoever follows goes on some time.
//  7. A suspect node owes the answer to a ping. So a suspicion ends: by that
//     answer, or with the stream.
//
// # Bounds
//
// Cached ranges: maxCachedRanges (a clock hand evicts). Lookups in flight:
// maxLookups (more calls wait). Sends of one leg without a pause: a round of
// its range's replicas, and hintHops. Legs that look for the leader of a range:
// one; of all ranges of a silent node, while others name it: one. Probes of all
// ranges: one in probeSpacing. Pings on the way to a node: one. Unanswered
// attempts of one leg: maxAttempts (the oldest is forgotten, its outcome counts
// as open). Timestamps being collected for one call: collectWindow. Calls are
// bounded by whoever starts them.
//
// # Rejected
//
// A cache keyed by range id (a split then needs two lookups); retries by the
// transport (it knows no identity); a transaction-like coordinator for scans
// (timestamps of all leaders are enough, and need no clock bound); a timer per
// call (one heap of unfinished legs serves); asking others as soon as an answer
// is late (a busy node would make every other node busy); a ping that the server
// sends by itself (it would say nothing about the way there); a frame of its own
// for pings (an unknown verb is answered by the stream's own goroutine, too);
// sending every waiting request to every replica in turn while a range elects
// (the load grows with what waits, just when there is much to do).
//
// Everything is deterministic: the same calls with the same times and the same
// randomness give the same effects. No map is iterated without sorting.
package core
