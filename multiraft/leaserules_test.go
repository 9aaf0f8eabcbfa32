//go:build canary

package multiraft

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/canary"
)

// Each story of a rule goes wrong when the rule is switched off. Not parallel:
// the switch is global. Run with: go test -tags canary -run Switched ./multiraft
func TestSwitchedOffRulesOfTheLeaseShow(t *testing.T) {
	for _, s := range ruleStories() {
		t.Run(s.name, func(t *testing.T) {
			canary.Plant(s.off)
			defer canary.Plant("")
			wrong := s.tell(t)
			if wrong == "" {
				t.Fatalf("%s does not show", s.off)
			}
			t.Log(wrong)
		})
	}
}
