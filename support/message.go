package support

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Epoch numbers one unbroken promise: the promising node's life in the upper 32
// bits, a count in the lower. Later promises have higher epochs. 0: none.
//
// The life keeps epochs of different processes apart (R6): the count begins at
// one in each life, and an ack of the former life must not match again.
type Epoch uint64

// epochCountBits is the width of the count.
const epochCountBits = 32

// Life returns the life of the process that made the promise.
func (e Epoch) Life() ids.Life { return ids.Life(e >> epochCountBits) }

// Request asks a node for support. It is composed when it leaves (Table.Request).
type Request struct {
	Life     ids.Life      // of the asking node's process
	Sequence uint64        // of this request, for this pair
	Duration time.Duration // how long the promise is to last from receipt
	Ceiling  hlc.Timestamp // up to which the asker wants to serve reads
	Digest   uint64        // of the followers that the asker counts on this node, see Mark
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

// Reason says why a promise ended.
type Reason uint8

// Reasons.
const (
	Expired   Reason = 1 // nothing was heard for D
	LaterLife Reason = 2 // the node's process is another one now
)

// String returns the reason as it stands in logs and metrics.
func (r Reason) String() string {
	switch r {
	case Expired:
		return "expired"
	case LaterLife:
		return "later_life"
	}
	return "none"
}
