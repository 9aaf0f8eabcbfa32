package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/ranges"
)

// fixedClock is a wall clock that stands still.
type fixedClock struct{ wall int64 }

func (c fixedClock) Wall() int64              { return c.wall }
func (c fixedClock) Monotonic() time.Duration { return 0 }

const testQueue = 1024 // of the channels below; no story comes near it

// testNode is a transport with a server on loopback and what it heard.
type testNode struct {
	t        *testing.T
	id       ids.NodeID
	clock    *hlc.Hybrid
	tr       *Transport
	server   *grpc.Server
	addr     string
	got      chan multiraft.Frame
	lost     chan ids.NodeID
	book     *addressBook
	hello    *metapb.Hello
	met      func(*metapb.Hello) error
	conn     *net.UDPConn
	support  supports // nil: no support is asked for or given
	interval time.Duration
	refused  func(hlc.Timestamp)
	admit    func(*metapb.SnapshotHeader) (*ranges.Admission, error)
}

type addressBook struct {
	mu    sync.Mutex
	addrs map[ids.NodeID]string
}

func (b *addressBook) set(n ids.NodeID, addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addrs[n] = addr
}

func (b *addressBook) get(n ids.NodeID) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.addrs[n]
	return a, ok
}

func newBook() *addressBook { return &addressBook{addrs: map[ids.NodeID]string{}} }

func startNode(t *testing.T, book *addressBook, id ids.NodeID, change func(*testNode)) *testNode {
	t.Helper()
	n := &testNode{
		t: t, id: id, book: book,
		clock:    hlc.NewHybrid(fixedClock{wall: 1000}, hlc.New(1000, 0), time.Second),
		got:      make(chan multiraft.Frame, testQueue),
		lost:     make(chan ids.NodeID, testQueue),
		met:      func(*metapb.Hello) error { return nil },
		interval: time.Millisecond,
		hello: &metapb.Hello{
			ProtocolMin: ProtocolMin, ProtocolMax: ProtocolMax, NodeId: uint64(id), Life: 1,
		},
		admit: func(*metapb.SnapshotHeader) (*ranges.Admission, error) {
			return nil, errors.New("a replica overlaps")
		},
	}
	n.clock.SetBound(hlc.New(9000, 0))
	ln, conn := listenBoth(t)
	n.conn = conn
	if change != nil {
		change(n)
	}
	n.tr = NewTransport(Config{
		Self: id, Clock: n.clock, SupportConn: n.conn,
		Hello: func() *metapb.Hello {
			h := metapb.Hello{
				ProtocolMin: n.hello.ProtocolMin, ProtocolMax: n.hello.ProtocolMax,
				NodeId: n.hello.NodeId, Life: n.hello.Life, Mark: n.hello.Mark,
				ClusterId: n.hello.ClusterId,
			}
			return &h
		},
		Met:     func(h *metapb.Hello) error { return n.met(h) },
		Resolve: book.get,
		Receive: func(f multiraft.Frame) { n.got <- f },
		Lost:    func(p ids.NodeID) { n.lost <- p },
		Pause:   realPause,
		Admit:   func(h *metapb.SnapshotHeader) (*ranges.Admission, error) { return n.admit(h) },

		SupportInterval: n.interval, Refused: n.refused,
	})
	n.tr.support = n.support
	n.serve(ln)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.tr.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		n.server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return n
}

func realPause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// listenBoth opens a port for TCP and for UDP.
func listenBoth(t *testing.T) (net.Listener, *net.UDPConn) {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		tcp := ln.Addr().(*net.TCPAddr)
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: tcp.IP, Port: tcp.Port})
		if err == nil {
			t.Cleanup(func() { _ = conn.Close() })
			return ln, conn
		}
		_ = ln.Close()
	}
	t.Fatal("no port is free for TCP and UDP")
	return nil, nil
}

// serveAgain listens on the node's address again.
func (n *testNode) serveAgain() {
	n.t.Helper()
	ln, err := net.Listen("tcp", n.addr)
	if err != nil {
		n.t.Fatal(err)
	}
	n.serve(ln)
}

func (n *testNode) serve(ln net.Listener) {
	n.addr = ln.Addr().String()
	n.server = NewServer()
	n.tr.Register(n.server)
	n.book.set(n.id, n.addr)
	server := n.server
	go func() { _ = server.Serve(ln) }()
}

// send repeats until the queue takes it: a peer may be waiting to dial again.
func (n *testNode) send(to ids.NodeID, r ids.RangeID) {
	for !n.tr.Send(to, []multiraft.Message{message(r)}) {
		runtime.Gosched()
	}
}

func message(r ids.RangeID) multiraft.Message {
	return multiraft.Message{Range: r, Raft: &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum()}}
}

func TestMessagesArriveInOrderAndStamped(t *testing.T) {
	t.Parallel()
	book := newBook()
	a, b := startNode(t, book, 1, nil), startNode(t, book, 2, nil)
	const total = 5000
	for i := range total {
		a.send(2, ids.RangeID(i+1))
	}
	b.send(1, 7)
	next := ids.RangeID(1)
	for next <= total {
		f := <-b.got
		if f.From != 1 || f.Stamp == 0 {
			t.Fatalf("frame from %v stamped %d", f.From, f.Stamp)
		}
		for _, m := range f.Messages {
			if m.Range != next {
				t.Fatalf("message of %v where %v was next", m.Range, next)
			}
			next++
		}
	}
	if f := <-a.got; f.From != 2 || f.Messages[0].Range != 7 {
		t.Fatalf("the other direction brought %+v", f)
	}
	if m := a.tr.Metrics(); m.MessagesOut != total || m.FramesOut > total {
		t.Fatalf("metrics %+v", m)
	}
}

func TestPeerRestartsAndMessagesFlowAgain(t *testing.T) {
	t.Parallel()
	book := newBook()
	a, b := startNode(t, book, 1, nil), startNode(t, book, 2, nil)
	a.send(2, 1)
	<-b.got
	b.server.Stop()
	if p := <-a.lost; p != 2 {
		t.Fatalf("lost %v", p)
	}
	b.serveAgain()
	for r := ids.RangeID(2); ; r++ {
		a.tr.Send(2, []multiraft.Message{message(r)})
		select {
		case f := <-b.got:
			if f.Messages[0].Range < 2 {
				t.Fatalf("a message from before the outage arrived: %v", f.Messages[0].Range)
			}
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func TestForeignHelloIsRefusedAndTheSenderLearnsIt(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*testNode){
		"another cluster": func(n *testNode) {
			n.met = func(*metapb.Hello) error { return errors.New("another cluster") }
		},
		"protocol too new": func(n *testNode) { n.hello.ProtocolMin, n.hello.ProtocolMax = 9, 9 },
		"clock far behind": func(n *testNode) {
			n.clock = hlc.NewHybrid(fixedClock{wall: -9000}, 1, time.Second)
		},
		"address of another node": func(n *testNode) { n.hello.NodeId = 3 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			book := newBook()
			a, b := startNode(t, book, 1, nil), startNode(t, book, 2, change)
			a.send(2, 1)
			if p := <-a.lost; p != 2 {
				t.Fatalf("lost %v", p)
			}
			if len(b.got) > 0 {
				t.Fatal("a message passed")
			}
		})
	}
}

func TestFramesOfAnEarlierLifeAreNotHeard(t *testing.T) {
	t.Parallel()
	book := newBook()
	old, b := startNode(t, book, 1, nil), startNode(t, book, 2, nil)
	old.send(2, 1)
	<-b.got
	young := startNode(t, book, 1, func(n *testNode) { n.hello.Life = 2 })
	young.send(2, 2)
	if f := <-b.got; f.Messages[0].Range != 2 {
		t.Fatalf("got %v", f.Messages[0].Range)
	}
	old.send(2, 3)
	<-old.lost
	if len(b.got) > 0 {
		t.Fatal("a frame of the earlier life was heard")
	}
}

func TestQueueIsBoundedAndAnUnknownNodeRefused(t *testing.T) {
	t.Parallel()
	tr := NewTransport(Config{Self: 1, Resolve: func(n ids.NodeID) (string, bool) {
		return "127.0.0.1:1", n == 2
	}})
	if tr.Send(3, []multiraft.Message{message(1)}) {
		t.Fatal("queued for a node without an address")
	}
	taken := 0
	for tr.Send(2, []multiraft.Message{message(1)}) {
		taken++
	}
	if taken != maxQueuedMessages {
		t.Fatalf("queued %d messages, the bound is %d", taken, maxQueuedMessages)
	}
	p := newPeer(tr, 2)
	big := []multiraft.Message{message(1)}
	big[0].Raft.Context = make([]byte, maxQueuedBytes)
	if !p.enqueue(big) {
		t.Fatal("one large message alone was refused")
	}
	if p.enqueue([]multiraft.Message{message(1)}) {
		t.Fatal("queued above the bound of bytes")
	}
}

func TestSilentPeerIsGivenUp(t *testing.T) {
	t.Parallel()
	book := newBook()
	a := startNode(t, book, 1, nil)
	// It accepts connections and never answers, like a stopped process.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	book.set(2, ln.Addr().String())
	a.send(2, 1)
	if p := <-a.lost; p != 2 {
		t.Fatalf("lost %v", p)
	}
}

func TestPeersLocalMessagesAreNotHeard(t *testing.T) {
	t.Parallel()
	var msgs []multiraft.Message
	for _, typ := range []raftpb.MessageType{
		raftpb.MsgHup, raftpb.MsgApp, raftpb.MsgForgetLeader, raftpb.MsgProp,
		raftpb.MsgStorageAppendResp, raftpb.MsgVote,
	} {
		msgs = append(msgs, multiraft.Message{Range: 1, Raft: &raftpb.Message{Type: typ.Enum()}})
	}
	msgs = append(msgs, multiraft.Message{Range: 2, Gone: 4})
	kept := dropLocal(msgs)
	if len(kept) != 3 || kept[0].Raft.GetType() != raftpb.MsgApp ||
		kept[1].Raft.GetType() != raftpb.MsgVote || kept[2].Gone != 4 {
		t.Fatalf("kept %v", kept)
	}
}

// fakeSource gives chunks and counts its Close.
type fakeSource struct {
	chunks [][]byte
	closed int
}

func (s *fakeSource) Next() ([]byte, error) {
	if len(s.chunks) == 0 {
		return nil, io.EOF
	}
	c := s.chunks[0]
	s.chunks = s.chunks[1:]
	return c, nil
}
func (s *fakeSource) Close() { s.closed++ }

func TestRefusedSnapshotBringsTheReasonHome(t *testing.T) {
	t.Parallel()
	book := newBook()
	a := startNode(t, book, 1, nil)
	startNode(t, book, 2, nil)
	outcome := make(chan error, 1)
	src := &fakeSource{chunks: [][]byte{{1}}}
	a.tr.sendSource(&outgoing{
		to: 2, header: &metapb.SnapshotHeader{RangeId: 4}, source: src,
		done: func(err error) { outcome <- err },
	})
	err := <-outcome
	if !errors.Is(err, ErrSnapshotRefused) || !strings.Contains(err.Error(), "a replica overlaps") {
		t.Fatalf("got %v", err)
	}
	if src.closed != 1 {
		t.Fatalf("closed %d times", src.closed)
	}
}

func TestSnapshotsThatWaitAtTheEndAreToldSo(t *testing.T) {
	t.Parallel()
	tr := NewTransport(Config{Self: 1})
	outcome := make(chan error, maxWaitingSnapshots+2)
	for range maxWaitingSnapshots + 1 {
		tr.sendSource(&outgoing{
			to: 2, source: &fakeSource{}, done: func(err error) { outcome <- err },
		})
	}
	if err := <-outcome; !errors.Is(err, ErrBusy) {
		t.Fatalf("one too many: %v", err)
	}
	for _, o := range tr.stop() {
		o.finish(ErrStopped)
	}
	for range maxWaitingSnapshots {
		if err := <-outcome; !errors.Is(err, ErrStopped) {
			t.Fatalf("waiting one: %v", err)
		}
	}
}
