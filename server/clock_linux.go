package server

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/flotilla-kv/flotilla/internal/invariant"
)

// monotonic counts suspend too: Go's own monotonic clock stands still while the
// machine sleeps, and a lease must not outlive a sleep.
func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// Every kernel that Go supports has this clock.
		invariant.Failf("read CLOCK_BOOTTIME: %v", err)
	}
	return time.Duration(ts.Nano())
}
