package ranges

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
)

// What merges cost is counted: the time for which writes of either half wait.
func TestTheTimeForWhichAMergeHoldsWritesBackIsCounted(t *testing.T) {
	t.Parallel()
	w, l, right := halves(t, nil)
	_, third := w.split(right, "t")
	w.tick(3)
	w.merge(2, right)
	w.clean()
	counts := func(wantLeft, wantRight uint64) (left, right Freezes) {
		t.Helper()
		left, right = l.table.MergeFreezes()
		if left.Count != wantLeft || right.Count != wantRight {
			t.Fatalf("%d times of left halves, %d of right ones, want %d and %d",
				left.Count, right.Count, wantLeft, wantRight)
		}
		return left, right
	}
	counts(1, 1)

	// One replica cannot take the seal: the right half is frozen in vain.
	id := ids.RangeID(third.GetRangeId())
	w.drop = func(_, to ids.NodeID, m *multiraft.Message) bool {
		return to == l.id%3+1 && m.Range == id
	}
	o := l.startMerge(2, id)
	for i := 0; o.count == 0 && i < 60; i++ {
		w.tick(1)
		w.maintain(1)
	}
	if o.count != 1 || o.err == nil {
		t.Fatalf("a merge that lacks a replica ended with %v", o.err)
	}
	w.drop = nil
	w.clean()
	if _, frozen := counts(1, 2); frozen.Sum < mergePatience {
		t.Fatalf("a merge was given up after %v; its right half is said to have waited %v",
			mergePatience, frozen.Sum)
	}
}
