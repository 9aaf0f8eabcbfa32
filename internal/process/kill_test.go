package process

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/client"
)

// writers puts unique records from several clients until it is told to stop,
// and remembers what was acknowledged.
type writers struct {
	mu    sync.Mutex
	acked map[string]string
	order []string // of the acknowledgements
	fails atomic.Int64
	group sync.WaitGroup
	stop  context.CancelFunc
}

func startWriters(c *cluster, cl *client.Client, n int) *writers {
	ctx, cancel := context.WithCancel(c.t.Context())
	w := &writers{acked: map[string]string{}, stop: cancel}
	for i := range n {
		w.group.Go(func() {
			for seq := 0; ctx.Err() == nil; seq++ {
				key, value := fmt.Sprintf("w%d/%06d", i, seq), fmt.Sprintf("v%d.%d", i, seq)
				call, done := context.WithTimeout(ctx, 20*time.Second)
				_, err := cl.Put(call, []byte(key), []byte(value))
				done()
				if err != nil {
					w.fails.Add(1)
					continue
				}
				w.mu.Lock()
				w.acked[key] = value
				w.order = append(w.order, key)
				w.mu.Unlock()
			}
		})
	}
	return w
}

func (w *writers) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

// any returns a record that was acknowledged.
func (w *writers) any(random *rand.Rand) (key, value string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key = w.order[random.IntN(len(w.order))]
	return key, w.acked[key]
}

// verify reads everything acknowledged back.
func (w *writers) verify(t *testing.T, cl *client.Client) {
	t.Helper()
	w.stop()
	w.group.Wait()
	found := map[string]string{}
	for kv, err := range cl.Scan(t.Context(), []byte("w"), []byte("x")) {
		if err != nil {
			t.Fatal(err)
		}
		found[string(kv.Key)] = string(kv.Value)
	}
	lost := 0
	for k, v := range w.acked {
		if found[k] != v {
			lost++
			t.Errorf("acknowledged %s=%s, found %q", k, v, found[k])
			if lost > 10 {
				break
			}
		}
	}
	t.Logf("%d acknowledged, %d found, %d calls failed", len(w.acked), len(found), w.fails.Load())
	if len(w.acked) == 0 {
		t.Error("nothing was acknowledged: the test did not happen")
	}
}

// grows waits until the writers have made progress, so that a fault is judged
// by whether the service goes on.
func (w *writers) grows(t *testing.T, by int, limit time.Duration) {
	t.Helper()
	want, end := w.count()+by, time.Now().Add(limit)
	for w.count() < want {
		if time.Now().After(end) {
			t.Fatalf("%d of %d writes within %s", w.count(), want, limit)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestAcknowledgedWritesSurviveKillOfEveryNodeInTurn kills one node after the
// other with -9 under load, each restarted before the next, then all at once.
func TestAcknowledgedWritesSurviveKillOfEveryNodeInTurn(t *testing.T) {
	c := startCluster(t, 3)
	cl := c.open()
	w := startWriters(c, cl, 8)
	w.grows(t, 200, 30*time.Second)
	for _, p := range c.nodes {
		p.kill()
		w.grows(t, 200, 30*time.Second)
		p.start()
		c.healthy(60 * time.Second)
	}
	for _, p := range c.nodes {
		p.kill()
	}
	for _, p := range c.nodes {
		p.start()
	}
	c.healthy(60 * time.Second)
	w.grows(t, 100, 30*time.Second)
	w.verify(t, cl)
}

// TestReadsNeverGoBackWhileLeadersArePausedAndResumed is the project's first
// question with real processes: nodes are stopped with SIGSTOP (their lease of
// life, their sockets and their clock stay) and go on later, while one client
// writes a rising number and others read it through every node. A reader that
// began after an acknowledgement must see that number or a later one.
func TestReadsNeverGoBackWhileLeadersArePausedAndResumed(t *testing.T) {
	c := startCluster(t, 3)
	writer := c.open()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	var acked, reads, stale atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		for i := int64(1); ctx.Err() == nil; i++ {
			call, done := context.WithTimeout(ctx, 20*time.Second)
			if _, err := writer.Put(call, []byte("clock"), fmt.Appendf(nil, "%d", i)); err == nil {
				acked.Store(i)
			}
			done()
		}
	})
	for _, p := range c.nodes {
		reader := c.open(p.listen)
		group.Go(func() {
			for ctx.Err() == nil {
				atLeast := acked.Load()
				call, done := context.WithTimeout(ctx, 20*time.Second)
				r, err := reader.Get(call, []byte("clock"))
				done()
				var seen int64
				_, _ = fmt.Sscan(string(r.Value), &seen)
				switch {
				case errors.Is(err, client.ErrNotFound) && atLeast == 0:
				case err == nil && seen >= atLeast:
					reads.Add(1)
				case err == nil || errors.Is(err, client.ErrNotFound):
					stale.Add(1)
				}
			}
		})
	}
	for range 6 {
		p := c.nodes[random.IntN(len(c.nodes))]
		p.signal(syscall.SIGSTOP)
		time.Sleep(time.Duration(1500+random.IntN(1500)) * time.Millisecond)
		p.signal(syscall.SIGCONT)
		time.Sleep(time.Duration(500+random.IntN(500)) * time.Millisecond)
	}
	stop()
	group.Wait()
	t.Logf("%d writes acknowledged, %d reads, %d stale", acked.Load(), reads.Load(), stale.Load())
	if stale.Load() != 0 {
		t.Errorf("%d reads missed an acknowledged write", stale.Load())
	}
	if acked.Load() < 10 || reads.Load() < 10 {
		t.Error("too little happened to show anything")
	}
}
