//go:build !faultclock

package osclock

import "time"

// wallFault returns nothing in ordinary builds: no flag and no variable can bend
// their clock. See fault_on.go.
func wallFault() func() time.Duration { return nil }
