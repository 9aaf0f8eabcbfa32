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
//   - after every event that may change it: no two nodes hold the lease of a
//     range, nobody holds one of a term after a later term has committed, no
//     hybrid clock runs further ahead of all wall clocks than restarts explain;
//   - at every read and write: no leader writes at or below a timestamp at which
//     an earlier one, or itself, served a read of the same keys (over splits,
//     too), a get sees every put that was acknowledged when it came, and all
//     that lies at or below its timestamp;
//   - every few hundred milliseconds: no two replicas of a node overlap; equal
//     applied index means equal fingerprint, statistics and descriptor;
//     sampled: statistics and fingerprint equal a recount of the data;
//   - at the end: registers are linearizable (porcupine; Unknown is a
//     failure), scans saw pairs whole, every acknowledged insert is there
//     exactly once, counters equal the acknowledged increments plus at most
//     the unknown ones, ranges tile the keyspace, all replicas agree;
//   - progress: after the faults are healed every call ends and every range
//     has a leader within a bound of simulated time;
//   - rest: without load no group is ticked and no message of raft flows, every
//     leader holds its lease, and all replicas have applied the same.
//
// Node support has links of its own, which are cut, and lose, delay, double and
// reorder frames, independently of those of raft; a frame may come so late that
// other processes live at both ends. Lease clocks drift by up to 2.5 %; wall
// clocks are set by milliseconds to minutes, and smoothed as package osclock
// does; a machine may freeze, clocks and all. Agreement on the time at a start is
// modelled after server/clockcheck.go, what a process does around its
// support.Table after server/support.go. A read is suspended between its steps
// (ranges.Config.Pause).
//
// Not simulated: the cache of hot rows, whose library has goroutines of its own.
//
// Raft draws its election jitter from crypto/rand; the tests pin it with
// testing/cryptotest, so one process runs one seed at a time.
package sim
