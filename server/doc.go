// Package server wires a node: it owns every goroutine, every port and the
// wall clock, and holds no meaning of its own.
//
// # Life of a process
//
// New validates the configuration, opens the ports and the store, and refuses
// what cannot work, in one line that names the thing and the remedy. Run then
// learns who this node is (boot.go: from its records, by making a cluster, or by
// asking one) and what time it is (clockcheck.go: from most of the other nodes),
// wires the parts (node.go) and runs them all in one errgroup: node.run reads as
// the table of contents of the system. The first part that fails ends the others
// and the process.
//
// # Rules kept here
//
//   - No stamp leaves above the durable clock bound: the bound is extended and
//     confirmed on disk before the clock may use it (bound.go), and once before
//     the first frame.
//   - A restart begins at the larger of the wall clock and the durable bound, so
//     that it never issues a timestamp twice. A clean stop seals the clock and
//     records where it ended (bound.go).
//   - No bound is extended by a clock that was not compared with the others':
//     what a wrong clock has made durable cannot be taken back.
//   - Only Init creates a cluster; joining never does. The cluster becomes real
//     at one point, the fsynced identity record, after the ranges are on disk;
//     a crash before it leaves a directory that only Init may continue.
//   - placement.Driver is a step function that is not safe for concurrent use: one
//     goroutine owns it (driver.go), everyone else posts to its mailbox, and the
//     answers of its key-value calls come back through that mailbox too.
//   - What people ask of placement is answered by the driver's node, whichever is
//     asked; a driver that has just begun is given a moment to hear of all ranges
//     first, so that "there is no such range" is never said for "I do not know yet"
//     (askdriver.go).
//   - What the cluster wants of a node (its standing) is kept in range 1 only. A node
//     hears it with each answer to a report; once it is decommissioned it stops
//     (standing.go).
//   - A node stops, for good, when its copy of a range is not what most of the others
//     hold: by its own count, not because it was told (compare.go).
//   - Clients reach user keys only: a key outside the user prefix is refused at
//     the door (kv.go), so that the system range needs no check deeper down.
//
// # Goroutines
//
// Per node: what multiraft.Host and rpc.Transport run, the clock bound, the one
// that compares the time with the other nodes', the one that ends promises of
// support when their time has come (support.go), the driver, the reporter, the
// range id refill, maintenance, the comparison of replicas, the read pool, HTTP,
// gRPC and the one that waits for the end. Per client stream: its reader (grpc's
// handler) and its writer. Nothing starts in a constructor.
//
// # Rejected
//
// Health by timers over every range (facts are kept by change); a lock around
// the driver (its methods call back into it through the key-value path); unary
// calls as the main client path (0.53 of the stream's throughput); draining with
// grpc's GracefulStop (batch streams never end by themselves).
package server
