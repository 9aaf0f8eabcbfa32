package server

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// controlService is what nodes ask one another. Only the driver's node answers;
// every other one names the leader of the system range as far as it knows.
type controlService struct {
	adminpb.UnimplementedControlServer
	n *node
}

// askAgain is the answer of a node that does not drive and knows nobody who does.
func askAgain() error {
	return status.Error(codes.Unavailable, "knows no leader of the system range yet")
}

// elsewhere returns who drives instead of this node; 0 and an error if it is
// not known, or is this node and still starting.
func (c *controlService) elsewhere(err error) (ids.NodeID, error) {
	switch {
	case errors.Is(err, errNotDriver):
		leader := c.n.systemLeader()
		if _, _, holds := c.n.table.Route([]byte{kv.SystemPrefix}); !holds {
			leader = c.n.registry.driver()
		}
		if leader != 0 && leader != c.n.self {
			return leader, nil
		}
		return 0, askAgain()
	default:
		return 0, verdict(err)
	}
}

// verdict gives an error its code: what asking again cannot mend is
// FailedPrecondition, everything else Unavailable. That the asking node is
// decommissioned goes with it in a form that it can rely on (standingIn).
func verdict(err error) error {
	if errors.Is(err, placement.ErrDecommissioned) {
		s, detailErr := status.New(codes.FailedPrecondition, err.Error()).WithDetails(
			&metapb.NodeReportReply{
				Standing: metapb.NodeStanding_NODE_STANDING_DECOMMISSIONED.Enum(),
			})
		if detailErr == nil {
			return s.Err()
		}
	}
	for _, final := range []error{
		placement.ErrWrongCluster, placement.ErrOtherStore, placement.ErrUnknownNode,
		placement.ErrBadJoin, placement.ErrRefused,
	} {
		if errors.Is(err, final) {
			return status.Error(codes.FailedPrecondition, err.Error())
		}
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}

// Join registers a node, or names the node that can, if it is known.
func (c *controlService) Join(
	ctx context.Context, r *adminpb.JoinRequest,
) (*adminpb.JoinReply, error) {
	reply, err := askDriver(ctx, c.n.driver, func(
		d *placement.Driver, _ time.Duration, reply func(*adminpb.JoinReply, error),
	) {
		d.Join(r, reply)
	})
	if err == nil {
		return reply, nil
	}
	at, err := c.elsewhere(err)
	if status.Code(err) == codes.FailedPrecondition {
		return nil, err
	}
	// The cluster's id says, even if nobody can register the node yet, that
	// there is a cluster here: the caller must not found another.
	addr, _ := c.n.registry.resolve(at)
	return &adminpb.JoinReply{
		ClusterId: c.n.cluster, RedirectNode: uint64(at), RedirectAddress: addr,
	}, nil
}

// Report takes a node's report, or names the node that can.
func (c *controlService) Report(
	ctx context.Context, r *metapb.NodeReport,
) (*metapb.NodeReportReply, error) {
	reply, err := c.n.reportHere(ctx, r)
	if err == nil {
		return reply, nil
	}
	at, err := c.elsewhere(err)
	if err != nil {
		return nil, err
	}
	return &metapb.NodeReportReply{RedirectNode: uint64(at)}, nil
}

// AllocateRangeIDs hands out a block of range ids, or names the node that can.
func (c *controlService) AllocateRangeIDs(
	ctx context.Context, r *adminpb.AllocateRangeIDsRequest,
) (*adminpb.AllocateRangeIDsReply, error) {
	reply, err := c.n.allocateHere(ctx, ids.NodeID(r.GetNodeId()), r.GetCount())
	if err == nil {
		return reply, nil
	}
	at, err := c.elsewhere(err)
	if err != nil {
		return nil, err
	}
	return &adminpb.AllocateRangeIDsReply{RedirectNode: uint64(at)}, nil
}

func (n *node) allocateHere(
	ctx context.Context, node ids.NodeID, count uint32,
) (*adminpb.AllocateRangeIDsReply, error) {
	return askDriver(ctx, n.driver, func(
		d *placement.Driver, _ time.Duration, reply func(*adminpb.AllocateRangeIDsReply, error),
	) {
		d.AllocateIDs(node, count, func(first uint64, count uint32, err error) {
			reply(&adminpb.AllocateRangeIDsReply{First: first, Count: count}, err)
		})
	})
}

// allocateIDs fetches a block of range ids for this node.
func (n *node) allocateIDs(ctx context.Context, count uint32) (uint64, uint32, error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	var reply *adminpb.AllocateRangeIDsReply
	_, err := n.atDriver(ctx, func(at ids.NodeID) (ids.NodeID, error) {
		var err error
		if at == n.self {
			reply, err = n.allocateHere(ctx, n.self, count)
			return 0, err
		}
		control, _, err := n.transport.Control(at)
		if err != nil {
			return 0, err
		}
		reply, err = control.AllocateRangeIDs(ctx, &adminpb.AllocateRangeIDsRequest{
			NodeId: uint64(n.self), Count: count,
		})
		return ids.NodeID(reply.GetRedirectNode()), err
	})
	return reply.GetFirst(), reply.GetCount(), err
}
