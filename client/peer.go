package client

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/client/core"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/framecodec"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const (
	streamMethod = "/flotilla.KV/Stream"

	protocolMin = 1
	protocolMax = 1

	// maxQueued requests wait for one node at most; more are refused and tried
	// elsewhere, or later.
	maxQueued = 1 << 16
	// A frame is closed at either of these.
	frameRequests = 1024
	frameBytes    = 256 << 10

	// oneWake: a wake-up that is pending covers all that is queued.
	oneWake = 1
)

// peer is the way to one node: a queue, and a stream while there is use for it.
//
// Its writer alone opens streams and sends; the reader of a stream alone
// receives from it. A stream is opened when something is queued, and when it
// breaks nothing is queued again here: the core decides where requests go.
type peer struct {
	client *Client
	id     ids.NodeID
	wake   chan struct{}

	mu struct {
		sync.Mutex
		queue []kv.Request
		// end ends the session that runs, nil if none does; broken says that its
		// connection must not be used again.
		end    context.CancelFunc
		broken bool
	}

	// writer only
	spare []kv.Request
	frame kv.Frame
}

func newPeer(c *Client, id ids.NodeID) *peer {
	return &peer{client: c, id: id, wake: make(chan struct{}, oneWake)}
}

// enqueue copies a request into the queue; false if that is full.
func (p *peer) enqueue(r *kv.Request) bool {
	p.mu.Lock()
	full := len(p.mu.queue) >= maxQueued
	if !full {
		p.mu.queue = append(p.mu.queue, *r)
	}
	p.mu.Unlock()
	if full {
		return false
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return true
}

// drain takes all that is queued.
func (p *peer) drain() []kv.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.mu.queue
	p.mu.queue = p.spare[:0]
	p.spare = nil
	return q
}

// recycle gives a drained queue back, without what it pointed to.
func (p *peer) recycle(q []kv.Request) {
	clear(q)
	p.spare = q[:0]
}

// run is the writer: one session after another, until the client closes.
func (p *peer) run() {
	for {
		select {
		case <-p.client.ctx.Done():
			return
		case <-p.wake:
		}
		// The reason reaches callers as what the core notes: that the node was
		// lost, or could not be reached. There is nobody else to tell.
		addr := p.client.directory.address(p.id)
		_ = p.session(addr)
		if p.over() {
			p.client.directory.drop(addr)
		}
		p.fail()
	}
}

// reset ends the session and its connection: any goroutine.
func (p *peer) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.end != nil {
		p.mu.broken = true
		p.mu.end()
	}
}

// begin notes how the session that begins is ended.
func (p *peer) begin(end context.CancelFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.end = end
}

// over says whether the session that ended was reset.
func (p *peer) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	broken := p.mu.broken
	p.mu.end, p.mu.broken = nil, false
	return broken
}

// fail hands everything back to the core: what is still queued as never sent,
// the rest as lost.
func (p *peer) fail() {
	p.handBack(func(k *core.Core, now time.Duration) { k.Lost(now, p.id) })
}

// handBack tells the core what is still queued, and then does something.
func (p *peer) handBack(then func(*core.Core, time.Duration)) {
	unsent := p.drain()
	p.client.step(func(k *core.Core, now time.Duration) {
		for i := range unsent {
			k.NotSent(now, p.id, unsent[i].ID)
		}
		then(k, now)
	})
	p.recycle(unsent)
}

// session opens a stream and sends until it breaks. Until the node has said
// hello nothing is sent, so that all of it counts as not sent.
func (p *peer) session(addr string) error {
	if addr == "" {
		return fmt.Errorf("node %v: address unknown", p.id)
	}
	conn, err := p.client.directory.conn(addr, p.client.options.dial)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(p.client.ctx)
	defer cancel()
	p.begin(cancel)
	patience := time.AfterFunc(connectTimeout, cancel)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{
		StreamName: "Stream", ServerStreams: true, ClientStreams: true,
	}, streamMethod, grpc.ForceCodecV2(framecodec.Codec{}))
	if err != nil {
		return err
	}
	if err := p.greet(stream); err != nil {
		return err
	}
	if !patience.Stop() {
		return fmt.Errorf("node %v: no hello within %v", p.id, connectTimeout)
	}
	var reader sync.WaitGroup
	leaving := make(chan struct{})
	reader.Go(func() {
		defer cancel()
		_ = p.receive(stream, leaving) // the stream is over; the writer says so
	})
	defer reader.Wait()
	defer cancel()
	return p.transmit(ctx, stream, leaving)
}

// greet exchanges hellos.
func (p *peer) greet(stream grpc.ClientStream) error {
	stamp := p.client.stamp.Load()
	hello, err := proto.Marshal(&metapb.Hello{
		ProtocolMin: protocolMin, ProtocolMax: protocolMax,
		ClusterId: p.client.directory.clusterID(), Stamp: stamp, ToNodeId: uint64(p.id),
	})
	if err != nil {
		return fmt.Errorf("encode hello: %w", err)
	}
	err = p.sendFrame(stream, &kv.Frame{
		Kind: kv.FrameHello, Stamp: hlc.Timestamp(stamp), Hello: hello,
	})
	if err != nil {
		return err
	}
	f, err := receiveFrame(stream)
	if err != nil {
		return err
	}
	var theirs metapb.Hello
	if f.Kind != kv.FrameHello {
		return errors.New("the stream did not open with a hello")
	}
	if err := proto.Unmarshal(f.Hello, &theirs); err != nil {
		return fmt.Errorf("decode hello: %w", err)
	}
	switch {
	case theirs.GetNodeId() != uint64(p.id):
		return fmt.Errorf("node %v answered in the place of %v", theirs.GetNodeId(), p.id)
	case theirs.GetProtocolMin() > protocolMax || theirs.GetProtocolMax() < protocolMin:
		return fmt.Errorf("node %v speaks protocol %d to %d, this client %d to %d", p.id,
			theirs.GetProtocolMin(), theirs.GetProtocolMax(), protocolMin, protocolMax)
	}
	if err := p.client.directory.meet(theirs.GetClusterId()); err != nil {
		return err
	}
	stamped := max(f.Stamp, hlc.Timestamp(theirs.GetStamp()))
	p.client.received(p.id, &kv.Frame{Stamp: stamped})
	return nil
}

// transmit sends all that is queued, each time it is woken, in as few frames
// as the bounds allow. It yields once before it drains: callers that are about
// to queue get into the same frame, and a lone caller loses nothing.
// Once the node is leaving it sends nothing more, and stays until all is
// answered.
func (p *peer) transmit(
	ctx context.Context, stream grpc.ClientStream, leaving <-chan struct{},
) error {
	for {
		runtime.Gosched()
		q := p.drain()
		for rest := q; len(rest) > 0; {
			n := frameful(rest)
			p.frame = kv.Frame{
				Kind: kv.FrameRequests, Requests: rest[:n],
				Stamp: hlc.Timestamp(p.client.stamp.Load()),
			}
			if err := p.sendFrame(stream, &p.frame); err != nil {
				return err // what follows in q counts as lost, like this frame
			}
			rest = rest[n:]
		}
		p.recycle(q)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-leaving:
			p.handBack(func(*core.Core, time.Duration) {})
			if err := stream.CloseSend(); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		case <-p.wake:
		}
	}
}

// frameful returns how many requests go into the next frame.
func frameful(q []kv.Request) int {
	size := 0
	for i := range q {
		size += q[i].Size()
		if i > 0 && size > frameBytes || i == frameRequests {
			return i
		}
	}
	return len(q)
}

// sendFrame encodes a frame into a pooled buffer, which grpc gives back once
// it is on the wire.
func (p *peer) sendFrame(stream grpc.ClientStream, f *kv.Frame) error {
	pool := mem.DefaultBufferPool()
	buf := pool.Get(f.Size())
	data := f.AppendTo((*buf)[:0])
	return stream.SendMsg(&framecodec.Raw{Data: data, Pool: pool})
}

// receiveFrame reads and decodes one frame.
func receiveFrame(stream grpc.ClientStream) (*kv.Frame, error) {
	var raw framecodec.Raw
	if err := stream.RecvMsg(&raw); err != nil {
		return nil, err
	}
	f := &kv.Frame{} // a new one each time: responses go to their callers
	if err := kv.DecodeFrame(raw.Data, f); err != nil {
		return nil, err
	}
	return f, nil
}

// receive is the reader of one stream.
func (p *peer) receive(stream grpc.ClientStream, leaving chan<- struct{}) error {
	said := false
	for {
		f, err := receiveFrame(stream)
		if err != nil {
			return err
		}
		p.client.received(p.id, f)
		if f.Kind == kv.FrameLeaving && !said {
			said = true
			close(leaving)
		}
	}
}
