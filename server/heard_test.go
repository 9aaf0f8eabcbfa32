package server

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/support"
)

// statusOf is what placement says of live nodes 1 to count.
func statusOf(count uint64) *adminpb.StatusReply {
	r := &adminpb.StatusReply{Tolerates: 1}
	for id := range count {
		r.Nodes = append(r.Nodes, &adminpb.NodeStatus{
			Node: &metapb.NodeDescriptor{NodeId: id + 1}, Live: true, UptimeSeconds: 60,
		})
	}
	return r
}

func TestANodeThatNobodySupportsIsNotCalledLive(t *testing.T) {
	t.Parallel()
	met := support.Status{Node: 2, Wanted: 4, Grants: 7, SupportEpoch: 9,
		SupportLeft: -time.Millisecond}
	for _, c := range []struct {
		name string
		edit func(*support.Status)
		live bool
	}{
		{"lapsed both ways", func(*support.Status) {}, false},
		{"it only asked", func(s *support.Status) { s.Grants, s.Granted = 0, 1 }, false},
		{"supports this node", func(s *support.Status) { s.SupportLeft = 1 }, true},
		{"is supported by this node", func(s *support.Status) { s.PromiseEpoch = 3 }, true},
		{"shares no range with this node", func(s *support.Status) { s.Wanted = 0 }, true},
		{"never met: datagrams may be blocked", func(s *support.Status) { s.Grants = 0 }, true},
	} {
		pair, reply := met, statusOf(3)
		c.edit(&pair)
		well := support.Status{Node: 3, Wanted: 4, Grants: 7, SupportLeft: 1}
		correctLive(reply, 1, []support.Status{pair, well})
		nodes := reply.GetNodes()
		if nodes[1].GetLive() != c.live || !nodes[0].GetLive() || !nodes[2].GetLive() {
			t.Errorf("%s: %v", c.name, nodes)
		}
		if c.live != (len(reply.GetProblems()) == 0) || c.live != (reply.GetTolerates() == 1) {
			t.Errorf("%s: %v", c.name, reply)
		}
		// Two nodes correct the same reply: it is said once.
		correctLive(reply, 1, []support.Status{pair})
		if !c.live && (len(reply.GetProblems()) != 1 || reply.GetTolerates() != 0 ||
			reply.GetProblems()[0] != "n2 does not answer n1: support between them has lapsed") {
			t.Errorf("%s: %v", c.name, reply)
		}
	}
}

// stoppable runs a node until stop is called, or the test ends.
func stoppable(t *testing.T, cfg Config) (stop func()) {
	t.Helper()
	ready := make(chan Info, 1)
	cfg.Ready = func(i Info) { ready <- i }
	cfg.DrainTimeout = time.Millisecond
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	select {
	case <-ready:
	case <-done:
		t.Fatal("the node ended before it served")
	}
	return stop
}

// Placement believes in a node for seconds after its last report. A script that stops
// a node, asks for the health and stops the next must not be told that all is well.
func TestAStatusRightAfterANodesEndDoesNotCallItLive(t *testing.T) {
	t.Parallel()
	first := testConfig(t)
	n1 := startServer(t, first)
	joining := first
	joining.Init, joining.Join = false, []string{n1.s.Addr()}
	joining.Data = t.TempDir() + "/d"
	startServer(t, joining)
	joining.Data = t.TempDir() + "/d"
	stop := stoppable(t, joining)
	admin := &adminService{n: n1}
	until(func() bool {
		p := pairOf(n1, 3)
		return p.Wanted > 0 && met(p)
	})
	live := func(r *adminpb.StatusReply) bool {
		return slices.ContainsFunc(r.GetNodes(), func(s *adminpb.NodeStatus) bool {
			return ids.NodeID(s.GetNode().GetNodeId()) == 3 && s.GetLive()
		})
	}
	until(func() bool {
		r, err := admin.Status(t.Context(), &adminpb.StatusRequest{})
		return err == nil && live(r)
	})
	stop()
	r, err := admin.Status(t.Context(), &adminpb.StatusRequest{})
	if err != nil || live(r) ||
		!strings.Contains(strings.Join(r.GetProblems(), "\n"), "n3 ") {
		t.Errorf("right after its end: %v, %v", r, err)
	}
}
