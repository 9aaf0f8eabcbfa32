package multiraft

import (
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/support"
)

// LeaseState is the answer of Group.Lease.
type LeaseState uint8

// The states of a lease. Only LeaseHeld lets a read be served locally.
const (
	LeaseNone  LeaseState = iota // not held: use Read (ReadIndex)
	LeaseShort                   // held, but not for reads at so high a timestamp: ask now, use Read
	LeaseHeld
)

// Lease says whether this replica holds the lease of a term for a read at ts
// (0: for no read in particular). The caller has fixed ts, and moved the clock
// to it, before. Any goroutine; lock-free.
func (g *Group) Lease(term ids.Term, ts hlc.Timestamp) LeaseState { return LeaseNone }

// Withdrawn says that the promise to a node ended: groups that followed a leader
// there may elect another. Any goroutine.
func (h *Host) Withdrawn(n ids.NodeID, why support.Reason) {}

// Supported says that a node supports this one under a new epoch, or again:
// groups led here ask their replicas there to follow anew. Any goroutine.
func (h *Host) Supported(n ids.NodeID, e support.Epoch) {}

// Unsupported says that a node's support has lapsed. Any goroutine.
func (h *Host) Unsupported(n ids.NodeID) {}

// Mismatch says that the digests of two nodes have differed for a while: groups
// here that follow a leader on n ask it whether it still leads. Any goroutine.
func (h *Host) Mismatch(n ids.NodeID) {}

// MayVote says that the boot wait is over. Any goroutine.
func (h *Host) MayVote() {}
