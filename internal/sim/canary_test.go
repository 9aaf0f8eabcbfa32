//go:build canary

package sim

import (
	"flag"
	"fmt"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/canary"
)

var canarySeeds = flag.Int("sim.canary-seeds", 150, "within how many seeds a planted bug is caught")

// TestPlantedBugsAreCaught plants one known bug after the other and demands
// that the ordinary checks find each within a bounded number of seeds.
// `go test -tags canary ./internal/sim -run TestPlantedBugsAreCaught`
func TestPlantedBugsAreCaught(t *testing.T) {
	for _, bug := range []canary.Bug{
		canary.SkipSync, canary.ResponsePastSync, canary.AppliedApart, canary.RetryTwice,
		canary.SplitNotAtomic, canary.StaleReadIndex, canary.NoLatchWait, canary.ForeignTerm,
		// SkipBoundsRecheck needs a read that waits over a split to be answered
		// late: a test of package ranges directs it (docs/TESTING.md, row 2).
		// NoTombstone needs an old snapshot at the right moment: chance met it at seed
		// 26 of one build and not in 150 of the next. A test of ranges directs it, too.
	} {
		t.Run(string(bug), func(t *testing.T) {
			canary.Plant(bug)
			defer canary.Plant("")
			for seed := uint64(1); seed <= uint64(*canarySeeds); seed++ {
				var err error
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					if err = runSeed(t, Derive(seed)).Err; err == nil {
						err = runSeed(t, storm(seed)).Err
					}
				})
				if err != nil {
					text := err.Error()
					t.Logf("caught by seed %d: %.400s", seed, text)
					return
				}
			}
			t.Errorf("%s was not caught within %d seeds", bug, *canarySeeds)
		})
	}
}
