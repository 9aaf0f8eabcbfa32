package process

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/flotilla-kv/flotilla/client"
)

// How long, and from which seed, the tests with histories run.
var (
	partitionTime = flag.Duration("process.partitions", 15*time.Second,
		"how long nodes are cut off and brought back")
	partitionSeed = flag.Uint64("process.seed", 0, "of faults and clients; 0: drawn")
)

// startApart starts n nodes, each in a network namespace of its own. What is run
// against the cluster runs in the hub.
func startApart(t *testing.T, n int, flags ...string) (*cluster, *network) {
	t.Helper()
	net := newNetwork(t, n)
	c := &cluster{t: t, within: within(net.hub())}
	var join []string
	for i := 1; i <= n; i++ {
		dir := t.TempDir()
		p := &process{
			t: t, id: i, within: within(net.of(i)),
			listen: net.address(i, "7001", ":"), http: net.address(i, "7081", ":"),
			data: filepath.Join(dir, "data"), logPath: filepath.Join(dir, "log"),
		}
		p.flags = []string{"start", "--listen", p.listen, "--http", p.http, "--data", p.data}
		if i == 1 {
			p.flags = append(p.flags, "--init")
		} else {
			p.flags = append(p.flags, "--join", strings.Join(join, ","))
		}
		p.flags = append(p.flags, flags...)
		join = append(join, p.listen)
		c.nodes = append(c.nodes, p)
	}
	c.startAll()
	return c, net
}

// presplit splits the keys of the registers into ranges and spreads the leaders.
func (c *cluster) presplit(ranges int, flags ...string) {
	c.t.Helper()
	r := c.run("", "flotilla-loadtest", append([]string{
		"presplit", "--ranges", fmt.Sprint(ranges), "--spread",
		"--endpoints", strings.Join(c.endpoints(), ","),
	}, flags...)...)
	if r.code != 0 {
		c.t.Fatalf("presplit: %s", r.stderr)
	}
}

// openIn opens a client whose connections are made in a namespace.
func (c *cluster) openIn(space string, endpoints ...string) *client.Client {
	c.t.Helper()
	cl, err := client.Open(c.t.Context(), endpoints,
		client.WithDialOptions(grpc.WithContextDialer(dial(space))))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = cl.Close() })
	return cl
}

// fault is something that can be done to a node, and undone.
type fault struct {
	name     string
	do, undo func()
	cut      int // the node that reaches nobody meanwhile; 0: none
}

// nemesis breaks and heals until the time is over. Phases are short around the
// time after which a node is taken for dead, and sometimes long.
func nemesis(
	t *testing.T, random *rand.Rand, lasts time.Duration, cut *atomic.Int64, next func() fault,
) {
	t.Helper()
	count := map[string]int{}
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		phase := func() time.Duration {
			if random.IntN(3) == 0 {
				return time.Duration(400+random.IntN(2600)) * time.Millisecond
			}
			return time.Duration(20+random.IntN(480)) * time.Millisecond
		}
		f := next()
		f.do()
		cut.Store(int64(f.cut))
		time.Sleep(phase())
		cut.Store(0)
		f.undo()
		time.Sleep(phase())
		count[f.name]++
	}
	t.Logf("faults: %v", count)
}

// TestHistoriesStayLinearizableWhileLeadersAreCutOff cuts nodes off silently, or
// from one another, or stops them, at random moments, while clients beside each
// node, which reach nobody else when it is cut off, read and write through it,
// and others use whom they like.
func TestHistoriesStayLinearizableWhileLeadersAreCutOff(t *testing.T) {
	c, net := startApart(t, 3)
	c.presplit(12)
	seed := *partitionSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-process.seed=%d -process.partitions=%v", seed, *partitionTime)
	random := rand.New(rand.NewPCG(seed, 0))

	r := newRegisters(6)
	var cut atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for i, p := range c.nodes {
		for k := range 2 {
			pinned := c.openIn(net.of(i+1), p.listen)
			group.Go(func() {
				r.run(ctx, pinned, 10*(i+1)+k, seed, time.Second, func() bool {
					return cut.Load() == int64(i+1)
				})
			})
		}
		free := c.openIn(net.hub(), c.endpoints()...)
		group.Go(func() {
			r.run(ctx, free, i+1, seed, 5*time.Second, func() bool { return false })
		})
	}
	nemesis(t, random, *partitionTime, &cut, func() fault {
		i := 1 + random.IntN(3)
		j := 1 + (i+random.IntN(2))%3
		p := c.nodes[i-1]
		switch x := random.IntN(100); {
		case x < 55:
			return fault{"cut off", func() { net.cutOff(i) }, func() { net.joinAgain(i) }, i}
		case x < 75:
			return fault{"pair", func() { net.part(i, j) }, func() { net.rejoin(i, j) }, 0}
		case x < 90:
			return fault{
				"stopped", func() { p.signal(syscall.SIGSTOP) }, func() { p.signal(syscall.SIGCONT) }, 0,
			}
		default: // it comes back with all that it held, into a cluster that has moved on
			return fault{
				"cut off and stopped",
				func() { net.cutOff(i); p.signal(syscall.SIGSTOP) },
				func() { p.signal(syscall.SIGCONT); time.Sleep(20 * time.Millisecond); net.joinAgain(i) }, i,
			}
		}
	})
	stop()
	group.Wait()
	c.healthy(60 * time.Second)
	t.Logf("%d reads were answered to clients beside a node that was cut off", r.cutReads.Load())
	if r.acked.Load() < 200 {
		t.Errorf("only %d operations were acknowledged: the test did not happen", r.acked.Load())
	}
	r.check(t)
}

// TestHistoriesStayLinearizableWhileLeadersAreStopped is what can be had of it
// without root: nodes are stopped with SIGSTOP and go on, their sockets, leases
// and clocks as they were.
func TestHistoriesStayLinearizableWhileLeadersAreStopped(t *testing.T) {
	c := startCluster(t, 3)
	c.presplit(12)
	seed := *partitionSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-process.seed=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	r := newRegisters(6)
	var cut atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for i := range 6 {
		cl := c.open(c.nodes[i%3].listen)
		group.Go(func() {
			r.run(ctx, cl, i+1, seed, 3*time.Second, func() bool { return false })
		})
	}
	nemesis(t, random, 10*time.Second, &cut, func() fault {
		p := c.nodes[random.IntN(3)]
		return fault{
			"stopped", func() { p.signal(syscall.SIGSTOP) }, func() { p.signal(syscall.SIGCONT) }, 0,
		}
	})
	stop()
	group.Wait()
	c.healthy(60 * time.Second)
	if r.acked.Load() < 200 {
		t.Errorf("only %d operations were acknowledged: the test did not happen", r.acked.Load())
	}
	r.check(t)
}
