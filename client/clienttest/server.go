package clienttest

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/client/internal/model"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/framecodec"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// ClusterID is the id of every cluster that this package starts.
const ClusterID = 0xc1e47e57

// Fate is what becomes of a request.
type Fate int

// The fates.
const (
	Serve      Fate = iota // serve and answer
	Ignore                 // neither serve nor answer
	LoseAnswer             // serve, but lose the answer
	CutBefore              // break the stream, unserved
	CutAfter               // serve, and break the stream instead of answering
	Refuse                 // answer that the node is not available now
)

// Server is a cluster in memory.
type Server struct {
	running sync.WaitGroup

	mu struct {
		sync.Mutex
		cluster *model.Cluster
		nodes   []*node
		fate    func(node int, r *kv.Request) Fate
	}
}

// node is one node: an address that it keeps over restarts.
type node struct {
	server *Server
	id     ids.NodeID
	addr   string
	grpc   *grpc.Server // nil while stopped

	streams map[*stream]bool // that are open
	leaving bool
}

// Start starts a cluster of so many nodes and one range. It ends with the test.
func Start(t testing.TB, nodes int) *Server {
	t.Helper()
	s, err := New(nodes)
	if err != nil {
		t.Fatalf("start a cluster in memory: %v", err)
	}
	t.Cleanup(s.Close)
	return s
}

// New is Start without a test, for examples. The caller closes it.
func New(nodes int) (*Server, error) {
	s := &Server{}
	s.mu.cluster = model.New(nodes)
	for _, r := range s.mu.cluster.Ranges {
		r.Clock = startOfClocks
	}
	for i := range nodes {
		n := &node{server: s, id: ids.NodeID(i + 1), streams: make(map[*stream]bool)}
		s.mu.nodes = append(s.mu.nodes, n)
		if err := n.start("127.0.0.1:0"); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// startOfClocks is above what a stamp of 0 would say.
const startOfClocks = 1 << 20

// Close stops all nodes and waits for them.
func (s *Server) Close() {
	for i := range s.mu.nodes {
		s.Stop(i + 1)
	}
	s.running.Wait()
}

// Endpoints returns the addresses of all nodes.
func (s *Server) Endpoints() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.mu.nodes {
		all = append(all, n.addr)
	}
	return all
}

// Stop stops a node (from 1): its connections break.
func (s *Server) Stop(n int) {
	s.mu.Lock()
	g := s.mu.nodes[n-1].grpc
	s.mu.nodes[n-1].grpc = nil
	s.mu.Unlock()
	if g != nil {
		g.Stop()
	}
}

// Leave stops a node (from 1) as a real one stops: its clients are told to go,
// get the answers to what they have sent, and close their streams. Move its
// leaders before.
func (s *Server) Leave(n int) {
	s.mu.Lock()
	at := s.mu.nodes[n-1]
	at.leaving = true
	var open []*stream
	for st := range at.streams {
		open = append(open, st)
	}
	s.mu.Unlock()
	for _, st := range open {
		_ = st.send(&kv.Frame{Kind: kv.FrameLeaving}) // a broken one ends by itself
	}
	for _, st := range open {
		<-st.over
	}
	s.mu.Lock()
	g := at.grpc
	at.grpc = nil
	s.mu.Unlock()
	if g != nil {
		g.GracefulStop() // what was answered leaves before the connections close
	}
}

// Restart starts a stopped node again, at its address.
func (s *Server) Restart(n int) error {
	return s.mu.nodes[n-1].start(s.mu.nodes[n-1].addr)
}

// Split splits the range of a user's key there.
func (s *Server) Split(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.cluster.Split(kv.UserKey(nil, []byte(key)))
}

// Merge merges the range of a user's key with its right neighbour; nothing happens if
// it has none.
func (s *Server) Merge(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.cluster.Merge(kv.UserKey(nil, []byte(key)))
}

// Transfer moves the leader of a user's key to a node (from 1).
func (s *Server) Transfer(key string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.cluster.Holder(kv.UserKey(nil, []byte(key))).Leader = ids.NodeID(n)
}

// Fates decides what becomes of each request from now on; nil serves all. It
// is called with the node (from 1), one request at a time.
func (s *Server) Fates(fate func(node int, r *kv.Request) Fate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.fate = fate
}

// Effects returns how often each write of the cluster took effect.
func (s *Server) Effects() map[kv.Identity]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[kv.Identity]int, len(s.mu.cluster.Applied))
	for id, n := range s.mu.cluster.Applied {
		all[id] = n
	}
	return all
}

// start listens and serves.
func (n *node) start(addr string) error {
	listener, err := listen(addr)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	g := grpc.NewServer(
		grpc.ForceServerCodecV2(framecodec.Codec{}), grpc.MaxRecvMsgSize(kv.MaxFrameBytes+64<<10),
	)
	g.RegisterService(streamService(), n)
	adminpb.RegisterAdminServer(g, &admin{node: n})
	n.server.mu.Lock()
	n.addr, n.grpc, n.leaving = listener.Addr().String(), g, false
	n.server.mu.Unlock()
	n.server.running.Go(func() {
		_ = g.Serve(listener) // ends when the node is stopped
	})
	return nil
}

// listen tries for a moment: a port that was just left may linger.
func listen(addr string) (l net.Listener, err error) {
	for range 50 {
		if l, err = net.Listen("tcp", addr); err == nil {
			return l, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, err
}

// admin is the Admin service of a node.
type admin struct {
	adminpb.UnimplementedAdminServer
	node *node
}

// Lookup serves from the model.
func (a *admin) Lookup(
	_ context.Context, r *adminpb.LookupRequest,
) (*adminpb.LookupReply, error) {
	s := a.node.server
	s.mu.Lock()
	defer s.mu.Unlock()
	reply := s.mu.cluster.Lookup(r)
	for _, n := range s.mu.nodes {
		reply.Nodes = append(reply.Nodes, n.descriptor())
	}
	return reply, nil
}

// Status reports the nodes, or the one that is asked.
func (a *admin) Status(
	_ context.Context, r *adminpb.StatusRequest,
) (*adminpb.StatusReply, error) {
	s := a.node.server
	s.mu.Lock()
	defer s.mu.Unlock()
	reply := &adminpb.StatusReply{
		ClusterId: ClusterID, AnsweredBy: uint64(a.node.id), Ready: true,
		Ranges: uint64(len(s.mu.cluster.Ranges)), ReplicationFactor: 3,
	}
	for _, n := range s.mu.nodes {
		if r.GetLocalOnly() && n != a.node {
			continue
		}
		reply.Nodes = append(reply.Nodes, &adminpb.NodeStatus{
			Node: n.descriptor(), Live: n.grpc != nil, Version: "in memory",
			Replicas: uint32(len(s.mu.cluster.Ranges)), Leaders: s.leadersLocked(n.id),
		})
	}
	return reply, nil
}

func (s *Server) leadersLocked(n ids.NodeID) (led uint32) {
	for _, r := range s.mu.cluster.Ranges {
		if r.Leader == n {
			led++
		}
	}
	return led
}

// ListRanges lists the ranges that overlap a span.
func (a *admin) ListRanges(
	ctx context.Context, r *adminpb.ListRangesRequest,
) (*adminpb.ListRangesReply, error) {
	start, end := r.GetStart(), r.GetEnd()
	if len(end) == 0 {
		end = []byte{kv.EndPrefix}
	}
	reply, err := a.Lookup(ctx, &adminpb.LookupRequest{Start: start, End: end})
	return &adminpb.ListRangesReply{Ranges: reply.GetRanges()}, err
}

// SplitRange splits a range at a key, which must be given.
func (a *admin) SplitRange(
	_ context.Context, r *adminpb.SplitRangeRequest,
) (*adminpb.SplitRangeReply, error) {
	s := a.node.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(r.GetKey()) == 0 || !s.mu.cluster.Split(r.GetKey()) {
		return nil, status.Error(codes.FailedPrecondition, "a range cannot be split at its start")
	}
	right := s.mu.cluster.Holder(r.GetKey()).Desc
	for _, l := range s.mu.cluster.Ranges {
		if string(l.Desc.GetEnd()) == string(right.GetStart()) {
			return &adminpb.SplitRangeReply{Left: l.Desc, Right: right}, nil
		}
	}
	return nil, status.Error(codes.Internal, "the left half is gone")
}

// TransferLeader moves the leader of a range.
func (a *admin) TransferLeader(
	_ context.Context, r *adminpb.TransferLeaderRequest,
) (*adminpb.TransferLeaderReply, error) {
	s := a.node.server
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rg := range s.mu.cluster.Ranges {
		if rg.Desc.GetRangeId() == r.GetRangeId() {
			rg.Leader = ids.NodeID(r.GetToNode())
			return &adminpb.TransferLeaderReply{LeaderNode: r.GetToNode()}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "there is no range %d", r.GetRangeId())
}
