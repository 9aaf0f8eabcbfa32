package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/flotilla-kv/flotilla/client"
)

// proxy stands between a client and a node and now and then cuts the
// connection after requests went through and before their replies come back:
// the worst moment, since the write was done and nobody was told.
type proxy struct {
	listener net.Listener
	target   string
	every    int64 // cut after about so many bytes of replies
	random   *rand.Rand
	mu       sync.Mutex
	cuts     atomic.Int64
	group    sync.WaitGroup
}

func startProxy(t *testing.T, target string, every int64, seed uint64) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{
		listener: l, target: target, every: every, random: rand.New(rand.NewPCG(seed, 2)),
	}
	p.group.Go(p.accept)
	t.Cleanup(func() { _ = l.Close(); p.group.Wait() })
	return p
}

func (p *proxy) accept() {
	for {
		in, err := p.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = in.Close()
			continue
		}
		p.mu.Lock()
		budget := p.every/2 + p.random.Int64N(p.every)
		p.mu.Unlock()
		p.group.Go(func() { _, _ = io.Copy(out, in); _ = out.Close() })
		p.group.Go(func() {
			if n, _ := io.CopyN(in, out, budget); n == budget {
				p.cuts.Add(1)
			}
			_ = in.Close()
			_ = out.Close()
		})
	}
}

// TestCountersAreExactThroughAProxyThatCutsReplies increments counters by
// compare-and-swap through proxies that cut replies. Retries carry the write's
// identity, so each acknowledged increment counts once and no other counts.
func TestCountersAreExactThroughAProxyThatCutsReplies(t *testing.T) {
	c := startCluster(t, 3)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	proxies := map[string]*proxy{}
	for i, p := range c.nodes {
		proxies[p.listen] = startProxy(t, p.listen, 6000, seed+uint64(i))
	}
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		if p := proxies[address]; p != nil {
			address = p.listener.Addr().String()
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
	const workers, increments = 6, 150
	var unknown atomic.Int64
	var group sync.WaitGroup
	for w := range workers {
		cl, err := client.Open(t.Context(), c.endpoints(),
			client.WithDialOptions(grpc.WithContextDialer(dial)))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cl.Close() }()
		group.Go(func() {
			for range increments {
				if err := increment(t.Context(), cl, fmt.Sprintf("counter/%d", w%2)); err != nil {
					unknown.Add(1)
					t.Logf("increment: %v", err)
				}
			}
		})
	}
	group.Wait()
	total := 0
	cl := c.open()
	for i := range 2 {
		r, err := cl.Get(t.Context(), fmt.Appendf(nil, "counter/%d", i))
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(string(r.Value))
		total += n
	}
	cuts := int64(0)
	for _, p := range proxies {
		cuts += p.cuts.Load()
	}
	t.Logf("total %d, %d cuts, %d unknown", total, cuts, unknown.Load())
	if unknown.Load() == 0 && total != workers*increments {
		t.Errorf("counters add up to %d after %d increments", total, workers*increments)
	}
	if unknown.Load() != 0 {
		t.Errorf("%d increments ended without a verdict", unknown.Load())
	}
	if cuts == 0 {
		t.Error("no reply was cut: the test did not happen")
	}
}

// increment adds one by compare-and-swap until it is acknowledged.
func increment(ctx context.Context, cl *client.Client, key string) error {
	for {
		call, done := context.WithTimeout(ctx, 30*time.Second)
		r, err := cl.Get(call, []byte(key))
		if err != nil && !errors.Is(err, client.ErrNotFound) {
			done()
			return err
		}
		n, _ := strconv.Atoi(string(r.Value))
		option := client.IfAbsent()
		if err == nil {
			option = client.IfVersion(r.Version)
		}
		next := strconv.AppendInt(nil, int64(n+1), 10)
		_, err = cl.CompareAndSwap(call, []byte(key), nil, next, option)
		done()
		if !errors.Is(err, client.ErrConflict) {
			return err
		}
	}
}
