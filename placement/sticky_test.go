package placement

import (
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// stick has the start of a range look as if a split there had been asked for.
func (w *world) stick(id ids.RangeID, until int64) {
	r := w.ranges[id]
	r.desc = proto.CloneOf(r.desc)
	r.desc.StickyUntil, r.desc.Generation = until, r.desc.Generation+1
	w.tell(r)
}

func TestASplitThatWasAskedForIsNotMergedAway(t *testing.T) {
	t.Parallel()
	w := merging(t, 113, 4) // r2, r3, r4, r5, and r1
	for _, id := range []ids.RangeID{3, 4, 5} {
		w.stick(id, math.MaxInt64)
	}
	w.small(1 << 20)
	w.run(time.Hour)
	if w.executed[mergeKind] != 0 {
		t.Fatal("merged although people had split them")
	}
	if n := w.node(w.driver).d.cluster.mergeable.Len(); n != 0 {
		t.Fatalf("%d ranges are looked at again and again", n)
	}
	if _, err := w.operate(mergeOf(3)); err != nil { // whoever asks for it may
		t.Fatal(err)
	}
	w.runUntil(5*time.Minute, "merged by request", func() bool { return w.ranges[4] == nil })
	w.run(time.Hour)
	if len(w.ranges) != 4 {
		t.Fatalf("%d ranges, want 1, 2, 3 and 5", len(w.ranges))
	}
	w.quiet(time.Hour)
}

func TestASplitThatWasAskedForAWhileIsMergedAfterIt(t *testing.T) {
	t.Parallel()
	w := merging(t, 114, 2)
	end := w.now + 3*time.Hour
	w.stick(3, end.Milliseconds())
	w.small(1 << 20)
	w.runUntil(4*time.Hour, "merged", func() bool {
		if w.ranges[3] == nil && w.now < end {
			t.Fatalf("merged %v too early", end-w.now)
		}
		return w.ranges[3] == nil
	})
	if late := w.now - end; late > 5*time.Minute {
		t.Errorf("merged only %v after its time", late)
	}
}

func TestAMomentOfTheDayIsThatOfTheClockOnTheWall(t *testing.T) {
	t.Parallel()
	wall := int64(1_800_000_000_000)
	c := newCluster(Config{Wall: func() int64 { return wall }}.withDefaults(), 0)
	f := fact(1, 1, 1)
	f.Descriptor_.StickyUntil = wall + 60_000
	r := c.learn(1, f)
	if left := c.sticky(r); left != time.Minute || c.stickyWords(r) != "for another 1 min 0 s" {
		t.Errorf("%v, %s", left, c.stickyWords(r))
	}
	if wall += 60_000; c.sticky(r) != 0 {
		t.Error("its time is over")
	}
	r.desc.StickyUntil = math.MaxInt64
	if c.sticky(r) != farAway || c.stickyWords(r) != "for ever" {
		t.Errorf("%v, %s", c.sticky(r), c.stickyWords(r))
	}
}
