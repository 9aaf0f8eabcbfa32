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

// The planted violations of the lease rules (docs/LEASES.md): each switches one
// rule off.
const (
	LeaseCountsNodes     Bug = "lease-counts-nodes"     // R1: the support of a voter's node counts without its replica's ack
	LeaseExpiryCached    Bug = "lease-expiry-cached"    // R1: an expiry computed earlier in the term stays good
	LeaseRefusesByLead   Bug = "lease-refuses-by-lead"  // R2: votes are refused by the leader that raft remembers
	LeaseRevives         Bug = "lease-revives"          // R3: a promise that ended comes back with its epoch
	LeaseLivesUnordered  Bug = "lease-lives-unordered"  // R3: a request of an earlier life counts as a restart
	LeaseFromReceipt     Bug = "lease-from-receipt"     // R4: support counts from the answer's arrival
	LeaseNoMargin        Bug = "lease-no-margin"        // R4: both sides count the whole duration
	LeaseKeptInTransfer  Bug = "lease-kept-in-transfer" // R5: the lease is kept while a transfer runs
	LeaseResumes         Bug = "lease-resumes"          // R5: the lease comes back when a transfer is aborted
	LeaseHoldsForced     Bug = "lease-holds-forced"     // R5: votes of a transfer wait for the promise's end
	LeaseNoBootWait      Bug = "lease-no-boot-wait"     // R6: a restarted node votes at once
	LeaseEpochsRepeat    Bug = "lease-epochs-repeat"    // R6: epochs count from one in each life
	LeaseReleaseUnnamed  Bug = "lease-release-unnamed"  // R7: a step-down of an earlier term releases
	LeaseBeforeOwnTerm   Bug = "lease-before-own-term"  // R8: reads before an entry of the own term is applied
	LeaseNoCeiling       Bug = "lease-no-ceiling"       // R9a-d: reads at any timestamp
	LeaseBoundLate       Bug = "lease-bound-late"       // R9b,g: a ceiling is granted above the durable bound
	ReadClockStays       Bug = "read-clock-stays"       // R9c: a read in the future does not move the reader's clock
	StampsIgnored        Bug = "stamps-ignored"         // R9f: a frame's stamp does not move the clock
	StampRefusedStepped  Bug = "stamp-refused-stepped"  // R9f: a frame whose stamp is refused is stepped all the same
	ReadIndexLate        Bug = "read-index-late"        // R9h: the timestamp is fixed on confirmation
	WriteBelowClock      Bug = "write-below-clock"      // R9i: a leader writes below its low water
	CeilingFromHybrid    Bug = "ceiling-from-hybrid"    // R9a: ceilings are measured from the hybrid clock
	ReleasePassesCeiling Bug = "release-passes-ceiling" // R9e: an announced end moves the clock to the ceiling
	ReadSkipsLatches     Bug = "read-skips-latches"     // a lease read does not look for writes in flight
	StaleRow             Bug = "stale-row"              // the hot-row cache serves a row without checking its stamp
)

// Bugs returns all planted bugs, in the order above.
func Bugs() []Bug {
	return []Bug{
		SkipSync, ResponsePastSync, AppliedApart, RetryTwice, NoTombstone, SplitNotAtomic,
		StaleReadIndex, NoLatchWait, SkipBoundsRecheck, ForeignTerm,
		LeaseCountsNodes, LeaseExpiryCached, LeaseRefusesByLead, LeaseRevives,
		LeaseLivesUnordered, LeaseFromReceipt, LeaseNoMargin, LeaseKeptInTransfer,
		LeaseResumes, LeaseHoldsForced, LeaseNoBootWait, LeaseEpochsRepeat,
		LeaseReleaseUnnamed, LeaseBeforeOwnTerm, LeaseNoCeiling, LeaseBoundLate,
		ReadClockStays, StampsIgnored, StampRefusedStepped, ReadIndexLate,
		WriteBelowClock, CeilingFromHybrid, ReleasePassesCeiling, ReadSkipsLatches,
		StaleRow,
	}
}
