package placement

import (
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const mergeKind = metapb.OrderKind_ORDER_KIND_MERGE

// small makes every range as large as given, and tells it.
func (w *world) small(bytes int64) {
	for _, r := range w.ranges {
		r.bytes = bytes
		w.tell(r)
	}
}

// merging returns a cluster of five nodes that merges what is below 16 MiB.
func merging(t *testing.T, seed uint64, ranges int) *world {
	t.Helper()
	w := newWorld(t, seed, ranges)
	w.config = Config{MergeBelow: DefaultMergeBelow, MergeAfter: 10 * time.Minute}
	w.nodes = nil
	w.start(1).d.SetActive(true, 0)
	w.run(2 * time.Second)
	for len(w.nodes) < 5 {
		w.join()
	}
	w.runUntil(20*time.Minute, "three copies everywhere", w.allHave(3))
	w.runUntil(20*time.Minute, "leaders even", w.even)
	w.run(10 * time.Minute)
	return w
}

func TestSmallColdNeighboursBecomeOneAfterAWhile(t *testing.T) {
	t.Parallel()
	w := merging(t, 110, 18)
	if w.executed[mergeKind] != 0 {
		t.Fatal("large ranges were merged")
	}
	w.small(1 << 20)
	began := w.now
	w.run(9 * time.Minute)
	if w.executed[mergeKind] != 0 {
		t.Fatalf("merged %v after they became small", w.now-began)
	}
	// 18 MiB in all: two ranges below 16 MiB each cannot come together.
	w.runUntil(5*time.Hour, "a few ranges", func() bool {
		for id, r := range w.ranges {
			if n := len(r.voters()); n != 3 && r.desc.GetRangeId() != 1 {
				t.Fatalf("%v passes through %d voters", id, n)
			}
		}
		return len(w.ranges) <= 4
	})
	w.run(20 * time.Minute)
	if len(w.ranges) < 3 {
		t.Fatalf("%d ranges", len(w.ranges))
	}
	for id, r := range w.ranges {
		if r.bytes >= DefaultMergeBelow {
			t.Fatalf("%v holds %d bytes", id, r.bytes)
		}
	}
	d := w.node(w.driver).d
	if gaps := d.cluster.dir.gaps(); gaps != 0 {
		t.Fatalf("%d gaps", gaps)
	}
	verify(t, d.cluster)
	w.quiet(time.Hour)
}

func TestWhatKeepsNeighboursFromBeingMerged(t *testing.T) {
	t.Parallel()
	for _, s := range []struct {
		story  string
		change func(w *world)
		words  string
	}{
		{"load", func(w *world) {
			for _, r := range w.ranges {
				r.cpu = 50_000
				w.tell(r)
			}
		}, ""},
		{"reads and writes", func(w *world) {
			for _, r := range w.ranges {
				r.reads, r.writes = 60, 60
				w.tell(r)
			}
		}, ""},
		{"a pause", func(w *world) {
			w.node(w.driver).d.Pause(true, "a test", func(*metapb.PlacementSettings, error) {})
		}, ""},
		{"another rule", func(w *world) {
			all := []*metapb.Rule{{Name: "all", Replicas: 3}}
			for i := range byte(4) {
				all = append(all, &metapb.Rule{Name: "r" + string('0'+rune(i)),
					Prefix: []byte{0, i}, Replicas: 3})
			}
			w.set(all...)
		}, "under rule"},
	} {
		w := merging(t, 111, 4)
		w.small(1 << 20)
		s.change(w)
		w.run(40 * time.Minute)
		if w.executed[mergeKind] != 0 {
			t.Errorf("%s: merged all the same", s.story)
		}
		if s.words == "" {
			continue
		}
		_, err := w.operate(mergeOf(2))
		if err == nil || !strings.Contains(err.Error(), s.words) {
			t.Errorf("%s: a merge on request: %v, want %q", s.story, err, s.words)
		}
	}
}

func TestAMergeOnRequestBringsCopiesAndLeadersTogether(t *testing.T) {
	t.Parallel()
	w := grown(t, 112, 8, 6)
	w.run(10 * time.Minute)
	for i, nodes := range [][2][]uint64{{{1, 2, 3}, {4, 5, 6}}, {{2, 1, 3}, {3, 4, 2}}} {
		id := uint64(3 + 2*i)
		left, right := w.ranges[ids.RangeID(id)], w.ranges[ids.RangeID(id+1)]
		for half := range uint64(2) {
			if _, err := w.operate(relocate(id+half, nodes[half]...)); err != nil {
				t.Fatal(err)
			}
		}
		w.runUntil(5*time.Minute, "apart", func() bool {
			return w.status().GetOperators() == 0 && left.leader == ids.NodeID(nodes[0][0]) &&
				right.leader == ids.NodeID(nodes[1][0])
		})
		right.bytes = 30 << 20
		w.tell(right)
		w.run(2 * time.Second)
		reply, err := w.operate(mergeOf(id))
		if err != nil {
			t.Fatal(err)
		}
		t.Log(reply.GetOperators()[0].GetSteps())
		merges := w.executed[mergeKind]
		w.runUntil(10*time.Minute, "one range", func() bool {
			return w.executed[mergeKind] > merges
		})
		w.run(2 * time.Second)
		h := w.node(w.driver).d.Operators(&adminpb.OperatorsRequest{History: true, RangeId: id})
		if len(h.GetOperators()) == 0 || h.GetOperators()[0].GetOutcome() != "done" {
			t.Fatalf("history: %v", h)
		}
		verify(t, w.node(w.driver).d.cluster)
	}
}
