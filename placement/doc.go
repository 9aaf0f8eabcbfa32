// Package placement decides where ranges live.
//
//	nodes ── reports (facts by change) ──►  Driver ── orders, in the replies ──► leaders of ranges
//	                                          │
//	   registry, ids, standings, rules ◄── KV ──┘   (range 1, by compare-and-swap)
//
// # What is kept, and where
//
// The registry of nodes, the blocks of ids, the cluster version and what people
// want (standings of nodes, rules, a pause) live in range 1, under kv.SystemPrefix,
// and change only by compare-and-swap (keys.go). They are therefore right however
// many drivers believe that they drive: the node that leads range 1 does, and during
// a change of leadership two may. Everything else is a cache in memory: the directory
// of ranges, who leads them, who is alive, which operators run. A new driver starts
// with nothing, reads the registry, asks each node once for a full report, and sees
// by the state of each range alone what an earlier driver left half done. No
// operator is ever stored.
//
// # How it decides
//
// The cluster is a value (cluster.go). A checker looks at one range (check.go,
// repair.go) or at two neighbours (check_merge.go), a scheduler at counters
// (schedule.go); both are pure functions from that value to operators, and write
// nothing. An operator (operator.go) is a list of steps (steps.go) with a reason in
// words. A step knows its order, when it is finished, what stands in its way, how
// long it may take and what it will have changed; the latter counts into the load
// that the next decision sees.
//
// What a range needs comes before what would be better for it, and of the former
// what the next failure would stop: lost or missing copies, copies too many, copies
// on nodes that are decommissioned, copies where the rule of the range (package
// rules, ruling.go) does not want them. A copy moves as learner, snapshot, and one
// joint change that gives it the vote and takes that of the old one.
//
// Orders travel in the replies to reports, to the node that leads the range,
// carry the generation they were made for, and are sent again until a fact
// shows their effect. A leader refuses a stale one. So an order may be lost,
// doubled or late without harm: facts alone move an operator on.
//
// # Invariants
//
//   - Per key the generation in the directory never falls, gaps included
//     (directory.go): an old fact changes nothing.
//   - A range has at most one operator; while one runs nobody else plans for
//     that range, so leadership is not moved under a snapshot in flight.
//   - A voter is removed only as a learner, never while it leads, and only
//     after its replacement votes.
//   - A move passes through no even number of voters, and no place holds more copies
//     on the way than before and after.
//   - A node is decommissioned when no descriptor names it, while every key is in a
//     known range: then nothing that anybody needs is on it.
//   - Time in which the driver was not there, or was stopped, buries nobody: a new tenure
//     begins with patience for every node, and of each time that one overslept no more
//     than SuspectAfter counts, and of those who were well a part of that. A driver that
//     oversleeps always still finds out who is gone.
//   - A change of votes that would cost a range its last spare copy, by what is known
//     then and not when it was planned, is held back; what would bring copies nearer
//     together than they need to be is called off (check_guard.go).
//   - No range rests below the replication that its nodes allow: for want of others a
//     draining node is given a copy, too.
//   - Under a rule with isolation no place is given a majority, whatever is lost.
//   - No range comes to rest at an even number of voters if an odd one can be
//     had: two voters survive no failure, and one more thing can fail. Growing
//     from one to three gets both learners ready before it promotes the first.
//   - An operator that failed rests its range for a while, longer each time. What
//     empties a node does not wait for the rest that follows a move for balance.
//   - A node that falls again and again waits longer each time until it is given
//     leaders.
//   - Every leader transfer lowers the sum of the squares of the leader counts
//     (the difference is at least 2): balancing ends, whatever its order.
//
// # Cost
//
// Grows with what changed. A fact updates counters of the nodes it names; a
// range that needs something is put on a list, all others are never looked at;
// a node that changes its phase (live, silent, dead) touches the ranges it
// holds, a part with every step if those are many: a whole zone may fall at once. When
// rules change, or what they make of the nodes does, all ranges are gone through, a part
// with every step, too (sweep, ruling.go); what a million new leaders say of their loads
// begins to count in parts (settle, load.go). A dry run of rules goes through them all,
// too, in slices between other work (preview.go). Operators are found by the node whose
// report they answer. A step in a quiet cluster compares a few numbers and returns.
//
// # Threads
//
// None. The owner calls every method on one goroutine, and the callbacks of KV
// must come on that goroutine, too. There is no clock: the owner brings the
// time, monotonic, from any origin.
//
// # Rejected
//
//   - A second consensus group or an external service for placement's state: it
//     would have its own failures and its own bootstrap.
//   - Persisting the directory: it is a copy of what the ranges' own logs say,
//     and a copy that must be kept in step costs more than one full report.
//   - Polling nodes for their ranges: work grows with what exists.
//   - Persisting operators: their state is what the facts already say.
//   - Adding the new voter first and removing the old one after: in between a range
//     has an even number of voters, and perhaps two of them in one zone.
//   - Not replacing what a lost zone held until it is back, unless a rule isolates: a
//     range with two voters is one failure from stopping, and copies move apart again
//     by themselves.
//   - Choosing one voter after the other that is to go: the best first one may leave a
//     set that needs two moves to be mended.
package placement
