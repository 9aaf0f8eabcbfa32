package core

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// randomWrite draws a write of any kind.
func (w *world) randomWrite(keys int) kv.Request {
	k := key(fmt.Sprintf("k%03d", w.rng.IntN(keys)))
	r := kv.Request{Verb: kv.VerbPut, Key: k, Value: fmt.Appendf(nil, "%d", w.rng.IntN(3))}
	switch w.rng.IntN(5) {
	case 0:
		r.Verb = kv.VerbDelete
	case 1:
		r.Verb, r.Expect = kv.VerbCompareAndSwap, kv.ExpectAbsent
	case 2:
		r.Verb, r.Expect = kv.VerbCompareAndSwap, kv.ExpectValue
		r.Expected = fmt.Appendf(nil, "%d", w.rng.IntN(3))
	case 3:
		r.Verb, r.Expect = kv.VerbCompareAndSwap, kv.ExpectVersion
		if all := w.cluster.Keys[string(k)]; len(all) > 0 {
			r.ExpectedVersion = all[len(all)-1].At
		}
	}
	return r
}

// TestWritesTakeEffectAsTheirCallersWereTold drives writes of every kind
// through lost, late and repeated messages, moving leaders, splits and dead
// nodes, lets every late message arrive, and only then compares what took
// effect with what was said.
func TestWritesTakeEffectAsTheirCallersWereTold(t *testing.T) {
	t.Parallel()
	for round := range 12 {
		seed := rand.Uint64()
		w := newWorld(t, seed, 3)
		w.faults = true
		var told []write
		w.shake(20)
		left := 0
		for n := range 4 {
			u := w.newUser(uint64(n + 1))
			w.clientOf(u, 60, &left, &told)
		}
		w.run(20*time.Minute, func() bool { return left == 0 })
		w.faults = false
		w.run(time.Minute, nil)
		if left > 0 {
			t.Fatalf("seed %d: %d callers were never answered", seed, left)
		}
		counts := make(map[kv.Code]int)
		for _, x := range told {
			counts[x.code]++
			w.judge(seed, x)
		}
		for id, n := range w.cluster.Applied {
			if n != 1 {
				t.Errorf("seed %d: write %+v took effect %d times", seed, id, n)
			}
		}
		if round == 0 {
			t.Logf("seed %d: verdicts %v", seed, counts)
		}
	}
}

// clientOf lets a user write one after the other.
func (w *world) clientOf(u *user, writes int, left *int, told *[]write) {
	*left++
	var next func(n int)
	next = func(n int) {
		if n == writes {
			*left--
			return
		}
		r := w.randomWrite(20)
		var deadline time.Duration
		if w.rng.IntN(3) == 0 {
			deadline = time.Duration(w.rng.Int64N(int64(3*time.Second))) + time.Millisecond
		}
		sequence := u.core.nextSequence + 1
		u.call(r, deadline, func(out *kv.Response) {
			*told = append(*told, write{
				u.core.cfg.Client, sequence, out.Code, out.Timestamp, r.Verb,
			})
			w.after(0, func() { next(n + 1) })
		})
	}
	next(0)
}

// judge compares a verdict with the model.
func (w *world) judge(seed uint64, x write) {
	effects := 0
	for id, n := range w.cluster.Applied {
		if id.Client == x.client && id.Sequence == x.sequence {
			effects += n
		}
	}
	switch x.code {
	case kv.CodeOK:
		if x.at != 0 && effects != 1 || x.at == 0 && (effects != 0 || x.verb != kv.VerbDelete) {
			w.t.Errorf("seed %d: %+v was acknowledged, it took effect %d times", seed, x, effects)
		}
	case kv.CodeConflict, kv.CodeUnavailable:
		if effects != 0 {
			w.t.Errorf("seed %d: %+v was refused, it took effect %d times", seed, x, effects)
		}
	case kv.CodeUnknownOutcome:
		if effects > 1 {
			w.t.Errorf("seed %d: %+v took effect %d times", seed, x, effects)
		}
	default:
		w.t.Errorf("seed %d: %+v", seed, x)
	}
}

// TestScanMissesNoAcknowledgedWrite has clocks that are far apart, ranges that
// split while the scan runs, and no bound on anything.
func TestScanMissesNoAcknowledgedWrite(t *testing.T) {
	t.Parallel()
	for range 30 {
		seed := rand.Uint64()
		w := newWorld(t, seed, 3)
		w.cluster.PageRows = 5
		for n := range 6 {
			w.cluster.Split(key(fmt.Sprintf("k%03d", n*7+3)))
		}
		for _, r := range w.cluster.Ranges {
			r.Clock = hlc.Timestamp(w.rng.Uint64N(1 << 30))
		}
		u := w.newUser(1)
		acked := make(map[string]hlc.Timestamp)
		for range 40 {
			k := fmt.Sprintf("k%03d", w.rng.IntN(50))
			acked[string(key(k))] = u.wait(put(k, "v"), 0).Timestamp
		}
		w.faults = true
		w.shake(50)
		reverse := w.rng.IntN(2) == 0
		rows := w.scanToTheEnd(u, reverse)
		for k, at := range acked {
			i := slices.IndexFunc(rows, func(r kv.KeyValue) bool { return string(r.Key) == k })
			if i < 0 || rows[i].Version < at {
				t.Fatalf("seed %d: the scan missed %q, written at %d", seed, k[1:], at)
			}
		}
		for i := 1; i < len(rows); i++ {
			order := bytes.Compare(rows[i-1].Key, rows[i].Key)
			if (order < 0) == reverse || order == 0 {
				t.Fatalf("seed %d: row %d out of order", seed, i)
			}
		}
	}
}

// scanToTheEnd fetches all pages, as package client does.
func (w *world) scanToTheEnd(u *user, reverse bool) (rows []kv.KeyValue) {
	r := scanAll()
	if reverse {
		r.Flags |= kv.FlagReverse
	}
	for {
		out := u.wait(r, 0)
		if out.Code != kv.CodeOK {
			w.t.Fatalf("scan: %+v", out)
		}
		if r.Timestamp != 0 && out.Timestamp != r.Timestamp {
			w.t.Fatalf("the instant moved from %d to %d", r.Timestamp, out.Timestamp)
		}
		rows = append(rows, out.Rows...)
		if !out.More {
			return rows
		}
		r.Timestamp = out.Timestamp
		if reverse {
			r.End = out.ResumeKey
		} else {
			r.Key = out.ResumeKey
		}
	}
}

func TestLimitedScanAsksOnlyTheFirstRange(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 3)
	u := w.newUser(1)
	for n := range 40 {
		u.wait(put(fmt.Sprintf("k%03d", n), "v"), 0)
	}
	for n := range 9 {
		w.cluster.Split(key(fmt.Sprintf("k%03d", n*4+4)))
	}
	warm := scanAll()
	warm.Limit = 1
	u.wait(warm, 0)
	u.sends = 0
	within := scanAll()
	within.Limit = 4
	if out := u.wait(within, 0); len(out.Rows) != 4 || u.sends != 1 {
		t.Errorf("%d rows, %d requests; want 4 and 1", len(out.Rows), u.sends)
	}
	// Beyond the first range the instant must be collected from all of them.
	beyond := scanAll()
	beyond.Limit = 5
	out := u.wait(beyond, 0)
	if !out.More || out.Timestamp == 0 || u.sends < 1+1+len(w.cluster.Ranges)+1 {
		t.Errorf("%+v after %d requests", out, u.sends)
	}
}

func TestRangeDeletionCountsOverSplitsAndPages(t *testing.T) {
	t.Parallel()
	for range 30 {
		seed := rand.Uint64()
		w := newWorld(t, seed, 3)
		w.cluster.PageRows = 7
		u := w.newUser(1)
		for n := range 50 {
			u.wait(put(fmt.Sprintf("k%03d", n), "v"), 0)
		}
		for n := range 3 {
			w.cluster.Split(key(fmt.Sprintf("k%03d", n*13+5)))
		}
		r := kv.Request{Verb: kv.VerbDeleteRange, Key: key("k010"), End: key("k040")}
		w.faults = true
		w.shake(50)
		out := u.wait(r, 0)
		w.faults = false
		w.run(time.Minute, nil)
		if out.Code != kv.CodeOK || out.Count != 30 {
			t.Fatalf("seed %d: %+v, want 30 keys deleted", seed, out)
		}
		if rows := w.scanToTheEnd(u, false); len(rows) != 20 {
			t.Fatalf("seed %d: %d keys left, want 20", seed, len(rows))
		}
	}
}

func TestNothingSentIsUnavailableNotUnknown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 3)
	u := w.newUser(1)
	u.wait(put("a", "1"), 0)
	for n := range 3 {
		w.down[ids.NodeID(n+1)] = true
	}
	if out := u.wait(put("a", "2"), time.Second); out.Code != kv.CodeUnavailable {
		t.Errorf("no node could be reached: %+v", out)
	}
	u.core.Stamp(w.now, 1<<40)
	w.down = map[ids.NodeID]bool{}
	if out := u.wait(put("a", "3"), time.Second); out.Code != kv.CodeOK {
		t.Errorf("after the nodes came back: %+v", out)
	}
}

func TestLateAnswerOfAnEarlierAttemptCounts(t *testing.T) {
	t.Parallel()
	var sent []kv.Request
	rec := recorder{send: func(n ids.NodeID, r *kv.Request) { sent = append(sent, *r) }}
	c := New(Config{Client: 1, Random: func() uint64 { return 0 }}, rec)
	c.cache.merge(descriptor(2, 1, "\x20", "\x21", 1, 2, 3), 1)
	c.Stamp(1, 500)
	var out *kv.Response
	c.Start(1, &Call{Request: put("a", "1"), Done: func(r *kv.Response) { out = r }})
	c.Tick(1 + DefaultAttemptTimeout)
	if len(sent) != 2 || sent[0].Identity != sent[1].Identity || sent[0].ID == sent[1].ID {
		t.Fatalf("want a second attempt with the same identity: %+v", sent)
	}
	if sent[0].Identity.Floor != 500 {
		t.Errorf("floor %d, want the stamp that was there before", sent[0].Identity.Floor)
	}
	c.Response(2, 1, &kv.Response{ID: sent[0].ID, Timestamp: 900})
	if out == nil || out.Timestamp != 900 || len(c.attempts) != 0 || c.legTimers() != 0 {
		t.Fatalf("out %+v, %d attempts and %d timers left", out, len(c.attempts), c.legTimers())
	}
	c.Response(2, 2, &kv.Response{ID: sent[1].ID, Timestamp: 900}) // ignored
}

func TestConflictAfterALostAttemptIsUnknownUnlessByVersion(t *testing.T) {
	t.Parallel()
	for _, expect := range []kv.Expect{kv.ExpectValue, kv.ExpectAbsent, kv.ExpectVersion} {
		var last kv.Request
		rec := recorder{send: func(n ids.NodeID, r *kv.Request) { last = *r }}
		c := New(Config{Client: 1, Random: func() uint64 { return 0 }}, rec)
		c.cache.merge(descriptor(2, 1, "\x20", "\x21", 1, 2, 3), 1)
		c.Stamp(1, 500)
		var out *kv.Response
		c.Start(1, &Call{
			Request: kv.Request{
				Verb: kv.VerbCompareAndSwap, Key: key("a"), Expect: expect, ExpectedVersion: 7,
			},
			Done: func(r *kv.Response) { out = r },
		})
		c.Lost(1, 1)
		c.Response(1, 2, &kv.Response{ID: last.ID, Code: kv.CodeConflict})
		want := kv.CodeUnknownOutcome
		if expect == kv.ExpectVersion {
			want = kv.CodeConflict
		}
		if out == nil || out.Code != want {
			t.Errorf("expect %d: %+v, want %v", expect, out, want)
		}
	}
}

func TestStaleStampIsRefreshedBeforeTheFirstAttempt(t *testing.T) {
	t.Parallel()
	var sent []kv.Request
	rec := recorder{send: func(n ids.NodeID, r *kv.Request) { sent = append(sent, *r) }}
	c := New(Config{Client: 1, Random: func() uint64 { return 0 }}, rec)
	c.cache.merge(descriptor(2, 1, "\x20", "\x21", 1, 2, 3), 1)
	c.Stamp(1, 500)
	now := 2 + StampMaxAge
	c.Start(now, &Call{Request: put("a", "1"), Done: func(*kv.Response) {}})
	if len(sent) != 1 || sent[0].Verb != verbPing {
		t.Fatalf("a write went out on a stale stamp: %+v", sent)
	}
	c.Stamp(now, 700)
	c.Response(now, 1, &kv.Response{ID: sent[0].ID, Code: kv.CodeUnknownVerb})
	if len(sent) != 2 || sent[1].Verb != kv.VerbPut || sent[1].Identity.Floor != 700 {
		t.Fatalf("want the write with the fresh floor: %+v", sent)
	}
}

func TestSameSeedSameEffects(t *testing.T) {
	t.Parallel()
	trace := func() []string {
		w := newWorld(t, 42, 3)
		w.faults = true
		w.shake(20)
		left, told := 0, []write{}
		for n := range 3 {
			w.clientOf(w.newUser(uint64(n+1)), 30, &left, &told)
		}
		w.run(10*time.Minute, func() bool { return left == 0 })
		return w.trace
	}
	if a, b := trace(), trace(); !slices.Equal(a, b) {
		t.Errorf("two runs of one seed sent different requests: %d and %d", len(a), len(b))
	}
}
