// Package rpc carries messages between nodes: per peer and class (raft,
// snapshot, control) its own connection, a hand-written raft codec, one
// sender that drains its bounded queue into one frame.
//
// CONTRACT STUB: signatures are fixed, bodies are to be written (doc.go,
// codec.go (raft frames), transport.go, peer.go, serve.go, snapshot.go,
// dial.go). The grpc codec that passes raw frames and protobuf alike lives in
// the leaf package proto/framecodec, for client and rpc both.
package rpc

import (
	"context"
	"log/slog"

	"google.golang.org/grpc"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/ranges"
)

// Config configures the transport of a node.
type Config struct {
	Self                   ids.NodeID
	Clock                  *hlc.Hybrid
	Hello                  func() *metapb.Hello      // what this node says when it opens a stream
	Met                    func(*metapb.Hello) error // checks and remembers a peer's hello (cluster, life, mark); error: refuse the stream
	Resolve                func(ids.NodeID) (addr string, ok bool)
	Receive                func(multiraft.Frame) // Host.Receive
	Lost                   func(ids.NodeID)      // Host.Unreachable
	Admit                  func(*metapb.SnapshotHeader) (*ranges.Admission, error)
	Logger                 *slog.Logger
	SnapshotsOut           int // tokens, default 2
	SnapshotBytesPerSecond int // pace per node, default 64 MiB/s
}

// Transport implements multiraft.Transport over gRPC.
type Transport struct{}

// NewTransport makes a transport; streams are opened on demand after Run began.
func NewTransport(cfg Config) *Transport { panic("unimplemented") }

// Run owns all senders and receivers; it blocks until ctx ends and all stopped.
func (t *Transport) Run(ctx context.Context) error { panic("unimplemented") }

// Register adds the raft and snapshot stream services to a server.
func (t *Transport) Register(s *grpc.Server) { panic("unimplemented") }

// Control returns a client for a node's Control and Admin services (control class connection).
func (t *Transport) Control(n ids.NodeID) (adminpb.ControlClient, adminpb.AdminClient, error) {
	panic("unimplemented")
}

// NewServer returns a gRPC server with every limit set that grpc leaves open,
// and Dial a connection with the matching settings.
func NewServer(opts ...grpc.ServerOption) *grpc.Server                    { panic("unimplemented") }
func Dial(addr string, opts ...grpc.DialOption) (*grpc.ClientConn, error) { panic("unimplemented") }
