package placement

import (
	"flag"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

var update = flag.Bool("update", false, "write the golden files anew")

// situations are what a person may find, each with the range to ask about.
func situations() map[string]func(t *testing.T) (*world, ids.RangeID) {
	return map[string]func(t *testing.T) (*world, ids.RangeID){
		"at_rest": func(t *testing.T) (*world, ids.RangeID) {
			return zoned(t, 1, 10, "a", "b", "c"), 5
		},
		"two_zones": func(t *testing.T) (*world, ids.RangeID) {
			return zoned(t, 2, 10, "a", "a", "b"), 5
		},
		"dead_node_without_a_spare": func(t *testing.T) (*world, ids.RangeID) {
			w := grown(t, 3, 6, 3)
			w.node(w.driver%3 + 1).up = false
			w.run(3 * time.Minute)
			return w, 2
		},
		"silent_node": func(t *testing.T) (*world, ids.RangeID) {
			w := grown(t, 4, 6, 4)
			w.run(2 * time.Minute)
			for _, v := range w.ranges[2].voters() {
				if ids.NodeID(v) != w.driver && ids.NodeID(v) != w.ranges[2].leader {
					w.node(ids.NodeID(v)).up = false
					break
				}
			}
			w.run(20 * time.Second)
			return w, 2
		},
		"being_repaired": func(t *testing.T) (*world, ids.RangeID) {
			w := newWorld(t, 5, 2)
			w.run(2 * time.Second)
			w.join().noSnaps = true
			w.join()
			w.run(5 * time.Second)
			return w, 2
		},
		"resting_after_failures": func(t *testing.T) (*world, ids.RangeID) {
			w := newWorld(t, 6, 2)
			w.run(2 * time.Second)
			w.join().noSnaps = true
			w.join()
			d := w.node(1).d
			w.runUntil(time.Hour, "two failures", func() bool {
				return d.cluster.dir.byID[2].failures == 2
			})
			w.run(5 * time.Second)
			return w, 2
		},
		"paused": func(t *testing.T) (*world, ids.RangeID) {
			w := grown(t, 7, 6, 3)
			w.node(w.driver).d.Pause(true, "eva: new disks",
				func(*metapb.PlacementSettings, error) {})
			w.set(&metapb.Rule{Name: "one", Replicas: 1})
			w.run(10 * time.Second)
			return w, 3
		},
	}
}

// moreSituations are those of rules, operations, splits and merges.
func moreSituations() map[string]func(t *testing.T) (*world, ids.RangeID) {
	return map[string]func(t *testing.T) (*world, ids.RangeID){
		"leader_where_the_rule_prefers_it": func(t *testing.T) (*world, ids.RangeID) {
			w := zoned(t, 8, 6, "a", "b", "c")
			w.set(&metapb.Rule{Name: "all", Replicas: 3, Leaders: []string{"zone=b"}})
			w.run(2 * time.Minute)
			return w, 4
		},
		"decommission_with_nowhere_to_go": func(t *testing.T) (*world, ids.RangeID) {
			w := grown(t, 9, 6, 4)
			w.run(2 * time.Minute)
			w.node(w.driver).d.Pause(true, "a test", func(*metapb.PlacementSettings, error) {})
			gone := w.ranges[3].voters()[0]
			w.must(ids.NodeID(gone), standingDecommissioning)
			for n := ids.NodeID(1); n <= 4; n++ {
				if replicaOn(w.ranges[3].desc, n) == nil {
					w.must(n, standingDraining)
				}
			}
			w.node(w.driver).d.Pause(false, "", func(*metapb.PlacementSettings, error) {})
			w.run(time.Minute)
			return w, 3
		},
		"split_by_size": func(t *testing.T) (*world, ids.RangeID) {
			w := grown(t, 10, 4, 3)
			w.ranges[3].bytes = 65 << 20
			w.tell(w.ranges[3])
			w.run(2 * time.Second)
			w.split(3, 77)
			w.run(30 * time.Second)
			return w, 77
		},
		"hot_but_one_key": func(t *testing.T) (*world, ids.RangeID) {
			w := grown(t, 11, 4, 3)
			w.ranges[3].cpu, w.ranges[3].writes = 400_000, 9000
			w.ranges[3].hot = "one key gets 93 % of the load"
			w.tell(w.ranges[3])
			w.run(time.Minute)
			return w, 3
		},
		"merged": func(t *testing.T) (*world, ids.RangeID) {
			w := grown(t, 12, 4, 3)
			if _, err := w.operate(mergeOf(3)); err != nil {
				t.Fatal(err)
			}
			w.runUntil(5*time.Minute, "merged", func() bool { return w.ranges[4] == nil })
			w.run(5 * time.Second)
			return w, 3
		},
	}
}

// boundSituations are those of bounds that stay, and of nodes that do not.
func boundSituations() map[string]func(t *testing.T) (*world, ids.RangeID) {
	return map[string]func(t *testing.T) (*world, ids.RangeID){
		"last_range": func(t *testing.T) (*world, ids.RangeID) {
			return grown(t, 13, 4, 3), 5
		},
		"system_range": func(t *testing.T) (*world, ids.RangeID) {
			return grown(t, 13, 4, 3), 1
		},
		"neighbour_under_another_rule": func(t *testing.T) (*world, ids.RangeID) {
			w := merging(t, 14, 4)
			w.small(1 << 20)
			w.set(&metapb.Rule{Name: "all", Replicas: 3},
				&metapb.Rule{Name: "second", Prefix: []byte{0, 1}, Replicas: 3})
			w.run(40 * time.Minute)
			return w, 2
		},
		"kept_apart_by_request": func(t *testing.T) (*world, ids.RangeID) {
			w := merging(t, 15, 4)
			w.stick(3, math.MaxInt64)
			w.stick(4, (w.now + 3*time.Hour).Milliseconds())
			w.small(1 << 20)
			w.run(40 * time.Minute)
			return w, 3
		},
		"split_by_request": func(t *testing.T) (*world, ids.RangeID) {
			w := grown(t, 16, 4, 3)
			w.split(3, 77)
			w.stick(77, math.MaxInt64)
			w.run(30 * time.Second)
			return w, 3
		},
		"copy_on_a_node_that_comes_and_goes": func(t *testing.T) (*world, ids.RangeID) {
			w := grown(t, 17, 6, 3)
			flaps := w.driver%3 + 1
			for range 3 {
				w.node(flaps).up = false
				w.run(10 * time.Second)
				w.node(flaps).up = true
				w.run(10 * time.Second)
			}
			return w, 3
		},
	}
}

func TestExplainSaysWhyARangeIsWhereItIs(t *testing.T) {
	t.Parallel()
	all := situations()
	maps.Copy(all, moreSituations())
	maps.Copy(all, boundSituations())
	for name, make := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, id := make(t)
			reply, err := w.node(w.driver).d.Explain(&adminpb.ExplainRequest{RangeId: uint64(id)})
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(reply.GetLines(), "\n") + "\n"
			golden(t, filepath.Join("testdata", "explain", name+".txt"), got)
		})
	}
}

// golden compares with a file, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Fatalf("%s:\n%s\nwant:\n%s", path, got, want)
	}
}

func TestExplainFindsRangesByKeyAndSaysWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	w := grown(t, 120, 4, 3)
	d := w.node(w.driver).d
	reply, err := d.Explain(&adminpb.ExplainRequest{Key: []byte{0x20, 0, 1, 7}})
	if err != nil || reply.GetRange().GetDescriptor_().GetRangeId() != 3 {
		t.Fatalf("%v %v", reply, err)
	}
	for _, r := range []*adminpb.ExplainRequest{{RangeId: 99}, {Key: []byte{0x50}}} {
		if _, err := d.Explain(r); err == nil || !strings.Contains(err.Error(), "no such range") {
			t.Fatalf("%v: %v", r, err)
		}
	}
}
