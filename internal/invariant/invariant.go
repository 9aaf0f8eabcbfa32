// Package invariant asserts what must hold. A broken invariant means that
// going on could corrupt data, so it stops the node; an operating error (a
// full disk, a peer that sends nonsense, a caller's mistake) never comes here.
//
// It is the one place that panics. Nobody recovers from a Violation but tests
// and the simulator, which end the run with it. Checks that cost little always
// run; dear ones stand behind Enabled. Any goroutine may call.
package invariant

import "fmt"

// Violation is the value of the panic that a broken invariant raises.
type Violation struct{ Message string }

// Error returns the message.
func (v Violation) Error() string { return "invariant violated: " + v.Message }

// Check panics with a Violation unless ok. The message carries the numbers.
// Callers on hot paths test the condition themselves and call Failf, so that
// the arguments are not boxed.
func Check(ok bool, format string, args ...any) {
	if !ok {
		Failf(format, args...)
	}
}

// Failf panics with a Violation. It does not return.
func Failf(format string, args ...any) {
	panic(Violation{Message: fmt.Sprintf(format, args...)})
}
