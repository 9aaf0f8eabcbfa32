package support

import (
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Peer is what is known of one other node; a stable pointer. Its methods may be
// called on any goroutine and take no lock.
type Peer struct {
	table *Table     // immutable; nil in entries that never support
	node  ids.NodeID // immutable

	promise atomic.Uint64             // Epoch of the live promise, 0: none. Written under Table.mu
	view    atomic.Pointer[supported] // nil: never supported. Written under Table.mu
	records atomic.Uint64             // B's sum, see Mark
	acks    atomic.Uint64             // A's sum, see Mark
	wanted  atomic.Int64              // groups led here with a replica there

	// The rest is guarded by Table.mu.
	promised promised // this node's side as the one that promises
	asking   asking   // this node's side as the one that asks
	digest   disagreement
	offset   offset
	pending  pending
	counts   counts
}

// View is the support of one node for this one.
type View struct {
	Epoch   Epoch
	Until   time.Duration // on the lease clock; it counts while Now() < Until
	Ceiling hlc.Timestamp
}

// supported is a View as it is published, immutable.
type supported struct {
	View
	deviation time.Duration // of the wall clock when the request left that set Until
}

// Promise is the live promise to the node, 0 if there is none. Lock-free. It
// stays until it is withdrawn, and once withdrawn never comes back.
//
// It is the whole of R2 and R3 for a group: a record binds while it names this
// epoch. Nothing is said about time. A withdrawal moves the hybrid clock before
// it clears this, so whoever sees the promise gone reads a clock that is above
// all that the node may have served under it (R9d).
func (p *Peer) Promise() Epoch { return Epoch(p.promise.Load()) }

// View returns the node's support as last granted. Lock-free.
func (p *Peer) View() View {
	if s := p.view.Load(); s != nil {
		return s.View
	}
	return View{}
}

// Counts says whether the node supports this one under epoch e at lease clock
// now for reads at ts (0: no read, the ceiling does not matter). Lock-free; the
// check of a lease (R1, R4, R9) is made of these. short: only the ceiling fails.
//
// e is the epoch of an ack: if the node has withdrawn since and promised anew,
// its support has another epoch, and the old ack counts no more (R3). now must
// have been read after whatever the lease is to protect was loaded.
func (p *Peer) Counts(e Epoch, now time.Duration, ts hlc.Timestamp) (ok, short bool) {
	s := p.view.Load()
	if s == nil || e == 0 || s.Epoch != e || now >= s.Until {
		return false, false
	}
	// R4's other half: a frozen machine loses time that the lease clock has not
	// counted, and the wall clock, set right afterwards, is the only witness.
	moved := (p.table.cfg.Deviation() - s.deviation).Abs()
	if moved > p.table.cfg.maxDeviation() && !canary.On(canary.LeaseThroughFreeze) {
		return false, false
	}
	if ts > s.Ceiling && !canary.On(canary.LeaseNoCeiling) {
		return false, true
	}
	return true, false
}
