//go:build canary

package sim

import (
	"fmt"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/canary"
)

// merging is a storm in which every other fault is a split and a merge of
// neighbours, in a cluster so small that all ranges are aligned.
func merging(seed uint64) Options {
	o := storm(seed)
	o.Nodes = 3 + int(seed%2)
	o.Placement = Placing{
		Replicas: 3, DeadAfter: o.Placement.DeadAfter, LoadSplitOps: -1, Merges: 0.5, Ambushes: 0.3,
		AskEvery: o.Placement.AskEvery,
	}
	return o
}

// TestPlantedMergeBugsAreCaughtByChance plants the bugs of merges that the ordinary
// checks find within a bounded number of seeds. SubsumeApart is not among them: it
// takes a power cut between two writes of the installation of a snapshot that
// subsumes. All of them are caught for certain where the race is directed: ranges,
// canary_merge_test.go.
func TestPlantedMergeBugsAreCaughtByChance(t *testing.T) {
	for _, bug := range []canary.Bug{
		canary.MergeUnsealed, canary.SealForgetsCommit, canary.FrozenServes, canary.GoneObeyed,
		canary.ThawUnasked, canary.MergeKeepsFloor,
	} {
		t.Run(string(bug), func(t *testing.T) {
			canary.Plant(bug)
			defer canary.Plant("")
			for seed := uint64(1); seed <= uint64(*canarySeeds); seed++ {
				var err error
				t.Run(fmt.Sprint(seed), func(t *testing.T) { err = runSeed(t, merging(seed)).Err })
				if err != nil {
					t.Logf("caught by seed %d: %.400s", seed, err.Error())
					return
				}
			}
			t.Errorf("%s was not caught within %d seeds", bug, *canarySeeds)
		})
	}
}
