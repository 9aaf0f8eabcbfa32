//go:build !invariants && !race

package invariant

// Enabled says whether checks that are too dear for production run in this
// build: not in this one. Cheap checks always run.
const Enabled = false
