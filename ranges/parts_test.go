package ranges

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

func TestEntryIsDecodedAsItWasEncoded(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := header{
			kind:       entryKind(rapid.IntRange(1, 4).Draw(t, "kind")),
			term:       ids.Term(rapid.Uint64().Draw(t, "term")),
			generation: ids.Generation(rapid.Uint64().Draw(t, "generation")),
			bounds:     rapid.Uint64().Draw(t, "bounds"),
			sequence:   rapid.Uint64().Draw(t, "sequence"),
			closed:     hlc.Timestamp(rapid.Uint64().Draw(t, "closed")),
		}
		h.delta.Fingerprint = rapid.Uint64().Draw(t, "fingerprint")
		for _, f := range statsFields(&h.delta.Stats) {
			*f = rapid.Int64().Draw(t, "delta")
		}
		body := rapid.SliceOf(rapid.Byte()).Draw(t, "body")
		data := encodeEntry(h, body)
		if len(data) > maxHeader+len(body) {
			t.Fatalf("header of %d bytes", len(data)-len(body))
		}
		got, rest, err := decodeEntry(data)
		if err != nil || got != h || !bytes.Equal(rest, body) {
			t.Fatalf("got %+v %x %v", got, rest, err)
		}
		cut := rapid.IntRange(0, len(data)-len(body)-1).Draw(t, "cut")
		if _, _, err := decodeEntry(data[:cut]); !errors.Is(err, errUnknownEntry) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	})
}

func TestUnknownFormatOrKindHaltsTheReplicaOnly(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("k", "v")
	h := l.table.replica(2).headerFor(kindWrite)
	for i, change := range []func(b []byte){
		func(b []byte) { b[0] = 9 },
		func(b []byte) { b[1] = 99 },
		func(b []byte) { b[1] = byte(kindReplicas) },
	} {
		data := encodeEntry(h, nil)
		change(data)
		r := l.table.replica(2)
		b := l.store.NewBatch()
		_, err := r.Apply(b, []*raftpb.Entry{{
			Index: new(uint64(r.state.Load().applied) + 1), Term: new(uint64(h.term)), Data: data,
		}})
		b.Close()
		if !errors.Is(err, errUnknownEntry) {
			t.Errorf("case %d: %v", i, err)
		}
	}
}

// Apply rejects a foreign term and changed bounds, but not a mere replica change.
func TestApplyRejectsAForeignTermAndChangedBounds(t *testing.T) {
	t.Parallel()
	d := &metapb.RangeDescriptor{RangeId: 2, Start: key("a"), End: key("m"), Generation: 4}
	s := &state{desc: d, bounds: boundsHash(d)}
	write := header{kind: kindWrite, term: 7, generation: 4, bounds: s.bounds}
	cases := []struct {
		name   string
		change func(h *header)
		want   bool
	}{
		{"same", func(*header) {}, true},
		{"foreign term", func(h *header) { h.term = 6 }, false},
		{"older generation, same bounds", func(h *header) { h.generation = 3 }, true},
		{"other bounds", func(h *header) { h.bounds++ }, false},
		{"threshold, older generation", func(h *header) {
			h.kind, h.generation = kindGCThreshold, 3
		}, true},
		{"split of an older generation", func(h *header) {
			h.kind, h.generation = kindSplit, 3
		}, false},
		{"replicas of an older generation", func(h *header) {
			h.kind, h.generation = kindReplicas, 3
		}, false},
		{"split", func(h *header) { h.kind = kindSplit }, true},
	}
	for _, c := range cases {
		h := write
		c.change(&h)
		if got := h.accepts(s, 7, false); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	foreign := write
	foreign.term = 6
	if !foreign.accepts(s, 7, true) {
		t.Error("the planted bug is not there")
	}
}

// twin is what recent claims to know, kept without bound.
type twin struct {
	newest  map[string]mvcc.Newest
	applied map[string]mvcc.Newest // what a look at the disk sees now
}

// TestRecentAndTheDiskTogetherKnowEverything drives recent with writes that
// apply late or are taken back, and asks at each step what evaluation asks.
func TestRecentAndTheDiskTogetherKnowEverything(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		recentAgainstTwin(t, seed)
	}
}

func recentAgainstTwin(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	var m recent
	m.start(100, 10)
	tw := twin{newest: map[string]mvcc.Newest{}, applied: map[string]mvcc.Newest{}}
	type flight struct {
		u              undo
		newest, before mvcc.Newest
	}
	var flights []flight
	ts, index := hlc.Timestamp(100), ids.Index(10)
	type look struct {
		at   ids.Index
		disk map[string]mvcc.Newest
	}
	var looks []look
	for step := range 6000 {
		k := fmt.Sprintf("k%d", rng.IntN(recentEntries*2))
		switch n := rng.IntN(10); {
		case n < 6: // write
			ts++
			now := mvcc.Newest{Found: true, Timestamp: ts}
			id := identity{client: 1, sequence: uint64(ts)}
			u := m.note(k, now, id, &identRecord{at: ts, flight: &write{}})
			flights = append(flights, flight{u, now, tw.newest[k]})
			tw.newest[k] = now
		case n < 9 && len(flights) > 0: // apply the oldest
			f := flights[0]
			flights = flights[1:]
			index++
			m.applied(f.u, index)
			tw.applied[f.u.key] = f.newest
		case len(flights) > 0 && rng.IntN(3) == 0: // the last one fails
			f := flights[len(flights)-1]
			flights = flights[:len(flights)-1]
			m.takeBack(f.u)
			tw.newest[f.u.key] = f.before
			if m.ident(f.u.ident) != nil {
				t.Fatalf("seed %d step %d: identity of a failed write", seed, step)
			}
		}
		if rng.IntN(50) == 0 {
			looks = append(looks, look{index, maps.Clone(tw.applied)})
			looks = looks[max(0, len(looks)-3):]
		}
		for _, l := range looks {
			if !m.trusts(l.at) {
				continue
			}
			got := l.disk[k]
			if r := m.key(k); r != nil {
				got = r.newest
			}
			if got != tw.newest[k] {
				t.Fatalf("seed %d step %d: %s is %+v, not %+v",
					seed, step, k, got, tw.newest[k])
			}
		}
		if len(m.young.keys) > recentEntries+len(flights)+1 {
			t.Fatalf("seed %d: %d keys in a generation", seed, len(m.young.keys))
		}
	}
	for _, f := range flights {
		if m.key(f.u.key) == nil || m.ident(f.u.ident) == nil {
			t.Fatalf("seed %d: a write in flight was forgotten", seed)
		}
	}
}

// An identity that memory does not have lies at or below memFloor.
func TestForgottenIdentitiesLieBelowTheFloor(t *testing.T) {
	t.Parallel()
	var m recent
	m.start(5, 0)
	for ts := hlc.Timestamp(6); ts < 5*recentEntries; ts++ {
		u := m.note(fmt.Sprint(ts%77), mvcc.Newest{Found: true, Timestamp: ts},
			identity{1, uint64(ts), 0}, &identRecord{at: ts, flight: &write{}})
		m.applied(u, ids.Index(ts))
		for _, old := range []hlc.Timestamp{ts / 2, ts / 3, ts - 1} {
			if old > m.memFloor && m.ident(identity{1, uint64(old), 0}) == nil {
				t.Fatalf("identity of %d is forgotten, floor is %d", old, m.memFloor)
			}
		}
	}
	if m.memFloor < recentEntries || m.floorIndex < recentEntries {
		t.Fatalf("nothing was forgotten: floors %d, %d", m.memFloor, m.floorIndex)
	}
}

// fake is a request in the latch test.
type fake struct {
	id               int
	h                hold
	running, aborted bool
}

type fakeOp struct{ f *fake }

func (o fakeOp) granted() { o.f.running = true }
func (o fakeOp) aborted() { o.f.aborted = true }

func (f *fake) overlaps(o *fake) bool {
	in := func(k string, h *hold) bool { return h.start <= k && k < h.end }
	switch {
	case f.h.end != "" && o.h.end != "":
		return f.h.start < o.h.end && o.h.start < f.h.end
	case f.h.end != "":
		for _, k := range o.h.keys {
			if in(k, &f.h) {
				return true
			}
		}
		return false
	case o.h.end != "":
		return o.overlaps(f)
	}
	for _, a := range f.h.keys {
		for _, b := range o.h.keys {
			if a == b {
				return true
			}
		}
	}
	return false
}

// The slow twin: a request runs when no earlier unfinished one conflicts.
func TestLatchesAgreeWithAListOfRequests(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 2))
		var l latches
		var live []*fake
		letter := func() string { return string(rune('a' + rng.IntN(6))) }
		for step := range 200 {
			if rng.IntN(2) == 0 || len(live) == 0 {
				f := &fake{id: step}
				f.h.exclusive = rng.IntN(3) == 0
				switch a, b := letter(), letter(); {
				case rng.IntN(5) == 0 && a < b:
					f.h.start, f.h.end, f.h.exclusive = a, b, true
				case a != b:
					f.h.keys = []string{a, b}
				default:
					f.h.keys = []string{a}
				}
				live = append(live, f)
				l.acquire(&f.h, fakeOp{f})
			} else {
				var running []int
				for i, f := range live {
					if f.running {
						running = append(running, i)
					}
				}
				i := running[rng.IntN(len(running))]
				l.release(&live[i].h)
				live = append(live[:i:i], live[i+1:]...)
				l.drain()
			}
			for i, f := range live {
				want := true
				for _, o := range live[:i] {
					if f.overlaps(o) && (f.h.exclusive || o.h.exclusive) {
						want = false
					}
				}
				if f.running != want {
					t.Fatalf("seed %d step %d: request %d runs: %v", seed, step, f.id, f.running)
				}
			}
		}
		l.reset()
		for _, f := range live {
			if f.running == f.aborted || !f.h.done {
				t.Fatalf("seed %d: running %v, aborted %v", seed, f.running, f.aborted)
			}
		}
		if !l.idle() {
			t.Fatal("reset left something")
		}
	}
}

func TestReadWaitsOnlyForWritesAtOrBelowItsTimestamp(t *testing.T) {
	t.Parallel()
	var l latches
	early, late, open := &fake{}, &fake{}, &fake{}
	for _, f := range []*fake{early, late, open} {
		f.h.keys = []string{"k"}
		l.acquire(&f.h, fakeOp{f})
	}
	early.h.ts, late.h.ts = 10, 20 // open is not evaluated yet
	rd := &fake{}
	if l.await("k", "", 9, fakeOp{rd}) || l.await("j", "", 99, fakeOp{rd}) {
		t.Fatal("waits for nothing")
	}
	if !l.await("a", "z", 15, fakeOp{rd}) {
		t.Fatal("does not wait for the write below it")
	}
	l.release(&late.h)
	l.drain()
	if rd.running {
		t.Fatal("went on too early")
	}
	l.release(&early.h)
	l.drain()
	if !rd.running {
		t.Fatal("still waits")
	}
}

func TestDescriptorChangesRaiseGenerationsAndNeverReuseAnID(t *testing.T) {
	t.Parallel()
	d := &metapb.RangeDescriptor{
		RangeId: 2, Start: key("a"), End: key("z"), Generation: 1, NextReplicaId: 2,
		Replicas: []*metapb.Replica{{NodeId: 1, ReplicaId: 1}},
	}
	two, id, err := withLearner(d, 2)
	must(t, err)
	if id != 2 || two.GetNextReplicaId() != 3 || two.GetGeneration() != 2 || len(d.Replicas) != 1 {
		t.Fatalf("learner: %v", two)
	}
	if _, _, err := withLearner(two, 2); !errors.Is(err, ErrRefused) {
		t.Fatal("two replicas on a node")
	}
	joint, err := withRole(two, 2, roleLearner, roleIncoming)
	must(t, err)
	if !isJoint(joint) || isJoint(leaveJoint(joint)) {
		t.Fatal("joint or not")
	}
	gone, err := withoutLearner(two, 2)
	must(t, err)
	again, id, err := withLearner(gone, 2)
	must(t, err)
	if id != 3 || again.GetGeneration() != 4 {
		t.Fatalf("id %d is used twice: %v", id, again)
	}
	l, r := splitDescriptor(d, key("m"), 9)
	if l.GetGeneration() != 2 || r.GetGeneration() != 2 || r.GetRangeId() != 9 ||
		!bytes.Equal(l.GetEnd(), r.GetStart()) || !bytes.Equal(r.GetEnd(), d.GetEnd()) {
		t.Fatalf("halves %v, %v", l, r)
	}
	if boundsHash(l) == boundsHash(d) || boundsHash(l) == boundsHash(r) {
		t.Fatal("bounds look alike")
	}
}

func TestRequestsThatAreWrongAreRefused(t *testing.T) {
	t.Parallel()
	w := oneNode(t, func(c *Config) { c.MaxValueBytes = 10 })
	n := w.nodes[1]
	big := bytes.Repeat([]byte("x"), kv.MaxKeyBytes+2)
	ops := func(keys ...string) (list []kv.Op) {
		for _, k := range keys {
			list = append(list, kv.Op{Key: key(k)})
		}
		return list
	}
	cases := []struct {
		code kv.Code
		req  kv.Request
	}{
		{kv.CodeUnknownVerb, kv.Request{Verb: 77, Key: key("a")}},
		{kv.CodeInvalid, kv.Request{Verb: kv.VerbGet}},
		{kv.CodeInvalid, kv.Request{Verb: kv.VerbGet, Key: []byte{1}}},
		{kv.CodeInvalid, kv.Request{Verb: kv.VerbGet, Key: []byte{kv.EndPrefix}}},
		{kv.CodeTooLarge, kv.Request{Verb: kv.VerbPut, Key: key(string(big))}},
		{kv.CodeTooLarge, kv.Request{Verb: kv.VerbPut, Key: key("a"), Value: big}},
		{kv.CodeInvalid, kv.Request{Verb: kv.VerbCompareAndSwap, Key: key("a")}},
		{kv.CodeInvalid, kv.Request{Verb: kv.VerbScan, Key: key("b"), End: key("a")}},
		{kv.CodeInvalid, kv.Request{Verb: kv.VerbScan, Key: key("b")}},
		{kv.CodeInvalid, kv.Request{Verb: kv.VerbScan, Key: key("b"), End: []byte{0xff}}},
		{kv.CodeInvalid, kv.Request{Verb: kv.VerbDeleteRange, Key: key("a"), End: key("b")}},
		{kv.CodeInvalid, kv.Request{Verb: kv.VerbAtomic}},
		{kv.CodeInvalid, kv.Request{Verb: kv.VerbAtomic, Ops: ops("a", "a")}},
		{kv.CodeTooLarge, kv.Request{Verb: kv.VerbAtomic, Ops: make([]kv.Op, kv.MaxAtomicOps+1)}},
		{kv.CodeOK, kv.Request{Verb: kv.VerbAtomic, Ops: ops("a", "b")}},
	}
	for i, c := range cases {
		if resp := n.do(&c.req); resp.Code != c.code {
			t.Errorf("case %d: code %d (%s), want %d", i, resp.Code, resp.Message, c.code)
		}
	}
	far := hlc.New(w.wall+10*3600*1000, 0)
	resp := n.do(&kv.Request{Verb: kv.VerbGet, Key: key("a"), Timestamp: far})
	wantCode(t, resp, kv.CodeUnavailable)
}
