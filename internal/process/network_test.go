package process

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// networks numbers the networks of this process.
var networks atomic.Int64

// network is a bridge between network namespaces, one for each node, in a
// namespace of its own: the hub. The machine's own network is not touched.
type network struct {
	t      *testing.T
	tag    string // of this test's namespaces
	prefix string // of addresses
	nodes  int
}

// newNetwork makes the namespaces, or skips the test where that is not possible.
func newNetwork(t *testing.T, nodes int) *network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: network namespaces need root; without, nothing is cut off here")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("SKIPPED: network namespaces need the program ip, which is not installed")
	}
	number := networks.Add(1)
	n := &network{
		t: t, nodes: nodes, tag: fmt.Sprintf("fp%d-%d-", os.Getpid(), number),
		prefix: fmt.Sprintf("10.80.%d", number),
	}
	t.Cleanup(n.remove)
	hub := n.hub()
	n.ip("netns", "add", hub)
	n.ip("-n", hub, "link", "set", "lo", "up")
	n.ip("-n", hub, "link", "add", "br0", "type", "bridge")
	n.ip("-n", hub, "addr", "add", n.prefix+".254/24", "dev", "br0")
	n.ip("-n", hub, "link", "set", "br0", "up")
	for i := 1; i <= nodes; i++ {
		n.ip("netns", "add", n.of(i))
		n.ip("-n", n.of(i), "link", "set", "lo", "up")
		n.ip("-n", hub, "link", "add", link(i), "type", "veth", "peer", "name", "eth0", "netns", n.of(i))
		n.ip("-n", hub, "link", "set", link(i), "master", "br0", "up")
		n.ip("-n", n.of(i), "addr", "add", n.address(i, "24", "/"), "dev", "eth0")
		n.ip("-n", n.of(i), "link", "set", "eth0", "up")
	}
	return n
}

// remove deletes the links by name first: a namespace lives until its last
// socket has timed out.
func (n *network) remove() {
	for i := 1; i <= n.nodes; i++ {
		_ = exec.Command("ip", "-n", n.hub(), "link", "del", link(i)).Run()
		_ = exec.Command("ip", "netns", "del", n.of(i)).Run()
	}
	_ = exec.Command("ip", "netns", "del", n.hub()).Run()
}

func (n *network) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (n *network) hub() string     { return n.tag + "h" }
func (n *network) of(i int) string { return fmt.Sprint(n.tag, i) }
func link(i int) string            { return fmt.Sprint("v", i) }
func within(space string) []string { return []string{"ip", "netns", "exec", space} }
func (n *network) cutOff(i int)    { n.ip("-n", n.hub(), "link", "set", link(i), "down") }
func (n *network) joinAgain(i int) { n.ip("-n", n.hub(), "link", "set", link(i), "up") }
func (n *network) part(i, j int)   { n.isolated(i, "on"); n.isolated(j, "on") }
func (n *network) rejoin(i, j int) { n.isolated(i, "off"); n.isolated(j, "off") }
func (n *network) isolated(i int, how string) {
	n.ip("-n", n.hub(), "link", "set", link(i), "type", "bridge_slave", "isolated", how)
}

// address is where node i listens.
func (n *network) address(i int, port, sep string) string {
	return fmt.Sprintf("%s.%d%s%s", n.prefix, i, sep, port)
}

// dial connects from a namespace: a socket belongs to the one in which its
// thread was when it was made.
func dial(space string) func(ctx context.Context, address string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return nil, err
		}
		defer home.Close()
		there, err := os.Open("/run/netns/" + space)
		if err != nil {
			runtime.UnlockOSThread()
			return nil, err
		}
		defer there.Close()
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			return nil, fmt.Errorf("enter %s: %w", space, err)
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			// This thread stays locked and ends with its goroutine.
			return conn, fmt.Errorf("leave %s: %w", space, back)
		}
		runtime.UnlockOSThread()
		return conn, err
	}
}
