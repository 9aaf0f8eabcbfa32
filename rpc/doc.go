// Package rpc carries messages between nodes: per peer and class (raft, support,
// snapshot, control) its own connection, a hand-written raft codec, one sender
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
//   - support: one stream from each node to every peer that it wants support of.
//     Requests go one way, grants the other; both are a hundred bytes and must
//     not wait behind anything, since leases end when they are late.
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
// issues or adopts one that does. On a support stream only the frame is dropped
// and not the stream: the next one comes in an interval.
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
// snapshot senders and one watchdog. For support it owns one goroutine that
// begins a round of requests in every interval, one that begins a round when a
// read asks for it, and per wanted node an asker, with a listener while its
// stream is open: a node that does not read delays no request to another. Send
// and SendSnapshot may be called on any goroutine and never block; a Send to a
// new peer hands it to Run, which starts its sender. Inbound streams run on
// grpc's handler goroutines, with one more each for the alive frames (not on
// support streams, whose grants say as much), both ending with the stream.
//
// # Failure
//
// A peer whose queue is full, or that is waiting to be dialled again, refuses:
// Send returns false and raft probes. A stream is given up when the peer says
// nothing for silenceLimit of the watchdog's periods (4 s): grpc's own client
// keepalive cannot be set below 10 s. When a stream breaks everything queued is
// dropped and Lost is called: raft must repeat what was in flight anyway, and
// old messages delivered late help nobody. Reconnecting backs off from 10 ms to
// 1 s (support: 200 ms); its jitter is a hash of the pair of nodes and the attempt, so that the
// package draws no randomness. A support stream is given up after a second of
// rounds without an answer. The rounds are counted and not the time: a node that
// was paused itself first reads the answers that wait.
//
// Rejected: one connection for all classes (see above); a linger before a frame
// (0.38 of the throughput at one operation in flight); acknowledged frames (raft
// repeats by itself); grpc's own reconnection for streams (its back-off starts
// at a second, and an outage must be seen by raft).
package rpc
