package server

import (
	"bytes"
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// What people ask of placement. All of it is answered by the driver, whichever node
// is asked, and all of it waits a moment for a driver that has only just begun: what
// such a driver does not know yet must not be told as "there is no such range".
//
// Everything here may be asked again after an answer was lost: a standing, a switch
// and rules are what they are asked to be, and a range that has an operator already
// refuses another one.

// bad is the answer to a request that lacks something.
func bad(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// placementCall waits for a driver that knows the cluster, then asks it.
func placementCall[T any](
	ctx context.Context, n *node, ask question[T],
	far func(context.Context, adminpb.AdminClient) (T, error),
) (T, error) {
	ctx, cancel := n.settled(ctx)
	defer cancel()
	reply, err := fromDriver(ctx, n, ask, far)
	if err != nil {
		var none T
		return none, adminVerdict(err)
	}
	return reply, nil
}

// SetStanding drains a node, lets it serve again, or decommissions it: it says at
// once whether the cluster accepts that, and Nodes tells how far it has come.
func (a *adminService) SetStanding(
	ctx context.Context, r *adminpb.SetStandingRequest,
) (*adminpb.SetStandingReply, error) {
	switch want := r.GetStanding(); {
	case r.GetNodeId() == 0:
		return nil, bad("name a node by its id")
	case want == metapb.NodeStanding_NODE_STANDING_DECOMMISSIONED:
		return nil, bad("a node is decommissioned when it holds nothing any more: " +
			"ask for DECOMMISSIONING")
	case metapb.NodeStanding_name[int32(want)] == "":
		return nil, bad("standing %d is not known to this node: upgrade it", want)
	}
	return placementCall(ctx, a.n, func(
		d *placement.Driver, _ time.Duration, reply func(*adminpb.SetStandingReply, error),
	) {
		d.SetStanding(ids.NodeID(r.GetNodeId()), r.GetStanding(),
			func(p *adminpb.NodeProgress, err error) {
				reply(&adminpb.SetStandingReply{Node: p}, err)
			})
	}, func(ctx context.Context, c adminpb.AdminClient) (*adminpb.SetStandingReply, error) {
		return c.SetStanding(ctx, r)
	})
}

// Nodes lists the registered nodes with what each still has to give.
func (a *adminService) Nodes(
	ctx context.Context, r *adminpb.NodesRequest,
) (*adminpb.NodesReply, error) {
	return placementCall(ctx, a.n, func(
		d *placement.Driver, now time.Duration, reply func(*adminpb.NodesReply, error),
	) {
		reply(d.Nodes(now), nil)
	}, func(ctx context.Context, c adminpb.AdminClient) (*adminpb.NodesReply, error) {
		return c.Nodes(ctx, r)
	})
}

// Operate asks placement for an operator.
func (a *adminService) Operate(
	ctx context.Context, r *adminpb.OperateRequest,
) (*adminpb.OperateReply, error) {
	if fault := operateFault(r); fault != nil {
		return nil, fault
	}
	return placementCall(ctx, a.n, func(
		d *placement.Driver, _ time.Duration, reply func(*adminpb.OperateReply, error),
	) {
		reply(d.Operate(r))
	}, func(ctx context.Context, c adminpb.AdminClient) (*adminpb.OperateReply, error) {
		return c.Operate(ctx, r)
	})
}

// operateFault says what is wrong with a request whatever the cluster is like.
func operateFault(r *adminpb.OperateRequest) error {
	s := r.GetScatter()
	switch {
	case r.GetWhat() == nil:
		return bad("say what to do: merge, relocate, scatter or transfer")
	case s == nil && r.GetRangeId() == 0:
		return bad("name a range by its id")
	case s != nil && r.GetRangeId() != 0:
		return bad("scatter takes a span of keys, not a range")
	case s != nil && len(s.GetEnd()) > 0 && bytes.Compare(s.GetStart(), s.GetEnd()) >= 0:
		return bad("the span to scatter is empty: its end is not above its start")
	case r.GetRelocate() != nil && len(r.GetRelocate().GetNodes()) == 0:
		return bad("name the nodes to relocate to")
	case r.GetTransfer() != nil && r.GetTransfer().GetNodeId() == 0:
		return bad("name the node that is to lead")
	}
	return nil
}

// Operators lists the operators that run, or those that ended.
func (a *adminService) Operators(
	ctx context.Context, r *adminpb.OperatorsRequest,
) (*adminpb.OperatorsReply, error) {
	return placementCall(ctx, a.n, func(
		d *placement.Driver, _ time.Duration, reply func(*adminpb.OperatorsReply, error),
	) {
		reply(d.Operators(r), nil)
	}, func(ctx context.Context, c adminpb.AdminClient) (*adminpb.OperatorsReply, error) {
		return c.Operators(ctx, r)
	})
}

// Explain says why a range is where it is.
func (a *adminService) Explain(
	ctx context.Context, r *adminpb.ExplainRequest,
) (*adminpb.ExplainReply, error) {
	if r.GetRangeId() == 0 && len(r.GetKey()) == 0 {
		return nil, bad("name a range by its id or by a key")
	}
	return placementCall(ctx, a.n, func(
		d *placement.Driver, _ time.Duration, reply func(*adminpb.ExplainReply, error),
	) {
		reply(d.Explain(r))
	}, func(ctx context.Context, c adminpb.AdminClient) (*adminpb.ExplainReply, error) {
		return c.Explain(ctx, r)
	})
}

// Pause stops placement from beginning operators, or lets it go on.
func (a *adminService) Pause(
	ctx context.Context, r *adminpb.PauseRequest,
) (*adminpb.PauseReply, error) {
	return placementCall(ctx, a.n, func(
		d *placement.Driver, _ time.Duration, reply func(*adminpb.PauseReply, error),
	) {
		d.Pause(r.GetPaused(), r.GetBy(), func(s *metapb.PlacementSettings, err error) {
			reply(&adminpb.PauseReply{Settings: s}, err)
		})
	}, func(ctx context.Context, c adminpb.AdminClient) (*adminpb.PauseReply, error) {
		return c.Pause(ctx, r)
	})
}

// GetRules returns the rules in force.
func (a *adminService) GetRules(
	ctx context.Context, r *adminpb.GetRulesRequest,
) (*adminpb.GetRulesReply, error) {
	return placementCall(ctx, a.n, func(
		d *placement.Driver, _ time.Duration, reply func(*adminpb.GetRulesReply, error),
	) {
		reply(&adminpb.GetRulesReply{Rules: d.Rules()}, nil)
	}, func(ctx context.Context, c adminpb.AdminClient) (*adminpb.GetRulesReply, error) {
		return c.GetRules(ctx, r)
	})
}

// SetRules replaces all rules, or with DryRun says what would move. What is wrong
// with the rules comes in the reply.
func (a *adminService) SetRules(
	ctx context.Context, r *adminpb.SetRulesRequest,
) (*adminpb.SetRulesReply, error) {
	if r.GetRules() == nil {
		return nil, bad("the request brings no rules")
	}
	return placementCall(ctx, a.n, func(
		d *placement.Driver, _ time.Duration, reply func(*adminpb.SetRulesReply, error),
	) {
		d.SetRules(r, reply)
	}, func(ctx context.Context, c adminpb.AdminClient) (*adminpb.SetRulesReply, error) {
		return c.SetRules(ctx, r)
	})
}
