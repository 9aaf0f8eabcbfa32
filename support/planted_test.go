//go:build canary

package support

import (
	"strings"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/canary"
)

// Each rule, switched off, ends its story in the violation that it was written
// for. Not parallel: the plant is global.
func TestPlantedBugsShow(t *testing.T) {
	defer canary.Plant("")
	for _, c := range []struct {
		bug   canary.Bug
		story func(w *world)
		ends  string
	}{
		{canary.LeaseRevives, storyOfAGap, "n1 counts n2, which follows n3"},
		{canary.LeaseLivesUnordered, storyOfALateLife, "n1 counts n2, which is free of promise"},
		{canary.LeaseFromReceipt, storyOfSlowGrants, "which is free of promise"},
		{canary.LeaseNoMargin, storyOfDrift, "which is free of promise"},
		{canary.LeaseThroughFreeze, storyOfAFreeze, "n1 counts n2, which follows n3"},
		{canary.LeaseNoBootWait, storyOfAForgetfulNode, "n1 counts n2, which is free of promise"},
		{canary.LeaseEpochsRepeat, storyOfRepeatedEpochs, "n1 counts n2, which follows n3"},
		{canary.LeaseOutlastsWait, storyOfALongPromise, "n1 counts n2, which is free of promise"},
		{canary.LeaseDigestUnread, storyOfALostDeparture, "node 2 is bound to n1, which left"},
		{canary.LeaseNoCeiling, storyOfAReadAboveTheCeiling, "below a read that n1 served"},
		{canary.LeaseBoundLate, storyOfALateBound, "below a read that n1 served"},
		{canary.LeaseEndsBelowCeiling, storyOfReadsUntilTheEnd, "below a read that n1 served"},
		{canary.ClockUnsealed, storyOfACleanStop, "below a read that n1 served"},
		{canary.StopForgetsCeilings, storyOfACleanStop, "below a read that n1 served"},
		{canary.CeilingFromHybrid, storyOfPassedCeilings, "ms ahead of every wall clock"},
	} {
		canary.Plant(c.bug)
		w := newWorld(t, 3)
		c.story(w)
		canary.Plant("")
		if !strings.Contains(w.violation, c.ends) {
			t.Errorf("%s: got %q, want a violation with %q", c.bug, w.violation, c.ends)
		}
		t.Logf("%s: %s", c.bug, w.violation)
	}
}
