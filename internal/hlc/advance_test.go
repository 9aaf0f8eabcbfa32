package hlc

import (
	"errors"
	"testing"
)

func TestAdvancePassesACeilingWhateverItsLead(t *testing.T) {
	t.Parallel()
	h, clock := newTestHybrid(t)
	far := New(clock.Wall()+10*testMaxAhead.Milliseconds(), 3)
	h.SetBound(far)
	if err := h.Advance(far - 7); err != nil || h.Peek() != far-7 {
		t.Fatalf("err %v, clock at %d, want %d", err, h.Peek(), far-7)
	}
	if ts := mustNow(t, h); ts != far-6 {
		t.Fatalf("issued %d after advancing to %d", ts, far-7)
	}
}

func TestAdvanceNeverMovesBackNorAboveTheBound(t *testing.T) {
	t.Parallel()
	h, _ := newTestHybrid(t)
	before := mustNow(t, h)
	if err := h.Advance(before - 5); err != nil || h.Peek() != before {
		t.Fatalf("err %v, clock moved from %d to %d", err, before, h.Peek())
	}
	if err := h.Advance(h.Bound() + 1); !errors.Is(err, ErrBound) || h.Peek() != before {
		t.Fatalf("err %v, clock moved from %d to %d", err, before, h.Peek())
	}
	if err := h.Advance(h.Bound()); err != nil || h.Peek() != h.Bound() {
		t.Fatalf("err %v, clock at %d, bound %d", err, h.Peek(), h.Bound())
	}
}

func TestBoundIsWhatWasMadeDurable(t *testing.T) {
	t.Parallel()
	h := NewHybrid(&fakeClock{}, 7, testMaxAhead)
	if got := h.Bound(); got != 7 {
		t.Fatalf("the bound of a new clock is %d, its start 7", got)
	}
	h.SetBound(90)
	h.SetBound(50)
	if got := h.Bound(); got != 90 {
		t.Fatalf("bound %d, want 90", got)
	}
}

func TestToleratedIsTheHighestThatUpdateTakes(t *testing.T) {
	t.Parallel()
	h, _ := newTestHybrid(t)
	h.SetBound(MaxTimestamp)
	most := h.Tolerated()
	if err := h.Update(most + 1); !errors.Is(err, ErrTooFarAhead) {
		t.Fatalf("one above is not refused: %v", err)
	}
	if err := h.Update(most); err != nil {
		t.Fatalf("refused: %v", err)
	}
}
