//go:build !linux

package server

import "time"

// monotonic is Go's monotonic clock, measured from a fixed instant of this
// process: here it may stand still while the machine sleeps.
func monotonic() time.Duration { return time.Since(time.Unix(0, 0)) }
