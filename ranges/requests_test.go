package ranges

import (
	"bytes"
	"fmt"
	"log/slog"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// call is a request that is under way.
type call struct {
	resp  *kv.Response
	count int
}

func (n *node) start(req *kv.Request) *call {
	c := &call{}
	n.table.Submit(req, func(r *kv.Response) { c.resp = r; c.count++ })
	return c
}

// do runs a request on a node to its end.
func (n *node) do(req *kv.Request) *kv.Response {
	n.w.t.Helper()
	c := n.start(req)
	n.w.settle()
	if c.count != 1 {
		n.w.t.Fatalf("request %+v was answered %d times", req, c.count)
	}
	return c.resp
}

func key(s string) []byte { return append([]byte{kv.UserPrefix}, s...) }

// id gives a fresh identity whose floor is the node's clock now.
func (n *node) identity() kv.Identity {
	n.w.seq++
	return kv.Identity{Client: 7, Sequence: n.w.seq, Floor: n.clock.Peek()}
}

func (n *node) putRequest(k, v string) *kv.Request {
	return &kv.Request{Verb: kv.VerbPut, Key: key(k), Value: []byte(v), Identity: n.identity()}
}

func (n *node) put(k, v string) hlc.Timestamp {
	n.w.t.Helper()
	resp := n.do(n.putRequest(k, v))
	wantCode(n.w.t, resp, kv.CodeOK)
	return resp.Timestamp
}

func (n *node) get(k string) string {
	n.w.t.Helper()
	resp := n.do(&kv.Request{Verb: kv.VerbGet, Key: key(k)})
	if resp.Code == kv.CodeNotFound {
		return ""
	}
	wantCode(n.w.t, resp, kv.CodeOK)
	return string(resp.Value)
}

func wantCode(t testing.TB, resp *kv.Response, code kv.Code) {
	t.Helper()
	if resp == nil {
		t.Fatalf("no response, want code %d", code)
	}
	if resp.Code != code {
		t.Fatalf("got code %d (%s), want %d", resp.Code, resp.Message, code)
	}
}

func (w *world) split(r ids.RangeID, k string) (left, right *metapb.RangeDescriptor) {
	w.t.Helper()
	var err error
	called := false
	var at []byte
	if k != "" {
		at = key(k)
	}
	w.leader(r).table.Split(r, at, func(l, rt *metapb.RangeDescriptor, e error) {
		left, right, err, called = l, rt, e, true
	})
	w.settle()
	if !called {
		w.t.Fatal("split was not answered")
	}
	must(w.t, err)
	return left, right
}

// check compares every replica's statistics and fingerprint with what a scan
// computes, and replicas at the same index with one another; and that the
// spans of each node do not overlap.
func (w *world) check() {
	w.t.Helper()
	type at struct {
		r     ids.RangeID
		index ids.Index
	}
	seen := make(map[at]mvcc.Delta)
	for _, n := range w.nodes[1:] {
		if n.down {
			continue
		}
		var last []byte
		for _, r := range n.table.byKey() {
			s := r.state.Load()
			if bytes.Compare(s.desc.GetStart(), last) < 0 {
				w.t.Errorf("%v: %v overlaps the range before it", n.id, r.id)
			}
			last = s.desc.GetEnd()
			d, err := mvcc.Compute(n.store.State().DB(), s.desc.GetStart(), s.desc.GetEnd())
			must(w.t, err)
			if d != s.data {
				w.t.Errorf("%v %v: statistics are %+v, a scan says %+v", n.id, r.id, s.data, d)
			}
			k := at{r.id, s.applied}
			if o, ok := seen[k]; ok && o != s.data {
				w.t.Errorf("%v: replicas differ at index %d", r.id, s.applied)
			}
			seen[k] = s.data
		}
		n.checkQuiet()
		n.counted()
	}
}

// checkQuiet makes sure, at rest, that every write that was announced was
// retracted: one that is not would keep reads from the fast path for ever, one
// retracted twice would hide another.
func (n *node) checkQuiet() {
	n.w.t.Helper()
	for i := range n.table.stripes {
		if word := n.table.stripes[i].word.Load(); !quiet(word) {
			n.w.t.Errorf("%v: %d writes of stripe %d are in flight", n.id, word&stripeEnd, i)
		}
	}
	for _, r := range n.table.all() {
		if w, s := r.moving.writes.Load(), r.moving.splits.Load(); w != 0 || s != 0 {
			n.w.t.Errorf("%v %v: %d writes and %d splits are in flight", n.id, r.id, w, s)
		}
	}
}

// byKey returns the initialised replicas in key order.
func (t *Table) byKey() (list []*Replica) {
	t.mu.spans.visit([]byte{0}, []byte{0xff}, func(r *Replica) bool {
		list = append(list, r)
		return true
	})
	return list
}

func (n *node) String() string { return fmt.Sprint(n.id) }

// testLogger shows what went wrong on a node.
func testLogger(n *node) *slog.Logger {
	o := &slog.HandlerOptions{Level: slog.LevelError}
	return slog.New(slog.NewTextHandler(logWriter{n}, o))
}

type logWriter struct{ n *node }

// Write logs a line with the test.
func (l logWriter) Write(line []byte) (int, error) {
	l.n.w.t.Logf("%v: %s", l.n.id, bytes.TrimSpace(line))
	return len(line), nil
}
