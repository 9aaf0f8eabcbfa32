// Package rpc carries messages between nodes: per peer and class (raft, snapshot,
// control) its own connection, for support datagrams, a hand-written raft codec, one sender
// that drains its bounded queue into one frame.
//
// # Classes
//
// HTTP/2 over one TCP connection knows no priorities, so each class has its own
// connection: a heartbeat never waits behind a snapshot.
//
//   - raft: one stream from sender to receiver per ordered pair of nodes. It
//     opens with a Hello each way; then frames go one way, and the receiver says
//     "alive" once a second the other way.
//   - support: datagrams, a hundred bytes each, since leases end when they are
//     late: see support.go.
//   - snapshot: one connection per snapshot, SnapshotsOut at a time, paced.
//   - control: unary calls (Admin and Control services), kept open.
//
// # Frames
//
// Every frame has a version, a kind, a stamp of the sender's hybrid logical
// clock, the sender's node id, a payload and a CRC32C over all of it (the wire is
// plaintext for now, and TCP's own sum misses one damaged segment in 65,536).
// The stamp is read after the last message was put in, and the receiver adopts it
// before it handles any of the frame; a frame whose stamp is too far ahead is
// dropped whole. No stamp lies above the clock's durable bound: hlc.Hybrid never
// issues or adopts one that does.
//
// # Memory
//
// A decoded raft message is boxed: one struct holds it and its scalars, entries
// come from a slab. Data aliases the frame while the frame is small; in a large
// frame each message's data is copied into one slab of its own, so that a single
// cached entry of a quiet group cannot hold megabytes alive. Decoding refuses
// counts before it allocates for them.
//
// # Goroutines
//
// NewTransport starts nothing. Run owns one sender per peer, SnapshotsOut
// snapshot senders and one watchdog, and for support one goroutine that asks in
// rounds, one that asks when a read has asked for it, one that listens and
// answers, one for what may block (lookups of addresses, introductions) and one
// that has addresses looked up again. Send and SendSnapshot may be called on any
// goroutine and never block; a Send to a new peer hands it to Run, which starts
// its sender. Inbound streams run on grpc's handler goroutines, with one more
// each for the alive frames, both ending with the stream.
//
// # Failure
//
// A peer whose queue is full, or that is waiting to be dialled again, refuses:
// Send returns false and raft probes. A stream is given up when the peer says
// nothing for silenceLimit of the watchdog's periods (4 s): grpc's own client
// keepalive cannot be set below 10 s. When a stream breaks everything queued is
// dropped and Lost is called: raft must repeat what was in flight anyway, and
// old messages delivered late help nobody. Reconnecting backs off from 10 ms to
// 1 s; its jitter is a hash of the pair of nodes and the attempt, so that the
// package draws no randomness. A datagram that is lost is followed by another.
//
// Rejected: one connection for all classes (see above); a linger before a frame
// (0.38 of the throughput at one operation in flight); acknowledged frames (raft
// repeats by itself); grpc's own reconnection for streams (its back-off starts
// at a second, and an outage must be seen by raft).
package rpc
