// Package hlc gives hybrid logical timestamps and monotonic time.
//
// A Timestamp is 46 bits of wall milliseconds and 18 bits of logical count.
// Timestamp 0 is never issued (the engine reads it as "no version"). A count
// that overflows carries into the milliseconds: the clock then runs ahead of
// the wall clock a little instead of waiting for it.
//
// # What is promised
//
// Safety never rests on a wall clock being right. What the store needs is
// only that a node's timestamps never go back, across restarts too: the upper
// bound of issued timestamps is persisted ahead in windows by the store
// (Hybrid.NextBound, then fsync, then Hybrid.SetBound) and a restart begins
// above it. When the bound is reached the clock creeps up to it logically,
// then Now returns ErrBound.
//
// HAZARD: SetBound before the fsync of the bound lets a restarted node issue
// timestamps that it has issued before, that is, two versions of a key with
// one timestamp, or a write below a read that was served.
//
// A remote timestamp beyond a tolerated lead is refused, not adopted, so that
// one wrong clock cannot drag the cluster into the future.
//
// # Who may call
//
// Everything here may be called on any goroutine. Nothing blocks. Clock is one
// of the project's four seams; package osclock implements it with the clocks
// of the operating system, the simulator with clocks that run apart.
//
// # Rejected
//
// Waiting until the wall clock has passed a timestamp (as TrueTime does) would
// make safety a matter of clock bounds that nobody here can vouch for. A wider
// logical part, kept apart from the milliseconds, would not fit the eight
// bytes that the engine's comparer offers.
package hlc

import (
	"errors"
	"time"
)

// LogicalBits is the width of the logical count in a Timestamp.
const LogicalBits = 18

// Timestamp is a hybrid logical timestamp: wall milliseconds since the Unix
// epoch in the upper 46 bits, a logical count in the lower 18.
type Timestamp uint64

// MaxTimestamp is above every timestamp that can be issued.
const MaxTimestamp = Timestamp(1<<64 - 1)

// ErrBound says that the clock reached its durable upper bound: the disk has
// not confirmed a window in time. It is retryable.
var ErrBound = errors.New("clock reached its durable bound: the disk has not extended it in time")

// ErrTooFarAhead says that a remote timestamp is beyond the tolerated lead; it
// was not adopted, and the frame that carried it must be dropped whole.
var ErrTooFarAhead = errors.New("remote timestamp too far ahead of this node's clock")

// Clock is the seam of time: the physical clocks of a node. Production reads
// the operating system; the simulator has clocks that run apart and step.
type Clock interface {
	// Wall returns the wall clock in milliseconds since the Unix epoch.
	Wall() int64
	// Monotonic returns time since an arbitrary start; it never steps and it
	// counts suspend.
	Monotonic() time.Duration
}

// New returns a timestamp of the given wall milliseconds and logical count.
func New(wallMillis int64, logical uint32) Timestamp {
	return Timestamp(uint64(wallMillis)<<LogicalBits | uint64(logical))
}

// Wall returns the wall milliseconds of t.
func (t Timestamp) Wall() int64 { return int64(t >> LogicalBits) }

// Logical returns the logical count of t.
func (t Timestamp) Logical() uint32 { return uint32(t & (1<<LogicalBits - 1)) }
