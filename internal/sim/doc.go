// Package sim runs a whole cluster in one goroutine: the real store, multiraft,
// ranges, placement and the client's retry core, over a simulated network,
// simulated disks' timing and simulated clocks. A run is a function of its
// seed: the same seed gives the same trace, bit by bit, so a failure is
// replayed with one command.
//
// How it works. Everything that production does on goroutines is an event
// here: a pass of a shard (Host.Poll), the end of a log sync
// (Host.CompleteSync), a tick, a frame's arrival, a read job, a snapshot's
// install. Events are ordered by (virtual time, number); each concern
// (network, disk, clocks, workload, nemesis) draws from a random stream of its
// own, so that shrinking one does not shift the others.
//
// A crash keeps what was synced and nothing else: stores are opened with
// Simulated, so that a sync happens when it is waited for, which is an event
// the disk delays.
//
// What is checked:
//
//   - always: one leader per range and term, seen in the messages that leave;
//     asserts of the packages themselves (a panic fails the seed);
//   - every few hundred milliseconds: no two replicas of a node overlap; equal
//     applied index means equal fingerprint, statistics and descriptor;
//     sampled: statistics and fingerprint equal a recount of the data;
//   - at the end: registers are linearizable (porcupine; Unknown is a
//     failure), scans saw pairs whole, every acknowledged insert is there
//     exactly once, counters equal the acknowledged increments plus at most
//     the unknown ones, ranges tile the keyspace, all replicas agree;
//   - progress: after the faults are healed every call ends and every range
//     has a leader within a bound of simulated time.
//
// Raft draws its election jitter from crypto/rand; the tests pin it with
// testing/cryptotest, so one process runs one seed at a time.
package sim
