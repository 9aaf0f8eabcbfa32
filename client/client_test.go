package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/client/clienttest"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

func open(t *testing.T, s *clienttest.Server, opts ...client.Option) *client.Client {
	t.Helper()
	c, err := client.Open(t.Context(), s.Endpoints(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestEveryVerbOverSplitRangesAndMovedLeaders(t *testing.T) {
	t.Parallel()
	s := clienttest.Start(t, 3)
	c := open(t, s)
	ctx := t.Context()
	version := must[client.Version](t)
	for n := range 300 {
		if n%60 == 30 {
			s.Split(fmt.Sprintf("user/%03d", n))
			s.Transfer(fmt.Sprintf("user/%03d", n), n%3+1)
		}
		version(c.Put(ctx, fmt.Appendf(nil, "user/%03d", n), fmt.Appendf(nil, "v%d", n)))
	}
	got := must[client.Result](t)(c.Get(ctx, []byte("user/042")))
	if string(got.Value) != "v42" || got.Version == 0 {
		t.Errorf("get: %+v", got)
	}
	for _, reverse := range []bool{false, true} {
		opts := []client.ScanOption{client.KeysOnly()}
		if reverse {
			opts = append(opts, client.Reverse())
		}
		var keys []string
		for row, err := range c.Scan(ctx, []byte("user/"), []byte("user0"), opts...) {
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, string(row.Key))
		}
		if reverse {
			slices.Reverse(keys)
		}
		if len(keys) != 300 || !slices.IsSorted(keys) {
			t.Errorf("reverse %t: %d keys, sorted %t", reverse, len(keys), slices.IsSorted(keys))
		}
	}
	if n := must[int64](t)(c.DeleteRange(ctx, []byte("user/1"), []byte("user/2"))); n != 100 {
		t.Errorf("delete range: %d, want 100", n)
	}
	_, err := c.Get(ctx, []byte("user/142"))
	if !errors.Is(err, client.ErrNotFound) || err.Error() != `get "user/142": not found` {
		t.Errorf("get of a deleted key: %v", err)
	}
	old, err := c.Get(ctx, []byte("user/042"), client.AtVersion(got.Version-1))
	if !errors.Is(err, client.ErrNotFound) {
		t.Errorf("before it was written: %+v, %v", old, err)
	}
}

func TestCompareAndSwapTellsWhatIsThere(t *testing.T) {
	t.Parallel()
	c := open(t, clienttest.Start(t, 1))
	ctx, k := t.Context(), []byte("k")
	first := must[client.Version](t)(c.CompareAndSwap(ctx, k, nil, []byte("1"), client.IfAbsent()))
	_, err := c.CompareAndSwap(ctx, k, []byte("other"), []byte("2"))
	conflict, ok := errors.AsType[*client.ConflictError](err)
	if !errors.Is(err, client.ErrConflict) || !ok {
		t.Fatalf("want a conflict: %v", err)
	}
	if !conflict.Found || string(conflict.Value) != "1" || conflict.Version != first {
		t.Errorf("conflict: %+v", conflict)
	}
	version := must[client.Version](t)
	second := version(c.CompareAndSwap(ctx, k, nil, []byte("2"), client.IfVersion(first)))
	version(c.CompareAndSwap(ctx, k, []byte("2"), nil, client.ThenDelete()))
	if second <= first {
		t.Errorf("versions do not rise: %d, %d", first, second)
	}
	if _, err := c.CompareAndSwap(ctx, k, nil, nil, client.IfExists()); err == nil {
		t.Error("the key was deleted")
	}
}

func TestBatchAndAtomic(t *testing.T) {
	t.Parallel()
	s := clienttest.Start(t, 3)
	c := open(t, s)
	s.Split("m")
	ctx := t.Context()
	results := c.Batch(ctx, []client.Op{
		client.PutOp([]byte("a"), []byte("1")), client.PutOp([]byte("z"), []byte("2")),
		client.PutOp(nil, nil), client.GetOp([]byte("none")),
	})
	for i, want := range []error{nil, nil, client.ErrInvalid, client.ErrNotFound} {
		if !errors.Is(results[i].Err, want) || want == nil && results[i].Err != nil {
			t.Errorf("operation %d: %v, want %v", i, results[i].Err, want)
		}
	}
	pair := func(a, b string) []client.Op {
		return []client.Op{
			client.PutOp([]byte(a), []byte("x")), client.DeleteOp([]byte(b), client.IfExists()),
		}
	}
	if _, err := c.Atomic(ctx, pair("b", "a")); err != nil {
		t.Errorf("within one range: %v", err)
	}
	if _, err := c.Atomic(ctx, pair("b", "z")); !errors.Is(err, client.ErrCrossRange) {
		t.Errorf("over two ranges: %v", err)
	}
	if _, err := c.Atomic(ctx, pair("c", "a")); !errors.Is(err, client.ErrConflict) {
		t.Errorf("a is gone: %v", err)
	}
	if _, err := c.Get(ctx, []byte("c")); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("half of a batch was applied: %v", err)
	}
}

func TestWrongKeysAreRefusedBeforeAnythingIsSent(t *testing.T) {
	t.Parallel()
	s := clienttest.Start(t, 1)
	c := open(t, s)
	s.Fates(func(int, *kv.Request) clienttest.Fate {
		t.Error("a request was sent")
		return clienttest.Serve
	})
	for _, x := range []struct {
		key  []byte
		want error
	}{{nil, client.ErrInvalid}, {bytes.Repeat([]byte("k"), 65536), client.ErrTooLarge}} {
		_, getErr := c.Get(t.Context(), x.key)
		_, putErr := c.Put(t.Context(), x.key, nil)
		_, casErr := c.CompareAndSwap(t.Context(), x.key, nil, nil)
		for _, err := range []error{getErr, putErr, casErr} {
			if !errors.Is(err, x.want) || len(err.Error()) > 300 {
				t.Errorf("key of %d bytes: %v, want %v", len(x.key), err, x.want)
			}
		}
	}
}

// TestCounterCountsEachIncrementOnceThroughCutStreams is the story of clients
// that repeat a write whose answer was lost.
func TestCounterCountsEachIncrementOnceThroughCutStreams(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := clienttest.Start(t, 3)
	c := open(t, s, client.WithAttemptTimeout(50*time.Millisecond))
	rng := rand.New(rand.NewPCG(seed, 3)) // used under the server's mutex only
	s.Fates(func(int, *kv.Request) clienttest.Fate {
		if rng.IntN(20) == 0 {
			s := []clienttest.Fate{
				clienttest.Ignore, clienttest.LoseAnswer, clienttest.CutBefore,
				clienttest.CutAfter, clienttest.Refuse,
			}
			return s[rng.IntN(len(s))]
		}
		return clienttest.Serve
	})
	var done, unknown atomic.Int64
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			for range 25 {
				switch err := increment(t.Context(), c); {
				case err == nil:
					done.Add(1)
				case errors.Is(err, client.ErrUnknownOutcome):
					unknown.Add(1)
				default:
					t.Errorf("increment: %v", err)
				}
			}
		})
	}
	users.Wait()
	s.Fates(nil)
	r := must[client.Result](t)(c.Get(t.Context(), []byte("counter")))
	total, _ := strconv.ParseInt(string(r.Value), 10, 64)
	if total < done.Load() || total > done.Load()+unknown.Load() {
		t.Errorf("counter %d after %d increments and %d of unknown outcome",
			total, done.Load(), unknown.Load())
	}
	for id, n := range s.Effects() {
		if n > 1 {
			t.Errorf("write %+v took effect %d times", id, n)
		}
	}
}

func increment(ctx context.Context, c *client.Client) error {
	for {
		key, value, when := []byte("counter"), int64(0), client.IfAbsent()
		r, err := c.Get(ctx, key)
		if err == nil {
			value, _ = strconv.ParseInt(string(r.Value), 10, 64)
			when = client.IfVersion(r.Version)
		} else if !errors.Is(err, client.ErrNotFound) {
			return err
		}
		next := strconv.AppendInt(nil, value+1, 10)
		_, err = c.CompareAndSwap(ctx, key, nil, next, when)
		if !errors.Is(err, client.ErrConflict) {
			return err
		}
	}
}

func TestUnknownOutcomeIsNamed(t *testing.T) {
	t.Parallel()
	s := clienttest.Start(t, 3)
	c := open(t, s)
	must[client.Version](t)(c.Put(t.Context(), []byte("warm"), nil))
	s.Fates(func(_ int, r *kv.Request) clienttest.Fate {
		if r.Verb == kv.VerbPut {
			return clienttest.CutAfter
		}
		return clienttest.Serve
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := c.Put(ctx, []byte("user/7"), []byte("v"))
	if !errors.Is(err, client.ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("want an unknown outcome: %v", err)
	}
	if !strings.HasPrefix(err.Error(), `put "user/7": outcome unknown: the deadline passed`) {
		t.Errorf("text: %v", err)
	}
	s.Fates(func(int, *kv.Request) clienttest.Fate { return clienttest.Refuse })
	// If an attempt is under way in the very moment of the deadline nobody knows of that
	// one, and the verdict is unknown rightly; mostly the client pauses then.
	for range 20 {
		ctx2, cancel2 := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err = c.Put(ctx2, []byte("user/8"), []byte("v"))
		cancel2()
		if !errors.Is(err, client.ErrUnknownOutcome) {
			break
		}
	}
	if !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrUnknownOutcome) {
		t.Errorf("every attempt was refused: %v", err)
	}
}

func TestStoppedNodesAreFoundAgain(t *testing.T) {
	t.Parallel()
	s := clienttest.Start(t, 3)
	c := open(t, s)
	ctx := t.Context()
	version := must[client.Version](t)
	version(c.Put(ctx, []byte("k"), []byte("1")))
	s.Stop(1)
	s.Transfer("k", 2)
	version(c.Put(ctx, []byte("k"), []byte("2")))
	if err := s.Restart(1); err != nil {
		t.Fatal(err)
	}
	s.Transfer("k", 1)
	s.Stop(2)
	version(c.Put(ctx, []byte("k"), []byte("3")))
	if r := must[client.Result](t)(c.Get(ctx, []byte("k"))); string(r.Value) != "3" {
		t.Errorf("read %q", r.Value)
	}
}

func TestOpenNamesEveryEndpointAndWhy(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	_ = l.Close()
	_, err = client.Open(t.Context(), []string{dead},
		client.WithOpenTimeout(50*time.Millisecond))
	if !errors.Is(err, client.ErrUnavailable) ||
		!strings.Contains(err.Error(), dead+" (connection refused)") {
		t.Errorf("open: %v", err)
	}
	if _, err := client.Open(t.Context(), []string{"nonsense"}); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("open of nonsense: %v", err)
	}
	if _, err := client.Open(t.Context(), nil); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("open of nothing: %v", err)
	}
}

func TestCloseEndsCallsInFlightAndIsFinal(t *testing.T) {
	t.Parallel()
	s := clienttest.Start(t, 1)
	c := open(t, s)
	must[client.Version](t)(c.Put(t.Context(), []byte("k"), nil))
	arrived := make(chan struct{})
	var once sync.Once
	s.Fates(func(int, *kv.Request) clienttest.Fate {
		once.Do(func() { close(arrived) })
		return clienttest.Ignore
	})
	var user sync.WaitGroup
	user.Go(func() {
		_, err := c.Put(context.Background(), []byte("k"), nil)
		if !errors.Is(err, client.ErrUnknownOutcome) || !errors.Is(err, client.ErrClosed) {
			t.Errorf("a put in flight when the client closed: %v", err)
		}
	})
	<-arrived
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	user.Wait()
	_, err := c.Get(t.Context(), []byte("k"))
	if !errors.Is(err, client.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

func TestCallerMayReuseItsBuffersWhileAnAttemptIsStillQueued(t *testing.T) {
	t.Parallel()
	s := clienttest.Start(t, 1)
	c := open(t, s, client.WithAttemptTimeout(20*time.Millisecond))
	must[client.Version](t)(c.Put(t.Context(), []byte("warm"), nil))
	var puts atomic.Int64
	second := make(chan struct{})
	s.Fates(func(_ int, r *kv.Request) clienttest.Fate {
		if r.Verb != kv.VerbPut {
			return clienttest.Serve
		}
		if string(r.Key[1:]) != "key" || string(r.Value) != "value" {
			t.Errorf("an attempt carried %q = %q", r.Key, r.Value)
		}
		n := puts.Add(1)
		if n == 2 {
			close(second)
		}
		if n < 4 {
			return clienttest.Ignore
		}
		return clienttest.Serve
	})
	key, value := []byte("key"), []byte("value")
	ctx, cancel := context.WithCancel(t.Context())
	var user sync.WaitGroup
	user.Go(func() {
		_, _ = c.Put(ctx, key, value) // the outcome does not matter here
		copy(key, "xxx")
		copy(value, "yyyyy")
	})
	<-second
	cancel()
	user.Wait()
}

func TestManyCallersShareFrames(t *testing.T) {
	t.Parallel()
	s := clienttest.Start(t, 3)
	s.Split("k3")
	s.Split("k6")
	s.Transfer("k4", 2)
	s.Transfer("k8", 3)
	c := open(t, s)
	var users sync.WaitGroup
	for u := range 64 {
		users.Go(func() {
			for n := range 20 {
				key := fmt.Appendf(nil, "k%d/%d/%d", (u+n)%10, u, n)
				if _, err := c.Put(t.Context(), key, key); err != nil {
					t.Errorf("put: %v", err)
				}
				if r, err := c.Get(t.Context(), key); err != nil || string(r.Value) != string(key) {
					t.Errorf("get %q: %q, %v", key, r.Value, err)
				}
			}
		})
	}
	users.Wait()
}
