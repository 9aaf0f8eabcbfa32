// Package scripts tests the cluster script, with programs that only pretend.
package scripts

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// box is a directory with pretended programs and a cluster.
type box struct {
	t    *testing.T
	bin  string
	dir  string
	base int
}

// programs builds the pretended programs once for all tests.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "flotilla-scripts-")
	if err != nil {
		return "", err
	}
	for _, name := range []string{"flotilla-node", "flotilla"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, name), "./testdata/fake")
		if out, err := build.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("%w: %s", err, out)
		}
	}
	return dir, nil
})

// maxBase keeps clear of the ports that systems hand out to whoever dials.
const maxBase = 32000

// lastBase is the base port of the box made last.
var lastBase atomic.Int64

func TestMain(m *testing.M) {
	lastBase.Store(int64(10000 + os.Getpid()%80*200))
	code := m.Run()
	if dir, _ := programs(); dir != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

func newBox(t *testing.T) *box {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, bin: bin, dir: filepath.Join(t.TempDir(), "cluster"), base: freePorts(t)}
	t.Cleanup(func() { b.run("wipe") })
	return b
}

// freePorts returns a base port above which the ports of three nodes are free.
// No two calls return the same.
func freePorts(t *testing.T) int {
	t.Helper()
	for {
		base := int(lastBase.Add(200))
		if base > maxBase {
			t.Fatal("no free ports")
		}
		free := true
		for _, p := range []int{1, 2, 3, 81, 82, 83} {
			l, err := net.Listen("tcp", address(base+p))
			if err != nil {
				free = false
				break
			}
			l.Close()
		}
		if free {
			return base
		}
	}
}

// address is where a port listens.
func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// run calls the script from another directory and returns what it printed and
// its exit code.
func (b *box) run(args ...string) (out, talk string, code int) {
	b.t.Helper()
	script, err := filepath.Abs("cluster")
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command(script, args...)
	cmd.Dir = b.bin
	cmd.Env = append(os.Environ(), "FLOTILLA_CLUSTER_DIR="+b.dir, "FLOTILLA_BIN_DIR="+b.bin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		b.t.Fatal(err)
	}
	return stdout.String(), stderr.String(), code
}

// must runs the script, which must succeed.
func (b *box) must(args ...string) string {
	b.t.Helper()
	out, talk, code := b.run(args...)
	if code != 0 {
		b.t.Fatalf("cluster %v: exit %d: %s%s", args, code, out, talk)
	}
	return out
}

func (b *box) up(args ...string) string {
	b.t.Helper()
	return b.must(append([]string{"up", "--base-port", strconv.Itoa(b.base)}, args...)...)
}

func (b *box) pid(node int) int {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, "pids", strconv.Itoa(node)))
	if err != nil {
		b.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		b.t.Fatal(err)
	}
	return pid
}

func (b *box) log(node int) string {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, "logs", fmt.Sprintf("%d.log", node)))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// awaitPort waits until somebody listens; the test's deadline bounds it.
func (b *box) awaitPort(port int) {
	b.t.Helper()
	for b.t.Context().Err() == nil {
		if conn, err := net.Dial("tcp", address(port)); err == nil {
			conn.Close()
			return
		}
		runtime.Gosched()
	}
}

// states returns the state of each node as the script sees it.
func (b *box) states() string {
	b.t.Helper()
	var states []string
	row := regexp.MustCompile(`(?m)^\d+ +(\w+) .* (yes|no)$`)
	for _, m := range row.FindAllStringSubmatch(b.must("status"), -1) {
		states = append(states, m[1])
	}
	return strings.Join(states, " ")
}

func (b *box) expectStates(want string) {
	b.t.Helper()
	if got := b.states(); got != want {
		b.t.Fatalf("states %q, want %q", got, want)
	}
}

func TestUpStartsOneFounderAndTwoThatJoin(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	out := b.up("--", "--locality", "zone=a b")
	endpoints := address(b.base+1) + "," + address(b.base+2) + "," + address(b.base+3)
	for _, want := range []string{
		"3 nodes up in ", "export FLOTILLA_ENDPOINTS=" + endpoints, "kv put hello world",
		"scripts/cluster kill 2",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("up does not say %q:\n%s", want, out)
		}
	}
	if text, _ := os.ReadFile(filepath.Join(b.dir, "endpoints")); string(text) != endpoints+"\n" {
		t.Errorf("endpoints: %q", text)
	}
	for node, want := range map[int]string{
		1: "--init --join " + address(b.base+2) + "," + address(b.base+3),
		2: "--join " + address(b.base+1) + "," + address(b.base+3),
		3: "--join " + address(b.base+1) + "," + address(b.base+2),
	} {
		log := b.log(node)
		if !strings.Contains(log, want) || !strings.Contains(log, "--locality zone=a b") ||
			strings.Contains(log, "--init") != (node == 1) {
			t.Errorf("node %d was started with %s", node, log)
		}
	}
	b.expectStates("running running running")
}

func TestUpAgainSaysSoAndStartsOnlyWhatIsMissing(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.up()
	first, third := b.pid(1), b.pid(3)
	want := "already running: 3 of 3 nodes healthy (scripts/cluster down stops them)\n"
	if out := b.must("up"); out != want {
		t.Fatalf("up again says %q", out)
	}
	b.must("kill", "2")
	b.expectStates("running stopped running")
	b.must("up")
	if b.pid(1) != first || b.pid(3) != third {
		t.Fatal("nodes that ran were started again")
	}
	b.expectStates("running running running")
}

func TestANodeAloneJoinsNobody(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.up("--nodes", "1")
	b.must("kill", "1")
	b.must("start", "1")
	b.awaitPort(b.base + 1)
	if log := b.log(1); strings.Count(log, "--init") != 2 || strings.Contains(log, "--join") {
		t.Fatalf("node 1 was started with %s", log)
	}
}

func TestNodesArePausedResumedStoppedAndKilled(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.up()
	b.must("pause", "2")
	b.expectStates("running paused running")
	out, _, _ := b.run("up")
	if out != "already running: 2 of 3 nodes healthy (scripts/cluster down stops them)\n" {
		t.Fatalf("with a paused node up says %q", out)
	}
	b.must("resume", "2")
	b.expectStates("running running running")
	b.must("stop", "3")
	if !strings.Contains(b.log(3), "stopped gracefully") {
		t.Fatalf("node 3: %s", b.log(3))
	}
	b.must("kill", "1")
	if strings.Contains(b.log(1), "stopped gracefully") {
		t.Fatal("kill was a graceful stop")
	}
	b.expectStates("stopped running stopped")
	b.must("pause", "2")
	b.must("down")
	b.must("down")
	b.expectStates("stopped stopped stopped")
	if !strings.Contains(b.must("logs", "3"), "stopped gracefully") {
		t.Fatal("logs 3 does not show the log of node 3")
	}
}

func TestAProcessThatIsNotOursIsNeverTouched(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.up()
	b.must("kill", "2")
	stranger := exec.Command("sleep", "600")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stranger.Process.Kill(); _ = stranger.Wait() })
	recorded := filepath.Join(b.dir, "pids", "2")
	if err := os.WriteFile(recorded, []byte(strconv.Itoa(stranger.Process.Pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	b.expectStates("running dead running")
	if _, _, code := b.run("kill", "2"); code != 1 {
		t.Fatalf("kill of a stranger: exit %d", code)
	}
	b.must("stop", "2")
	b.must("wipe")
	if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
		t.Fatalf("the stranger is gone: %v", err)
	}
}

func TestWipeRemovesOnlyWhatIsACluster(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.up("--nodes", "1")
	b.must("wipe")
	if _, err := os.Stat(b.dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the directory is still there: %v", err)
	}
	l, err := net.Listen("tcp", address(b.base+1))
	if err != nil {
		t.Fatalf("the node still listens: %v", err)
	}
	l.Close()
	precious := filepath.Join(b.dir, "data", "precious")
	if err := os.MkdirAll(precious, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, talk, code := b.run("wipe"); code != 1 || !strings.Contains(talk, "nothing is removed") {
		t.Fatalf("exit %d: %s", code, talk)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Fatal(err)
	}
}

func TestATakenPortIsNamed(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	l, err := net.Listen("tcp", address(b.base+82))
	for err != nil { // somebody else took it meanwhile
		b.base = freePorts(t)
		l, err = net.Listen("tcp", address(b.base+82))
	}
	defer l.Close()
	_, talk, code := b.run("up", "--base-port", strconv.Itoa(b.base))
	if code != 1 || !strings.Contains(talk, fmt.Sprintf("port %d is in use", b.base+82)) {
		t.Fatalf("exit %d: %s", code, talk)
	}
}

func TestWrongUseExitsWithTwo(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.up("--nodes", "2")
	for _, args := range [][]string{
		{}, {"nonsense"}, {"kill"}, {"kill", "3"}, {"pause", "x"}, {"up", "--nodes"},
		{"up", "--nodes", "0"}, {"up", "--base-port", "99999"}, {"up", "--wrong"},
	} {
		if _, _, code := b.run(args...); code != 2 {
			t.Errorf("cluster %v: exit %d", args, code)
		}
	}
	if _, talk, code := b.run("up", "--nodes", "1"); code != 1 || !strings.Contains(talk, "wipe") {
		t.Errorf("fewer nodes than there are: exit %d, %s", code, talk)
	}
}
