package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/framecodec"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/ranges"
	"github.com/flotilla-kv/flotilla/rpc"
)

// Bounds of one client stream. When either is reached the stream is not read
// any further until answers have left: the client's own window then fills, and
// nothing is refused or lost.
const (
	maxStreamRequests = 4096
	maxStreamBytes    = 64 << 20 // of requests, and of answers as foreseen

	// targetResponseFrame ends a frame of responses.
	targetResponseFrame = 1 << 20
	// stampEvery is how often a quiet stream carries a stamp, so that the
	// client's floors stay fresh.
	stampEvery = 5 * time.Second

	// What an answer is foreseen to weigh: a value, and a row of a scan.
	foreseenValue = 4 << 10
	foreseenRow   = 1 << 10

	// retryAfterBound is the advice when a frame's stamp could not be adopted.
	retryAfterBound = 20 // milliseconds
)

// kvService is the door for clients: one bidirectional stream per client and
// node, frames of requests one way, of responses the other.
type kvService struct {
	submit  func([]ranges.Call) // Table.SubmitBatch
	clock   *hlc.Hybrid
	heard   func(hlc.Timestamp) // told of stamps that were not adopted
	hello   func() *metapb.Hello
	self    ids.NodeID
	cluster uint64
	leaving chan struct{} // closed when clients are to go; see drain.go
	metrics kvMetrics
}

// kvServer is what grpc checks the registered value against.
type kvServer interface {
	serve(s grpc.ServerStream) error
}

func (k *kvService) register(s *grpc.Server) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "flotilla.KV",
		HandlerType: (*kvServer)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "Stream", ServerStreams: true, ClientStreams: true,
			Handler: func(srv any, s grpc.ServerStream) error { return srv.(kvServer).serve(s) },
		}},
	}, k)
}

// kvStream is one client's stream. The reader is grpc's handler goroutine.
type kvStream struct {
	k      *kvService
	s      grpc.ServerStream
	ctx    context.Context
	answer chan struct{} // something in out
	room   chan struct{} // something was sent
	batch  []ranges.Call // the reader's, for reuse

	mu       sync.Mutex
	out      []answered
	requests int // in flight: read and not yet sent
	bytes    int
	closed   bool
}

// answered is a response that waits to be sent, and what it held of the bounds.
type answered struct {
	response *kv.Response
	weight   int
}

// pending is one request in flight.
type pending struct {
	stream  *kvStream
	request *kv.Request
	weight  int
	began   time.Time
}

// serve runs one stream until the client ends it or it breaks.
func (k *kvService) serve(s grpc.ServerStream) error {
	k.metrics.streams.Add(1) // before the look: either leave sees this one, or it sees leave
	defer k.metrics.streams.Add(-1)
	select {
	case <-k.leaving:
		return status.Error(codes.Unavailable, "the node stops")
	default:
	}
	if err := k.greet(s); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(s.Context())
	c := &kvStream{
		k: k, s: s, ctx: ctx,
		answer: make(chan struct{}, wakeSlots), room: make(chan struct{}, wakeSlots),
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer c.close()
	wg.Go(func() {
		c.write()
		cancel() // a writer that failed ends the reader's waits
	})
	err := c.read()
	if errors.Is(err, io.EOF) {
		return c.finish() // the client has said all: it still gets its answers
	}
	return err
}

// greet exchanges hellos.
func (k *kvService) greet(s grpc.ServerStream) error {
	var in framecodec.Raw
	if err := s.RecvMsg(&in); err != nil {
		return err
	}
	var f kv.Frame
	hello := &metapb.Hello{}
	err := kv.DecodeFrame(in.Data, &f)
	if err == nil && f.Kind != kv.FrameHello {
		err = fmt.Errorf("the first frame has kind %d, a hello was expected", f.Kind)
	}
	if err == nil {
		err = proto.Unmarshal(f.Hello, hello)
	}
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	switch to := ids.NodeID(hello.GetToNodeId()); {
	case hello.GetProtocolMin() > rpc.ProtocolMax || hello.GetProtocolMax() < rpc.ProtocolMin:
		return status.Errorf(codes.FailedPrecondition,
			"the client speaks protocols %d to %d, this node %d to %d: upgrade the older one",
			hello.GetProtocolMin(), hello.GetProtocolMax(), rpc.ProtocolMin, rpc.ProtocolMax)
	case hello.GetClusterId() != 0 && hello.GetClusterId() != k.cluster:
		return status.Errorf(codes.FailedPrecondition,
			"this node belongs to cluster %016x, the client to %016x: check its endpoints",
			k.cluster, hello.GetClusterId())
	case to != 0 && to != k.self:
		return status.Errorf(codes.FailedPrecondition,
			"this is %v, the stream is meant for %v: its address has changed", k.self, to)
	}
	if err := k.adopt(f.Stamp); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	data, err := proto.Marshal(k.hello())
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return s.SendMsg(&framecodec.Raw{Data: kv.AppendHello(nil, k.clock.Peek(), data)})
}

// adopt moves the clock to a client's stamp before anything in its frame is
// handled. Clients only pass on what nodes have issued.
func (k *kvService) adopt(stamp hlc.Timestamp) error {
	if err := k.clock.Update(stamp); err != nil {
		k.heard(stamp)
		return fmt.Errorf("adopt the client's clock: %w", err)
	}
	return nil
}

func (c *kvStream) read() error {
	for {
		var in framecodec.Raw
		if err := c.s.RecvMsg(&in); err != nil {
			return err
		}
		// A new frame each time: its requests live until they are answered.
		var f kv.Frame
		if err := kv.DecodeFrame(in.Data, &f); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		refusal := c.k.adopt(f.Stamp)
		switch f.Kind {
		case kv.FrameStamp:
			continue
		case kv.FrameRequests:
		default:
			return status.Errorf(codes.InvalidArgument, "frame of kind %d from a client", f.Kind)
		}
		if err := c.submit(&f, refusal); err != nil {
			return err
		}
	}
}

// submit hands the requests of a frame over together: its gets share one look at
// the clock and one iterator.
func (c *kvStream) submit(f *kv.Frame, refusal error) error {
	calls := make([]pending, len(f.Requests))
	began := time.Now()
	batch := c.batch[:0]
	for i := range f.Requests {
		req := &f.Requests[i]
		calls[i] = pending{stream: c, request: req, weight: weight(req), began: began}
		if !c.enter(calls[i].weight) {
			// What is to make room may be in this very batch.
			c.k.submit(batch)
			batch = batch[:0]
			if err := c.admit(calls[i].weight); err != nil {
				return err
			}
		}
		if bad := refuse(req, refusal); bad != nil {
			calls[i].done(bad)
			continue
		}
		batch = append(batch, ranges.Call{Request: req, Done: calls[i].done})
	}
	c.k.submit(batch)
	clear(batch)
	c.batch = batch
	return nil
}

// weight foresees what a request and its answer hold of memory.
func weight(r *kv.Request) int {
	n := r.Size()
	switch r.Verb {
	case kv.VerbGet:
		n += foreseenValue
	case kv.VerbScan:
		rows := int(r.Limit)
		if rows == 0 {
			rows = kv.MaxScanLimit
		}
		n += min(rows*foreseenRow+foreseenValue, kv.MaxScanBytes)
	}
	return n
}

// enter counts one more request if the bounds have room for it. One that is above
// the bound by itself passes when it is alone.
func (c *kvStream) enter(weight int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests > 0 && (c.requests >= maxStreamRequests || c.bytes+weight > maxStreamBytes) {
		return false
	}
	c.requests++
	c.bytes += weight
	return true
}

// admit waits until there is room.
func (c *kvStream) admit(weight int) error {
	for !c.enter(weight) {
		select {
		case <-c.room:
		case <-c.ctx.Done():
			return status.FromContextError(c.ctx.Err()).Err()
		}
	}
	return nil
}

// done takes a response; any goroutine, a shard included, so it never blocks.
func (p *pending) done(r *kv.Response) {
	if r.ID != p.request.ID {
		copied := *r // it may be shared
		copied.ID = p.request.ID
		r = &copied
	}
	p.stream.k.metrics.answered(p.request.Verb, r.Code, time.Since(p.began))
	c := p.stream
	c.mu.Lock()
	if !c.closed {
		c.out = append(c.out, answered{r, p.weight})
	}
	c.mu.Unlock()
	wake(c.answer)
}

// write sends all that is answered, as it comes, until the stream ends.
func (c *kvStream) write() {
	ticker := time.NewTicker(stampEvery)
	defer ticker.Stop()
	var spare []answered
	quiet, leaving := true, c.k.leaving
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-leaving:
			leaving = nil
			bye := kv.AppendFrameHeader(nil, kv.FrameLeaving, c.k.clock.Peek(), 0)
			if c.s.SendMsg(&framecodec.Raw{Data: bye}) != nil {
				return
			}
			continue
		case <-ticker.C:
			if !quiet {
				quiet = true
				continue
			}
			stamp := kv.AppendStamp(nil, c.k.clock.Peek())
			if c.s.SendMsg(&framecodec.Raw{Data: stamp}) != nil {
				return
			}
			continue
		case <-c.answer:
		}
		// Shards and readers that are about to answer get their turn first.
		runtime.Gosched()
		c.mu.Lock()
		out := c.out
		c.out = spare[:0]
		c.mu.Unlock()
		if len(out) > 0 {
			quiet = false
			if c.send(out) != nil {
				return
			}
		}
		clear(out)
		spare = out
	}
}

// send sends responses in as many frames as they need.
func (c *kvStream) send(out []answered) error {
	pool := mem.DefaultBufferPool()
	for len(out) > 0 {
		n, size, weight := 0, kv.FrameOverhead, 0
		for n < len(out) && n < kv.MaxFrameItems && size < targetResponseFrame {
			size += out[n].response.Size()
			weight += out[n].weight
			n++
		}
		buf := *pool.Get(size)
		// All n answers are there: the stamp read now lies above each version
		// that they name, and the clock never goes above its durable bound.
		buf = kv.AppendFrameHeader(buf[:0], kv.FrameResponses, c.k.clock.Peek(), n)
		for i := range out[:n] {
			buf = kv.AppendResponse(buf, out[i].response)
		}
		err := c.s.SendMsg(&framecodec.Raw{Data: buf, Pool: pool})
		c.mu.Lock()
		c.requests -= n
		c.bytes -= weight
		c.mu.Unlock()
		wake(c.room)
		if err != nil {
			return err
		}
		out = out[n:]
	}
	return nil
}

// finish waits until everything in flight is answered and sent.
func (c *kvStream) finish() error {
	for {
		c.mu.Lock()
		left := c.requests
		c.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-c.room:
		case <-c.ctx.Done():
			return status.FromContextError(c.ctx.Err()).Err()
		}
	}
}

// close drops answers that come later: there is nobody left to take them.
func (c *kvStream) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.out = nil
}
