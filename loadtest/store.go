package loadtest

import (
	"context"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Store is what a load test needs of a store. Implementations are safe for
// concurrent use, read linearizably, and keep no reference to keys and values
// after a call has returned.
type Store interface {
	// Get reads a key; an absent one is found = false, not an error.
	Get(ctx context.Context, key []byte) (found bool, err error)
	// Put writes a key.
	Put(ctx context.Context, key, value []byte) error
	// ReadModifyWrite reads a key and writes it, as two operations: what is
	// written does not depend on what another client wrote between them.
	ReadModifyWrite(ctx context.Context, key, value []byte) (found bool, err error)
	// Scan reads up to limit rows from start on.
	Scan(ctx context.Context, start []byte, limit int) (rows int, err error)
	// ErrorKind says in a word what kind of error err is; kinds are counted.
	ErrorKind(err error) string
	// Close ends all connections.
	Close() error
}

// Range is a range of a store: the keys [Start, End), End empty for the last.
type Range struct {
	ID         ids.RangeID
	Start, End []byte
	Leader     ids.NodeID // 0: not known
}

// RangeLister is a Store that knows its ranges.
type RangeLister interface {
	// Ranges lists the ranges in order of their keys.
	Ranges(ctx context.Context) ([]Range, error)
}
