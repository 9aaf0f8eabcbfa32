// Package hlc gives hybrid logical timestamps and monotonic time.
//
// Contract (the implementation is to be completed in this package):
//
// A Timestamp is 46 bits of wall milliseconds and 18 bits of logical count.
// Timestamp 0 is never issued (the engine reads it as "no version").
//
// Safety never rests on a wall clock being right. What the store needs is
// only that a node's timestamps never go back, across restarts too: the upper
// bound of issued timestamps is persisted ahead in windows by the store
// (SetBound) and a restart begins above it. When the bound is reached the
// clock creeps up to it logically, then Now returns ErrBound.
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
