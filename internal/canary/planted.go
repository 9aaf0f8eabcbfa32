//go:build canary

package canary

import (
	"os"
	"slices"
	"sync/atomic"

	"github.com/flotilla-kv/flotilla/internal/invariant"
)

// Environment is the variable that names the bug to plant.
const Environment = "FLOTILLA_CANARY"

// planted is nil until somebody asks or plants.
//
//lint:allow package-var a planted bug is one of the whole process, in canary builds only
var planted atomic.Pointer[Bug]

// Plant switches one bug on, and "" switches it off. For tests. A name that is
// none of Bugs stops the process: a canary that is misspelled catches nothing.
func Plant(b Bug) {
	invariant.Check(b == "" || slices.Contains(Bugs(), b), "no bug is called %q", b)
	planted.Store(&b)
}

// On says whether the bug is planted.
func On(b Bug) bool {
	p := planted.Load()
	if p == nil {
		Plant(Bug(os.Getenv(Environment)))
		p = planted.Load()
	}
	return *p == b && b != ""
}
