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
// state is an immutable value behind an atomic pointer: descriptor, applied
// index, statistics, leadership. It is stored on the shard only and read
// anywhere. latches order conflicting requests; recent remembers what this
// leader wrote; proposals are the entries in flight; readQueue holds the reads
// that are confirmed and wait for a reader.
//
// # Goroutines
//
// The package starts none. Submit, Order and Split may be called on any
// goroutine and never block. Everything that changes a replica runs on the
// shard of its group: tasks, and the methods of multiraft.StateMachine. Work
// that reads much from disk (read jobs, choosing a split key, statistics of a
// right half, garbage collection) runs in Config.Execute and comes back to the
// shard as a continuation. The table's lock is a leaf: no callback, no commit
// and no call of the host happens under it, but reads of the tombstone do.
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
//   - A read fixes its timestamp before its ReadIndex begins, waits for writes
//     in flight at or below it, opens its iterator, and then checks bounds,
//     threshold and existence once more.
//   - Apply is a function of entry and applied state alone: every replica
//     accepts and rejects the same entries.
//
// # Splits and reads
//
// From its proposal to its local end a split holds back every read of the
// range that has not passed the latches. A read that passed before has a
// timestamp that the frames carrying the split's entry cover, so whoever leads
// the right half afterwards writes above it. Therefore no page of a scan can
// miss a write of the right half below its timestamp.
//
// # Rejected
//
// A goroutine or a timer per replica (memory and idle cost); evaluating on
// followers (replicas diverge by code version); re-proposing a write under a
// new index (applied twice by others; the client's retry finds its identity
// instead); waiting with the answer when leadership is lost until the outcome
// is known (unbounded; the caller is told that it is open); replicas made by a
// message (a dead one comes back; only bootstrap, split and snapshot make one).
package ranges
