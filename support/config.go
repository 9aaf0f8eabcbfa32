package support

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
)

// Defaults of Config.
const (
	DefaultDuration = 250 * time.Millisecond
	DefaultInterval = 75 * time.Millisecond
)

// MismatchAfter is how long two digests must have differed without a break before
// OnMismatch is called. It is called again after twice that time, four times, and
// so on up to mismatchMost, until they are equal once.
const (
	MismatchAfter = time.Second
	mismatchMost  = 64 * MismatchAfter
)

// Lease clocks (R4, R6).
const (
	// driftPart is the reciprocal of rho, the most by which a lease clock may run
	// fast or slow: 1/40 is 2.5 %. Quartz is off by 0.01 %; the rest is for what
	// a hypervisor makes of it.
	driftPart = 40
	// marginPart is the reciprocal of the part of D that the asking side does not
	// count. It must be at least two rho (5 %); the other half is slack.
	marginPart = 10
)

// sliver is how far a ceiling lies above a hybrid clock that is ahead of the
// wall clock by more than D already (R9a).
const sliver = 5 * time.Millisecond

// Bounds.
const (
	// maxPeers bounds the table. Node ids are never reused, so entries are not
	// dropped; beyond this many a node is refused support and never supports.
	maxPeers = 4096
	// outstanding is how many requests to a node may be unanswered and still be
	// answered; the oldest is forgotten, and its grant then ignored.
	outstanding = 64
	// tokens is the size of channels that only say "look": one mark is enough.
	tokens = 1
)

// leastGracePart is the reciprocal of the part of D below which no grace is
// given (see Table.Expire): timers are always a little late.
const leastGracePart = 16

// Config configures a Table.
type Config struct {
	Self     ids.NodeID
	Life     ids.Life
	Clock    *hlc.Hybrid
	Physical hlc.Clock // Monotonic is the lease clock, Wall anchors ceilings
	// Deviation is by how much the real wall clock differs from Physical.Wall
	// now. A support does not count while this has moved by more than a bound
	// since its request left: then time may have passed that the lease clock has
	// not counted (a frozen virtual machine). It is asked on the read path: any
	// goroutine, no lock. nil: always 0.
	Deviation func() time.Duration
	Duration  time.Duration // D, default 250 ms
	Interval  time.Duration // between requests, default 75 ms
	// LongestPromised is the longest D that any earlier life may have promised;
	// 0 for a first life: then there is no boot wait.
	LongestPromised time.Duration
	// MaxPromise is the longest D that this node may promise: the caller has made
	// durable that this life may promise so much, so that the next life's
	// LongestPromised is not below it (R6). A longer request is refused. 0: D.
	MaxPromise time.Duration
	// Healthy says whether the disk makes progress; false: support is not asked
	// for. nil: always.
	Healthy func() bool
	// Callbacks, called without the table's lock, one at a time. They must not
	// block; they may call the table. Several ends of one kind that one node's
	// callbacks have not been told yet are told once.
	OnWithdrawn   func(node ids.NodeID, why Reason) // a promise of this node ended
	OnSupported   func(node ids.NodeID, e Epoch)    // a new epoch, or counted again
	OnUnsupported func(node ids.NodeID)             // support by node has lapsed
	OnMismatch    func(node ids.NodeID)             // digests differ: ask (R7)
	OnVotes       func()                            // the boot wait is over
}

// withDefaults fills in what is not set and checks what cannot be right.
func (c Config) withDefaults() Config {
	invariant.Check(c.Self != 0, "support table of no node")
	invariant.Check(c.Life>>epochCountBits == 0, "life %d does not fit an epoch", c.Life)
	if c.Duration == 0 {
		c.Duration = DefaultDuration
	}
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.MaxPromise == 0 {
		c.MaxPromise = c.Duration
	}
	if c.Deviation == nil {
		c.Deviation = func() time.Duration { return 0 }
	}
	if c.Healthy == nil {
		c.Healthy = func() bool { return true }
	}
	if c.OnWithdrawn == nil {
		c.OnWithdrawn = func(ids.NodeID, Reason) {}
	}
	if c.OnSupported == nil {
		c.OnSupported = func(ids.NodeID, Epoch) {}
	}
	if c.OnUnsupported == nil {
		c.OnUnsupported = func(ids.NodeID) {}
	}
	if c.OnMismatch == nil {
		c.OnMismatch = func(ids.NodeID) {}
	}
	if c.OnVotes == nil {
		c.OnVotes = func() {}
	}
	return c
}

// maxDeviation is by how much the real wall clock may move against the lease clock
// between a request and the use of its grant: the slack that drift leaves of the
// margin (12.5 ms of 250 ms). A machine may have stood still for as long without
// its lease clock noticing, and more would reach beyond the end of the promise.
func (c Config) maxDeviation() time.Duration {
	return c.Duration/marginPart - 2*c.Duration/driftPart
}

// bootWait is how long a node that may have made promises in an earlier life
// keeps from voting after it started (R6). Those promises ran on a clock that was
// perhaps slow by rho, the wait runs on one that is perhaps fast by rho.
func (c Config) bootWait() time.Duration {
	if c.Life <= 1 || c.LongestPromised <= 0 {
		return 0
	}
	return c.LongestPromised + 2*c.LongestPromised/driftPart
}
