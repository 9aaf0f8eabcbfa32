package ranges

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

func TestPutGetDeleteOnOneNode(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	n := w.nodes[1]
	if v := n.get("a"); v != "" {
		t.Fatalf("got %q before the put", v)
	}
	first := n.put("a", "1")
	second := n.put("a", "2")
	if second <= first {
		t.Fatalf("timestamps %d, %d do not rise", first, second)
	}
	if v := n.get("a"); v != "2" {
		t.Fatalf("got %q", v)
	}
	old := n.do(&kv.Request{Verb: kv.VerbGet, Key: key("a"), Timestamp: first})
	if string(old.Value) != "1" || old.Timestamp != first {
		t.Fatalf("at %d got %q at %d", first, old.Value, old.Timestamp)
	}
	del := &kv.Request{Verb: kv.VerbDelete, Key: key("a"), Identity: n.identity()}
	if resp := n.do(del); !resp.Found {
		t.Fatal("a value was there, the deletion says not")
	}
	if resp := n.do(del); resp.Code != kv.CodeOK || !resp.Found {
		t.Fatalf("retry says %+v", resp)
	}
	if v := n.get("a"); v != "" {
		t.Fatalf("got %q after the deletion", v)
	}
	w.check()
}

func TestThreeNodesAgreeAndAFollowerNamesTheLeader(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	for _, k := range []string{"a", "b", "c"} {
		l.put(k, k+k)
	}
	w.check()
	follower := w.nodes[3]
	if follower == l {
		follower = w.nodes[2]
	}
	resp := follower.do(&kv.Request{Verb: kv.VerbGet, Key: key("a")})
	wantCode(t, resp, kv.CodeNotLeader)
	if resp.Leader != l.id || resp.MaybeApplied {
		t.Fatalf("leader %v, maybe %v", resp.Leader, resp.MaybeApplied)
	}
}

// A retry is recognised whether its first attempt is in flight, remembered,
// forgotten, or was evaluated by another leader in another life.
func TestRetryAppliesOnceWhoeverSawTheFirstAttempt(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	req := l.putRequest("k", "v")
	a, b := l.start(req), l.start(req)
	w.settle()
	wantCode(t, a.resp, kv.CodeOK)
	if b.resp.Timestamp != a.resp.Timestamp {
		t.Fatalf("in flight: %d and %d", a.resp.Timestamp, b.resp.Timestamp)
	}
	same := func(n *node, when string) {
		t.Helper()
		resp := n.do(req)
		wantCode(t, resp, kv.CodeOK)
		if resp.Timestamp != a.resp.Timestamp {
			t.Fatalf("%s: applied again at %d, first at %d", when, resp.Timestamp, a.resp.Timestamp)
		}
	}
	same(l, "remembered")
	l.put("k", "other") // the identity is not the newest version's any more
	same(l, "remembered below a newer version")
	r := l.table.replica(2)
	r.recent.forget(l.clock.Peek(), r.state.Load().applied)
	same(l, "forgotten")
	to := l.id%3 + 1
	w.transfer(2, to)
	same(w.nodes[to], "at another leader")
	for _, n := range w.nodes[1:] {
		n.crash()
	}
	for _, n := range w.nodes[1:] {
		n.restart()
	}
	same(w.leader(2), "after a restart of all")
	if v := w.leader(2).get("k"); v != "other" {
		t.Fatalf("got %q", v)
	}
	w.check()
}

func TestFloorBelowTheThresholdIsUnknown(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	n := w.nodes[1]
	stale := n.identity()
	n.put("a", "1")
	w.collectGarbage(2)
	resp := n.do(&kv.Request{
		Verb: kv.VerbPut, Key: key("a"), Value: []byte("2"), Identity: stale,
	})
	wantCode(t, resp, kv.CodeUnknownOutcome)
	read := n.do(&kv.Request{Verb: kv.VerbGet, Key: key("a"), Timestamp: stale.Floor})
	wantCode(t, read, kv.CodeBelowThreshold)
	if v := n.get("a"); v != "1" {
		t.Fatalf("got %q", v)
	}
}

// collectGarbage makes everything old and collects it.
func (w *world) collectGarbage(r ids.RangeID) {
	w.t.Helper()
	for _, n := range w.nodes[1:] {
		n.table.gcTrigger = 0
	}
	w.wall += 2 * defaultGCWindow.Milliseconds()
	l := w.leader(r)
	l.put("gc", "wake up")
	w.maintain(3)
	if l.table.replica(r).state.Load().threshold == 0 {
		w.t.Fatal("no threshold")
	}
}

func TestGarbageGoesAndStatisticsStayExact(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	for range 5 {
		for _, k := range []string{"a", "b", "c", "d"} {
			l.put(k, "value")
		}
	}
	l.do(&kv.Request{Verb: kv.VerbDelete, Key: key("b"), Identity: l.identity()})
	w.check()
	w.collectGarbage(2)
	w.check()
	s := l.table.replica(2).state.Load()
	if s.data.Stats.GarbageBytes != 0 || s.data.Stats.Versions != 4 { // a, c, d, gc
		t.Fatalf("left over: %+v", s.data.Stats)
	}
	// A write over a collected tombstone must not believe that it is there.
	l.put("b", "again")
	w.check()
}

func TestCompareAndSwap(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	n := w.leader(2)
	cas := func(expect kv.Expect, expected, value string, version hlc.Timestamp) *kv.Response {
		return n.do(&kv.Request{
			Verb: kv.VerbCompareAndSwap, Key: key("k"), Value: []byte(value), Expect: expect,
			Expected: []byte(expected), ExpectedVersion: version, Identity: n.identity(),
		})
	}
	wantCode(t, cas(kv.ExpectExists, "", "x", 0), kv.CodeConflict)
	first := cas(kv.ExpectAbsent, "", "1", 0)
	wantCode(t, first, kv.CodeOK)
	conflict := cas(kv.ExpectAbsent, "", "x", 0)
	wantCode(t, conflict, kv.CodeConflict)
	if string(conflict.Value) != "1" || conflict.Timestamp != first.Timestamp || !conflict.Found {
		t.Fatalf("conflict says %+v", conflict)
	}
	wantCode(t, cas(kv.ExpectValue, "1", "2", 0), kv.CodeOK)
	wantCode(t, cas(kv.ExpectVersion, "", "x", first.Timestamp), kv.CodeConflict)
	wantCode(t, cas(kv.ExpectExists, "", "3", 0), kv.CodeOK)
	req := &kv.Request{
		Verb: kv.VerbCompareAndSwap, Key: key("k"), Value: []byte("4"), Expect: kv.ExpectValue,
		Expected: []byte("3"), Identity: n.identity(),
	}
	applied := n.do(req)
	wantCode(t, applied, kv.CodeOK)
	again := n.do(req) // the value is 4 now, but the attempt is known
	wantCode(t, again, kv.CodeOK)
	if again.Timestamp != applied.Timestamp {
		t.Fatal("the retry of a swap applied again")
	}
	w.check()
}

// Conditional writes wait for the writes before them: of ten that expect the
// same value, one wins.
func TestOfManySwapsInFlightOneWins(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	n := w.leader(2)
	n.put("k", "0")
	var calls []*call
	for i := range 10 {
		calls = append(calls, n.start(&kv.Request{
			Verb: kv.VerbCompareAndSwap, Key: key("k"), Value: []byte{byte('a' + i)},
			Expect: kv.ExpectValue, Expected: []byte("0"), Identity: n.identity(),
		}))
	}
	put := n.start(n.putRequest("k", "last"))
	w.settle()
	won := 0
	for _, c := range calls {
		if c.count != 1 {
			t.Fatalf("answered %d times", c.count)
		}
		if c.resp.Code == kv.CodeOK {
			won++
		}
	}
	wantCode(t, put.resp, kv.CodeOK)
	if v := n.get("k"); won != 1 || v != "last" {
		t.Fatalf("%d won, value %q", won, v)
	}
}

func TestAtomicIsAllOrNothingAndKeepsToOneRange(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	n := w.leader(2)
	n.put("a", "1")
	ops := []kv.Op{
		{Key: key("b"), Value: []byte("2")},
		{Key: key("a"), Value: []byte("x"), Expect: kv.ExpectAbsent},
	}
	resp := n.do(&kv.Request{Verb: kv.VerbAtomic, Ops: ops, Identity: n.identity()})
	wantCode(t, resp, kv.CodeConflict)
	if n.get("b") != "" {
		t.Fatal("a half of the batch applied")
	}
	ops[1].Expect = kv.ExpectExists
	req := &kv.Request{Verb: kv.VerbAtomic, Ops: ops, Identity: n.identity()}
	first := n.do(req)
	wantCode(t, first, kv.CodeOK)
	if again := n.do(req); again.Timestamp != first.Timestamp {
		t.Fatal("the retry of a batch applied again")
	}
	if n.get("a") != "x" || n.get("b") != "2" {
		t.Fatal("the batch did not apply whole")
	}
	w.split(2, "b")
	req.Identity = n.identity()
	wantCode(t, n.do(req), kv.CodeCrossRange)
	w.check()
}
