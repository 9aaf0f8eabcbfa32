//go:build !canary

// Package canary plants known bugs in test builds so that the checkers can be
// shown to catch them. In every other build On is the constant false and the
// planted code is not compiled in. `go test -tags canary` with
// FLOTILLA_CANARY=name switches one on.
package canary

// A Bug names one planted bug.
type Bug string

// The planted bugs.
const (
	SkipSync          Bug = "skip-sync"           // acknowledges before the fsync
	ResponsePastSync  Bug = "response-past-sync"  // an append's responses overtake a sync in flight
	AppliedApart      Bug = "applied-apart"       // applied index not in the batch of the data
	RetryTwice        Bug = "retry-twice"         // write identity not looked up: a retry applies again
	NoTombstone       Bug = "no-tombstone"        // a removed replica leaves no tombstone
	SplitNotAtomic    Bug = "split-not-atomic"    // the halves of a split in two batches
	StaleReadIndex    Bug = "stale-read-index"    // a read skips the quorum's confirmation
	NoLatchWait       Bug = "no-latch-wait"       // a conditional write does not wait for writes in flight
	SkipBoundsRecheck Bug = "skip-bounds-recheck" // a read that waited over a split is not checked again
	ForeignTerm       Bug = "foreign-term"        // apply accepts an entry evaluated in another term
)

// On says whether the bug is planted: never, in this build.
func On(Bug) bool { return false }
