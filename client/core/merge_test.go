package core

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/client/internal/model"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func TestALeftHalfEvictsTheRangeThatItHasAbsorbedForGood(t *testing.T) {
	t.Parallel()
	var rc rangeCache
	left, right := descriptor(2, 9, "a", "m", 1, 2, 3), descriptor(7, 4, "m", "z", 1, 2, 3)
	frozen := descriptor(7, 5, "m", "z", 1, 2, 3)
	merged := descriptor(2, 10, "a", "z", 1, 2, 3)
	beside := descriptor(9, 30, "z", "zz", 1, 2, 3)
	for _, d := range []*metapb.RangeDescriptor{left, right, beside} {
		rc.merge(d, 2)
	}
	waiting := &gate{}
	rc.find([]byte("p"), false).gate = waiting
	if !rc.merge(merged, 0) {
		t.Fatal("what has absorbed another is newer than both")
	}
	for _, key := range []string{"b", "m", "p"} {
		if e := rc.find([]byte(key), false); e == nil || e.desc != merged || e.leader != 2 {
			t.Errorf("%q is routed to %+v, want r2 in generation 10, led by n2", key, e)
		}
	}
	if len(rc.orphans) != 1 || rc.orphans[0] != waiting {
		t.Errorf("who waited at the absorbed range is not routed anew: %v", rc.orphans)
	}
	// A directory, or a node, that lags does not bring the halves back.
	for _, old := range []*metapb.RangeDescriptor{left, right, frozen} {
		if rc.merge(old, 1) {
			t.Errorf("r%d in generation %d came back", old.GetRangeId(), old.GetGeneration())
		}
	}
	if e := rc.find([]byte("z"), false); e == nil || e.desc != beside {
		t.Errorf("the next range is %+v", e)
	}
}

// inRanges is a world of 50 keys in eight ranges.
func inRanges(t *testing.T, seed uint64) (*world, *user) {
	w := newWorld(t, seed, 3)
	w.cluster.PageRows = 5
	u := w.newUser(1)
	for n := range 50 {
		u.wait(put(fmt.Sprintf("k%03d", n), "v"), 0)
	}
	for n := range 7 {
		w.cluster.Split(key(fmt.Sprintf("k%03d", n*7+3)))
	}
	return w, u
}

// mergeSome merges a random range with its neighbour, if there are two.
func (w *world) mergeSome() {
	r := w.cluster.Ranges[w.rng.IntN(len(w.cluster.Ranges))]
	w.cluster.Merge(r.Desc.Start)
}

func TestAScanGoesOnAcrossAMerge(t *testing.T) {
	t.Parallel()
	for n := range 40 {
		seed, reverse := rand.Uint64(), n%2 == 0
		w, u := inRanges(t, seed)
		r := scanAll()
		if reverse {
			r.Flags |= kv.FlagReverse
		}
		var rows []kv.KeyValue
		for more := true; more; {
			out := u.wait(r, 0)
			if out.Code != kv.CodeOK || r.Timestamp != 0 && out.Timestamp != r.Timestamp {
				t.Fatalf("seed %d: page of %d gives %+v", seed, r.Timestamp, out)
			}
			rows, more = append(rows, out.Rows...), out.More
			if r.Timestamp = out.Timestamp; reverse {
				r.End = out.ResumeKey
			} else {
				r.Key = out.ResumeKey
			}
			w.mergeSome()
		}
		if len(rows) != 50 {
			t.Fatalf("seed %d: %d rows, want 50", seed, len(rows))
		}
		for i := 1; i < len(rows); i++ {
			if order := bytes.Compare(rows[i-1].Key, rows[i].Key); order < 0 == reverse || order == 0 {
				t.Fatalf("seed %d: row %d out of order", seed, i)
			}
		}
	}
}

func TestARangeDeletionGoesOnAcrossMerges(t *testing.T) {
	t.Parallel()
	for range 40 {
		seed := rand.Uint64()
		w, u := inRanges(t, seed)
		var out *kv.Response
		u.call(kv.Request{Verb: kv.VerbDeleteRange, Key: key("k010"), End: key("k040")}, 0,
			func(r *kv.Response) { out = r })
		for out == nil {
			w.run(time.Duration(w.rng.Int64N(int64(2*time.Millisecond))), nil)
			w.mergeSome()
		}
		if out.Code != kv.CodeOK || out.Count != 30 {
			t.Fatalf("seed %d: %+v, want 30 keys deleted", seed, out)
		}
		if rows := w.scanToTheEnd(u, false); len(rows) != 20 {
			t.Fatalf("seed %d: %d keys left, want 20", seed, len(rows))
		}
	}
}

func TestKeysOfTwoRangesAreOneBatchOnceTheRangesAreOne(t *testing.T) {
	t.Parallel()
	w, u := inRanges(t, 1)
	batch := kv.Request{Verb: kv.VerbAtomic, Ops: []kv.Op{
		{Key: key("k009"), Value: []byte("1")}, {Key: key("k010"), Value: []byte("2")},
	}}
	if out := u.wait(batch, 0); out.Code != kv.CodeCrossRange {
		t.Fatalf("a batch over a boundary: %+v", out)
	}
	w.cluster.Merge(key("k009"))
	if out := u.wait(batch, 0); out.Code != kv.CodeOK {
		t.Fatalf("after the merge: %+v", out)
	}
}

// A range that is about to be absorbed serves nothing, for as long as its replicas
// take to agree. However its leader says so, what waits costs the cluster little, and
// goes on soon after the merge.
func TestWhatWaitsForAFrozenRangeAsksSeldomAndGoesOnAfterItsMerge(t *testing.T) {
	t.Parallel()
	const (
		waiting = 100
		frozen  = 300 * time.Millisecond
	)
	for way, c := range map[int]struct {
		sends int           // for all, with the first and the last attempt of each
		after time.Duration // the merge
	}{
		0: {sends: 3 * waiting, after: 50 * time.Millisecond},
		1: {sends: 3 * waiting, after: 50 * time.Millisecond},
		2: {sends: 10 * waiting, after: DefaultBackoffMax},
	} {
		w, u := inRanges(t, 7)
		right := w.cluster.Holder(key("k040"))
		u.wait(get("k040"), 0) // the route is known
		u.sends = 0
		freeze(right, way)
		done := 0
		for n := range waiting {
			u.call(put("k040", fmt.Sprint(n)), 0, func(r *kv.Response) {
				if done++; r.Code != kv.CodeOK {
					t.Errorf("way %d: %+v", way, r)
				}
			})
		}
		w.run(frozen, nil)
		if done > 0 || u.sends > c.sends-waiting {
			t.Errorf("way %d: %d writes are done, %d requests were sent", way, done, u.sends)
		}
		right.Frozen = nil
		w.mergeWithTheLeft(right)
		w.run(c.after, func() bool { return done == waiting })
		if done != waiting || u.sends > c.sends {
			t.Errorf("way %d: %d of %d writes are done %v after the merge, with %d requests; "+
				"want all, with %d at most", way, done, waiting, c.after, u.sends, c.sends)
		}
		for id, n := range w.cluster.Applied {
			if n != 1 {
				t.Errorf("way %d: write %+v took effect %d times", way, id, n)
			}
		}
	}
}

// mergeWithTheLeft lets the left neighbour of a range absorb it.
func (w *world) mergeWithTheLeft(right *model.Range) {
	for _, r := range w.cluster.Ranges {
		if bytes.Equal(r.Desc.End, right.Desc.Start) {
			w.cluster.Merge(r.Desc.Start)
			return
		}
	}
	w.t.Fatal("no left neighbour")
}

// An absorbed range whose node does not hold the left half (it had a replica of the
// right one only until it was moved) brings no news: the directory does, and until it
// knows, the client does not spin.
func TestAStaleRouteIsLookedUpWithoutSpinning(t *testing.T) {
	t.Parallel()
	w, u := inRanges(t, 3)
	u.wait(get("k040"), 0)
	old := w.cluster.Holder(key("k040"))
	w.mergeWithTheLeft(old)
	serve, lagging := w.handle, true
	w.handle = func(n ids.NodeID, r *kv.Request) *kv.Response {
		if lagging {
			return &kv.Response{ID: r.ID, Code: kv.CodeWrongRange}
		}
		return serve(n, r)
	}
	u.sends = 0
	var out *kv.Response
	u.call(get("k040"), 0, func(r *kv.Response) { out = r })
	const lag = time.Second
	w.run(lag, nil)
	if sends := u.sends; out != nil || sends > int(lag/DefaultBackoffMin)/4 {
		t.Errorf("%d requests in %v, answer %+v", sends, lag, out)
	}
	lagging = false
	w.run(2*DefaultBackoffMax, func() bool { return out != nil })
	if out == nil || out.Code != kv.CodeOK {
		t.Errorf("after the directory knows: %+v", out)
	}
}
