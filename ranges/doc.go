// Package ranges gives agreement a meaning: descriptors, routing, replicas,
// evaluation, apply, splits, replica changes.
//
// # The shape
//
// A Table is all replicas of a node. It routes a request by key to a Replica,
// which is made of parts that know nothing of one another:
//
//	Submit ──► prefetch (caller's goroutine, may read from disk)
//	   │
//	   ▼ Group.Enqueue                            the group's shard from here
//	latches ──► evaluate ──► open entry ──► Flush: one proposal for a pass
//	                                             │ raft
//	Applied: publish state, answer, release ◄── Apply: stage bytes into a batch
//
// A read that a lease allows takes no part in that: it is served on its caller's
// goroutine (leaseread.go), or goes to the shard if a write is in its way or the
// lease is not held.
//
// state is an immutable value behind an atomic pointer: descriptor, applied
// index, statistics, leadership. It is stored on the shard only and read
// anywhere. latches order conflicting requests, stripes and moving are what of
// them can be seen from elsewhere (inflight.go); recent remembers what this
// leader wrote; proposals are the entries in flight; readQueue holds the reads
// that wait for a reader.
//
// # Goroutines
//
// The package starts none (the cache of hot rows has one of its library's until
// Close). Submit, SubmitBatch, Order and Split may be called on any goroutine and
// wait for nobody; Submit may read from disk for a write or a get. Everything
// that changes a replica runs on the shard of its group: tasks, and the methods
// of multiraft.StateMachine. Work that reads much from disk (scans, choosing a
// split key, statistics of a right half, garbage collection) runs in
// Config.Execute and comes back to the shard as a continuation. The table's lock
// is a leaf: no callback, no commit and no call of the host happens under it, but
// reads of the tombstone do.
//
// # Invariants
//
//   - Spans of the initialised replicas of a node never overlap, nor do they
//     overlap the placeholder of a snapshot of another range.
//   - A leader evaluates nothing before it has applied an entry of its own
//     term. Every version that it writes lies above its low water, above every
//     read noted before (all come from one clock) and above the key's newest
//     version.
//   - A write evaluated in term T is in the log in term T or never: the header
//     carries T, and apply rejects an entry whose own term differs.
//   - A write's identity is looked up before it is evaluated: in recent for
//     everything above memFloor, on disk for a floor below that.
//   - A write is announced before it takes its timestamp, and retracted after
//     its effects, or the end of the leadership, are published.
//   - A read fixes its timestamp, and moves the clock to it, before it asks for
//     the lease or begins its ReadIndex; it waits for writes in flight at or below
//     it, opens its iterator, and then checks bounds, threshold and existence once
//     more. It takes effect when its timestamp is fixed.
//   - Apply is a function of entry and applied state alone: every replica
//     accepts and rejects the same entries.
//
// # Splits and reads
//
// From before its proposal to its local end a split holds back every read of the
// range that has not passed the latches, or not found the range unmarked. A read
// that passed before has a timestamp that the frames carrying the split's entry
// cover, so whoever leads the right half afterwards writes above it. Therefore no
// page of a scan can miss a write of the right half below its timestamp.
//
// # Load
//
// Requests count what they do, and a part of the work is timed (load.go). Of the
// ranges that had requests maintenance makes averages once a second, tells placement
// when they have moved, and splits a range that stays hot at the key that halves its
// load, or says why none does (hot.go). Counting takes no lock; the keys of a hot
// range's requests are compared under one, for a part of them.
//
// # Merges
//
// A range L absorbs its right neighbour R. Both have voters on the same nodes and
// nothing else, and one node leads both. Two raft groups cannot decide together,
// so L's log alone decides, and R's follows. What is under way stands as a mark in
// the descriptors; each change of a mark raises the generation.
//
//	       L's log                        R's log
//	  1    mark: intended, R, at g
//	  2                                   mark: frozen, L, g        (index F)
//	  3                                   seal
//	  4    absorb R, frozen at F
//	or 4'  mark: aborted
//	  5'                                  no mark: thawed
//	  6'   no mark
//
// 1: from here on L neither splits nor changes its replicas, so the two stay
// aligned. 2: R takes no write and serves no read any more, on any replica, in any
// term; it changes by a thaw only. 3: proposed once the freeze is applied; who has
// it on disk has a commit index at or above F there, too (multiraft, stageAppend).
// The leader waits until every replica has it: from then on each of them applies F
// by itself, after any crash, so R's group may die. 4 and 4' both need generation
// g, so the first in L's log counts. Any leader of L that finds an intent and is
// not on its way to the absorb aborts it: after a change of leader, a restart, or
// mergePatience.
//
// The absorb waits, on each node, until the local R has applied F; L's applies are
// parked meanwhile. Then, in one batch, L has the bounds, the statistics and the
// fingerprint of both, and R has the highest tombstone. In one moment L is larger
// in the table and R is not there. R's group ends, then its records go.
//
// Reads of R lie below the clock of the node that leads both: its own, and those of
// earlier leaders by the rules of leases. That node proposes the absorb, so every
// frame that carries it, and the clock of whoever leads L later, lies above them.
// The memory of L's leader knows no identity of R's writes: its floor rises.
//
// R thaws only when the L of its node shows the abort of this very merge. L keeps
// that mark until its leader sees R thawed (or past the generation at which it
// could freeze), so R's leader, whoever it is, finds it.
//
// A replica of R that missed the end is here with its data until the L of its node
// absorbs it, by its log or by a snapshot (subsume.go), or is gone itself: only
// then it obeys the word of others, who know by the tombstone, that R is gone
// (absorb.go, expendable).
//
// # Comparison
//
// At a slow pace the replicas of ranges that were written to are read and compared,
// each at the same index of its log, so that one which diverged in silence is found:
// check.go.
//
// # Rejected
//
// A goroutine or a timer per replica (memory and idle cost); evaluating on
// followers (replicas diverge by code version); re-proposing a write under a
// new index (applied twice by others; the client's retry finds its identity
// instead); waiting with the answer when leadership is lost until the outcome
// is known (unbounded; the caller is told that it is open); a lock, or copies of
// the latches, for reads off the shard (counters answer the one question that they
// have); a clock reading for each request (a system call: see load.go); load that
// is worked out for every range; a lease that is cached until a time (see
// multiraft); replicas made by a message (a dead one comes back; only bootstrap,
// split and snapshot make one); a merge that both logs decide (each may lose its
// leader in between); statistics of R in the absorb entry (copies that differ
// would be papered over).
package ranges
