// Package store keeps bytes: one Pebble database per node behind two handles,
// the raft logs (Log) and the replicated state (State), and beside it the
// records that recognise a store which has lost something (Identity).
//
// # What it promises
//
//  1. A commit whose PendingSync.Wait returned nil survives a power cut, and so
//     does every commit before it: there is one write-ahead log, in order.
//  2. A Batch is applied whole or not at all, across both handles.
//  3. A store that opens has everything it ever waited for, as far as one disk
//     can know; otherwise Open refuses, says which file it is and what to do.
//     A smaller store never opens in silence.
//  4. When a promise cannot be kept (failed fsync, damaged block) Options.Fatal
//     is called and nothing that was asked meanwhile is answered.
//
// # How a loss is noticed
//
// Pebble takes a damaged MANIFEST record for the end of the MANIFEST, and a
// damaged last chunk of the log for its end. Three things stand against it.
// The counter: each change of the identity record (every start, every clock
// window) is written inside Pebble first and then to a file beside it; a store
// whose inside is behind its outside has been rolled back (identity.go). The
// marks: the first commit into every new memtable carries the next number of
// a sequence, so that a table lost from the middle leaves a gap (marks.go). The
// peers: they remember every node's life and mark, so that a directory restored
// or copied as a whole is recognised by them (peers.go).
//
// # Who may call what
//
// Store, State, Log and Identity are safe for concurrent use. A Batch belongs
// to one goroutine, and to its PendingSync until Wait has returned. A GroupLog
// belongs to its group's shard. OutgoingSnapshot and IncomingSnapshot belong to
// one goroutine each. Nothing here starts a goroutine (Pebble has its own), and
// nothing reads a clock but the one of Options.Monotonic, by which SyncStalled
// knows a disk that hangs (progress.go).
//
// CommitNoSync and CommitSync block only while Pebble stalls writes, which
// WriteStalled foresees. Identity's writers, PendingSync.Wait and
// IncomingSnapshot.Install block for the disk. What a node needs to introduce
// itself, to recognise its peers and to say how it is does not: Record, MetPeer of
// a life that is known, Metrics, SyncStalled.
//
// # Rejected
//
// Two Pebbles, for log and state: two write-ahead logs need two fsyncs, and one
// log's group commit measured 4.6 times faster at 256 writers. The two handles
// keep the way open. Single deletes for log entries: undefined for a key that
// was set twice, which an overwritten log tail does. Plain Pebble snapshots for
// outgoing snapshots: they see excised spans as empty and hold up compaction
// everywhere; an iterator does neither (snapshot.go). A ballast file against
// full disks: thresholds with hysteresis do the same and need no space.
package store
