package clienttest

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/framecodec"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// streamService describes the batch stream, whose messages are raw frames.
func streamService() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "flotilla.KV",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "Stream", ServerStreams: true, ClientStreams: true,
			Handler: func(srv any, stream grpc.ServerStream) error {
				return srv.(*node).serve(stream)
			},
		}},
	}
}

// refuseMillis is the pause that a refusal asks for.
const refuseMillis = 200

var errCut = errors.New("the stream was cut")

// descriptor says where a node is.
func (n *node) descriptor() *metapb.NodeDescriptor {
	return &metapb.NodeDescriptor{NodeId: uint64(n.id), Address: n.addr, StoreId: uint64(n.id)}
}

// stream is one stream of a client.
type stream struct {
	grpc.ServerStream
	node *node
	mu   sync.Mutex // guards SendMsg
	over chan struct{}
}

// serve is one stream: a hello each way, then answers to requests.
func (n *node) serve(s grpc.ServerStream) error {
	st := &stream{ServerStream: s, node: n, over: make(chan struct{})}
	defer close(st.over)
	n.server.mu.Lock()
	n.streams[st] = true
	late := n.leaving
	n.server.mu.Unlock()
	defer func() {
		n.server.mu.Lock()
		defer n.server.mu.Unlock()
		delete(n.streams, st)
	}()
	if late {
		return status.Error(codes.Unavailable, "the node stops")
	}
	if err := st.greet(); err != nil {
		return err
	}
	return st.serve()
}

// greet exchanges hellos.
func (st *stream) greet() error {
	n := st.node
	f, err := receive(st)
	if err != nil {
		return err
	}
	var theirs metapb.Hello
	if f.Kind != kv.FrameHello || proto.Unmarshal(f.Hello, &theirs) != nil {
		return errors.New("the stream did not open with a hello")
	}
	if to := theirs.GetToNodeId(); to != 0 && to != uint64(n.id) {
		return fmt.Errorf("this is node %v, not n%d", n.id, to)
	}
	hello, err := proto.Marshal(&metapb.Hello{
		ProtocolMin: 1, ProtocolMax: 1, ClusterId: ClusterID, NodeId: uint64(n.id), Life: 1,
	})
	if err != nil {
		return err
	}
	return st.send(&kv.Frame{Kind: kv.FrameHello, Hello: hello})
}

// serve answers until the client has said all.
func (st *stream) serve() error {
	for {
		f, err := receive(st)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		answers := &kv.Frame{Kind: kv.FrameResponses}
		for i := range f.Requests {
			r, err := st.node.answer(&f.Requests[i])
			if err != nil {
				return err
			}
			if r != nil {
				answers.Responses = append(answers.Responses, *r)
			}
		}
		if err := st.send(answers); err != nil {
			return err
		}
	}
}

// answer lets a request have its fate.
func (n *node) answer(r *kv.Request) (*kv.Response, error) {
	s := n.server
	s.mu.Lock()
	defer s.mu.Unlock()
	fate := Serve
	if s.mu.fate != nil {
		fate = s.mu.fate(int(n.id), r)
	}
	switch fate {
	case Ignore:
		return nil, nil
	case CutBefore:
		return nil, errCut
	case Refuse:
		return &kv.Response{
			ID: r.ID, Code: kv.CodeUnavailable, RetryAfterMillis: refuseMillis,
			Message: "refused by the test",
		}, nil
	}
	answer := s.mu.cluster.Handle(n.id, r)
	switch fate {
	case LoseAnswer:
		return nil, nil
	case CutAfter:
		return nil, errCut
	}
	return answer, nil
}

// send sends a frame with the highest clock of the cluster.
func (st *stream) send(f *kv.Frame) error {
	s := st.node.server
	s.mu.Lock()
	f.Stamp = hlc.Timestamp(startOfClocks)
	for _, r := range s.mu.cluster.Ranges {
		f.Stamp = max(f.Stamp, r.Clock)
	}
	s.mu.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.SendMsg(&framecodec.Raw{Data: f.AppendTo(make([]byte, 0, f.Size()))})
}

func receive(stream grpc.ServerStream) (*kv.Frame, error) {
	var raw framecodec.Raw
	if err := stream.RecvMsg(&raw); err != nil {
		return nil, err
	}
	f := &kv.Frame{}
	return f, kv.DecodeFrame(raw.Data, f)
}
