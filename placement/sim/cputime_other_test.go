//go:build !linux

package sim

import "time"

var began = time.Now()

// threadTime is the time that passes, where that of a thread cannot be had.
func threadTime() time.Duration { return time.Since(began) }
