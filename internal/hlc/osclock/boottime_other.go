//go:build !linux

package osclock

import (
	"errors"
	"time"
)

// errNoBoottime says that this system has no clock that is known to count
// suspend; Go's monotonic clock is used alone.
var errNoBoottime = errors.New("no boot-time clock on this system")

// sinceBoot always fails here. Leases of a node that is suspended are then
// protected only by its peers' clocks and the life in its messages.
func sinceBoot() (time.Duration, error) { return 0, errNoBoottime }
