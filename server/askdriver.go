package server

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

// hopKey marks calls that a node passed on: such a call is not passed on again,
// so that two nodes with old news cannot play it back and forth.
const hopKey = "flotilla-hop"

const (
	// hopTimeout is how long a node waits for another on behalf of a caller.
	hopTimeout = 3 * time.Second
	// settledTimeout is hopTimeout for calls that wait for a driver which knows the
	// cluster. The client's own patience with one endpoint is longer.
	settledTimeout = 3500 * time.Millisecond
)

// How long a call waits for a driver that knows the cluster, asking this often.
const (
	statusPatience = 2 * time.Second
	statusPause    = 100 * time.Millisecond
)

func passedOn(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	return len(md.Get(hopKey)) > 0
}

func hop(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, hopKey, "1")
}

// fromDriver answers from this node's driver, or has the driver's node answer. What
// the driver refuses comes back as a status, from wherever it drives.
func fromDriver[T any](
	ctx context.Context, n *node, ask question[T],
	far func(context.Context, adminpb.AdminClient) (T, error),
) (T, error) {
	var answer T
	ctx, cancel := context.WithTimeout(ctx, hopTimeout)
	defer cancel()
	if passedOn(ctx) {
		return askDriver(ctx, n.driver, ask)
	}
	_, err := n.atDriver(ctx, func(at ids.NodeID) (ids.NodeID, error) {
		var err error
		if at == n.self {
			answer, err = askDriver(ctx, n.driver, ask)
			return 0, adminVerdict(err)
		}
		_, admin, err := n.transport.Control(at)
		if err != nil {
			return 0, err
		}
		answer, err = far(hop(ctx), admin)
		return 0, err
	})
	return answer, err
}

// adminVerdict gives an error of the driver its code for people and their tools:
// NotFound for what does not exist, FailedPrecondition for what is refused, with the
// reason, and Unavailable for what may be asked again. nil stays nil.
func adminVerdict(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, unknown := range []error{placement.ErrUnknownRange, placement.ErrUnknownNode} {
		if errors.Is(err, unknown) {
			return status.Error(codes.NotFound, err.Error())
		}
	}
	if errors.Is(err, placement.ErrRefused) {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	return status.Error(codes.Unavailable, err.Error())
}

// decided says whether an answer is the driver's verdict, which no other node will
// change. A node that has lost its directory and waits to join knows no service; that
// is no verdict.
func decided(err error) bool {
	switch status.Code(err) {
	case codes.FailedPrecondition, codes.InvalidArgument:
		return true
	case codes.NotFound:
		return status.Convert(err).Message() != waitsItself
	}
	return false
}

// driverStatus asks the driver once.
func (n *node) driverStatus(
	ctx context.Context, r *adminpb.StatusRequest,
) (*adminpb.StatusReply, error) {
	return fromDriver(ctx, n, func(
		d *placement.Driver, now time.Duration, reply func(*adminpb.StatusReply, error),
	) {
		reply(d.Status(now), nil)
	}, func(ctx context.Context, c adminpb.AdminClient) (*adminpb.StatusReply, error) {
		return c.Status(ctx, r)
	})
}

// settledStatus asks the driver until it knows the cluster, for statusPatience at
// most. A driver that has just begun knows little, and while the system range elects
// nobody drives: who asks wants to know how the cluster is, not that.
func (n *node) settledStatus(
	ctx context.Context, r *adminpb.StatusRequest,
) (*adminpb.StatusReply, error) {
	reply, err := n.driverStatus(ctx, r)
	for end := time.Now().Add(statusPatience); err != nil || reply.GetCollecting(); {
		if !time.Now().Before(end) || ctx.Err() != nil {
			break
		}
		pause(ctx, statusPause)
		reply, err = n.driverStatus(ctx, r)
	}
	return reply, err
}

// settled waits until the driver knows the cluster, for statusPatience at most, so
// that what is asked next is not answered out of half a directory. The context that it
// returns bounds both. A call that was passed on has waited already.
func (n *node) settled(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, settledTimeout)
	if !passedOn(ctx) {
		_, _ = n.settledStatus(ctx, &adminpb.StatusRequest{}) // only waited for
	}
	return ctx, cancel
}
