package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func membersUpTo(count uint64) (all []*metapb.NodeDescriptor) {
	for id := uint64(1); id <= count; id++ {
		all = append(all, &metapb.NodeDescriptor{NodeId: id, Address: fmt.Sprintf("m%d", id)})
	}
	return all
}

func TestASearchAsksTheSeedsFirstAndThenEveryMemberInItsTurn(t *testing.T) {
	t.Parallel()
	began := time.Now()
	s, members := search{heard: began}, membersUpTo(20)
	if got := s.addresses([]string{"seed"}, members, 4, began); !slices.Equal(got, []string{"seed"}) {
		t.Fatalf("at once it asks %q", got)
	}
	asked := map[string]int{}
	for range 5 {
		addrs := s.addresses([]string{"seed"}, members, 4, began.Add(membersAfter))
		if len(addrs) > 1+maxMembersAsked || addrs[0] != "seed" {
			t.Fatalf("asks %q", addrs)
		}
		for _, a := range addrs[1:] {
			asked[a]++
		}
	}
	if len(asked) != 19 || asked["m4"] != 0 { // all but itself
		t.Fatalf("asked %v", asked)
	}
	if got := s.addresses(nil, nil, 4, began.Add(membersAfter)); len(got) != 0 {
		t.Fatalf("a node that knows nobody asks %q", got)
	}
}

// seeker is a node that only looks for others.
func seeker(t *testing.T) *node {
	t.Helper()
	cfg := testConfig(t)
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	n := &node{
		s: s, cfg: &s.cfg, self: 4, cluster: 7, retired: make(chan struct{}),
		registry: newRegistry(4, nil, nil, func([]byte) error { return nil }),
	}
	n.reporter = newReporter(n)
	return n
}

// departedTalker refuses as the driver does.
func departedTalker() talker {
	refusal := fmt.Errorf("%w: n4 holds nothing any more", placement.ErrDecommissioned)
	return talker{err: verdict(refusal)}
}

func TestANodeBelievesThatItIsOutOnlyByTheDriversRefusal(t *testing.T) {
	t.Parallel()
	out := departedTalker()
	if status.Code(out.err) != codes.FailedPrecondition {
		t.Fatalf("the refusal is %v", out.err)
	}
	sent, err := net.Listen("tcp", "127.0.0.1:0") // nobody answers there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sent.Close() })
	for name, c := range map[string]struct {
		k   talker
		out bool
	}{
		"the driver refuses it": {out, true},
		"a member sends it to the driver": {talker{reply: &adminpb.JoinReply{
			ClusterId: 7, RedirectNode: 2, RedirectAddress: serveTalker(t, out),
		}}, true},
		"a member sends it to nobody": {talker{reply: &adminpb.JoinReply{
			ClusterId: 7, RedirectNode: 2, RedirectAddress: sent.Addr().String(),
		}}, false},
		"a member does not know it": {talker{reply: &adminpb.JoinReply{
			ClusterId: 7, NodeId: 4, Nodes: membersUpTo(3),
		}}, false},
		"another refusal that speaks of it": {talker{err: verdict(fmt.Errorf(
			"%w: is it decommissioned?", placement.ErrUnknownNode))}, false},
		"another cluster": {talker{err: verdict(placement.ErrWrongCluster)}, false},
		"no driver":       {talker{err: verdict(errNotDriver)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := seeker(t)
			n.cfg.Join = []string{serveTalker(t, c.k)}
			n.reporter.lookForOthers(t.Context())
			if n.retiring() != c.out {
				t.Fatalf("retiring: %v", n.retiring())
			}
			if c.out && !errors.Is(n.farewell(), ErrDecommissioned) {
				t.Fatalf("it ends with %v", n.farewell())
			}
		})
	}
}

// A member without a replica of the system range still knows who drove last.
func TestAMemberWithoutTheSystemRangeNamesWhoDroveLast(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 4)
	nodes[0].healthy(t, 3, 0)
	var member *running
	eventually(t, "a member holds no replica of range 1 and has heard the driver",
		func(context.Context) error {
			for _, r := range nodes {
				if r.n.systemLeader() == 0 && r.n.registry.driver() != 0 {
					member = r
					return nil
				}
			}
			return errors.New("none does")
		})
	eventually(t, "it names the driver", func(ctx context.Context) error {
		reply, err := (&controlService{n: member.n}).Join(ctx, &adminpb.JoinRequest{
			ClusterId: member.n.cluster, Node: member.n.s.descriptor(member.n.self),
		})
		at := ids.NodeID(reply.GetRedirectNode())
		if addr, _ := member.n.registry.resolve(at); err != nil || at == 0 ||
			reply.GetRedirectAddress() != addr {
			return fmt.Errorf("%v: %w", reply, err)
		}
		return nil
	})
}
