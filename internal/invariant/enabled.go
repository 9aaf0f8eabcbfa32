//go:build invariants || race

package invariant

// Enabled says whether checks that are too dear for production run in this
// build: with the tag invariants, and under the race detector.
const Enabled = true
