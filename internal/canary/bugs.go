// Package canary plants known bugs in test builds, so that the checkers can be
// shown to catch them: a checker that has never failed has shown nothing.
//
// In an ordinary build On is the constant false and the compiler leaves the
// planted code out. In a build with the tag canary, FLOTILLA_CANARY=name in the
// environment or Plant in a test switches one bug on:
//
//	FLOTILLA_CANARY=skip-sync go test -tags canary ./internal/sim
//
// A place that plants a bug reads
//
//	if canary.On(canary.SkipSync) { ... the wrong thing ... }
//
// and stays beside the code whose absence it fakes. Any goroutine may ask.
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

// Bugs returns all planted bugs, in the order above.
func Bugs() []Bug {
	return []Bug{
		SkipSync, ResponsePastSync, AppliedApart, RetryTwice, NoTombstone, SplitNotAtomic,
		StaleReadIndex, NoLatchWait, SkipBoundsRecheck, ForeignTerm,
	}
}
