package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/rpc"
)

// admin calls the Admin service of a node until it succeeds.
func (c *cluster) admin(i int, what string, f func(context.Context, adminpb.AdminClient) error) {
	c.t.Helper()
	eventually(c.t, what, func(ctx context.Context) error {
		conn, err := rpc.Dial(c.nodes[i-1].grpc)
		if err != nil {
			return err
		}
		defer conn.Close()
		return f(ctx, adminpb.NewAdminClient(conn))
	})
}

func TestEveryNodeAnswersForTheCluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for i := range c.nodes {
		c.start(i + 1)
	}
	c.healthy(1, 3)
	for i := range 20 {
		key := fmt.Sprintf("k%02d", i)
		c.do(put(key, key, uint64(i+1)), 1)
	}
	// Whoever is asked, the leader splits.
	c.admin(3, "split", func(ctx context.Context, a adminpb.AdminClient) error {
		r, err := a.SplitRange(ctx, &adminpb.SplitRangeRequest{RangeId: 2, Key: userKey("k10")})
		if err == nil && string(r.GetRight().GetStart()) != string(userKey("k10")) {
			t.Errorf("right half begins at %q", r.GetRight().GetStart())
		}
		return err
	})
	for i := 1; i <= 3; i++ {
		c.admin(i, "list", func(ctx context.Context, a adminpb.AdminClient) error {
			r, err := a.ListRanges(ctx, &adminpb.ListRangesRequest{})
			if err == nil && len(r.GetRanges()) != 3 {
				err = fmt.Errorf("%d ranges", len(r.GetRanges()))
			}
			return err
		})
	}
	var id, leader uint64
	c.admin(2, "show", func(ctx context.Context, a adminpb.AdminClient) error {
		r, err := a.ShowRange(ctx, &adminpb.ShowRangeRequest{Key: userKey("k15")})
		if err != nil {
			return err
		}
		if len(r.GetReplicas()) != 3 || r.GetRange().GetLeaderNode() == 0 {
			return fmt.Errorf("range %v", r)
		}
		for _, rep := range r.GetReplicas() {
			if rep.GetError() != "" || rep.GetApplied() == 0 {
				return fmt.Errorf("replica %v", rep)
			}
		}
		id, leader = r.GetRange().GetDescriptor_().GetRangeId(), r.GetRange().GetLeaderNode()
		return nil
	})
	to := leader%3 + 1
	c.admin(1, "transfer", func(ctx context.Context, a adminpb.AdminClient) error {
		_, err := a.TransferLeader(ctx, &adminpb.TransferLeaderRequest{RangeId: id, ToNode: to})
		return err
	})
	c.admin(1, "new leader", func(ctx context.Context, a adminpb.AdminClient) error {
		r, err := a.ShowRange(ctx, &adminpb.ShowRangeRequest{RangeId: id})
		if err == nil && r.GetRange().GetLeaderNode() != to {
			err = fmt.Errorf("n%d leads, want n%d", r.GetRange().GetLeaderNode(), to)
		}
		return err
	})
	for i := range 20 {
		key := fmt.Sprintf("k%02d", i)
		if r := c.do(get(key), i%3+1); r.Code != kv.CodeOK || string(r.Value) != key {
			t.Fatalf("%s after split and transfer: %v %q", key, r.Code, r.Value)
		}
	}
}

func TestWipedFounderJoinsInsteadOfFoundingAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for i := range c.nodes {
		c.start(i + 1)
	}
	c.healthy(1, 3)
	c.do(put("k", "v", 1), 1)
	c.kill(1)
	// As an operator would: the same command line, an empty directory.
	c.nodes[0].args[2] += "-new"
	c.nodes[0].args = append(c.nodes[0].args, "--join", c.nodes[1].grpc+","+c.nodes[2].grpc)
	eventually(t, "others lead", func(context.Context) error {
		_ = c.do(get("k"), 2)
		return nil
	})
	c.start(1)
	eventually(t, "joined as n4", func(context.Context) error {
		if !strings.Contains(c.nodes[0].log.String(), "node n4 ready") {
			return fmt.Errorf("log: %s", c.nodes[0].log.String())
		}
		return nil
	})
}
