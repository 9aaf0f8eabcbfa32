package process

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// pauses sums up for how long the halves of merges took no writes.
func (c *cluster) pauses(half string) (count, seconds float64) {
	c.t.Helper()
	for _, p := range c.nodes {
		for name, sum := range map[string]*float64{"count": &count, "sum": &seconds} {
			v, err := p.gauge(fmt.Sprintf("flotilla_merge_freeze_seconds_%s{half=%q}", name, half))
			if err != nil {
				c.t.Fatal(err)
			}
			*sum += v
		}
	}
	return count, seconds
}

// A range is relocated, which gives it a leader that has said nothing yet about the
// other copies, and merged in the same moment: again and again, under load. What
// writes wait for is told.
func TestARangeIsMergedRightAfterItWasRelocated(t *testing.T) {
	const rounds = 4
	c := startCluster(t, 4)
	c.until(60*time.Second, replicated(3))
	if r := c.flotilla("placement", "pause"); r.code != 0 { // nobody else moves anything
		t.Fatalf("pause: %s", r.stderr)
	}
	c.until(60*time.Second, func([]placed) string {
		r := c.flotilla("placement", "ops", "-o", "json")
		if r.code != 0 || strings.TrimSpace(r.stdout) != "" {
			return "operators still run: " + r.stdout + r.stderr
		}
		return ""
	})
	w := startWriters(c, c.open(), 4)
	w.grows(t, 50, 30*time.Second)
	for round := range rounds {
		if r := c.flotilla("ranges", "split", "--at", "w2/"); r.code != 0 {
			t.Fatalf("split: %s", r.stderr)
		}
		var left uint64
		c.until(60*time.Second, func(all []placed) string {
			if len(all) != 3 {
				return fmt.Sprintf("%d ranges are known", len(all))
			}
			left = all[1].ID
			return replicated(3)(all)
		})
		to := []string{"ranges", "relocate", fmt.Sprint(left)}
		for i := range 3 {
			to = append(to, fmt.Sprintf("n%d", (round+i)%4+1))
		}
		c.until(60*time.Second, func([]placed) string { // who has just come up may not lead
			if r := c.flotilla(to...); r.code != 0 {
				return fmt.Sprintf("%v (exit %d): %s%s", to, r.code, r.stdout, r.stderr)
			}
			return ""
		})
		if r := c.flotilla("ranges", "merge", fmt.Sprint(left)); r.code != 0 {
			t.Fatalf("merge (exit %d): %s%s\n%s", r.code, r.stdout, r.stderr,
				c.flotilla("placement", "explain", fmt.Sprint(left)).stdout)
		}
	}
	for _, half := range []string{"left", "right"} {
		count, seconds := c.pauses(half)
		if count < rounds {
			t.Errorf("%v times of %s halves for %d merges", count, half, rounds)
		}
		t.Logf("%s halves: %v merges, writes waited %.1f ms on average", half, count,
			1000*seconds/count)
	}
	w.grows(t, 50, 30*time.Second)
	if n := w.fails.Load(); n != 0 {
		t.Errorf("%d writes failed", n)
	}
	w.verify(t, c.open())
}
