// Package sim runs the production placement.Driver against nodes that exist only
// on paper, in virtual time.
//
//	script ──► World ──► nodes (disk, network, processor) ── reports ──► placement.Driver
//	             │          ▲                                                 │
//	           trace        └───────────── orders, in the replies ────────────┘
//
// # What is simulated, and how truly
//
// Nodes have a place (region, zone), a disk, a network budget in each direction
// that all snapshots share, and processors. Ranges have a span of keys, bytes, a
// leader with a term, copies with roles, and a load that follows from workloads
// over spans of keys. They do what package ranges does: they refuse stale
// generations, change voters through a joint configuration that shows in facts for
// a moment, promote only learners that hold the log, refuse to demote their leader,
// split by size and by load on their own, and report by change, with a second of
// maintenance between a change of size or load and its fact. The load that a leader
// reports is decayed over ten seconds and starts from nothing when leadership moves,
// which is the hardest case for schedulers.
//
// A snapshot moves bytes at the lesser of the sender's and the receiver's share and
// begins anew if its sender is lost. A leader that is gone is replaced after 400 ms
// if a majority of voters is up. Whoever leads range 1 drives placement, with a
// Driver that knows nothing when it begins. Its key-value store is a map that
// answers while range 1 has a leader.
//
// Not simulated: raft's log (a voter that was down is current a second after it is
// back), messages that arrive twice or late (the package's own tests do that), and
// requests of clients other than as load. internal/sim runs the real thing for those.
//
// # Invariants
//
// Checked at every change of a range, whatever the script: it has a majority of
// live voters after the change if it had one before, it can still lose a node if it
// could before, and no zone gets a majority of its voters if zones enough are there
// (judge.go says what is no fault: what placement cannot know, and what a lost voter
// makes right).
// When a script asks whether the world has come to rest, the driver's directory is
// compared with what is true.
//
// # The least work
//
// Every script bounds what was moved by what had to be: the bytes that nodes lack to
// hold their share, counted when the script says mark. It is what an oracle would
// move that evens out exactly, so a scheduler that stops within its slack can
// move a little less.
//
// # Scripts
//
// One file is one story: a command a line, its output below (script.go, verbs.go).
// The output is the trace: what placement decided, when, and why in its own words.
// "go test -run TestScenarios/NAME" plays one, with -update it writes the trace, and
// with -csv DIR the leaders and bytes of every node over time. TestTurmoil makes up
// stories from seeds (-turmoils, -turmoil); TestAMillionRanges tells what a driver of
// a thousand nodes and a million ranges costs.
//
// # Threads
//
// None. A World belongs to one goroutine; two worlds share nothing. The same seed
// gives the same trace.
//
// # Rejected
//
//   - Events in a queue instead of ticks: budgets that are shared change with every
//     event, and a tick of 50 ms costs nothing while nothing happens.
//   - A simplified driver: its bugs are what is looked for.
package sim
