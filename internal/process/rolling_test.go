package process

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestARollingRestartFailsNoOperation stops every node with SIGTERM and starts it
// again, one after the other, under load: a node hands its leaders over before it
// goes, so nobody fails.
func TestARollingRestartFailsNoOperation(t *testing.T) {
	c := startCluster(t, 3)
	c.presplit(16, "--key-prefix", "w") // the leaders of all ranges are spread
	cl := c.open()
	w := startWriters(c, cl, 8)
	w.grows(t, 200, 30*time.Second)

	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	var reads, failed, longest atomic.Int64
	for i := range 8 {
		random := rand.New(rand.NewPCG(uint64(i), 1))
		group.Go(func() {
			for ctx.Err() == nil {
				key, value := w.any(random)
				call, done := context.WithTimeout(t.Context(), 20*time.Second)
				began := time.Now()
				got, err := cl.Get(call, []byte(key))
				done()
				if took := int64(time.Since(began)); took > longest.Load() {
					longest.Store(took)
				}
				if reads.Add(1); err != nil || string(got.Value) != value {
					failed.Add(1)
					t.Logf("get %s: %q, want %q: %v", key, got.Value, value, err)
				}
			}
		})
	}
	for _, p := range c.nodes {
		before := w.count()
		if err := p.stop(); err != nil {
			t.Errorf("node %d: %v", p.id, err)
		}
		w.grows(t, 100, 30*time.Second)
		p.start()
		c.healthy(60 * time.Second)
		t.Logf("node %d was restarted during %d writes", p.id, w.count()-before)
	}
	w.grows(t, 100, 30*time.Second)
	stop()
	group.Wait()
	t.Logf("%d reads, the longest %v", reads.Load(), time.Duration(longest.Load()))
	if writes := w.fails.Load(); writes+failed.Load() != 0 {
		t.Errorf("%d writes and %d reads failed", writes, failed.Load())
	}
	w.verify(t, cl)
}
