package main

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/flotilla-kv/flotilla/proto/kv"
)

func TestAllProcessesKilledAtOnceComeBackWithEverything(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for i := range c.nodes {
		c.start(i + 1)
	}
	c.healthy(1, 3)
	const keys = 50
	for i := range keys {
		key := fmt.Sprint("k", i)
		if r := c.do(put(key, key, uint64(i+1)), 1); r.Code != kv.CodeOK {
			t.Fatalf("%s: %v %s", key, r.Code, r.Message)
		}
	}
	for i := range c.nodes {
		c.kill(i + 1)
	}
	for i := range c.nodes {
		c.start(i + 1)
	}
	for i := range keys {
		key := fmt.Sprint("k", i)
		if r := c.do(get(key), i%3+1); string(r.Value) != key {
			t.Fatalf("%s: %v %q", key, r.Code, r.Value)
		}
	}
}

func TestPausedLeaderIsReplacedAndComesBackAsFollower(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for i := range c.nodes {
		c.start(i + 1)
	}
	c.healthy(1, 3)
	c.do(put("k", "before", 1), 1)
	victim := 0
	for i, addr := 0, c.leader(); i < len(c.nodes); i++ {
		if c.nodes[i].grpc == addr {
			victim = i + 1
		}
	}
	paused := c.nodes[victim-1].cmd.Process
	if err := paused.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if r := c.do(put("k", "meanwhile", 2), victim%3+1); r.Code != kv.CodeOK {
		t.Fatalf("put while the leader is paused: %v %s", r.Code, r.Message)
	}
	if err := paused.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// The one that was paused is asked first: it must not answer from the past.
	if r := c.do(get("k"), victim); string(r.Value) != "meanwhile" {
		t.Fatalf("after the pause: %v %q", r.Code, r.Value)
	}
	c.healthy(victim, 3)
}
