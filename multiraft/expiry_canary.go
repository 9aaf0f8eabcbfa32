//go:build canary

package multiraft

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// keptExpiry is the mistake that R1 forbids: the end of a lease, worked out once,
// is believed for the rest of the term.
type keptExpiry struct {
	term  ids.Term
	until time.Duration
}

func (k *keptExpiry) holds(term ids.Term, l *lease, now time.Duration) bool {
	if !canary.On(canary.LeaseExpiryCached) {
		return false
	}
	if k.term != term {
		*k = keptExpiry{term: term}
	}
	if held, _ := quorum(l.voters, now, 0); held {
		for _, h := range l.voters {
			if h.peer != nil {
				k.until = max(k.until, h.peer.View().Until)
			}
		}
	}
	return now < k.until
}
