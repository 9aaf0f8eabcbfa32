// Package ids holds the domain types that name the parts of a cluster.
//
// They are distinct types so that a node cannot be passed where a replica is
// meant; a bare uint64 never stands in an exported signature.
package ids

import (
	"math"
	"strconv"
)

// NodeID names a node of the cluster. Ids start at 1 and are never reused; 0
// means "no node".
type NodeID uint64

// RangeID names a range, which is also its raft group. Ids start at 1 and are
// never reused; 0 means "no range". Range 1 is the system range, range 2 the
// first user range.
type RangeID uint64

// ReplicaID names one copy of a range for all time: a node that is removed
// from a range and added again gets a new one. It is raft's peer id. 0 means
// "no replica".
type ReplicaID uint64

// EveryReplica stands for all replicas of a range, past and to come, where the next
// replica id that may live is told or kept: the range itself is gone for ever.
const EveryReplica = ReplicaID(math.MaxUint64)

// Generation orders the descriptors of one key: a split gives both halves the
// parent's plus one, a replica change adds one, so per key it only rises.
type Generation uint64

// Term is a raft term.
type Term uint64

// Index is a position in a raft log.
type Index uint64

// Life counts the starts of one store; it is raised and made durable before a
// process sends its first message.
type Life uint64

// String returns the id as people write it: n3.
func (n NodeID) String() string { return "n" + strconv.FormatUint(uint64(n), 10) }

// String returns the id as people write it: r42.
func (r RangeID) String() string { return "r" + strconv.FormatUint(uint64(r), 10) }
