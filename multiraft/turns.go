package multiraft

import (
	"slices"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// snapshotTurns shares the snapshots that a node sends at a time among its groups, in
// the order in which they asked. Without an order those that fail can keep all others
// out for ever: a receiver refuses the parts of a range that was split while its own
// replica still holds the whole, and each refusal freed a place for the next part,
// never for the left one, for which all of them wait (seed 4000020 of the simulation).
//
// A group that may not send asks again by itself, after the follower's next answer to
// a heartbeat; who does not within turnHeartbeats loses its place in the queue.
type snapshotTurns struct {
	mu      sync.Mutex
	out     int
	waiting []snapshotTurn // oldest first; at most maxTurns, later ones have no place
}

type snapshotTurn struct {
	group ids.RangeID
	to    uint64 // replica
	asked time.Duration
}

// take says whether a group may send a snapshot to a replica now. If so, leave must
// follow. Any goroutine.
func (t *snapshotTurns) take(group ids.RangeID, to uint64, c *Config, now leaseTime) bool {
	patience := turnHeartbeats * time.Duration(c.HeartbeatTicks) * c.TickInterval
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = slices.DeleteFunc(t.waiting, func(w snapshotTurn) bool {
		return now-w.asked > patience
	})
	place := slices.IndexFunc(t.waiting, func(w snapshotTurn) bool {
		return w.group == group && w.to == to
	})
	before := place
	if place < 0 {
		before = len(t.waiting)
	}
	switch {
	case t.out+before < c.SnapshotsOut:
		t.out++
		if place >= 0 {
			t.waiting = slices.Delete(t.waiting, place, place+1)
		}
		return true
	case place >= 0:
		t.waiting[place].asked = now
	case len(t.waiting) < maxTurns:
		t.waiting = append(t.waiting, snapshotTurn{group: group, to: to, asked: now})
	}
	return false
}

// leave ends what take let through. Any goroutine.
func (t *snapshotTurns) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.out--
}

// sending returns how many snapshots are being sent. Any goroutine.
func (t *snapshotTurns) sending() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return int64(t.out)
}
