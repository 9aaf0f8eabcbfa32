package ranges

import (
	"math"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// splitSticky splits at a key that somebody asked for until a time.
func (w *world) splitSticky(r ids.RangeID, k string, until int64) (right *metapb.RangeDescriptor) {
	w.t.Helper()
	called := false
	w.leader(r).table.SplitSticky(r, key(k), until,
		func(_, d *metapb.RangeDescriptor, err error) {
			must(w.t, err)
			right, called = d, true
		})
	w.settle()
	if !called {
		w.t.Fatal("split was not answered")
	}
	w.tick(3)
	return right
}

// That a boundary was asked for stands at the range that begins there, on every
// replica, and stays through splits that were not asked for, replica changes, marks
// and crashes. It goes with the boundary.
func TestABoundaryThatWasAskedForStaysUntilItIsMergedAway(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	for _, k := range []string{"a", "g", "n", "t"} {
		w.leader(2).put(k, "value")
	}
	id := ids.RangeID(w.splitSticky(2, "m", math.MaxInt64).GetRangeId())
	want := func(r ids.RangeID, until int64) {
		t.Helper()
		for _, n := range w.nodes[1:] {
			if x := n.table.replica(r); x != nil && x.descriptor().GetStickyUntil() != until {
				t.Fatalf("%v on %v is sticky until %d, want %d", r, n.id,
					x.descriptor().GetStickyUntil(), until)
			}
		}
	}
	want(2, 0)
	want(id, math.MaxInt64)

	_, d := w.split(id, "s") // by size, by load, by a rule
	w.tick(3)
	far := ids.RangeID(d.GetRangeId())
	want(id, math.MaxInt64)
	want(far, 0)
	timed := ids.RangeID(w.splitSticky(far, "u", 77_000).GetRangeId())
	want(far, 0)
	want(timed, 77_000)

	w.transfer(id, 2)
	w.removeReplica(id, ids.ReplicaID(replicaOn(w.descriptor(id), 3).GetReplicaId()))
	w.addVoter(id, 3) // by a snapshot
	for _, n := range w.nodes[1:] {
		n.crash()
	}
	for _, n := range w.nodes[1:] {
		n.restart()
	}
	w.clean()
	want(id, math.MaxInt64)
	want(timed, 77_000)

	w.transfer(far, 1)
	w.transfer(timed, 1)
	w.merge(far, timed) // the boundary that was asked for goes, the other stays
	w.clean()
	want(far, 0)
	w.transfer(id, 1)
	w.merge(id, far)
	w.clean()
	want(id, math.MaxInt64)
	w.transfer(2, 1)
	w.merge(2, id)
	w.clean()
	want(2, 0)
}
