package sim

import (
	"time"

	"golang.org/x/sys/unix"
)

// threadTime is the processor time of the thread that runs: what a pass costs does
// not depend on what else the machine does.
func threadTime() time.Duration {
	var at unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &at); err != nil {
		return 0
	}
	return time.Duration(at.Nano())
}
