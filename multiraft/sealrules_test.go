//go:build canary

package multiraft

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/canary"
)

// A change of the configuration is a seal of the one before: the stories go wrong when
// a seal does not make the commit index durable. Not parallel: the switch is global.
// Run with: go test -tags canary -run ForgetsCommit ./multiraft
func TestASealThatForgetsCommitShows(t *testing.T) {
	for name, tell := range map[string]func(testing.TB) string{
		"killed":    killedBehindTwoChanges,
		"power cut": powerCutBehindTwoChanges,
	} {
		t.Run(name, func(t *testing.T) {
			canary.Plant(canary.SealForgetsCommit)
			defer canary.Plant("")
			wrong := tell(t)
			if wrong == "" {
				t.Fatalf("%s does not show", canary.SealForgetsCommit)
			}
			t.Log(wrong)
		})
	}
}
