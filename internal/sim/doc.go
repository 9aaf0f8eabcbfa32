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
// Placement is live: the driver of production runs on every node, and what it orders
// is carried out between the nemesis's own orders. In parts of the seeds machines
// stand in zones and the rule spreads by them, ranges have five copies, a node counts
// as dead within seconds, small ranges merge, hot ones split (limits low enough for
// this workload), a new machine joins and an old one is decommissioned. People ask
// for merges, moves, transfers and scattering, drain nodes, change rules and pause
// placement (people.go); in the end some wishes are repeated until they are granted.
// The nemesis orders merges past placement, too, and breaks things while they are
// under way, most of all when a range has just frozen (merge.go).
//
// What is checked:
//
//   - always: one leader per range and term, seen in the messages that leave;
//     asserts of the packages themselves (a panic fails the seed);
//   - after every event that may change it: no two nodes hold the lease of a
//     range, nobody holds one of a term after a later term has committed, no
//     hybrid clock runs further ahead of all wall clocks than restarts explain;
//   - after every pass of a shard: the newest descriptors that were ever applied
//     anywhere are whole and tile the keyspace, no generation has two of them, what
//     has been absorbed had frozen for it and does not go on (tiles.go);
//   - at every read and write: nothing is served by a range that is frozen or was
//     absorbed, by whichever node; no leader writes at or below a timestamp at which
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
//   - placement: minutes after healing no operator runs, every range has as many
//     copies as its rule wants, all vote, all stand where they may, no zone has a
//     majority if that can be avoided, nodes that drain lead nothing, the
//     decommissioned one holds nothing, and nobody has a replica that is none;
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
// The time that work takes is not simulated, so loads are counted in operations.
// A range that its rule wants on a node that drains may wait for that node.
//
// The cache of hot rows is the real one; its library has goroutines of its own, which
// are waited for before each step of a read.
//
// Raft draws its election jitter from crypto/rand; the tests pin it with
// testing/cryptotest, so one process runs one seed at a time.
package sim
