package server

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/rpc"
)

// ask asks one node for the time. The call carries no stamp and hears none: it is
// made when stamps are refused, and by nodes that have none yet. The answer is
// taken to be of the middle between asking and hearing it.
func (k *clockKeeper) ask(ctx context.Context, addr string) (timeVote, error) {
	conn, err := rpc.Dial(addr)
	if err != nil {
		return timeVote{}, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, timeTimeout)
	defer cancel()
	before := k.clock.Wall()
	reply, err := adminpb.NewControlClient(conn).Time(ctx,
		&adminpb.TimeRequest{ClusterId: k.cluster})
	if err != nil {
		return timeVote{}, err
	}
	if reply.GetClusterId() != k.cluster || reply.GetNodeId() == uint64(k.self) {
		return timeVote{}, fmt.Errorf("ask %s for the time: n%d of cluster %016x answered",
			addr, reply.GetNodeId(), reply.GetClusterId())
	}
	middle := before + (k.clock.Wall()-before)/2
	return timeVote{
		offset:  time.Duration(reply.GetWallMillis()-middle) * time.Millisecond,
		settled: reply.GetSettled(),
	}, nil
}

func otherCluster(cluster uint64) error {
	return status.Errorf(codes.FailedPrecondition, "this node belongs to cluster %016x", cluster)
}

// Time says what time it is in the cluster, as far as this node knows.
func (c *controlService) Time(
	_ context.Context, r *adminpb.TimeRequest,
) (*adminpb.TimeReply, error) {
	return c.n.s.clocks.timeReply(r)
}

// startingControl answers for a node that knows who it is and has no clock yet.
type startingControl struct {
	adminpb.UnimplementedControlServer
	k *clockKeeper
}

// Time is what a node can say before all else.
func (c startingControl) Time(
	_ context.Context, r *adminpb.TimeRequest,
) (*adminpb.TimeReply, error) {
	return c.k.timeReply(r)
}

// errStarting is the answer to everything else. It is not that of a node that
// waits to join: whoever asks must not take this one for nobody.
func errStarting() error {
	return status.Error(codes.Unavailable, "starting: this node knows no time yet")
}

// onlyTime refuses every other call.
func onlyTime(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler,
) (any, error) {
	if info.FullMethod != adminpb.Control_Time_FullMethodName {
		return nil, errStarting()
	}
	return handle(ctx, req)
}

// serveStarting answers on the port while the node has no clock, so that nodes
// that start together can ask one another. stopStarting ends it; a second call
// does nothing.
func (s *Server) serveStarting() error {
	if s.stopStarting != nil {
		return nil
	}
	srv := rpc.NewServer(
		grpc.UnaryInterceptor(onlyTime),
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return errStarting() }))
	adminpb.RegisterControlServer(srv, startingControl{k: s.clocks})
	stop, err := s.serveMeanwhile(srv)
	if err != nil {
		return err
	}
	s.stopStarting = sync.OnceFunc(stop)
	return nil
}

// serveMeanwhile serves on a duplicate of the port until stop is called: grpc
// closes what it serves, and the port must not be free in between.
func (s *Server) serveMeanwhile(srv *grpc.Server) (stop func(), err error) {
	file, err := s.grpcLn.(*net.TCPListener).File()
	if err != nil {
		return nil, fmt.Errorf("duplicate the listener: %w", err)
	}
	defer file.Close()
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("duplicate the listener: %w", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(s.bounded(ln, s.connections)) }) // ends with Stop
	return func() {
		srv.Stop()
		wg.Wait()
	}, nil
}
