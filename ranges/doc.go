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
// # Rejected
//
// A goroutine or a timer per replica (memory and idle cost); evaluating on
// followers (replicas diverge by code version); re-proposing a write under a
// new index (applied twice by others; the client's retry finds its identity
// instead); waiting with the answer when leadership is lost until the outcome
// is known (unbounded; the caller is told that it is open); a lock, or copies of
// the latches, for reads off the shard (counters answer the one question that they
// have); a lease that is cached until a time (see multiraft); replicas made by a
// message (a dead one comes back; only bootstrap, split and snapshot make one).
package ranges
