package process

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var clockTime = flag.Duration("process.clockjumps", 20*time.Second,
	"how long the wall clock of one node after the other jumps")

// faultClockFile is osclock.FaultFile, which only builds with the tag have.
const faultClockFile = "FLOTILLA_FAULTCLOCK_FILE"

// bendable makes all nodes of a cluster that has not started yet have a wall
// clock that bend sets.
func bendable(t *testing.T, c *cluster) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "flotilla-node")
	cmd := exec.Command("go", "build", "-tags", "faultclock", "-o", program, "../../cmd/node")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a node with the tag faultclock: %v\n%s", err, out)
	}
	for _, p := range c.nodes {
		p.program = program
		p.env = []string{faultClockFile + "=" + p.clockFile()}
	}
}

func (p *process) clockFile() string { return p.logPath + ".clock" }

// bend makes the wall clock wrong by d. The file is replaced at once: a node that
// reads half of it would stop.
func (p *process) bend(d time.Duration) {
	p.t.Helper()
	next := p.clockFile() + ".next"
	if err := os.WriteFile(next, []byte(d.String()), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(next, p.clockFile()); err != nil {
		p.t.Fatal(err)
	}
}

// gauge reads a figure of a node.
func (p *process) gauge(name string) (float64, error) {
	resp, err := http.Get("http://" + p.http + "/metrics")
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(page)) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			var v float64
			_, err := fmt.Sscan(text, &v)
			return v, err
		}
	}
	return 0, errors.New("no " + name)
}

// takesPart waits until a node leads something again, long before its wall clock
// could have come together with the others'.
func (c *cluster) takesPart(p *process, when string) {
	c.t.Helper()
	end := time.Now().Add(60 * time.Second)
	for {
		c.run("", "flotilla-loadtest", "spread", "--wait", "2s",
			"--endpoints", strings.Join(c.endpoints(), ","))
		led, err := p.gauge("flotilla_leaders")
		if err == nil && led > 0 {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("%s: node %d leads %v ranges (%v)", when, p.id, led, err)
		}
	}
}

// TestHistoriesStayLinearizableWhileOneWallClockJumps sets the wall clock of one
// node after the other ten minutes forward or back, restarts it so, gracefully or
// by kill -9, sets it right and restarts it again, while clients of all nodes read
// and write. Every history must be linearizable, writes go on, and the node leads
// ranges again each time.
func TestHistoriesStayLinearizableWhileOneWallClockJumps(t *testing.T) {
	c := clusterOf(t, 3)
	bendable(t, c)
	c.startAll()
	c.presplit(12)
	seed := *partitionSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-process.seed=%d -process.clockjumps=%v", seed, *clockTime)
	random := rand.New(rand.NewPCG(seed, 0))
	r := newRegisters(6)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	for i := range 9 {
		endpoints := c.endpoints()
		if i%3 != 0 {
			endpoints = endpoints[i/3 : i/3+1]
		}
		cl := c.open(endpoints...)
		group.Go(func() {
			r.run(ctx, cl, i+1, seed, 3*time.Second, func() bool { return false })
		})
	}
	goesOn := func(when string) {
		t.Helper()
		want, end := r.acked.Load()+100, time.Now().Add(30*time.Second)
		for r.acked.Load() < want {
			if time.Now().After(end) {
				t.Fatalf("%s: %d of 100 operations in 30 s", when, 100-(want-r.acked.Load()))
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	rounds := 0
	for end := time.Now().Add(*clockTime); time.Now().Before(end) || rounds < 2; rounds++ {
		p := c.nodes[random.IntN(3)]
		jump := 10 * time.Minute
		if (rounds+int(seed))%2 == 0 {
			jump = -jump
		}
		restart := func() {
			if random.IntN(2) == 0 {
				p.kill()
			} else if err := p.stop(); err != nil {
				t.Fatal(err)
			}
			p.start()
		}
		what := func(when string) string {
			return fmt.Sprintf("round %d, node %d, %v: %s", rounds, p.id, jump, when)
		}
		p.bend(jump)
		goesOn(what("jump"))
		restart()
		goesOn(what("restart with it"))
		c.takesPart(p, what("restart with it"))
		p.bend(0)
		goesOn(what("repair"))
		restart()
		goesOn(what("restart after the repair"))
		c.takesPart(p, what("restart after the repair"))
	}
	stop()
	group.Wait()
	c.healthy(60 * time.Second)
	t.Logf("%d rounds", rounds)
	r.check(t)
}
