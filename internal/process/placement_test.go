package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/client"
)

// placed is a range as the command line lists it.
type placed struct {
	ID       uint64 `json:"id"`
	System   bool   `json:"system"`
	Start    string `json:"start"`
	Leader   uint64 `json:"leader"`
	Replicas []struct {
		Node uint64 `json:"node"`
		Role string `json:"role"`
	} `json:"replicas"`
}

func (p placed) nodes() []uint64 {
	var nodes []uint64
	for _, r := range p.Replicas {
		nodes = append(nodes, r.Node)
	}
	return nodes
}

// ranges lists all ranges.
func (c *cluster) ranges() (all []placed) {
	c.t.Helper()
	r := c.flotilla("ranges", "ls", "-o", "json")
	if r.code != 0 {
		c.t.Fatalf("ranges ls: %s", r.stderr)
	}
	for d := json.NewDecoder(strings.NewReader(r.stdout)); ; {
		var one placed
		if err := d.Decode(&one); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			c.t.Fatalf("ranges ls: %v\n%s", err, r.stdout)
		}
		all = append(all, one)
	}
}

// process returns the node that has an id: nodes join in any order.
func (c *cluster) process(id uint64) *process {
	c.t.Helper()
	r := c.flotilla("status", "-o", "json")
	var status struct {
		Nodes []struct {
			ID      uint64 `json:"id"`
			Address string `json:"address"`
		} `json:"nodes"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &status); err != nil {
		c.t.Fatalf("status: %v\n%s%s", err, r.stdout, r.stderr)
	}
	for _, n := range status.Nodes {
		for _, p := range c.nodes {
			if n.ID == id && n.Address == p.listen {
				return p
			}
		}
	}
	c.t.Fatalf("no node %d: %s", id, r.stdout)
	return nil
}

// except returns the addresses of all nodes but these.
func (c *cluster) except(gone ...*process) (addresses []string) {
	for _, p := range c.nodes {
		if !slices.Contains(gone, p) {
			addresses = append(addresses, p.listen)
		}
	}
	return addresses
}

// until lists the ranges until all of them are as they should be; wrong says what
// is not, or nothing.
func (c *cluster) until(limit time.Duration, wrong func([]placed) string) {
	c.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(300 * time.Millisecond) {
		why := wrong(c.ranges())
		if why == "" {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("after %v: %s\n%s", limit, why, c.flotilla("placement", "ops").stdout)
		}
	}
}

// replicated wants so many voters of each range and nothing else.
func replicated(copies int) func([]placed) string {
	return func(all []placed) string {
		for _, r := range all {
			if len(r.Replicas) != copies || r.Leader == 0 {
				return fmt.Sprintf("range %d: %+v", r.ID, r)
			}
			for _, p := range r.Replicas {
				if p.Role != "voter" {
					return fmt.Sprintf("range %d: %+v", r.ID, r)
				}
			}
		}
		return ""
	}
}

// Five nodes in three zones. No zone holds a majority of any range, so one of them
// may die: every range stays writable, and nothing acknowledged is lost.
func TestNoZoneHoldsAMajorityAndOneZoneMayDie(t *testing.T) {
	places := []string{"a", "a", "b", "b", "c"}
	c := clusterOf(t, 5)
	for i, p := range c.nodes {
		p.flags = append(p.flags, "--locality", "region=r,zone="+places[i])
	}
	c.startAll()
	zones := map[uint64]string{}
	for id := uint64(1); id <= 5; id++ {
		zones[id] = places[slices.Index(c.nodes, c.process(id))]
	}
	c.presplit(24, "--key-prefix", "w")
	c.until(150*time.Second, func(all []placed) string {
		if why := replicated(3)(all); why != "" {
			return why
		}
		for _, r := range all {
			var of []string
			for _, n := range r.nodes() {
				of = append(of, zones[n])
			}
			slices.Sort(of)
			if len(slices.Compact(of)) != 3 {
				return fmt.Sprintf("range %d stands on %v, twice in one zone", r.ID, r.nodes())
			}
		}
		return ""
	})
	cl := c.open()
	w := startWriters(c, cl, 8)
	w.grows(t, 200, 30*time.Second)
	for _, p := range c.nodes[:2] {
		p.kill()
	}
	began := time.Now()
	w.grows(t, 200, 30*time.Second)
	t.Logf("200 writes within %v of the loss of a zone", time.Since(began))
	for key := range 24 { // every range takes writes
		k := fmt.Appendf(nil, "w%d/after", key)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if _, err := cl.Put(ctx, k, []byte("x")); err != nil {
			t.Errorf("put %s after the loss: %v", k, err)
		}
		cancel()
	}
	if n := w.fails.Load(); n != 0 {
		t.Errorf("%d writes failed", n)
	}
	w.verify(t, c.open(c.except(c.nodes[:2]...)...))
}

// Five copies: with two members stopped the group goes on. With three away nothing is
// served, neither writes nor, once the lease is over, reads, and the error says so.
// When they are back everything acknowledged is there.
func TestFiveCopiesGoOnWithoutTwoAndServeNothingWithoutThree(t *testing.T) {
	c := startCluster(t, 5, "--replication", "5")
	c.until(90*time.Second, replicated(5))
	cl := c.open()
	w := startWriters(c, cl, 4)
	w.grows(t, 50, 30*time.Second)
	c.nodes[3].signal(syscall.SIGSTOP)
	c.nodes[4].signal(syscall.SIGSTOP)
	w.grows(t, 100, 30*time.Second)
	c.nodes[2].kill()
	time.Sleep(2 * time.Second) // leases and elections end
	for what, call := range map[string]func(context.Context) error{
		"put": func(ctx context.Context) error {
			_, err := cl.Put(ctx, []byte("w/none"), []byte("x"))
			return err
		},
		"get": func(ctx context.Context) error {
			_, err := cl.Get(ctx, []byte("w0/000000"))
			return err
		},
	} {
		var err error
		for range 5 { // what a leader took that had not noticed yet may still be committed
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			err = call(ctx)
			cancel()
			if !errors.Is(err, client.ErrUnknownOutcome) {
				break
			}
		}
		if !errors.Is(err, client.ErrUnavailable) {
			t.Errorf("%s without a majority: %v", what, err)
		}
		t.Logf("%s: %v", what, err)
	}
	c.nodes[3].signal(syscall.SIGCONT)
	c.nodes[4].signal(syscall.SIGCONT)
	c.nodes[2].start()
	c.healthy(60 * time.Second)
	w.grows(t, 50, 30*time.Second)
	w.verify(t, c.open())
}

// A node is decommissioned under load: it ends up holding nothing, is out of the
// cluster, and nobody notices.
func TestANodeIsDecommissionedUnderLoad(t *testing.T) {
	c := startCluster(t, 4)
	c.presplit(12, "--key-prefix", "w")
	c.until(60*time.Second, replicated(3))
	cl := c.open()
	w := startWriters(c, cl, 8)
	w.grows(t, 100, 30*time.Second)
	out := c.process(2)
	if r := c.flotilla("nodes", "decommission", "n2"); r.code != 0 {
		t.Fatalf("decommission (exit %d): %s%s", r.code, r.stdout, r.stderr)
	}
	c.until(30*time.Second, func(all []placed) string {
		for _, r := range all {
			if slices.Contains(r.nodes(), 2) {
				return fmt.Sprintf("range %d still stands on n2: %v", r.ID, r.nodes())
			}
		}
		return replicated(3)(all)
	})
	w.grows(t, 100, 30*time.Second)
	if err := out.cmd.Wait(); err != nil { // it is told, and goes by itself
		t.Errorf("the node that is out: %v", err)
	}
	out.cmd = nil
	c.nodes = slices.DeleteFunc(c.nodes, func(p *process) bool { return p == out })
	c.healthy(30 * time.Second) // and is not missed
	if n := w.fails.Load(); n != 0 {
		t.Errorf("%d writes failed", n)
	}
	w.verify(t, c.open())
}

// All load goes to one range. Its leader splits it where the load halves, again and
// again, and placement spreads the leaders.
func TestAHotRangeIsSplitAndSpread(t *testing.T) {
	c := startCluster(t, 3, "--load-split-ops", "150")
	cl := c.open()
	w := startWriters(c, cl, 32)
	c.until(90*time.Second, func(all []placed) string {
		leaders := map[uint64]int{}
		for _, r := range all {
			if !r.System {
				leaders[r.Leader]++
			}
		}
		if len(leaders) < 3 {
			return fmt.Sprintf("%d ranges, led by %v", len(all), leaders)
		}
		return ""
	})
	w.grows(t, 100, 30*time.Second)
	if n := w.fails.Load(); n != 0 {
		t.Errorf("%d writes failed", n)
	}
	w.verify(t, cl)
}

// What would harm is refused with the reason, and changes nothing.
func TestPlacementRefusesWhatWouldHarm(t *testing.T) {
	c := startCluster(t, 3)
	for _, key := range []string{"f", "p"} {
		if r := c.flotilla("ranges", "split", "--at", key); r.code != 0 {
			t.Fatalf("split: %s", r.stderr)
		}
	}
	c.until(60*time.Second, func(all []placed) string {
		if len(all) != 4 {
			return fmt.Sprintf("%d ranges are known", len(all))
		}
		return replicated(3)(all)
	})
	before := c.ranges()
	last := fmt.Sprint(before[len(before)-1].ID)
	user := fmt.Sprint(before[1].ID)
	for _, try := range []struct {
		input string
		args  []string
		words string
	}{
		{"", []string{"nodes", "drain", "n9"}, "n9"},
		{"", []string{"nodes", "decommission", "n2", "--no-wait"}, "3"},
		{"", []string{"ranges", "merge", last}, "right"},
		{"", []string{"ranges", "merge", "1"}, "never merged"},
		{"", []string{"ranges", "relocate", user, "n1", "n1", "n2"}, "twice"},
		{"", []string{"ranges", "relocate", user, "n1", "n2", "n9"}, "n9"},
		{"", []string{"ranges", "relocate", "4000", "n1", "n2", "n3"}, "4000"},
		{`{"rules":[{"name":"default","prefix":"","replicas":4}]}`, []string{"placement", "rules", "set", "-"}, "replicas"},
		{`{"rules":[{"name":"default","prefix":"","replicas":5}]}`, []string{"placement", "rules", "set", "-"}, "5"},
		{
			`{"rules":[{"name":"default","prefix":"","replicas":3,"require":["zone=a"],"forbid":["zone=a"]}]}`,
			[]string{"placement", "rules", "set", "-"}, "zone=a",
		},
		{`{"rules":`, []string{"placement", "rules", "set", "-"}, "malformed"},
	} {
		r := c.flotillaInput(try.input, try.args...)
		if r.code == 0 || !strings.Contains(r.stderr+r.stdout, try.words) {
			t.Errorf("%v: exit %d, want a refusal with %q:\n%s%s", try.args, r.code, try.words,
				r.stdout, r.stderr)
		}
	}
	for i, r := range c.ranges() {
		if i >= len(before) || r.ID != before[i].ID || !slices.Equal(r.nodes(), before[i].nodes()) {
			t.Errorf("range %d changed: %+v", r.ID, r)
		}
	}
}
