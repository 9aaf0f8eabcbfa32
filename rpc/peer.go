package rpc

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/framecodec"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Bounds of the queue to one peer, what is being written included. When full,
// Send refuses all it was given: raft repeats what was lost, and dropping the
// newest keeps the order of what was queued.
const (
	maxQueuedMessages = 65_536
	maxQueuedBytes    = 64 << 20
)

// peer is the sender of raft messages to one node.
type peer struct {
	t    *Transport
	node ids.NodeID
	wake chan struct{}

	mu       sync.Mutex
	queue    []multiraft.Message
	spare    []multiraft.Message // the other half of the double buffer
	messages int                 // queued and being written
	bytes    int
	refusing bool               // waiting to dial again
	hurry    context.CancelFunc // ends that wait; nil: nobody waits

	// lost: the stream broke, or could not be opened, and no other is open. See
	// Transport.reaches.
	lost atomic.Bool
}

func newPeer(t *Transport, n ids.NodeID) *peer {
	return &peer{t: t, node: n, wake: make(chan struct{}, wakeSlots)}
}

func (p *peer) enqueue(msgs []multiraft.Message) bool {
	size := 0
	for i := range msgs {
		size += messageBytes(&msgs[i])
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// One message above the bound passes when it is alone, or it never would.
	full := p.messages+len(msgs) > maxQueuedMessages || p.bytes+size > maxQueuedBytes
	if p.refusing || full && p.messages > 0 {
		return false
	}
	p.queue = append(p.queue, msgs...)
	p.messages += len(msgs)
	p.bytes += size
	wake(p.wake)
	return true
}

// take swaps the queue out. The slice is the peer's again after done.
func (p *peer) take() []multiraft.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	msgs := p.queue
	p.queue, p.spare = p.spare[:0], nil
	return msgs
}

// sent releases what messages that left (or were lost) held of the bounds.
func (p *peer) sent(msgs []multiraft.Message) {
	size := 0
	for i := range msgs {
		size += messageBytes(&msgs[i])
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.messages -= len(msgs)
	p.bytes -= size
}

func (p *peer) recycle(msgs []multiraft.Message) {
	clear(msgs)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spare = msgs[:0]
}

// refuse drops everything queued and refuses more until accept: messages that
// wait through an outage would arrive stale, and raft must learn of it.
func (p *peer) refuse() (dropped int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	dropped = len(p.queue)
	clear(p.queue)
	p.queue = p.queue[:0]
	p.messages, p.bytes = 0, 0
	p.refusing = true
	return dropped
}

func (p *peer) accept() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusing, p.hurry = false, nil
}

// rest waits before the next attempt, shorter if somebody knows that the node is
// back.
func (p *peer) rest(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	p.hurry = cancel
	p.mu.Unlock()
	p.t.cfg.Pause(ctx, d)
}

// hasten ends a wait before the next attempt: a new process of the node was met.
func (p *peer) hasten() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hurry != nil {
		p.hurry()
	}
}

// run opens a stream when there is something to send, and again after it broke,
// whether there is or not: until then the two nodes do without each other's
// support.
func (p *peer) run(ctx context.Context) {
	verdict := "" // the peer's last refusal, told once
	for attempt := 0; ctx.Err() == nil; {
		if !p.lost.Load() {
			select {
			case <-ctx.Done():
				return
			case <-p.wake:
				wake(p.wake) // for the stream: the messages are still queued
			}
		}
		opened, err := p.stream(ctx)
		p.lost.Store(true)
		dropped := p.refuse()
		p.t.metrics.dropped.Add(uint64(dropped))
		if ctx.Err() != nil {
			return
		}
		if opened {
			attempt, verdict = 0, ""
			p.t.metrics.streamsLost.Add(1)
			p.t.cfg.Logger.Warn("raft stream lost",
				"node", p.node, "dropped", dropped, "error", err)
		} else {
			attempt++
			p.t.cfg.Logger.Debug("raft stream not opened", "node", p.node, "error", err)
			if status.Code(err) == codes.FailedPrecondition && err.Error() != verdict {
				verdict = err.Error()
				p.t.cfg.Logger.Warn("a peer refuses this node", "node", p.node, "error", err)
			}
		}
		if opened || dropped > 0 {
			p.t.cfg.Lost(p.node)
		}
		p.rest(ctx, redialAfter(p.t.cfg.Self, p.node, attempt))
		p.accept()
	}
}

// redialAfter returns how long to wait before the next attempt: doubling from
// reconnectMin to reconnectMax, spread over the upper half by a hash of who dials
// whom for which time, so that nodes do not come in step.
func redialAfter(self, to ids.NodeID, attempt int) time.Duration {
	d := reconnectMax
	if attempt < 7 {
		d = min(reconnectMin<<attempt, reconnectMax)
	}
	var b [24]byte
	binary.LittleEndian.PutUint64(b[:], uint64(self))
	binary.LittleEndian.PutUint64(b[8:], uint64(to))
	binary.LittleEndian.PutUint64(b[16:], uint64(attempt))
	return d/2 + time.Duration(xxhash.Sum64(b[:])%uint64(d/2+1))
}

// stream dials, exchanges hellos and pumps the queue until the stream breaks.
func (p *peer) stream(ctx context.Context) (opened bool, err error) {
	addr, ok := p.t.cfg.Resolve(p.node)
	if !ok {
		return false, fmt.Errorf("open raft stream to %v: %w", p.node, ErrUnknownNode)
	}
	conn, err := Dial(addr)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := p.t.link(cancel)
	defer p.t.unlink(l)
	s, err := p.t.open(ctx, conn, p.node, messagesStream(), messagesMethod)
	if err != nil {
		return false, fmt.Errorf("open raft stream to %v at %s: %w", p.node, addr, err)
	}
	l.heard()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // ends the listener
	heardErr := make(chan error, wakeSlots)
	wg.Go(func() {
		heardErr <- listen(s, l)
		cancel()
	})
	p.lost.Store(false)
	p.t.cfg.Logger.Info("raft stream opened", "node", p.node, "address", addr)
	err = p.pump(ctx, s)
	cancel()
	if said := <-heardErr; said != nil {
		err = said // the peer's own words say more than "cancelled"
	}
	return true, err
}

// listen hears the peer's alive frames until the stream ends.
func listen(s grpc.ClientStream, l *link) error {
	for {
		var in framecodec.Raw
		if err := s.RecvMsg(&in); err != nil {
			return err
		}
		l.heard()
	}
}

// pump sends what is queued, all of it at once, until the stream ends.
func (p *peer) pump(ctx context.Context, s grpc.ClientStream) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.wake:
		}
		// Shards that are about to send get their turn first: free under load,
		// and frames become larger. There is no linger.
		runtime.Gosched()
		msgs := p.take()
		err := p.write(s, msgs)
		p.recycle(msgs)
		if err != nil {
			return err
		}
	}
}

func (p *peer) write(s grpc.ClientStream, msgs []multiraft.Message) error {
	pool := mem.DefaultBufferPool()
	for len(msgs) > 0 {
		size := headerBytes
		for i := range msgs {
			if size += messageBytes(&msgs[i]); size >= targetFrameBytes {
				break
			}
		}
		buf := *pool.Get(size + checksumBytes)
		frame, taken, dropped := messagesFrame(buf[:0], p.t.cfg.Self, msgs, p.t.cfg.Clock.Peek)
		if dropped > 0 {
			p.t.metrics.dropped.Add(uint64(dropped))
			p.t.cfg.Logger.Error("raft messages cannot be encoded",
				"node", p.node, "count", dropped)
		}
		p.t.metrics.framesOut.Add(1)
		p.t.metrics.messagesOut.Add(uint64(taken - dropped))
		p.t.metrics.bytesOut.Add(uint64(len(frame)))
		err := s.SendMsg(&framecodec.Raw{Data: frame, Pool: pool})
		p.sent(msgs[:taken])
		if err != nil {
			return err
		}
		msgs = msgs[taken:]
	}
	return nil
}

// open opens a stream and exchanges hellos on it.
func (t *Transport) open(
	ctx context.Context, conn *grpc.ClientConn, n ids.NodeID, desc grpc.StreamDesc, method string,
) (grpc.ClientStream, error) {
	s, err := conn.NewStream(ctx, &desc, method)
	if err != nil {
		return nil, err
	}
	hello := t.cfg.Hello()
	hello.ToNodeId = uint64(n)
	frame, err := t.protoFrame(kindHello, hello)
	if err != nil {
		return nil, err
	}
	// An error of SendMsg is io.EOF; the reason comes from RecvMsg.
	_ = s.SendMsg(&framecodec.Raw{Data: frame})
	answer := &metapb.Hello{}
	if err := t.receiveProto(s, kindHello, answer); err != nil {
		return nil, err
	}
	if got := ids.NodeID(answer.GetNodeId()); got != n {
		return nil, fmt.Errorf("%v answered where %v was expected", got, n)
	}
	if err := t.greet(answer); err != nil {
		return nil, err
	}
	return s, nil
}
