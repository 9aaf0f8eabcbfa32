//go:build canary

package ranges

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/canary"
)

// What makes merges safe, each switched off in the story of its test.
func plantedMerges() []plantedCase {
	return []plantedCase{
		{canary.MergeUnsealed, func(t *testing.T) bool {
			w, l, right := halves(t, nil)
			w.drop = cutEntries(l.id%3+1, right)
			o := l.startMerge(2, right)
			w.settle()
			w.drop = nil
			w.tick(60)
			// One follower never hears of the freeze: those who could tell are gone. So
			// it never absorbs.
			return o.err == nil && o.count == 1 && w.nodes[l.id%3+1].table.replica(2).mergeMark() != nil
		}},
		{canary.SealForgetsCommit, func(t *testing.T) bool {
			w, right := halves2(t)
			return !w.knowsAfterAPowerCut(right)
		}},
		{canary.FrozenServes, func(t *testing.T) bool {
			w, l, away, right, _ := stuck(t)
			served := servedFrozen(w.frozenElsewhere(l, away, right))
			read, written := readAfterTheDecision(t)
			return served && written <= read // R9j
		}},
		{canary.GoneObeyed, func(t *testing.T) bool {
			w, _, behind, right := misses(t)
			w.tick(60)
			return behind.table.replica(right) == nil
		}},
		{canary.SubsumeApart, func(t *testing.T) bool {
			for after := 1; after < 20; after++ {
				w, _, behind, _ := jumps(t)
				if _, hole := w.killedInInstall(behind, after); hole != "" {
					return true
				}
			}
			return false
		}},
		{canary.ThawUnasked, func(t *testing.T) bool {
			w, l, away, right, _ := stuck(t)
			next := w.frozenElsewhere(l, away, right)
			w.maintain(1)
			return phaseOf(next.table.replica(right).descriptor()) == phaseNone &&
				phaseOf(next.table.replica(2).descriptor()) == phaseIntended
		}},
		{canary.MergeKeepsFloor, func(t *testing.T) bool {
			w, l, right := halves(t, nil)
			return retriedTwice(w, l, right)
		}},
	}
}
