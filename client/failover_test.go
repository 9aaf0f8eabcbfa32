package client_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/client/clienttest"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// never is an attempt timeout that must play no role.
const never = time.Hour

func TestSilentNodeIsLeftWithoutWaitingForATimeout(t *testing.T) {
	t.Parallel()
	s := clienttest.Start(t, 3)
	c := open(t, s, client.WithAttemptTimeout(never))
	must[client.Version](t)(c.Put(t.Context(), []byte("k"), []byte("1")))
	s.Fates(func(node int, r *kv.Request) clienttest.Fate {
		if node == 1 {
			return clienttest.Ignore // pings as well
		}
		return clienttest.Serve
	})
	s.Transfer("k", 2)
	var users sync.WaitGroup
	for u := range 20 {
		users.Go(func() {
			if _, err := c.Put(t.Context(), fmt.Appendf(nil, "k/%d", u), nil); err != nil {
				t.Errorf("put: %v", err)
			}
		})
	}
	users.Wait()
	// It speaks again, on a new stream if need be, and leads again.
	s.Fates(nil)
	s.Transfer("k", 1)
	for range 3 {
		must[client.Version](t)(c.Put(t.Context(), []byte("k"), []byte("2")))
	}
}

func TestKilledNodeIsLeftAtOnce(t *testing.T) {
	t.Parallel()
	s := clienttest.Start(t, 3)
	c := open(t, s, client.WithAttemptTimeout(never), client.WithPingAfter(never))
	must[client.Version](t)(c.Put(t.Context(), []byte("k"), []byte("1")))
	arrived := make(chan struct{})
	var once sync.Once
	s.Fates(func(node int, r *kv.Request) clienttest.Fate {
		if node == 1 {
			once.Do(func() { close(arrived) })
			return clienttest.LoseAnswer
		}
		return clienttest.Serve
	})
	var user sync.WaitGroup
	user.Go(func() {
		if _, err := c.Put(t.Context(), []byte("k"), []byte("2")); err != nil {
			t.Errorf("put: %v", err)
		}
	})
	<-arrived
	s.Transfer("k", 3)
	s.Stop(1)
	user.Wait()
	for id, n := range s.Effects() {
		if n != 1 {
			t.Errorf("write %+v took effect %d times", id, n)
		}
	}
}

// TestRollingRestartFailsNothing: counters are swapped all the while, and no
// swap has an open outcome.
func TestRollingRestartFailsNothing(t *testing.T) {
	t.Parallel()
	s := clienttest.Start(t, 3)
	c := open(t, s)
	var stop atomic.Bool
	var users sync.WaitGroup
	var swaps atomic.Int64
	for u := range 16 {
		key := fmt.Appendf(nil, "counter/%d", u%4)
		users.Go(func() {
			for !stop.Load() {
				if err := swap(t, c, key); err != nil {
					t.Errorf("swap: %v", err)
					return
				}
				swaps.Add(1)
			}
		})
	}
	for range 3 {
		for n := 1; n <= 3; n++ {
			s.Transfer("counter", n%3+1)
			s.Leave(n)
			if err := s.Restart(n); err != nil {
				t.Error(err)
			}
			for before := swaps.Load(); swaps.Load() < before+100 && !t.Failed(); {
				time.Sleep(time.Millisecond) //lint:allow sleep nothing here tells of a count
			}
		}
	}
	stop.Store(true)
	users.Wait()
}

// swap adds one to a counter, or finds that another was quicker.
func swap(t *testing.T, c *client.Client, key []byte) error {
	r, err := c.Get(t.Context(), key)
	if err != nil && !errors.Is(err, client.ErrNotFound) {
		return err
	}
	if err != nil {
		_, err = c.CompareAndSwap(t.Context(), key, nil, []byte("x"), client.IfAbsent())
	} else {
		_, err = c.CompareAndSwap(t.Context(), key, r.Value, append(r.Value[:1:1], r.Value...))
	}
	if errors.Is(err, client.ErrConflict) {
		return nil
	}
	return err
}
