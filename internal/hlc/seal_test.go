package hlc

import (
	"errors"
	"sync"
	"testing"
)

func TestASealedClockIssuesAndAdoptsNothingMore(t *testing.T) {
	t.Parallel()
	h, clock := newTestHybrid(t)
	last := mustNow(t, h)
	if got := h.Seal(); got != last {
		t.Fatalf("sealed at %d after issuing %d", got, last)
	}
	clock.wall.Add(50)
	h.SetBound(MaxTimestamp)
	if ts, err := h.Now(); !errors.Is(err, ErrBound) {
		t.Fatalf("issued %d (%v)", ts, err)
	}
	if err := h.Update(last + 1); !errors.Is(err, ErrBound) {
		t.Fatalf("adopted: %v", err)
	}
	if err := h.Advance(last + 1); !errors.Is(err, ErrBound) {
		t.Fatalf("advanced: %v", err)
	}
	if h.Peek() != last || h.Bound() != last {
		t.Fatalf("clock at %d, bound %d, sealed at %d", h.Peek(), h.Bound(), last)
	}
}

func TestNothingIsIssuedAboveTheSealByAnyGoroutine(t *testing.T) {
	t.Parallel()
	h, _ := newTestHybrid(t)
	var wg sync.WaitGroup
	highest := make([]Timestamp, 4)
	for i := range highest {
		wg.Go(func() {
			for {
				h.SetBound(MaxTimestamp)
				ts, err := h.Now()
				if err != nil {
					return
				}
				highest[i] = ts
			}
		})
	}
	for h.Peek() < New(testNoon, 1000) {
	}
	sealed := h.Seal()
	wg.Wait()
	for _, ts := range highest {
		if ts > sealed {
			t.Fatalf("issued %d, sealed at %d", ts, sealed)
		}
	}
}
