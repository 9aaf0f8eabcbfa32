package store

import (
	"errors"
	"fmt"
	"strings"
)

// Errors of Open. The error that is returned wraps one of them and says in one
// line which directory it is about and what to do.
var (
	// ErrNoStore says that there is no store and none was to be made.
	ErrNoStore = errors.New("no store here")
	// ErrLocked says that another process (or another Open) holds the directory.
	ErrLocked = errors.New("in use by another process")
	// ErrRolledBack says that the store is older than what it promised.
	ErrRolledBack = errors.New("store has lost data that it had promised to keep")
	// ErrUnreadable says that files cannot be read: permissions or damage.
	ErrUnreadable = errors.New("store cannot be read")
)

// Errors of identities and peers.
var (
	// ErrJoined says that the store belongs to another cluster or node already.
	ErrJoined = errors.New("store already belongs to a node")
	// ErrBoundEnded says that the clock bound was ended: this life's clock is over.
	ErrBoundEnded = errors.New("clock bound was ended by a clean stop")
	// ErrEarlierLife says that a peer shows an earlier life than it had before:
	// its store was rolled back or replaced.
	ErrEarlierLife = errors.New("peer shows an earlier life than before")
	// ErrCopiedStore says that two processes run the same life of one node.
	ErrCopiedStore = errors.New("peer shows a second mark of the same life")
)

// Errors of replicas, logs and snapshots.
var (
	// ErrNoReplica says that the store holds no such replica.
	ErrNoReplica = errors.New("no such replica in this store")
	// ErrInitialized says that a group's log is already past its start.
	ErrInitialized = errors.New("log is already past its start")
	// ErrBadPayload says that an encoded batch is malformed or reaches outside
	// the replicated key space. The target batch is untouched.
	ErrBadPayload = errors.New("malformed write payload")
	// ErrBadSnapshot says that a received snapshot is damaged or malformed.
	ErrBadSnapshot = errors.New("damaged or malformed snapshot")
	// ErrTombstone says that the replica id has been removed for ever.
	ErrTombstone = errors.New("replica has been removed for ever")
)

// remedyRebuild is what to do about a store that cannot be trusted.
const remedyRebuild = "move the directory away and let this machine join as a new node; " +
	"its replicas are rebuilt from the others"

// openError is the one line that Open returns.
func openError(dir string, kind error, detail, remedy string) error {
	line := strings.Join(strings.Fields(detail), " ")
	return fmt.Errorf("open store %q: %w: %s: %s", dir, kind, line, remedy)
}
