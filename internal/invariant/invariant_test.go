package invariant

import (
	"errors"
	"testing"
)

// caught runs f and returns the message of the violation it raised, or "".
func caught(f func()) (message string) {
	defer func() {
		if v, ok := recover().(error); ok {
			if violation, ok := errors.AsType[Violation](v); ok {
				message = violation.Error()
			}
		}
	}()
	f()
	return ""
}

func TestABrokenInvariantStopsWithItsNumbers(t *testing.T) {
	t.Parallel()
	got := caught(func() { Check(1 > 2, "applied %d above commit %d", 9, 7) })
	if want := "invariant violated: applied 9 above commit 7"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestAnInvariantThatHoldsIsSilent(t *testing.T) {
	t.Parallel()
	if got := caught(func() { Check(true, "unused") }); got != "" {
		t.Fatalf("raised %q", got)
	}
}
