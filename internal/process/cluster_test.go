package process

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/client"
)

// built says that binaries was called.
var built atomic.Bool

// binaries builds the commands once for all tests of this process.
var binaries = sync.OnceValues(func() (string, error) {
	built.Store(true)
	dir, err := os.MkdirTemp("", "flotilla-bin-")
	if err != nil {
		return "", err
	}
	for name, pkg := range map[string]string{
		"flotilla-node": "node", "flotilla": "flotilla", "flotilla-loadtest": "loadtest",
	} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), "../../cmd/"+pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
})

// TestMain removes the commands at the end, if they were built.
func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if built.Load() {
		if dir, err := binaries(); err == nil {
			_ = os.RemoveAll(dir)
		}
	}
	os.Exit(code)
}

func binary(t *testing.T, name string) string {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// process is one node.
type process struct {
	t             *testing.T
	id            int
	listen, http  string
	data, logPath string
	flags         []string
	within        []string // a command that runs another one elsewhere; empty: here
	program       string   // empty: the node as it is shipped
	env           []string // beside that of the test
	cmd           *exec.Cmd
}

// cluster is a set of nodes on loopback.
type cluster struct {
	t      *testing.T
	nodes  []*process
	within []string // where what is run against it runs; empty: here
}

// ports draws free ports. Another process could take one in between; the node
// then refuses to start and names it.
func ports(t *testing.T, n int) []string {
	t.Helper()
	out := make([]string, 0, n)
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		out = append(out, l.Addr().String())
	}
	return out
}

// startCluster starts n nodes and waits until the cluster is healthy.
func startCluster(t *testing.T, n int, flags ...string) *cluster {
	t.Helper()
	c := clusterOf(t, n, flags...)
	c.startAll()
	return c
}

// clusterOf is a cluster whose nodes are not started yet.
func clusterOf(t *testing.T, n int, flags ...string) *cluster {
	t.Helper()
	c := &cluster{t: t}
	addresses := ports(t, 2*n)
	for i := range n {
		dir := t.TempDir()
		p := &process{
			t: t, id: i + 1, listen: addresses[2*i], http: addresses[2*i+1],
			data: filepath.Join(dir, "data"), logPath: filepath.Join(dir, "log"),
		}
		p.flags = []string{"start", "--listen", p.listen, "--http", p.http, "--data", p.data}
		if i == 0 {
			p.flags = append(p.flags, "--init")
		} else {
			p.flags = append(p.flags, "--join", addresses[0])
		}
		p.flags = append(p.flags, flags...)
		c.nodes = append(c.nodes, p)
	}
	return c
}

// startAll starts the nodes and waits until the cluster is healthy.
func (c *cluster) startAll() {
	c.t.Helper()
	c.t.Cleanup(func() {
		for _, p := range c.nodes {
			p.kill()
			if c.t.Failed() {
				p.showLog()
			}
		}
	})
	for _, p := range c.nodes {
		p.start()
	}
	c.healthy(90 * time.Second)
}

func (p *process) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	if p.program == "" {
		p.program = binary(p.t, "flotilla-node")
	}
	line := append(append(slices.Clone(p.within), p.program), p.flags...)
	p.cmd = exec.Command(line[0], line[1:]...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// kill is kill -9; it waits until the process is gone.
func (p *process) kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}

// stop is SIGTERM: the node hands its leaders over and exits with 0.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := p.cmd.Wait()
	p.cmd = nil
	return err
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

func (p *process) showLog() {
	data, _ := os.ReadFile(p.logPath)
	lines := strings.Split(string(data), "\n")
	if len(lines) > 60 {
		lines = lines[len(lines)-60:]
	}
	p.t.Logf("log of node %d:\n%s", p.id, strings.Join(lines, "\n"))
}

func (c *cluster) endpoints() []string {
	out := make([]string, 0, len(c.nodes))
	for _, p := range c.nodes {
		out = append(out, p.listen)
	}
	return out
}

// result is what a command came to.
type result struct {
	stdout, stderr string
	code           int
}

// flotilla runs the command line against the cluster.
func (c *cluster) flotilla(args ...string) result {
	c.t.Helper()
	return c.flotillaInput("", args...)
}

func (c *cluster) flotillaInput(input string, args ...string) result {
	c.t.Helper()
	return c.run(input, "flotilla",
		append([]string{"--endpoints", strings.Join(c.endpoints(), ",")}, args...)...)
}

// run runs one of our commands where the cluster can be reached.
func (c *cluster) run(input, command string, args ...string) result {
	c.t.Helper()
	line := append(append(slices.Clone(c.within), binary(c.t, command)), args...)
	return run(c.t, input, line[0], line[1:]...)
}

// run runs a command to its end, two minutes at the most.
func run(t *testing.T, input, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, talk strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &talk
	err := cmd.Run()
	r := result{stdout: out.String(), stderr: talk.String(), code: cmd.ProcessState.ExitCode()}
	if err != nil && r.code < 0 {
		t.Fatalf("%s %v: %v\n%s", name, args, err, r.stderr)
	}
	return r
}

// healthy waits until every range has its copies and a leader.
func (c *cluster) healthy(limit time.Duration) {
	c.t.Helper()
	if r := c.flotilla("health", "--wait", limit.String()); r.code != 0 {
		c.t.Fatalf("cluster not healthy after %s (exit %d):\n%s%s", limit, r.code, r.stdout, r.stderr)
	}
}

// open opens a client that closes with the test.
func (c *cluster) open(endpoints ...string) *client.Client {
	c.t.Helper()
	if len(endpoints) == 0 {
		endpoints = c.endpoints()
	}
	cl, err := client.Open(c.t.Context(), endpoints)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = cl.Close() })
	return cl
}
