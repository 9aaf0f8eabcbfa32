// Package client is how programs use a Flotilla cluster.
//
//	c, err := client.Open(ctx, []string{"127.0.0.1:7001", "127.0.0.1:7002"})
//	...
//	defer c.Close()
//	version, err := c.Put(ctx, []byte("user/7"), []byte("Ada"))
//	value, err := c.Get(ctx, []byte("user/7"))
//	for kv, err := range c.Scan(ctx, []byte("user/"), []byte("user0")) { ... }
//
// # What is promised
//
// Single-key operations are linearizable. A scan and a range deletion see one
// instant, over however many ranges. A write takes effect at most once, however
// often it is retried inside: either a call says what became of it, or its
// error is ErrUnknownOutcome. Retries go on until the context ends; give calls
// a deadline.
//
// # How it works
//
// All routing and retry logic is package client/core, a step function; this
// package gives it streams, time and callers:
//
//	caller ─► core (one mutex) ─► queue of a node ─► writer ─► frame ─► node
//	caller ◄─ waiter ◄──────────── core ◄─────────── reader ◄─ frame ◄──┘
//
// There is one connection and one stream per node. A writer sends in one frame
// all that is queued when it comes round, without lingering: one caller has the
// latency of one frame, 512 callers share frames of hundreds of requests.
// Answers come in any order and carry the ids of their requests.
//
// # When nodes go
//
// A node whose connection breaks is left at once, one that falls silent within
// 200 ms (WithPingAfter), and one that stops says so before: it is sent nothing
// more and answers what it has. Its ranges are found again, all together, within
// milliseconds of their elections. Writes are repeated under their identity, so
// nothing is lost or done twice by it; only a compare whose first attempt died
// with its node, and that fails elsewhere, ends as ErrUnknownOutcome.
//
// # Goroutines
//
// Open starts none. Per node that is used: one writer and, while its stream is
// up, one reader. Per range lookup (at most eight at a time): one, and one for
// each endpoint that is asked. One timer serves all waiting calls. All end
// before Close returns. Every method of Client is safe for concurrent use.
//
// # Memory
//
// Keys and values are copied when a call begins, so the caller may reuse them
// as soon as it returns, even while an attempt is still queued. What a call
// returns belongs to the caller.
//
// # Rejected
//
// Unary calls (tens of times the CPU per operation); a connection pool per node
// (frames already batch); a linger before a frame (it costs a quiet system its
// latency and gives a busy one nothing); a retry policy in grpc (it knows no
// write identity); string keys (they would be copied twice).
package client
