package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/hlc/osclock"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/rpc"
)

// bentNode is a node of this process whose wall clock a test bends.
type bentNode struct {
	t      *testing.T
	cfg    Config
	shift  *atomic.Int64
	log    *logLines
	server *Server
	stop   func() error
}

func (n *bentNode) start() {
	n.t.Helper()
	s, err := New(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	shift := n.shift
	s.clock = osclock.NewShifted(func() time.Duration { return time.Duration(shift.Load()) })
	s.clocks = newClockKeeper(s, s.clock)
	n.cfg.Listen, n.cfg.HTTP = s.Addr(), s.HTTPAddr() // the same after a restart
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	n.server = s
	n.stop = func() error {
		if n.server == nil {
			return nil
		}
		n.server = nil
		cancel()
		return <-done
	}
}

// bentCluster starts three nodes and a client of all.
func bentCluster(t *testing.T) ([]*bentNode, *client.Client) {
	t.Helper()
	var nodes []*bentNode
	var endpoints []string
	for i := range 3 {
		n := &bentNode{t: t, cfg: testConfig(t), shift: &atomic.Int64{}, log: &logLines{}}
		n.cfg.Logger = slog.New(slog.NewTextHandler(n.log, nil))
		n.cfg.DrainTimeout = time.Second
		if i > 0 {
			n.cfg.Init, n.cfg.Join = false, endpoints[:1]
		}
		n.start()
		t.Cleanup(func() {
			if err := n.stop(); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				t.Logf("node %d:\n%s", i+1, n.log.b.String())
			}
		})
		endpoints = append(endpoints, n.cfg.Listen)
		nodes = append(nodes, n)
	}
	c, err := client.Open(t.Context(), endpoints)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return nodes, c
}

// eventually repeats f until it succeeds.
func eventually(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s: %v", what, err)
		}
		pause(ctx, 20*time.Millisecond)
	}
}

// takesPart waits until node i follows or leads every replica of the system range
// as its peers see it: it has applied what they have committed.
func takesPart(t *testing.T, n *bentNode, c *client.Client, i int) {
	t.Helper()
	key := []byte("part")
	eventually(t, fmt.Sprintf("node %d takes part", i), func(ctx context.Context) error {
		put, err := c.Put(ctx, key, []byte("x"))
		if err != nil {
			return err
		}
		if at := n.server.node.Load(); at == nil || at.clock.Peek() < hlc.Timestamp(put) {
			return errors.New("its clock has not heard of a write")
		}
		return c.Admin(ctx, func(ctx context.Context, a adminpb.AdminClient) error {
			at := append([]byte{kv.UserPrefix}, key...)
			reply, err := a.ShowRange(ctx, &adminpb.ShowRangeRequest{Key: at})
			if err != nil {
				return err
			}
			for _, r := range reply.GetReplicas() {
				if r.GetError() != "" || r.GetApplied() < reply.GetReplicas()[0].GetApplied() {
					return fmt.Errorf("n%d applied %d (%s)", r.GetNodeId(), r.GetApplied(), r.GetError())
				}
			}
			return nil
		})
	})
}

// Must show 6 with whole nodes: one node's wall clock jumps by ten minutes either
// way while it runs, and it restarts with the jump, and again when the clock is
// right. Writes go on, every acknowledged write is read, and the node takes part.
func TestOneNodesWallClockJumpsByTenMinutesWhileItRunsAndAcrossARestart(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three nodes several times")
	}
	t.Parallel()
	nodes, c := bentCluster(t)
	written := 0
	write := func(when string) {
		t.Helper()
		for range 8 {
			written++
			eventually(t, "write "+when, func(ctx context.Context) error {
				_, err := c.Put(ctx, fmt.Appendf(nil, "k%04d", written), []byte(when))
				return err
			})
		}
		for i := 1; i <= written; i++ {
			eventually(t, "read "+when, func(ctx context.Context) error {
				_, err := c.Get(ctx, fmt.Appendf(nil, "k%04d", i))
				if errors.Is(err, client.ErrNotFound) {
					t.Fatalf("%s: write %d of %d is lost", when, i, written)
				}
				return err
			})
		}
	}
	write("before")
	victim := nodes[1]
	for _, jump := range []time.Duration{tenMinutes, -tenMinutes} {
		victim.shift.Store(int64(jump))
		write(fmt.Sprint("after a jump by ", jump))
		eventually(t, "jump noticed", func(context.Context) error {
			if len(victim.server.clocks.problems()) == 0 {
				return errors.New("no problem with the clock is told")
			}
			return nil
		})
		takesPart(t, victim, c, 2)
		if err := victim.stop(); err != nil {
			t.Fatal(err)
		}
		victim.start()
		write(fmt.Sprint("restarted with a clock off by ", jump))
		takesPart(t, victim, c, 2)
		off := time.Duration(victim.server.clock.Wall()-time.Now().UnixMilli()) * time.Millisecond
		if off.Abs() > 2*time.Second || victim.server.clocks.adopted.Load() != 1 {
			t.Fatalf("restarted with a clock off by %v it has one off by %v", jump, off)
		}
		victim.shift.Store(0)
		write("after the repair")
		if err := victim.stop(); err != nil {
			t.Fatal(err)
		}
		victim.start()
		write("restarted after the repair")
		takesPart(t, victim, c, 2)
	}
}

// A node that starts answers for the time, before it has a clock, and sends away
// everything else without looking like one that belongs to nobody.
func TestANodeThatStartsSaysTheTimeAndNothingElse(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.boot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.stopStarting()
		_ = s.Close()
	})
	conn, err := rpc.Dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	control := adminpb.NewControlClient(conn)
	reply, err := control.Time(t.Context(), &adminpb.TimeRequest{ClusterId: m.cluster})
	if err != nil || reply.GetNodeId() != uint64(m.node) || !reply.GetSettled() {
		t.Fatalf("time %v, %v", reply, err)
	}
	if _, err := control.Time(t.Context(), &adminpb.TimeRequest{ClusterId: 3}); status.Code(err) !=
		codes.FailedPrecondition {
		t.Fatalf("a stranger is told: %v", err)
	}
	_, err = control.Join(t.Context(), &adminpb.JoinRequest{})
	_, err2 := adminpb.NewAdminClient(conn).Status(t.Context(), &adminpb.StatusRequest{})
	_, err3 := control.Report(t.Context(), &metapb.NodeReport{})
	for _, err := range []error{err, err2, err3} {
		if status.Code(err) != codes.Unavailable {
			t.Errorf("another call: %v", err)
		}
	}
}
