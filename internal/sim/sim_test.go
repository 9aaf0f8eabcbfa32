package sim

import (
	"flag"
	"fmt"
	"os"
	"sort"
	"testing"
	"testing/cryptotest"
	"time"
)

var (
	seedsFlag  = flag.Int("sim.seeds", 40, "how many seeds TestSeeds runs")
	firstFlag  = flag.Uint64("sim.first", 1, "the first seed of TestSeeds")
	strideFlag = flag.Uint64("sim.stride", 1, "distance between seeds, to share them among processes")
	seedFlag   = flag.Uint64("sim.seed", 0, "the seed that TestReplay runs, with its trace")
	stormFlag  = flag.Bool("sim.storm", false, "TestSeeds and TestReplay make storms of faults and calls")
	logsFlag   = flag.Bool("sim.logs", false, "TestReplay shows the nodes' logs, too")
)

// sometimes must each happen over a set of seeds, or the set did not exercise
// what it claims to.
var sometimes = []string{
	"crashes", "crashes_between_commits", "snapshots_slow", "partitions", "one_way_cuts",
	"support_cuts", "pauses", "freezes", "slow_disks", "disk_stalls",
	"clock_steps", "clocks_adopted", "elections", "transfers_stranded",
	"promises_expired", "promises_outlived", "supports_lapsed", "support_frames_late",
	"support_frames_refused", "leases_seen", "reads_by_lease", "reads_by_index",
	"reads_in_the_future", "reads_paused_before_fix", "reads_paused_before_stripes",
	"reads_paused_before_lease", "reads_paused_before_iterator", "reads_paused_before_check",
	"transfers", "splits", "snapshots_sent",
	"snapshots_installed", "orders_ORDER_KIND_ADD_LEARNER", "orders_ORDER_KIND_PROMOTE",
	"orders_ORDER_KIND_REMOVE_LEARNER", "orders_ORDER_KIND_TRANSFER_LEADER",
	"streams_broken", "replies_lost", "retries_of_writes", "frames_lost", "frames_duplicated",
	"calls_conflict", "scans_of_registers", "scans_of_pairs", "atomic_batches",
	"increments", "inserts_found", "reads_of_hot_rows",
	"merges", "merges_aborted", "merge_freezes", "merge_thaws", "load_splits", "swaps",
	"orders_ORDER_KIND_MERGE", "requests_for_merges", "requests_for_relocations",
	"requests_for_scatters", "requests_for_transfers", "drains", "machines_replaced",
	"outages", "rules_changed", "pauses_of_placement",
}

func replayCommand(seed uint64) string {
	return fmt.Sprintf("go test ./internal/sim -run TestReplay -sim.seed=%d -sim.storm=%v -v",
		seed, *stormFlag)
}

// storm is a run in which leases come and go: the faults of Derive, more often,
// and more calls.
func storm(seed uint64) Options {
	o := Derive(seed)
	o.FaultEvery, o.Think = o.FaultEvery/3, max(o.Think/4, time.Millisecond)
	return o
}

// options are a seed's, as the flags want them.
func options(seed uint64) Options {
	if *stormFlag {
		return storm(seed)
	}
	return Derive(seed)
}

// runSeed runs one seed with raft's jitter pinned to it.
func runSeed(t *testing.T, o Options) Result {
	t.Helper()
	cryptotest.SetGlobalRandom(t, o.Seed)
	return Run(o)
}

// TestSeeds runs a set of seeds and demands that each passes and that, over the
// set, everything it claims to exercise happened.
func TestSeeds(t *testing.T) {
	total := map[string]int{}
	began := time.Now()
	ran := 0
	for i := range *seedsFlag {
		seed := *firstFlag + uint64(i)**strideFlag
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := runSeed(t, options(seed))
			if r.Err != nil {
				t.Fatalf("seed %d: %v\nreplay: %s", seed, r.Err, replayCommand(seed))
			}
			ran++
			for k, v := range r.Counters {
				total[k] += v
			}
		})
	}
	t.Logf("%d seeds from %d in %s\n%s", ran, *firstFlag, time.Since(began).Round(time.Second),
		Summary(total))
	if *seedsFlag < 30 {
		return
	}
	for _, name := range sometimes {
		if total[name] == 0 {
			t.Errorf("%s never happened over %d seeds", name, ran)
		}
	}
}

// TestReplay runs one seed with its trace: what a failing seed's message names.
func TestReplay(t *testing.T) {
	if *seedFlag == 0 {
		t.Skip("runs with -sim.seed only")
	}
	o := options(*seedFlag)
	o.Trace, o.Logs = os.Stdout, *logsFlag
	r := runSeed(t, o)
	t.Logf("hash %x, %d steps\n%s", r.Hash, r.Steps, Summary(r.Counters))
	if r.Err != nil {
		t.Fatal(r.Err)
	}
}

// TestEqualSeedsGiveEqualTraces runs a seed twice and compares the traces'
// hashes: without that no failure could be replayed.
func TestEqualSeedsGiveEqualTraces(t *testing.T) {
	for _, seed := range []uint64{3, 4} {
		var hashes []uint64
		for range 2 {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				o := Derive(seed)
				o.Duration = 20 * time.Second
				r := runSeed(t, o)
				if r.Err != nil {
					t.Fatal(r.Err)
				}
				hashes = append(hashes, r.Hash)
			})
		}
		if len(hashes) == 2 && hashes[0] != hashes[1] {
			t.Errorf("seed %d: traces differ: %x and %x", seed, hashes[0], hashes[1])
		}
	}
}

// TestSometimesHasNoDoubles keeps the list free of doubles.
func TestSometimesHasNoDoubles(t *testing.T) {
	names := append([]string(nil), sometimes...)
	sort.Strings(names)
	for i := 1; i < len(names); i++ {
		if names[i] == names[i-1] {
			t.Errorf("%s stands twice", names[i])
		}
	}
}
