package server

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/framecodec"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/ranges"
	"github.com/flotilla-kv/flotilla/rpc"
)

// stillClock stands still.
type stillClock struct{ wall int64 }

func (c stillClock) Wall() int64              { return c.wall }
func (c stillClock) Monotonic() time.Duration { return 0 }

// fakeTable holds every request until the story answers it.
type fakeTable struct {
	mu       sync.Mutex
	held     []heldRequest
	arrived  atomic.Int64
	answerAt bool // answer within Submit
}

type heldRequest struct {
	req  *kv.Request
	done func(*kv.Response)
}

func (f *fakeTable) submitAll(calls []ranges.Call) {
	for _, c := range calls {
		f.submit(c.Request, c.Done)
	}
}

func (f *fakeTable) submit(r *kv.Request, done func(*kv.Response)) {
	f.arrived.Add(1)
	if f.answerAt {
		done(&kv.Response{ID: r.ID, Value: r.Key})
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = append(f.held, heldRequest{r, done})
}

func (f *fakeTable) release() []heldRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	held := f.held
	f.held = nil
	return held
}

// door is a served kvService and one stream to it.
type door struct {
	t     testing.TB
	k     *kvService
	table *fakeTable
	clock *hlc.Hybrid
	s     grpc.ClientStream
	heard chan hlc.Timestamp
}

func openDoor(t testing.TB, hello *metapb.Hello) (*door, error) {
	t.Helper()
	const slots = 1 << 16
	d := &door{t: t, table: &fakeTable{}, heard: make(chan hlc.Timestamp, slots)}
	d.clock = hlc.NewHybrid(stillClock{wall: 1000}, hlc.New(1000, 0), time.Second)
	d.clock.SetBound(hlc.New(5000, 0))
	k := &kvService{
		submit: d.table.submitAll, clock: d.clock, self: 3, cluster: 9,
		heard:   func(ts hlc.Timestamp) { d.heard <- ts },
		hello:   func() *metapb.Hello { return &metapb.Hello{NodeId: 3, ClusterId: 9} },
		leaving: make(chan struct{}),
	}
	d.k = k
	srv := rpc.NewServer()
	k.register(srv)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(srv.Stop)
	conn, err := rpc.Dial(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	d.s, err = conn.NewStream(context.Background(),
		&grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/flotilla.KV/Stream")
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(hello)
	if err != nil {
		t.Fatal(err)
	}
	d.write(kv.AppendHello(nil, hlc.New(1000, 5), data))
	f, err := d.receive()
	if err == nil && f.Kind != kv.FrameHello {
		t.Fatalf("the answer to a hello is of kind %d", f.Kind)
	}
	return d, err
}

func goodHello() *metapb.Hello {
	return &metapb.Hello{ProtocolMin: rpc.ProtocolMin, ProtocolMax: rpc.ProtocolMax, ClusterId: 9}
}

func (d *door) write(frame []byte) {
	if err := d.s.SendMsg(&framecodec.Raw{Data: frame}); err != nil {
		d.t.Log(err) // the reason comes with the next receive
	}
}

func (d *door) receive() (*kv.Frame, error) {
	var raw framecodec.Raw
	if err := d.s.RecvMsg(&raw); err != nil {
		return nil, err
	}
	f := &kv.Frame{}
	return f, kv.DecodeFrame(raw.Data, f)
}

// responses receives n responses.
func (d *door) responses(n int) []kv.Response {
	d.t.Helper()
	var all []kv.Response
	for len(all) < n {
		f, err := d.receive()
		if err != nil {
			d.t.Fatal(err)
		}
		all = append(all, f.Responses...)
	}
	return all
}

func gets(from, n int) []kv.Request {
	reqs := make([]kv.Request, n)
	for i := range reqs {
		reqs[i] = kv.Request{
			ID: uint64(from + i), Verb: kv.VerbGet, Key: []byte{kv.UserPrefix, byte(i)},
		}
	}
	return reqs
}

func TestAnswersComeOutOfOrderAndOnce(t *testing.T) {
	t.Parallel()
	d, err := openDoor(t, goodHello())
	if err != nil {
		t.Fatal(err)
	}
	const total = 1000
	d.write(kv.AppendRequests(nil, hlc.New(1001, 0), gets(1, total)))
	for d.table.arrived.Load() < total {
		runtime.Gosched()
	}
	held := d.table.release()
	for i := len(held) - 1; i >= 0; i-- {
		// A response without an id still finds its request.
		held[i].done(&kv.Response{Value: held[i].req.Key})
	}
	seen := map[uint64]bool{}
	for _, r := range d.responses(total) {
		if seen[r.ID] || r.ID == 0 || r.ID > total || r.Value[1] != byte(r.ID-1) {
			t.Fatalf("response %d seen before %v, value %v", r.ID, seen[r.ID], r.Value)
		}
		seen[r.ID] = true
	}
	if d.clock.Peek() < hlc.New(1001, 0) {
		t.Fatal("the stamp of the frame was not adopted")
	}
}

func TestStreamIsNotReadBeyondItsBound(t *testing.T) {
	t.Parallel()
	d, err := openDoor(t, goodHello())
	if err != nil {
		t.Fatal(err)
	}
	const total = maxStreamRequests + 500
	d.write(kv.AppendRequests(nil, hlc.New(1000, 9), gets(1, total)))
	for d.table.arrived.Load() < maxStreamRequests {
		runtime.Gosched()
	}
	answered := 0
	for answered < total {
		held := d.table.release()
		if len(held) > maxStreamRequests {
			t.Fatalf("%d requests in flight, the bound is %d", len(held), maxStreamRequests)
		}
		for _, h := range held {
			h.done(&kv.Response{ID: h.req.ID})
		}
		if len(held) > 0 {
			answered += len(d.responses(len(held)))
		}
	}
}

func TestClientsReachOnlyUserKeys(t *testing.T) {
	t.Parallel()
	user, end := []byte{kv.UserPrefix, 1}, []byte{kv.EndPrefix}
	system := []byte{kv.SystemPrefix, 1}
	long := append([]byte{kv.UserPrefix}, make([]byte, kv.MaxKeyBytes+1)...)
	for _, c := range []struct {
		req  kv.Request
		fine bool
	}{
		{kv.Request{Verb: kv.VerbGet, Key: user}, true},
		{kv.Request{Verb: kv.VerbGet, Key: system}, false},
		{kv.Request{Verb: kv.VerbGet}, false},
		{kv.Request{Verb: kv.VerbPut, Key: long}, false},
		{kv.Request{Verb: kv.VerbPut, Key: end}, false},
		{kv.Request{Verb: kv.VerbScan, Key: user, End: end}, true},
		{kv.Request{Verb: kv.VerbScan, Key: user, End: []byte{kv.EndPrefix, 0}}, false},
		{kv.Request{Verb: kv.VerbScan, Key: user}, false},
		{kv.Request{Verb: kv.VerbScan, Key: system, End: end}, false},
		{kv.Request{Verb: kv.VerbDeleteRange, Key: user, End: []byte{0xff}}, false},
		{kv.Request{Verb: kv.VerbReadTimestamp, Key: user}, true},
		{kv.Request{Verb: kv.VerbAtomic, Ops: []kv.Op{{Key: user}}}, true},
		{kv.Request{Verb: kv.VerbAtomic, Ops: []kv.Op{{Key: user}, {Key: system}}}, false},
		{kv.Request{Verb: kv.VerbAtomic, Key: system, Ops: []kv.Op{{Key: user}}}, false},
		{kv.Request{Verb: 99, Key: system}, false},
	} {
		if bad := refuse(&c.req, nil); (bad == nil) != c.fine {
			t.Errorf("%v of %x to %x: refused with %v, want fine %v",
				c.req.Verb, c.req.Key[:min(len(c.req.Key), 3)], c.req.End, bad, c.fine)
		}
	}
}

func TestFrameFromTheFutureIsRefusedWhole(t *testing.T) {
	t.Parallel()
	d, err := openDoor(t, goodHello())
	if err != nil {
		t.Fatal(err)
	}
	d.write(kv.AppendRequests(nil, hlc.New(9000, 0), gets(1, 2)))
	for _, r := range d.responses(2) {
		if r.Code != kv.CodeUnavailable || r.RetryAfterMillis == 0 {
			t.Fatalf("%v, retry after %d", r.Code, r.RetryAfterMillis)
		}
	}
	if n := d.table.arrived.Load(); n > 0 {
		t.Fatalf("%d requests of the frame were handled", n)
	}
}

func TestForeignClientsAreTurnedAway(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*metapb.Hello){
		"another cluster":   func(h *metapb.Hello) { h.ClusterId = 8 },
		"meant for n4":      func(h *metapb.Hello) { h.ToNodeId = 4 },
		"upgrade the older": func(h *metapb.Hello) { h.ProtocolMin, h.ProtocolMax = 7, 8 },
	} {
		h := goodHello()
		change(h)
		if _, err := openDoor(t, h); err == nil {
			t.Errorf("%s: let in", name)
		} else if name != "another cluster" && !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClientThatHasSaidAllStillGetsItsAnswers(t *testing.T) {
	t.Parallel()
	d, err := openDoor(t, goodHello())
	if err != nil {
		t.Fatal(err)
	}
	d.write(kv.AppendRequests(nil, hlc.New(1000, 9), gets(1, 3)))
	if err := d.s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for d.table.arrived.Load() < 3 {
		runtime.Gosched()
	}
	for _, h := range d.table.release() {
		h.done(&kv.Response{ID: h.req.ID})
	}
	d.responses(3)
	if _, err := d.receive(); err == nil || err.Error() != "EOF" {
		t.Fatalf("after the last answer: %v", err)
	}
}

func BenchmarkStream(b *testing.B) {
	for _, batch := range []int{1, 8, 32, 256} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			d, err := openDoor(b, goodHello())
			if err != nil {
				b.Fatal(err)
			}
			d.table.answerAt = true
			b.ReportAllocs()
			for b.Loop() {
				d.write(kv.AppendRequests(nil, hlc.New(1000, 9), gets(1, batch)))
				for n := 0; n < batch; {
					f, err := d.receive()
					if err != nil {
						b.Fatal(err)
					}
					n += len(f.Responses)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/req")
		})
	}
}
