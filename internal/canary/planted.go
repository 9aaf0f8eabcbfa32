//go:build canary

// Package canary plants known bugs; see canary.go.
package canary

import "sync/atomic"

// A Bug names one planted bug.
type Bug string

// The planted bugs; see canary.go for what each one does.
const (
	SkipSync          Bug = "skip-sync"
	ResponsePastSync  Bug = "response-past-sync"
	AppliedApart      Bug = "applied-apart"
	RetryTwice        Bug = "retry-twice"
	NoTombstone       Bug = "no-tombstone"
	SplitNotAtomic    Bug = "split-not-atomic"
	StaleReadIndex    Bug = "stale-read-index"
	NoLatchWait       Bug = "no-latch-wait"
	SkipBoundsRecheck Bug = "skip-bounds-recheck"
	ForeignTerm       Bug = "foreign-term"
)

var planted atomic.Value // Bug

// Plant switches one bug on, "" switches off. Tests only.
func Plant(b Bug) { planted.Store(b) }

// On says whether the bug is planted.
func On(b Bug) bool { v, _ := planted.Load().(Bug); return v != "" && v == b }
