package rpc

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/framecodec"
	"github.com/flotilla-kv/flotilla/support"
)

// fakeTable asks the nodes it is told to, grants everything, and tells what it saw.
type fakeTable struct {
	life  ids.Life
	asked chan struct{}

	mu       sync.Mutex
	wanted   []ids.NodeID
	sequence uint64

	requests chan support.Request // handled here
	grants   chan support.Grant
}

func newFakeTable(wanted ...ids.NodeID) *fakeTable {
	return &fakeTable{
		life: 1, asked: make(chan struct{}, 1), wanted: wanted,
		requests: make(chan support.Request, 1<<16), grants: make(chan support.Grant, 1<<16),
	}
}

func (f *fakeTable) Asked() <-chan struct{} { return f.asked }

func (f *fakeTable) Wanted() []ids.NodeID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wanted
}

func (f *fakeTable) Request(ids.NodeID) (support.Request, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sequence++
	return support.Request{
		Life: f.life, Sequence: f.sequence, Duration: time.Second, Ceiling: 5, Digest: 6, Wall: 7,
	}, true
}

func (f *fakeTable) HandleRequest(_ ids.NodeID, r support.Request) (support.Grant, bool) {
	f.requests <- r
	return support.Grant{
		Life: r.Life, Sequence: r.Sequence, Epoch: 3<<32 | 1, Ceiling: r.Ceiling, Wall: r.Wall,
	}, true
}

func (f *fakeTable) HandleGrant(_ ids.NodeID, g support.Grant) { f.grants <- g }

// supportNode starts a node with a table; of rounds there are about a thousand
// a second, so that no story waits.
func supportNode(
	t *testing.T, book *addressBook, id ids.NodeID, table *fakeTable, change func(*testNode),
) *testNode {
	return startNode(t, book, id, func(n *testNode) {
		n.support = table
		if change != nil {
			change(n)
		}
	})
}

func TestSupportIsAskedForAndGranted(t *testing.T) {
	t.Parallel()
	book := newBook()
	one, two := newFakeTable(2), newFakeTable(1)
	supportNode(t, book, 1, one, nil)
	supportNode(t, book, 2, two, nil)
	for _, table := range []*fakeTable{one, two} {
		for last := uint64(0); last < 20; {
			g := <-table.grants
			if g.Sequence <= last || g.Epoch != 3<<32|1 || g.Ceiling != 5 || g.Wall != 7 {
				t.Fatalf("granted %+v after request %d", g, last)
			}
			last = g.Sequence
		}
	}
	if r := <-two.requests; r.Life != 1 || r.Duration != time.Second || r.Digest != 6 {
		t.Fatalf("heard %+v", r)
	}
}

func TestAReadThatAsksNeedNotWaitForTheInterval(t *testing.T) {
	t.Parallel()
	book := newBook()
	one := newFakeTable(2)
	supportNode(t, book, 1, one, func(n *testNode) { n.interval = time.Hour })
	supportNode(t, book, 2, newFakeTable(), nil)
	<-one.grants // of the round at the start
	one.asked <- struct{}{}
	<-one.grants
}

func TestANodeThatDoesNotReadDelaysNobodyAndIsDialledAnew(t *testing.T) {
	t.Parallel()
	book := newBook()
	one := newFakeTable(2, 3)
	supportNode(t, book, 1, one, nil)
	// n2 answers the hello and never reads a request: its window fills up.
	stuck := startStuck(t, book, 2)
	<-stuck.greeted
	supportNode(t, book, 3, newFakeTable(), nil)
	for range 100 {
		<-one.grants
	}
	<-stuck.greeted // it was given up, and dialled again
	for len(one.grants) > 0 {
		<-one.grants
	}
	<-one.grants
}

// stuckServer accepts support streams and then reads nothing of them.
type stuckServer struct {
	self    ids.NodeID
	tr      *Transport
	greeted chan struct{}
}

func (*stuckServer) serveMessages(grpc.ServerStream) error { return errors.New("not here") }
func (*stuckServer) serveSnapshot(grpc.ServerStream) error { return errors.New("not here") }
func (k *stuckServer) serveSupport(s grpc.ServerStream) error {
	if _, _, err := k.tr.accept(s); err != nil {
		return err
	}
	k.greeted <- struct{}{}
	<-s.Context().Done()
	return s.Context().Err()
}

func startStuck(t *testing.T, book *addressBook, id ids.NodeID) *stuckServer {
	t.Helper()
	n := startNode(t, newBook(), id, nil)
	k := &stuckServer{self: id, tr: n.tr, greeted: make(chan struct{}, testQueue)}
	// Small windows: a few requests fill them.
	server := grpc.NewServer(grpc.ForceServerCodecV2(framecodec.Codec{}),
		grpc.InitialWindowSize(1<<16), grpc.InitialConnWindowSize(1<<16))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceName, HandlerType: (*peerService)(nil),
		Streams: []grpc.StreamDesc{supportStream()},
	}, k)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	book.set(id, ln.Addr().String())
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(server.Stop)
	return k
}

func TestRequestsOfAnEarlierLifeAreNotHeard(t *testing.T) {
	t.Parallel()
	book := newBook()
	table := newFakeTable()
	supportNode(t, book, 2, table, nil)
	old := newFakeTable(2)
	supportNode(t, book, 1, old, nil)
	<-old.grants
	young := newFakeTable(2)
	young.life = 2
	supportNode(t, book, 1, young, func(n *testNode) { n.hello.Life = 2 })
	<-young.grants
	for r := range table.requests {
		if r.Life == 2 {
			break
		}
	}
	for range 50 {
		<-young.grants // and with them every request that was on its way has come
	}
	for len(table.requests) > 0 {
		if r := <-table.requests; r.Life != 2 {
			t.Fatalf("heard a request of life %d after one of life 2", r.Life)
		}
	}
}

func TestARefusedStampDropsTheRequestAndNotTheStream(t *testing.T) {
	t.Parallel()
	book := newBook()
	one, two := newFakeTable(2), newFakeTable()
	clock := &settableClock{}
	clock.set(1000)
	a := supportNode(t, book, 1, one, nil)
	refused := make(chan hlc.Timestamp, testQueue)
	b := supportNode(t, book, 2, two, func(n *testNode) {
		n.clock = hlc.NewHybrid(clock, hlc.New(1000, 0), time.Second)
		n.refused = func(ts hlc.Timestamp) {
			select {
			case refused <- ts:
			default:
			}
		}
	})
	b.clock.SetBound(hlc.New(9000, 0))
	<-one.grants
	// n1's clock is carried away, further than n2 tolerates.
	far := hlc.New(1900, 0)
	if err := a.clock.Update(far); err != nil {
		t.Fatal(err)
	}
	clock.set(500)
	for ts := range refused {
		if ts >= far {
			break
		}
	}
	for len(two.requests) > 0 {
		<-two.requests
	}
	for range 20 {
		<-refused // requests come, and are dropped whole
	}
	if len(two.requests) > 0 || b.clock.Peek() >= far {
		t.Fatalf("%d requests whose stamp was refused were handled, clock at %d",
			len(two.requests), b.clock.Peek().Wall())
	}
	// The clock catches up: the same stream goes on.
	clock.set(1000)
	<-two.requests
	if now := b.clock.Peek(); now < far {
		t.Fatalf("a request was handled before its stamp moved the clock, which is at %d", now.Wall())
	}
	if lost := a.tr.Metrics().SupportStreamsLost; lost > 0 {
		t.Fatalf("%d streams were lost over a refused stamp", lost)
	}
}

type settableClock struct {
	mu   sync.Mutex
	wall int64
}

func (c *settableClock) set(wall int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall = wall
}

func (c *settableClock) Wall() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall
}

func (c *settableClock) Monotonic() time.Duration { return 0 }

func TestSupportIsAskedForAgainSoonAfterAnOutage(t *testing.T) {
	t.Parallel()
	book := newBook()
	one := newFakeTable(2)
	supportNode(t, book, 1, one, nil)
	b := supportNode(t, book, 2, newFakeTable(), nil)
	<-one.grants
	addr := b.addr
	b.server.Stop()
	for len(one.grants) > 0 {
		<-one.grants
	}
	b.serve(addr)
	<-one.grants
	for attempt := range 20 {
		d := redialAfter(1, 2, attempt, supportReconnectMax)
		if d > supportReconnectMax || attempt < 1 && d > 20*time.Millisecond {
			t.Fatalf("attempt %d waits for %v", attempt, d)
		}
	}
}

func TestANodeThatAsksNobodyOpensNoStream(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	rounds := 0
	tr := NewTransport(Config{
		Self: 1,
		Resolve: func(ids.NodeID) (string, bool) {
			t.Error("looked for a node that is not wanted")
			return "", false
		},
		Pause: func(ctx context.Context, d time.Duration) {
			if d == DefaultSupportInterval {
				if rounds++; rounds == 100 {
					cancel()
				}
				return
			}
			<-ctx.Done()
		},
	})
	tr.support = newFakeTable()
	if err := tr.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestRequestsAndGrantsSurviveTheWire(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(5, 6))
	for range 500 {
		r := support.Request{
			Life: ids.Life(rng.Uint64() | 1), Sequence: rng.Uint64(),
			Duration: time.Duration(rng.Int64() | 1), Ceiling: hlc.Timestamp(rng.Uint64()),
			Digest: rng.Uint64(), Wall: int64(rng.Uint64()),
		}
		if got, err := decodeRequest(appendRequest(nil, r)); err != nil || got != r {
			t.Fatalf("got %+v, %v; want %+v", got, err, r)
		}
		g := support.Grant{
			Life: ids.Life(rng.Uint64()), Sequence: rng.Uint64(),
			Epoch: support.Epoch(rng.Uint64() | 1), Ceiling: hlc.Timestamp(rng.Uint64()),
			Wall: int64(rng.Uint64()),
		}
		if got, err := decodeGrant(appendGrant(nil, g)); err != nil || got != g {
			t.Fatalf("got %+v, %v; want %+v", got, err, g)
		}
	}
}

func TestMalformedRequestsAndGrantsAreRefused(t *testing.T) {
	t.Parallel()
	good := appendRequest(nil, support.Request{Life: 1, Duration: 1})
	for name, b := range map[string][]byte{
		"empty":              nil,
		"short":              good[:len(good)-1],
		"long":               append(bytes.Clone(good), 0),
		"without a life":     appendRequest(nil, support.Request{Duration: 1}),
		"without a duration": appendRequest(nil, support.Request{Life: 1}),
		"for ever":           appendRequest(nil, support.Request{Life: 1, Duration: -1}),
	} {
		if _, err := decodeRequest(b); !errors.Is(err, errCorrupt) {
			t.Errorf("request %s: %v", name, err)
		}
	}
	grant := appendGrant(nil, support.Grant{Epoch: 1})
	for name, b := range map[string][]byte{
		"empty":            nil,
		"short":            grant[:len(grant)-1],
		"long":             append(bytes.Clone(grant), 0),
		"without an epoch": appendGrant(nil, support.Grant{Life: 1}),
	} {
		if _, err := decodeGrant(b); !errors.Is(err, errCorrupt) {
			t.Errorf("grant %s: %v", name, err)
		}
	}
}
