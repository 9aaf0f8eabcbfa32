//go:build !canary

package multiraft

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// keptExpiry is nothing: an expiry is never kept (R1). The build with canaries
// has one that remembers, to show what that would break.
type keptExpiry struct{}

func (keptExpiry) holds(ids.Term, *lease, time.Duration) bool { return false }
