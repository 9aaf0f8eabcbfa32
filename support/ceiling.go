package support

import (
	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
)

// Ceiling returns the highest ceiling of the promises in force, 0 if there is
// none: what the next life of this node must begin at, at the least, when this
// one ends in the middle of them (R9d, R9g). To be asked after the clock was
// sealed: what is granted after that is at or below where it was sealed, and what
// was granted before has been noted under the lock. A nil table has made no promise.
func (t *Table) Ceiling() hlc.Timestamp {
	if t == nil || canary.On(canary.StopForgetsCeilings) {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var highest hlc.Timestamp
	for _, p := range *t.peers.Load() {
		if p.Promise() != 0 {
			highest = max(highest, p.promised.ceiling)
		}
	}
	return highest
}
