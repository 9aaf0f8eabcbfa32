// Package support keeps the promises between pairs of nodes that leases,
// failure detection and idleness rest on. See docs/LEASES.md.
package support

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Epoch numbers one unbroken promise: the promising node's life in the upper 32
// bits, a count in the lower. Later promises have higher epochs. 0: none.
type Epoch uint64

// Request asks a node for support. It is composed when it leaves (Table.Request).
type Request struct {
	Life     ids.Life      // of the asking node's process
	Sequence uint64        // of this request, for this pair
	Duration time.Duration // how long the promise is to last from receipt
	Ceiling  hlc.Timestamp // up to which the asker wants to serve reads
	Digest   uint64        // of the followers that the asker counts on this node, see Table.Digest
	Wall     int64         // the asker's wall clock, milliseconds
}

// Grant answers a request; Life and Sequence echo it.
type Grant struct {
	Life     ids.Life
	Sequence uint64
	Epoch    Epoch
	Ceiling  hlc.Timestamp // granted, perhaps below what was asked
	Wall     int64         // the granter's wall clock, milliseconds
}

// Config configures a Table.
type Config struct {
	Self     ids.NodeID
	Life     ids.Life
	Clock    *hlc.Hybrid
	Physical hlc.Clock // Monotonic is the lease clock, Wall anchors ceilings
	// Deviation is by how much the real wall clock differs from Physical.Wall
	// now. A support does not count while this has moved by more than a bound
	// since its request left: then time may have passed that the lease clock has
	// not counted (a frozen virtual machine). nil: always 0.
	Deviation func() time.Duration
	Duration  time.Duration // D, default 250 ms
	Interval  time.Duration // between requests, default 50 ms
	// LongestPromised is the longest D that any earlier life may have promised;
	// 0 for a first life: then there is no boot wait.
	LongestPromised time.Duration
	// Healthy says whether the disk makes progress; false: support is not asked
	// for. nil: always.
	Healthy func() bool
	// Callbacks, called without the table's lock, never concurrently with
	// themselves for one node. They must not block.
	OnWithdrawn   func(node ids.NodeID, why Reason) // a promise of this node ended
	OnSupported   func(node ids.NodeID, e Epoch)    // a new epoch, or support counts again after a lapse
	OnUnsupported func(node ids.NodeID)             // support by node has lapsed
	OnMismatch    func(node ids.NodeID)             // digests have differed for MismatchAfter: ask (R7)
	OnVotes       func()                            // the boot wait is over
}

// Reason says why a promise ended.
type Reason uint8

// Reasons.
const (
	Expired   Reason = 1 // nothing was heard for D
	LaterLife Reason = 2 // the node's process is another one now
)

// Table is one node's side of all pairs. Any goroutine.
type Table struct{ cfg Config }

// Peer is what is known of one other node; a stable pointer.
type Peer struct{}

// View is the support of one node for this one.
type View struct {
	Epoch   Epoch
	Until   time.Duration // on the lease clock; it counts while Now() < Until
	Ceiling hlc.Timestamp
}

// New makes a table; nothing runs.
func New(cfg Config) *Table { panic("contract") }

// Now reads the lease clock: Physical.Monotonic.
func (t *Table) Now() time.Duration { panic("contract") }

// Peer returns the entry of a node, made on demand; stable for the table's life.
// A nil table returns an entry that never supports and is promised nothing.
func (t *Table) Peer(n ids.NodeID) *Peer { panic("contract") }

// MayVote is false during the boot wait (R6). A nil table always may. Lock-free.
func (t *Table) MayVote() bool { panic("contract") }

// Want counts groups of this node that lead and have a replica on n; requests go
// only to nodes that are wanted. delta is +1 or -1. Any goroutine.
func (t *Table) Want(n ids.NodeID, delta int) { panic("contract") }

// Promise is the live promise to the node, 0 if there is none. Lock-free. It
// stays until it is withdrawn, and once withdrawn never comes back.
func (p *Peer) Promise() Epoch { panic("contract") }

// View returns the node's support as last granted. Lock-free.
func (p *Peer) View() View { panic("contract") }

// Counts says whether the node supports this one under epoch e at lease clock
// now for reads at ts (0: no read, the ceiling does not matter). Lock-free; the
// check of a lease (R1, R4, R9) is made of these. short: only the ceiling fails.
func (p *Peer) Counts(e Epoch, now time.Duration, ts hlc.Timestamp) (ok, short bool) {
	panic("contract")
}

// Digests: the sums, kept by change, of Mark over the groups of this node that
// follow a leader on the peer under a live record (NoteRecord, B's side), and over
// the followers on the peer whose acks this node counts (NoteAck, A's side). The
// request carries A's sum, B compares it with its own. delta +1 or -1.

// NoteRecord moves B's sum. Any goroutine.
func (p *Peer) NoteRecord(mark uint64, delta int) { panic("contract") }

// NoteAck moves A's sum. Any goroutine.
func (p *Peer) NoteAck(mark uint64, delta int) { panic("contract") }

// Mark is one group's part of a digest.
func Mark(r ids.RangeID, follower ids.ReplicaID, term ids.Term) uint64 { panic("contract") }

// Request composes the next request to a node; false: none now (not wanted, or
// the disk makes no progress). To be called right before it is sent.
func (t *Table) Request(to ids.NodeID) (Request, bool) { panic("contract") }

// Wanted returns the nodes to ask, in order.
func (t *Table) Wanted() []ids.NodeID { panic("contract") }

// HandleRequest is the answering side; false: ignored (an earlier life).
func (t *Table) HandleRequest(from ids.NodeID, r Request) (Grant, bool) { panic("contract") }

// HandleGrant is the asking side.
func (t *Table) HandleGrant(from ids.NodeID, g Grant) { panic("contract") }

// AskNow asks that requests to all wanted nodes leave at once (a ceiling was too
// low). Cheap; wakes whoever waits on Asked.
func (t *Table) AskNow() { panic("contract") }

// Asked gets a token from AskNow, at most one waits.
func (t *Table) Asked() <-chan struct{} { panic("contract") }

// Expire withdraws what has run out, notices lapsed support, and returns the lease
// clock's time of the next event (0: none). Called by one goroutine when that time
// has come or Changed has a token; late says how much later than asked it was
// called: a node that was starved itself waits so much longer (at most D) before
// it withdraws, since requests may wait unread. That is always safe: only a
// withdrawal lets anybody vote.
func (t *Table) Expire(late time.Duration) (next time.Duration) { panic("contract") }

// Changed gets a token when Expire should be called earlier than it said.
func (t *Table) Changed() <-chan struct{} { panic("contract") }

// Status is one pair of nodes for `flotilla status` and /metrics.
type Status struct {
	Node               ids.NodeID
	PromiseEpoch       Epoch         // 0: this node promises nothing to Node
	PromiseLeft        time.Duration // may be negative for a moment
	SupportEpoch       Epoch         // 0: never supported by Node
	SupportLeft        time.Duration // <= 0: lapsed
	Wanted             int           // led groups with a replica there
	Grants, Requests   uint64
	WithdrawnExpired   uint64
	WithdrawnLaterLife uint64
	Lapses             uint64
	Mismatches         uint64
	RoundTrip          time.Duration // of the last answered request
	WallOffset         time.Duration // the peer's wall clock minus this node's, estimated
}

// Status returns all pairs in order of node id.
func (t *Table) Status() []Status { panic("contract") }
