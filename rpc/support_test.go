package rpc

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
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
	supportNode(t, book, 2, newFakeTable(), nil)
	supportNode(t, book, 1, one, func(n *testNode) { n.interval = time.Hour })
	<-one.grants // of the round at the start
	one.asked <- struct{}{}
	<-one.grants
}

func TestANodeThatDoesNotReadDelaysNobody(t *testing.T) {
	t.Parallel()
	book := newBook()
	one := newFakeTable(2, 3)
	_, deaf := listenBoth(t)
	book.set(2, deaf.LocalAddr().String())
	supportNode(t, book, 3, newFakeTable(), nil)
	supportNode(t, book, 1, one, nil)
	for range 100 {
		<-one.grants
	}
}

func TestSupportGoesOnWhenAPeerIsBackAtItsAddress(t *testing.T) {
	t.Parallel()
	book := newBook()
	_, conn := listenBoth(t)
	addr := conn.LocalAddr().(*net.UDPAddr)
	book.set(2, addr.String())
	one := newFakeTable(2)
	a := supportNode(t, book, 1, one, nil)
	for a.tr.Metrics().SupportRequestsSent < 20 { // to nobody
		runtime.Gosched()
	}
	_ = conn.Close()
	for a.tr.Metrics().SupportRequestsSent < 40 { // to a closed port
		runtime.Gosched()
	}
	back, err := net.ListenUDP("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	supportNode(t, newBook(), 2, newFakeTable(), func(n *testNode) { n.conn = back })
	<-one.grants
}

// Datagrams pass where streams do not. Neither side may then rest on the other: a
// leader that cannot replicate would keep everybody from electing.
func TestSupportEndsWhereStreamsAreBroken(t *testing.T) {
	t.Parallel()
	book := newBook()
	one, two := newFakeTable(2), newFakeTable(1)
	a, b := supportNode(t, book, 1, one, nil), supportNode(t, book, 2, two, nil)
	a.send(2, 1)
	<-b.got
	<-one.grants
	<-two.grants
	b.server.Stop() // datagrams go on
	<-a.lost
	for a.tr.reaches(2) {
		runtime.Gosched()
	}
	asked, answered := a.tr.Metrics().SupportRequestsSent, a.tr.Metrics().SupportRequestsAnswered
	before := b.tr.Metrics().SupportRequestsSent
	for b.tr.Metrics().SupportRequestsSent < before+20 { // b does not know of it
		runtime.Gosched()
	}
	now := a.tr.Metrics()
	if now.SupportRequestsSent > asked+1 || now.SupportRequestsAnswered > answered+1 { // one was on its way
		t.Fatalf("%d requests and %d answers over a broken stream",
			now.SupportRequestsSent-asked, now.SupportRequestsAnswered-answered)
	}
	b.serveAgain()
	for !a.tr.reaches(2) { // though there is nothing to send
		runtime.Gosched()
	}
	for a.tr.Metrics().SupportRequestsSent < asked+20 {
		runtime.Gosched()
	}
}

// datagram composes a request as a node of the given identity would.
func datagram(b *testNode, cluster uint64, to ids.NodeID, life, mark uint64) []byte {
	buf := beginFrame(nil, kindRequest, 9)
	buf = appendFields(buf, cluster, uint64(to), life, mark)
	buf = appendRequest(buf, support.Request{Life: ids.Life(life), Sequence: 1, Duration: 1})
	return sealFrame(buf, b.clock.Peek())
}

func TestDatagramsOfStrangersAreNotHeard(t *testing.T) {
	t.Parallel()
	table := newFakeTable()
	met := make(chan uint64, testQueue)
	n := supportNode(t, newBook(), 2, table, func(n *testNode) {
		n.hello.ClusterId = 77
		n.met = func(h *metapb.Hello) error {
			met <- h.GetMark()
			if h.GetMark() == 666 {
				return errors.New("a second mark of one life: a copied directory")
			}
			return nil
		}
	})
	_, conn := listenBoth(t)
	say := func(data []byte) {
		t.Helper()
		if _, err := conn.WriteTo(data, n.conn.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(want uint64) {
		t.Helper()
		for n.tr.Metrics().SupportRefused < want {
			runtime.Gosched()
		}
		if got := len(table.requests); got != 0 {
			t.Fatalf("%d requests were heard", got)
		}
	}
	say([]byte("hello"))
	refused(1)
	say(datagram(n, 78, 2, 5, 1)) // of another cluster
	refused(2)
	say(datagram(n, 77, 3, 5, 1)) // for another node
	refused(3)
	broken := datagram(n, 77, 2, 5, 1)
	broken[headerBytes+3] ^= 1
	say(broken)
	refused(4)
	say(datagram(n, 77, 2, 5, 666)) // Met refuses it
	<-met
	refused(5)
	for life := uint64(5); len(table.requests) == 0; {
		say(datagram(n, 77, 2, life, 1)) // introduced first, then heard
		runtime.Gosched()
	}
	heard := n.tr.Metrics().SupportRefused
	say(datagram(n, 77, 2, 4, 1)) // of an earlier life
	for n.tr.Metrics().SupportRefused <= heard {
		runtime.Gosched()
	}
	for len(table.requests) > 0 {
		if r := <-table.requests; r.Life != 5 {
			t.Fatalf("a request of life %d was heard after one of life 5", r.Life)
		}
	}
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
		<-young.grants
	}
	for len(table.requests) > 0 {
		if r := <-table.requests; r.Life != 2 {
			t.Fatalf("heard a request of life %d after one of life 2", r.Life)
		}
	}
}

// manyFrames bounds what a story waits for: so many frames that were not what it
// waits for, and it has failed.
const manyFrames = 2000

func TestARefusedStampDropsTheWholeRequest(t *testing.T) {
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
	clock.set(500)
	far := hlc.New(1900, 0)
	if err := a.clock.Update(far); err != nil {
		t.Fatal(err)
	}
	for ts, heard := hlc.Timestamp(0), 0; ts < far; {
		select {
		case ts = <-refused:
		case <-two.requests: // of before, or heard in spite of its stamp
			if heard++; heard == manyFrames {
				t.Fatalf("%d requests were heard and none refused, clock at %d",
					heard, b.clock.Peek().Wall())
			}
		}
	}
	for len(two.requests) > 0 {
		<-two.requests
	}
	for range 20 { // requests come, and are dropped whole
		select {
		case <-refused:
		case <-two.requests:
			t.Fatal("a request whose stamp was refused was handled")
		}
	}
	if len(two.requests) > 0 || b.clock.Peek() >= far {
		t.Fatalf("%d requests whose stamp was refused were handled, clock at %d",
			len(two.requests), b.clock.Peek().Wall())
	}
	// The clock catches up: it is heard again.
	clock.set(1000)
	for again, late := false, 0; !again; {
		select {
		case <-two.requests:
			again = true
		case <-refused:
			if late++; late == manyFrames {
				t.Fatal("requests are refused though the clock has caught up")
			}
		}
	}
	if now := b.clock.Peek(); now < far {
		t.Fatalf("a request was handled before its stamp moved the clock, which is at %d", now.Wall())
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

func TestANodeThatWantsNobodyAsksNobody(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	rounds := 0
	_, conn := listenBoth(t)
	tr := NewTransport(Config{
		Self: 1, SupportConn: conn, Hello: func() *metapb.Hello { return &metapb.Hello{} },
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
