// Package core is the client's routing and retry logic as a step function: no
// goroutine, no clock, no I/O. Package client drives it with real streams, the
// simulator with simulated ones.
//
// CONTRACT STUB: signatures are fixed, bodies are to be written (core.go,
// router.go (range cache), call.go, scan.go, retry.go, errors.go).
package core

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Config configures a core.
type Config struct {
	Client     uint64        // identity, random
	Random     func() uint64 // jitter
	BackoffMin time.Duration // default 5 ms
	BackoffMax time.Duration // default 500 ms
	// AttemptTimeout re-sends a request (same identity) elsewhere when a node
	// says nothing for so long; default 2 s.
	AttemptTimeout time.Duration
}

// Effects is where the core puts what is to be done. Implementations may be
// called re-entrantly from the core's methods and must not call back into it.
type Effects interface {
	// Send sends a request on the stream to a node (0: any known endpoint).
	Send(n ids.NodeID, r *kv.Request)
	// Lookup asks any endpoint's Admin service; the answer comes to LookupDone with the token.
	Lookup(token uint64, r *adminpb.LookupRequest)
}

// Core is not safe for concurrent use (client shards it or guards it).
type Core struct{}

func New(cfg Config, effects Effects) *Core { panic("unimplemented") }

// Call is one operation of a user. Keys are internal keys.
type Call struct {
	Request  kv.Request    // ID, Range, Generation and Identity are filled in by the core
	Deadline time.Duration // monotonic; 0: none
	// Done is called once with the final response (codes that a retry could mend never
	// reach it; past the deadline: Unavailable, or UnknownOutcome for a write that may have been applied).
	Done func(*kv.Response)
}

// Start begins a call; Cancel ends it at once (same verdicts as the deadline).
func (c *Core) Start(now time.Duration, call *Call)  { panic("unimplemented") }
func (c *Core) Cancel(now time.Duration, call *Call) { panic("unimplemented") }

// Response, Stamp, Lost and LookupDone are what comes back. Lost says that a node's stream broke
// or could not be opened: everything sent to it is retried elsewhere.
func (c *Core) Response(now time.Duration, from ids.NodeID, r *kv.Response) { panic("unimplemented") }
func (c *Core) Stamp(now time.Duration, ts hlc.Timestamp)                   { panic("unimplemented") }
func (c *Core) Lost(now time.Duration, n ids.NodeID)                        { panic("unimplemented") }
func (c *Core) LookupDone(now time.Duration, token uint64, r *adminpb.LookupReply, err error) {
	panic("unimplemented")
}

// Tick runs what is due; Next says when that is (0: nothing waits).
func (c *Core) Tick(now time.Duration) { panic("unimplemented") }
func (c *Core) Next() time.Duration    { panic("unimplemented") }
