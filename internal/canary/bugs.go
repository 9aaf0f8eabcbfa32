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
	// acknowledges before the fsync
	SkipSync Bug = "skip-sync"
	// an append's responses overtake a sync in flight
	ResponsePastSync Bug = "response-past-sync"
	// applied index not in the batch of the data
	AppliedApart Bug = "applied-apart"
	// write identity not looked up: a retry applies again
	RetryTwice Bug = "retry-twice"
	// a removed replica leaves no tombstone
	NoTombstone Bug = "no-tombstone"
	// the halves of a split in two batches
	SplitNotAtomic Bug = "split-not-atomic"
	// a read skips the quorum's confirmation
	StaleReadIndex Bug = "stale-read-index"
	// a conditional write does not wait
	NoLatchWait Bug = "no-latch-wait"
	// a read that waited over a split is not checked again
	SkipBoundsRecheck Bug = "skip-bounds-recheck"
	// apply accepts an entry evaluated in another term
	ForeignTerm Bug = "foreign-term"
)

// The planted violations of the lease rules (docs/LEASES.md): each switches one
// rule off.
const (
	// R1: the support of a voter's node counts without its replica's ack
	LeaseCountsNodes Bug = "lease-counts-nodes"
	// R1: an expiry computed earlier in the term stays good
	LeaseExpiryCached Bug = "lease-expiry-cached"
	// R2: votes are refused by the leader that raft remembers
	LeaseRefusesByLead Bug = "lease-refuses-by-lead"
	// R3: a promise that ended comes back with its epoch
	LeaseRevives Bug = "lease-revives"
	// R3: a request of an earlier life counts as a restart
	LeaseLivesUnordered Bug = "lease-lives-unordered"
	// R4: support counts from the answer's arrival
	LeaseFromReceipt Bug = "lease-from-receipt"
	// R4: both sides count the whole duration
	LeaseNoMargin Bug = "lease-no-margin"
	// R4: support counts on after a freeze that no clock noticed
	LeaseThroughFreeze Bug = "lease-through-freeze"
	// R5: the lease is kept while a transfer runs
	LeaseKeptInTransfer Bug = "lease-kept-in-transfer"
	// R5: the lease comes back when a transfer is aborted
	LeaseResumes Bug = "lease-resumes"
	// R5: votes of a transfer wait for the promise's end
	LeaseHoldsForced Bug = "lease-holds-forced"
	// R6: a restarted node votes at once
	LeaseNoBootWait Bug = "lease-no-boot-wait"
	// R6: epochs count from one in each life
	LeaseEpochsRepeat Bug = "lease-epochs-repeat"
	// R6: a promise is made for longer than the next life waits
	LeaseOutlastsWait Bug = "lease-outlasts-wait"
	// R7: a step-down of an earlier term releases
	LeaseReleaseUnnamed Bug = "lease-release-unnamed"
	// R7: digests that differ lead to no question
	LeaseDigestUnread Bug = "lease-digest-unread"
	// R8: reads before an entry of the own term is applied
	LeaseBeforeOwnTerm Bug = "lease-before-own-term"
	// R9a-d: reads at any timestamp
	LeaseNoCeiling Bug = "lease-no-ceiling"
	// R9b,g: a ceiling is granted above the durable bound
	LeaseBoundLate Bug = "lease-bound-late"
	// R9c: a read in the future does not move the reader's clock
	ReadClockStays Bug = "read-clock-stays"
	// R9d: a promise that expired ends below its ceiling
	LeaseEndsBelowCeiling Bug = "lease-ends-below-ceiling"
	// R9f: a frame's stamp does not move the clock
	StampsIgnored Bug = "stamps-ignored"
	// R9f: a frame whose stamp is refused is stepped all the same
	StampRefusedStepped Bug = "stamp-refused-stepped"
	// R9g: a clock goes on after the record of where it ended
	ClockUnsealed Bug = "clock-unsealed"
	// R9g: the record of a clean stop leaves the ceilings in force out
	StopForgetsCeilings Bug = "stop-forgets-ceilings"
	// R9h: the timestamp is fixed on confirmation
	ReadIndexLate Bug = "read-index-late"
	// R9i: a leader writes below its low water
	WriteBelowClock Bug = "write-below-clock"
	// R9a: ceilings are measured from the hybrid clock
	CeilingFromHybrid Bug = "ceiling-from-hybrid"
	// R9e: an announced end moves the clock to the ceiling
	ReleasePassesCeiling Bug = "release-passes-ceiling"
	// a lease read does not look for writes in flight
	ReadSkipsLatches Bug = "read-skips-latches"
	// the hot-row cache serves a row without checking its stamp
	StaleRow Bug = "stale-row"
)

// The planted bugs of merges (ranges, Merges).
const (
	// the left half absorbs before every replica of the right half is sure to freeze
	MergeUnsealed Bug = "merge-unsealed"
	// a seal (that of a freeze, a change of the configuration) does not make the
	// commit index durable
	SealForgetsCommit Bug = "seal-forgets-commit"
	// a frozen range serves (R9j)
	FrozenServes Bug = "frozen-serves"
	// a replica whose range was absorbed goes although its left neighbour needs it
	GoneObeyed Bug = "gone-obeyed"
	// a snapshot's installation and the end of what it subsumes are two steps
	SubsumeApart Bug = "subsume-apart"
	// a frozen range thaws unasked
	ThawUnasked Bug = "thaw-unasked"
	// a leader that absorbs takes its memory for that of the right half, too
	MergeKeepsFloor Bug = "merge-keeps-floor"
)

// Bugs returns all planted bugs, in the order above.
func Bugs() []Bug {
	return []Bug{
		SkipSync, ResponsePastSync, AppliedApart, RetryTwice, NoTombstone, SplitNotAtomic,
		StaleReadIndex, NoLatchWait, SkipBoundsRecheck, ForeignTerm,
		LeaseCountsNodes, LeaseExpiryCached, LeaseRefusesByLead, LeaseRevives,
		LeaseLivesUnordered, LeaseFromReceipt, LeaseNoMargin, LeaseThroughFreeze,
		LeaseKeptInTransfer, LeaseResumes, LeaseHoldsForced, LeaseNoBootWait,
		LeaseEpochsRepeat, LeaseOutlastsWait, LeaseReleaseUnnamed, LeaseDigestUnread,
		LeaseBeforeOwnTerm, LeaseNoCeiling, LeaseBoundLate, ReadClockStays,
		LeaseEndsBelowCeiling, StampsIgnored, StampRefusedStepped, ClockUnsealed,
		StopForgetsCeilings, ReadIndexLate, WriteBelowClock, CeilingFromHybrid,
		ReleasePassesCeiling, ReadSkipsLatches, StaleRow,
		MergeUnsealed, SealForgetsCommit, FrozenServes, GoneObeyed, SubsumeApart, ThawUnasked,
		MergeKeepsFloor,
	}
}
