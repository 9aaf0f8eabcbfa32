package placement

import (
	"fmt"
	"math"
	"time"
)

// Where somebody asked for a split, the halves stay apart however small and cold they
// are: whoever splits before a load comes does not want to find one range when it does.
// The right half's descriptor says until when (sticky_until), so every driver knows, and
// it costs nothing elsewhere. A merge that is asked for ends it, with the boundary.

// forEver is a time of day that never comes.
const forEver = math.MaxInt64

// wallNow is the time of day in milliseconds. Only what people have set an end to goes
// by it.
func (c *cluster) wallNow() int64 {
	if c.wall == nil {
		return c.now.Milliseconds()
	}
	return c.wall()
}

// sticky says for how long r is still not to be merged into its left neighbour because
// somebody asked for the split there: 0 if nobody did, or it is over.
func (c *cluster) sticky(r *rangeState) time.Duration {
	until, now := r.desc.GetStickyUntil(), c.wallNow()
	switch {
	case until <= now:
		return 0
	case until == forEver || until-now > int64(farAway/time.Millisecond):
		return farAway
	}
	return time.Duration(until-now) * time.Millisecond
}

// stickyWords says until when a split that was asked for stays.
func (c *cluster) stickyWords(r *rangeState) string {
	if left := c.sticky(r); left < farAway {
		return fmt.Sprintf("for another %s", words(left))
	}
	return "for ever"
}
