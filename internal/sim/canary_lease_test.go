//go:build canary

package sim

import (
	"fmt"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// TestPlantedLeaseBugsAreCaughtByChance plants violations of the lease rules that
// the ordinary checks find within a bounded number of seeds. Chance finds few of
// them soon; all others have a story of their own, which is where a planted bug
// is caught for certain:
//
//   - below, TestPlantedLeaseBugsAreCaughtByStories;
//   - multiraft, leasestory_test.go: LeaseRefusesByLead, LeaseReleaseUnnamed,
//     LeaseBeforeOwnTerm, ReleasePassesCeiling (and again LeaseCountsNodes,
//     LeaseExpiryCached, LeaseKeptInTransfer, LeaseResumes, LeaseHoldsForced);
//   - support, planted_test.go: LeaseLivesUnordered, LeaseThroughFreeze,
//     LeaseNoBootWait, LeaseEpochsRepeat, LeaseOutlastsWait, LeaseDigestUnread (which
//     multiraft tells, too), LeaseBoundLate, LeaseEndsBelowCeiling, ClockUnsealed,
//     StopForgetsCeilings, CeilingFromHybrid (and again LeaseRevives, LeaseFromReceipt,
//     LeaseNoMargin, LeaseNoCeiling);
//   - rpc, planted_test.go: again StampsIgnored and StampRefusedStepped, for datagrams;
//   - ranges, canary_test.go: ReadIndexLate (and again LeaseBeforeOwnTerm, ReadClockStays,
//     ReadSkipsLatches, WriteBelowClock, StaleRow).
func TestPlantedLeaseBugsAreCaughtByChance(t *testing.T) {
	for _, bug := range []canary.Bug{
		canary.LeaseCountsNodes, canary.LeaseExpiryCached, canary.LeaseRevives,
		canary.LeaseFromReceipt, canary.LeaseNoMargin, canary.LeaseKeptInTransfer,
		canary.StampsIgnored, canary.WriteBelowClock, canary.ReadSkipsLatches, canary.StaleRow,
	} {
		t.Run(string(bug), func(t *testing.T) {
			canary.Plant(bug)
			defer canary.Plant("")
			for seed := uint64(1); seed <= uint64(*canarySeeds); seed++ {
				var err error
				t.Run(fmt.Sprint(seed), func(t *testing.T) { err = runSeed(t, storm(seed)).Err })
				if err != nil {
					t.Logf("caught by seed %d: %.400s", seed, err.Error())
					return
				}
			}
			t.Errorf("%s was not caught within %d seeds", bug, *canarySeeds)
		})
	}
}

// TestPlantedLeaseBugsAreCaughtByStories plants one violation after the other and
// tells the story that shows it.
func TestPlantedLeaseBugsAreCaughtByStories(t *testing.T) {
	for _, c := range []struct {
		bug   canary.Bug
		story func(s *Sim, n *node, id ids.RangeID)
	}{
		{canary.StampsIgnored, transferToASlowClock},
		{canary.StampRefusedStepped, stampIsRefused},
		{canary.LeaseNoCeiling, slowSupporters},
		{canary.ReadClockStays, readInTheFuture},
		{canary.LeaseResumes, abortedTransfer},
		{canary.LeaseKeptInTransfer, transferOutOfReach},
		{canary.LeaseHoldsForced, transferOutOfReach},
	} {
		t.Run(string(c.bug), func(t *testing.T) {
			if err := aside(t, 301, c.story); err != nil {
				t.Fatalf("the story fails by itself: %v", err)
			}
			canary.Plant(c.bug)
			defer canary.Plant("")
			for seed := uint64(301); seed <= 305; seed++ {
				err := aside(t, seed, c.story)
				if err == nil {
					t.Errorf("seed %d: %s was not caught", seed, c.bug)
				} else if seed == 301 {
					t.Logf("%.300s", err.Error())
				}
			}
		})
	}
}
