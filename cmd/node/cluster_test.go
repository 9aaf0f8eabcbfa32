package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func TestValueOutlivesEachOfThreeProcesses(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for i := range c.nodes {
		c.start(i + 1)
	}
	c.healthy(1, 3)
	if r := c.do(put("hello", "world", 1), 1); r.Code != kv.CodeOK {
		t.Fatalf("put: %v %s", r.Code, r.Message)
	}
	for victim := 1; victim <= 3; victim++ {
		c.kill(victim)
		if r := c.do(get("hello"), victim%3+1); string(r.Value) != "world" {
			t.Fatalf("without node %d: %v %q", victim, r.Code, r.Value)
		}
		key := fmt.Sprint("without", victim)
		if r := c.do(put(key, key, uint64(victim+1)), victim%3+1); r.Code != kv.CodeOK {
			t.Fatalf("put without node %d: %v %s", victim, r.Code, r.Message)
		}
		c.start(victim)
		c.healthy(victim, 3)
	}
	for victim := 1; victim <= 3; victim++ {
		key := fmt.Sprint("without", victim)
		if r := c.do(get(key), 1); string(r.Value) != key {
			t.Fatalf("%s: %v %q", key, r.Code, r.Value)
		}
	}
}

func TestGracefulStopHandsOverAndExitsZero(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for i := range c.nodes {
		c.start(i + 1)
	}
	c.healthy(1, 3)
	c.do(put("k", "v", 1), 1)
	if code := c.stop(1); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	if r := c.do(get("k"), 2); string(r.Value) != "v" {
		t.Fatalf("after the stop: %v %q", r.Code, r.Value)
	}
	c.start(1)
	c.healthy(1, 3)
	eventually(t, "start block that says restarted", func(context.Context) error {
		if !strings.Contains(c.nodes[0].log.String(), "restarted; ") {
			return errors.New("not yet")
		}
		return nil
	})
}

func TestOneNodeServesRefusesAndRestarts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.start(1)
	if r := c.do(put("k", "v1", 1), 1); r.Code != kv.CodeOK {
		t.Fatalf("put: %v %s", r.Code, r.Message)
	}
	first := c.do(get("k"), 1).Timestamp
	if r := c.do(&kv.Request{ID: 3, Verb: kv.VerbGet, Key: []byte{kv.SystemPrefix, 1}}, 1); r.Code !=
		kv.CodeInvalid {
		t.Fatalf("a client read a system key: %v", r.Code)
	}
	c.kill(1)
	c.start(1)
	if r := c.do(get("k"), 1); string(r.Value) != "v1" || r.Timestamp != first {
		t.Fatalf("after kill -9: %v %q at %d, want v1 at %d", r.Code, r.Value, r.Timestamp, first)
	}
	// A second process on the directory must not open it.
	p := c.nodes[0]
	out := refused(t, "start", "--data", p.args[2], "--listen", freePort(t), "--http", freePort(t))
	if !strings.Contains(out, "in use by another process") {
		t.Fatalf("second process on the directory: %s", out)
	}
	out = refused(t, "start", "--data", t.TempDir(), "--init", "--listen", p.grpc,
		"--http", freePort(t))
	if !strings.Contains(out, "the port is in use") {
		t.Fatalf("second process on the port: %s", out)
	}
	if code := c.stop(1); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	out = refused(t, "start", "--data", p.args[2], "--listen", freePort(t), "--http", freePort(t),
		"--node", "7")
	if !strings.Contains(out, "belongs to n1, not to n7") {
		t.Fatalf("directory of another node: %s", out)
	}
	out = refused(t, "start", "--data", p.args[2], "--listen", freePort(t), "--http", freePort(t),
		"--cluster", "00000000000000ab")
	if !strings.Contains(out, "belongs to cluster") {
		t.Fatalf("directory of another cluster: %s", out)
	}
}

func TestADecommissionedProcessEndsWithZeroAndWithThreeWhenItIsStartedAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	for i := range c.nodes {
		c.start(i + 1)
	}
	c.healthy(1, 4)
	if r := c.do(put("k", "v", 1), 1); r.Code != kv.CodeOK {
		t.Fatalf("put: %v %s", r.Code, r.Message)
	}
	c.admin(1, "decommission n2", func(ctx context.Context, a adminpb.AdminClient) error {
		_, err := a.SetStanding(ctx, &adminpb.SetStandingRequest{
			NodeId: 2, Standing: metapb.NodeStanding_NODE_STANDING_DECOMMISSIONING,
		})
		return err
	})
	// Nodes join in any order: the second process need not be n2.
	retired := 0
	eventually(t, "n2 is decommissioned", func(context.Context) error {
		for i := 2; i <= 4; i++ {
			if strings.Contains(c.nodes[i-1].log.String(), "n2 has been decommissioned") {
				retired = i
				return nil
			}
		}
		return errors.New("not yet")
	})
	if code := c.wait(retired); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	if r := c.do(get("k"), 1); string(r.Value) != "v" {
		t.Fatalf("without n2: %v %q", r.Code, r.Value)
	}
	c.start(retired)
	if code := c.wait(retired); code != exitRetired {
		t.Fatalf("started again: exit code %d", code)
	}
	if log := c.nodes[retired-1].log.String(); !strings.Contains(log, "an empty directory") {
		t.Errorf("no remedy is named: %s", log)
	}
}

// refused runs a node that must end with code 1 and one line, and returns the line.
func refused(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(testBinary(), args...)
	cmd.Env = append(cmd.Environ(), asNode+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != exitError {
		t.Fatalf("ended with %v, want exit code %d: %s", err, exitError, out)
	}
	if lines := strings.Count(string(out), "\n"); lines != 1 {
		t.Errorf("said %d lines, want one: %s", lines, out)
	}
	return string(out)
}
