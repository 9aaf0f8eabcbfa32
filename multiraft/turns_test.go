package multiraft

import (
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Seed 4000020 of the simulation: one place for snapshots, and three groups whose
// snapshots are refused time and again. The fourth, for which they wait, has its turn.
func TestGroupsWhoseSnapshotsFailDoNotKeepOthersOut(t *testing.T) {
	t.Parallel()
	now := time.Duration(0)
	c := &Config{SnapshotsOut: 1, HeartbeatTicks: 2, TickInterval: 100 * time.Millisecond}
	var turns snapshotTurns
	sent := make(map[ids.RangeID]int)
	sending := ids.RangeID(0)
	for range 40 { // group 4 always asks last
		now += 200 * time.Millisecond
		for r := ids.RangeID(1); r <= 4; r++ {
			if sending == r {
				turns.leave() // refused
				sending = 0
			}
			if turns.take(r, 6, c, now) {
				sending = r
				sent[r]++
			}
		}
	}
	if sent[4] < 5 || sent[1] < 5 {
		t.Fatalf("snapshots sent by group: %v", sent)
	}
}

// Who does not ask again loses the turn: the group is gone, or the follower is.
func TestATurnIsNotKeptForWhoDoesNotCome(t *testing.T) {
	t.Parallel()
	now := time.Duration(0)
	c := &Config{SnapshotsOut: 1, HeartbeatTicks: 2, TickInterval: 100 * time.Millisecond}
	var turns snapshotTurns
	if !turns.take(1, 6, c, now) || turns.take(2, 6, c, now) || turns.take(3, 6, c, now) {
		t.Fatal("more than one sends")
	}
	turns.leave()
	if turns.take(3, 6, c, now) {
		t.Fatal("group 3 overtakes group 2")
	}
	now += 2 * time.Second
	if !turns.take(3, 6, c, now) || turns.sending() != 1 || len(turns.waiting) != 0 {
		t.Fatalf("group 2 does not come, and is waited for: %+v", turns.waiting)
	}
}
