package rpc

import (
	"context"
	"fmt"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

// Metadata keys of control calls between nodes: the caller's (and in the answer
// the answerer's) clock, and the caller's cluster. Tools send neither.
const (
	stampKey   = "flotilla-stamp"
	clusterKey = "flotilla-cluster"
)

// control is the open control connection to one node.
type control struct {
	addr string
	conn *grpc.ClientConn
}

// Control returns clients for a node's Control and Admin services, over its
// control connection, which is made anew when the node's address has changed.
// Any goroutine. Calls carry this node's clock and adopt the answerer's.
func (t *Transport) Control(n ids.NodeID) (adminpb.ControlClient, adminpb.AdminClient, error) {
	addr, ok := t.cfg.Resolve(n)
	if !ok {
		return nil, nil, fmt.Errorf("call %v: %w", n, ErrUnknownNode)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return nil, nil, fmt.Errorf("call %v: %w", n, ErrStopped)
	}
	c, ok := t.controls[n]
	if !ok || c.addr != addr {
		conn, err := Dial(addr, grpc.WithUnaryInterceptor(t.stampCalls))
		if err != nil {
			return nil, nil, err
		}
		if ok {
			c.conn.Close()
		}
		c = &control{addr: addr, conn: conn}
		t.controls[n] = c
	}
	return adminpb.NewControlClient(c.conn), adminpb.NewAdminClient(c.conn), nil
}

func (t *Transport) closeControls() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.controls {
		c.conn.Close()
	}
	clear(t.controls)
}

// stampCalls puts the clock on outgoing control calls and adopts the answer's.
// An answer whose stamp cannot be adopted counts as lost.
func (t *Transport) stampCalls(
	ctx context.Context, method string, req, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	ctx = metadata.AppendToOutgoingContext(ctx,
		stampKey, strconv.FormatUint(uint64(t.cfg.Clock.Peek()), 10),
		clusterKey, strconv.FormatUint(t.cfg.Hello().GetClusterId(), 10))
	var header metadata.MD
	opts = append(opts, grpc.Header(&header))
	if err := invoke(ctx, method, req, reply, conn, opts...); err != nil {
		return err
	}
	return adopt(t.cfg.Clock, header)
}

// StampServer returns the interceptor for the other side of control calls: it
// adopts the caller's clock before the call is handled, refuses callers of
// another cluster, and stamps the answer after it was composed.
func StampServer(clock *hlc.Hybrid, cluster uint64) grpc.UnaryServerInterceptor {
	return func(
		ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler,
	) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		if v := md.Get(clusterKey); len(v) > 0 && v[0] != strconv.FormatUint(cluster, 10) {
			return nil, status.Errorf(codes.FailedPrecondition,
				"the caller belongs to another cluster than %016x", cluster)
		}
		if err := adopt(clock, md); err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		reply, err := handle(ctx, req)
		stamp := strconv.FormatUint(uint64(clock.Peek()), 10)
		// Fails only when the call is over already.
		_ = grpc.SetHeader(ctx, metadata.Pairs(stampKey, stamp))
		return reply, err
	}
}

func adopt(clock *hlc.Hybrid, md metadata.MD) error {
	v := md.Get(stampKey)
	if len(v) == 0 {
		return nil
	}
	stamp, err := strconv.ParseUint(v[0], 10, 64)
	if err != nil {
		return fmt.Errorf("adopt clock of a control call: %w", err)
	}
	if err := clock.Update(hlc.Timestamp(stamp)); err != nil {
		return fmt.Errorf("adopt clock of a control call: %w", err)
	}
	return nil
}
