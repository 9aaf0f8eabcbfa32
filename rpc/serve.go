package rpc

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/framecodec"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const (
	serviceName    = "flotilla.Peer"
	messagesMethod = "/" + serviceName + "/Messages"
	snapshotMethod = "/" + serviceName + "/Snapshot"
)

func messagesStream() grpc.StreamDesc {
	return grpc.StreamDesc{
		StreamName: "Messages", ServerStreams: true, ClientStreams: true,
		Handler: func(srv any, s grpc.ServerStream) error {
			return srv.(peerService).serveMessages(s)
		},
	}
}

func snapshotStream() grpc.StreamDesc {
	return grpc.StreamDesc{
		StreamName: "Snapshot", ServerStreams: true, ClientStreams: true,
		Handler: func(srv any, s grpc.ServerStream) error {
			return srv.(peerService).serveSnapshot(s)
		},
	}
}

// peerService is what grpc checks the registered value against.
type peerService interface {
	serveMessages(s grpc.ServerStream) error
	serveSnapshot(s grpc.ServerStream) error
}

// Register adds the raft and snapshot stream services to a server.
func (t *Transport) Register(s *grpc.Server) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*peerService)(nil),
		Streams:     []grpc.StreamDesc{messagesStream(), snapshotStream()},
	}, t)
}

// rawStream is what client and server streams have in common.
type rawStream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
}

// protoFrame returns a sealed frame with a protobuf payload.
func (t *Transport) protoFrame(k kind, m proto.Message) ([]byte, error) {
	buf, err := proto.MarshalOptions{}.MarshalAppend(beginFrame(nil, k, t.cfg.Self), m)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", m, err)
	}
	return sealFrame(buf, t.cfg.Clock.Peek()), nil
}

// receive reads one frame, checks it, and adopts its stamp before anything of it
// is handled. Only messages frames are excepted: the host adopts theirs, since
// it must drop them whole when that fails.
func (t *Transport) receive(s rawStream) (envelope, error) {
	env, err := t.read(s)
	if err == nil && env.kind != kindMessages {
		err = t.adopt(env)
	}
	if err != nil {
		return envelope{}, err
	}
	return env, nil
}

// read reads one frame and checks it; its stamp is not adopted yet.
func (t *Transport) read(s rawStream) (envelope, error) {
	var in framecodec.Raw
	if err := s.RecvMsg(&in); err != nil {
		return envelope{}, err
	}
	t.metrics.framesIn.Add(1)
	t.metrics.bytesIn.Add(uint64(len(in.Data)))
	env, err := openFrame(in.Data)
	if err != nil {
		t.metrics.rejected.Add(1)
		return envelope{}, fmt.Errorf("receive frame: %w", err)
	}
	return env, nil
}

// adopt moves the clock to a frame's stamp. After an error nothing of the frame
// may be handled: what it carries may rest on what its sender had served by then.
func (t *Transport) adopt(env envelope) error {
	if canary.On(canary.StampsIgnored) {
		return nil
	}
	if err := t.cfg.Clock.Update(env.stamp); err != nil {
		t.metrics.rejected.Add(1)
		t.cfg.Refused(env.stamp)
		if canary.On(canary.StampRefusedStepped) {
			return nil
		}
		return fmt.Errorf("receive frame: %w", err)
	}
	return nil
}

func (t *Transport) receiveProto(s rawStream, want kind, m proto.Message) error {
	env, err := t.receive(s)
	if err != nil {
		return err
	}
	if env.kind != want {
		return fmt.Errorf("%w: kind %d where %d was expected", errCorrupt, env.kind, want)
	}
	if err := proto.Unmarshal(env.payload, m); err != nil {
		return fmt.Errorf("decode %T: %w", m, err)
	}
	return nil
}

// greet checks a hello: the protocols must overlap, and Met must agree.
func (t *Transport) greet(h *metapb.Hello) error {
	if h.GetProtocolMin() > ProtocolMax || h.GetProtocolMax() < ProtocolMin {
		return fmt.Errorf("n%d speaks protocols %d to %d, this node %d to %d: "+
			"upgrade the older one",
			h.GetNodeId(), h.GetProtocolMin(), h.GetProtocolMax(), ProtocolMin, ProtocolMax)
	}
	return t.cfg.Met(h)
}

// accept exchanges hellos on an inbound stream. It returns who called, and
// superseded, which says that a later life of that node has called since: the
// caller's process is dead then, and its late frames must not be heard.
func (t *Transport) accept(
	s grpc.ServerStream,
) (from ids.NodeID, superseded func() bool, err error) {
	h := &metapb.Hello{}
	if err := t.receiveProto(s, kindHello, h); err != nil {
		return 0, nil, status.Error(codes.InvalidArgument, err.Error())
	}
	from = ids.NodeID(h.GetNodeId())
	if to := ids.NodeID(h.GetToNodeId()); to != t.cfg.Self {
		return 0, nil, status.Errorf(codes.FailedPrecondition,
			"this is %v, the stream is meant for %v: its address has changed", t.cfg.Self, to)
	}
	if from == 0 || from == t.cfg.Self {
		return 0, nil, status.Errorf(codes.FailedPrecondition,
			"%v calls itself %v", from, t.cfg.Self)
	}
	if err := t.greet(h); err != nil {
		t.cfg.Logger.Warn("refused a stream", "node", from, "error", err)
		return 0, nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	newest := t.supersede(from, h.GetLife())
	answer := t.cfg.Hello()
	answer.ToNodeId = uint64(from)
	frame, err := t.protoFrame(kindHello, answer)
	if err != nil {
		return 0, nil, status.Error(codes.Internal, err.Error())
	}
	life := h.GetLife()
	superseded = func() bool { return newest.Load() > life }
	return from, superseded, s.SendMsg(&framecodec.Raw{Data: frame})
}

// supersede notes that a life of a node was met: frames of earlier ones must not
// be heard any more.
func (t *Transport) supersede(n ids.NodeID, life uint64) *atomic.Uint64 {
	newest := t.life(n)
	for old := newest.Load(); old < life; old = newest.Load() {
		if newest.CompareAndSwap(old, life) {
			t.hasten(n)
			break
		}
	}
	return newest
}

func (t *Transport) life(n ids.NodeID) *atomic.Uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	l, ok := t.lives[n]
	if !ok {
		l = new(atomic.Uint64)
		t.lives[n] = l
	}
	return l
}

// alive tells the other side once a second that this process lives, whatever
// the other direction carries at the moment.
func (t *Transport) alive(ctx context.Context, send func(frame []byte) error) {
	for {
		t.cfg.Pause(ctx, aliveEvery)
		if ctx.Err() != nil {
			return
		}
		frame := sealFrame(beginFrame(nil, kindAlive, t.cfg.Self), t.cfg.Clock.Peek())
		if send(frame) != nil {
			return
		}
	}
}

// serveMessages receives the raft messages of one peer.
func (t *Transport) serveMessages(s grpc.ServerStream) error {
	from, superseded, err := t.accept(s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(s.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		t.alive(ctx, func(f []byte) error { return s.SendMsg(&framecodec.Raw{Data: f}) })
	})
	for {
		env, err := t.receive(s)
		if err != nil {
			return err
		}
		if env.kind != kindMessages || env.from != from {
			return status.Errorf(codes.InvalidArgument,
				"frame of kind %d from %v on the stream of %v", env.kind, env.from, from)
		}
		if superseded() {
			return status.Errorf(codes.Aborted, "%v has started anew since", from)
		}
		msgs, err := decodeMessages(env.payload)
		if err != nil {
			t.metrics.rejected.Add(1)
			return status.Error(codes.DataLoss, err.Error())
		}
		msgs = dropLocal(msgs)
		t.metrics.messagesIn.Add(uint64(len(msgs)))
		t.cfg.Receive(multiraft.Frame{From: from, Stamp: env.stamp, Messages: msgs})
	}
}

// dropLocal removes messages that no peer may send: raft's own local ones,
// which RawNode would take for its own, among them MsgForgetLeader, which its
// check for local messages misses; and proposals, since forwarding is off: a
// write belongs to the term and node that evaluated it.
func dropLocal(msgs []multiraft.Message) []multiraft.Message {
	kept := msgs[:0]
	for _, m := range msgs {
		if m.Raft != nil {
			t := m.Raft.GetType()
			if raft.IsLocalMsg(t) || t == raftpb.MsgForgetLeader || t == raftpb.MsgProp {
				continue
			}
		}
		kept = append(kept, m)
	}
	clear(msgs[len(kept):])
	return kept
}
