package ranges

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// hotNode is a node whose ranges are hot from 100 operations a second on, with a
// thousand keys in range 2.
func hotNode(t *testing.T, tune func(*Config)) (*world, *node) {
	t.Helper()
	w := oneNode(t, func(c *Config) {
		c.LoadSplitOps = 100
		if tune != nil {
			tune(c)
		}
	})
	w.lease = leased
	n := w.nodes[1]
	calls := make([]*call, 1000)
	for i := range calls {
		calls[i] = n.start(n.putRequest(fmt.Sprintf("k%03d", i), "value"))
	}
	w.settle()
	w.maintain(100) // that was no load
	if list := n.ranges(); len(list) != 1 {
		t.Fatalf("%d ranges before the load", len(list))
	}
	return w, n
}

// ranges are those of the users' keys.
func (n *node) ranges() (list []*Replica) {
	for _, r := range n.table.byKey() {
		if r.id != 1 {
			list = append(list, r)
		}
	}
	return list
}

// until lets seconds of load pass until something holds, and says how many.
func (w *world) until(most, requests int, request func(int), holds func() bool) int {
	w.t.Helper()
	for second := range most {
		if holds() {
			return second
		}
		w.second(requests, request)
	}
	return most
}

func (n *node) wantBecause(r ids.RangeID, want string) {
	n.w.t.Helper()
	if len(n.ranges()) != 1 {
		n.w.t.Fatalf("there are %d ranges", len(n.ranges()))
	}
	if got := n.lastFact(r).GetHotBecause(); got != want {
		n.w.t.Errorf("placement was told that the range is not split because %q, want %q", got, want)
	}
}

func TestAHotRangeIsSplitAtTheKeyThatHalvesItsLoad(t *testing.T) {
	t.Parallel()
	for _, verb := range []kv.Verb{kv.VerbGet, kv.VerbPut} {
		const seed = 1
		w, n := hotNode(t, nil)
		rng := rand.New(rand.NewPCG(seed, uint64(verb)))
		// A tenth anywhere, the rest in the last tenth of the keys: half of the
		// load lies left of k945, half of the bytes left of k500.
		request := func(int) {
			i := rng.IntN(1000)
			if rng.IntN(10) > 0 {
				i = 900 + rng.IntN(100)
			}
			if k := fmt.Sprintf("k%03d", i); verb == kv.VerbGet {
				n.getNow(k)
			} else {
				n.put(k, "newer")
			}
		}
		from := 0
		seconds := w.until(30, 300, request, func() bool {
			if len(n.ranges()) > 1 {
				return true
			}
			from = len(n.facts)
			return false
		})
		list := n.ranges()
		if len(list) != 2 {
			t.Fatalf("seed %d, verb %v: %d ranges after %d seconds", seed, verb, len(list), seconds)
		}
		at := strings.TrimPrefix(string(list[1].descriptor().GetStart()), string(key("")))
		if at < "k925" || at > "k965" || seconds < int(hotFor/time.Second) {
			t.Errorf("seed %d, verb %v: split at %q after %d seconds", seed, verb, at, seconds)
		}
		if n.table.LoadSplits() != 1 {
			t.Errorf("%d load splits are counted", n.table.LoadSplits())
		}
		// Both halves are told with half the load each, before they have any.
		w.tick(2)
		for _, r := range list {
			told := n.factsOf(r.id, from)
			if len(told) == 0 {
				t.Fatalf("placement was not told of %v", r.id)
			}
			f := told[len(told)-1]
			load := f.GetReadsPerSecond() + f.GetWritesPerSecond()
			all := 300 * (1 - math.Exp(-float64(seconds)/10))
			if !near(load, all/2, 0.15) {
				t.Errorf("seed %d, verb %v: %v begins with %.0f of %.0f operations a second",
					seed, verb, r.id, load, all)
			}
		}
		w.check()
	}
}

func TestScansArePagesThatCountWhereTheyBeginAndEnd(t *testing.T) {
	t.Parallel()
	const seed = 2
	w, n := hotNode(t, nil)
	rng := rand.New(rand.NewPCG(seed, 0))
	// Pages of ten keys over the first hundred, asked for as if to the end.
	scan := func(int) {
		resp := n.do(&kv.Request{
			Verb: kv.VerbScan, Key: key(fmt.Sprintf("k%03d", rng.IntN(100))), End: key("z"),
			Limit: 10, Flags: kv.FlagKeysOnly * uint8(rng.IntN(2)),
		})
		wantCode(t, resp, kv.CodeOK)
	}
	w.until(30, 200, scan, func() bool { return len(n.ranges()) > 1 })
	list := n.ranges()
	if len(list) < 2 {
		t.Fatalf("seed %d: not split: %q", seed, n.lastFact(2).GetHotBecause())
	}
	at := strings.TrimPrefix(string(list[1].descriptor().GetStart()), string(key("")))
	if at < "k035" || at > "k075" {
		t.Errorf("seed %d: split at %q", seed, at)
	}
}

func TestOneHotKeyIsNotSplitAndSaysWhy(t *testing.T) {
	t.Parallel()
	w, n := hotNode(t, nil)
	rng := rand.New(rand.NewPCG(3, 0))
	for range 20 {
		w.second(300, func(int) {
			k := "k500"
			if rng.IntN(10) == 0 {
				k = fmt.Sprintf("k%03d", rng.IntN(1000))
			}
			n.getNow(k)
		})
	}
	n.wantBecause(2, "one key gets 90 % of the load")
	w.maintain(30)
	n.wantBecause(2, "") // it is cold
}

func TestLoadThatMovesThroughTheKeysIsNotSplitAndSaysWhy(t *testing.T) {
	t.Parallel()
	w, n := hotNode(t, func(c *Config) { c.LoadSplitOps = 30 })
	next := 0
	for range 16 {
		w.second(60, func(int) {
			next++
			n.put(fmt.Sprintf("log%08d", next), "entry")
		})
	}
	n.wantBecause(2, becauseMoves)
}

// Two halves with all of the scans each would be split again, and so on.
func TestScansOverEverythingAreNotSplitForTheirNumber(t *testing.T) {
	t.Parallel()
	w, n := hotNode(t, func(c *Config) { c.LoadSplitOps = 20 })
	for range 16 {
		w.second(40, func(int) {
			n.do(&kv.Request{Verb: kv.VerbScan, Key: key(""), End: key("z"), Flags: kv.FlagKeysOnly})
		})
	}
	n.wantBecause(2, becauseStraddle)
}

// But if it is their time that makes the range hot, each half takes half of it.
func TestScansOverEverythingAreSplitInTheMiddleForTheirTime(t *testing.T) {
	t.Parallel()
	clock := &stepClock{step: 2 * time.Millisecond}
	w := newWorld(t, 1, func(c *Config) {
		clock.world = c.Physical.(*world)
		c.Physical, c.LoadSplitOps = clock, -1
	})
	w.bootstrap()
	w.lease = leased
	n := w.nodes[1]
	for i := range 16 {
		n.put(fmt.Sprintf("k%02d", i), strings.Repeat("x", 100<<10))
	}
	w.maintain(100)
	scan := func(int) {
		n.do(&kv.Request{
			Verb: kv.VerbScan, Key: []byte{kv.UserPrefix}, End: []byte{kv.EndPrefix},
			Flags: kv.FlagKeysOnly,
		})
	}
	w.until(30, 100, scan, func() bool { return len(n.ranges()) > 1 })
	list := n.ranges()
	if len(list) != 2 || !bytes.Equal(list[1].descriptor().GetStart(), key("k08")) {
		t.Errorf("%d ranges, %q: %q", len(list), list[len(list)-1].descriptor().GetStart(),
			n.lastFact(2).GetHotBecause())
	}
}

func TestLoadSplitsKeepTheirDistance(t *testing.T) {
	t.Parallel()
	w, n := hotNode(t, func(c *Config) { c.LoadSplitOps = 50 })
	rng := rand.New(rand.NewPCG(4, 0))
	var at []int
	for second := range 60 {
		before := len(n.ranges())
		w.second(500, func(int) { n.getNow(fmt.Sprintf("k%03d", rng.IntN(1000))) })
		if now := len(n.ranges()); now > 2*before {
			t.Errorf("%d ranges became %d within a second", before, now)
		} else if now > before {
			at = append(at, second)
		}
	}
	// 500 a second, at most 50 or so each: in four or five rounds.
	if got := len(n.ranges()); got < 10 || got > 30 {
		t.Errorf("there are %d ranges", got)
	}
	if len(at) < 3 || at[1]-at[0] < int(loadSplitPause/time.Second) {
		t.Errorf("ranges were split in seconds %v", at)
	}
	for _, r := range n.ranges() {
		if load := r.load.watch.Load().load().reads; load > 65 {
			t.Errorf("%v still has %.0f reads a second", r.id, load)
		}
	}
	// And then it stays as it is.
	was := len(n.ranges())
	for range 30 {
		w.second(500, func(int) { n.getNow(fmt.Sprintf("k%03d", rng.IntN(1000))) })
	}
	if now := len(n.ranges()); now > was+4 {
		t.Errorf("%d ranges became %d under the same load", was, now)
	}
	w.check()
}

func TestSplitsByLoadCanBeSwitchedOff(t *testing.T) {
	t.Parallel()
	w, n := hotNode(t, func(c *Config) { c.LoadSplitOps, c.LoadSplitCPU = -1, -1 })
	rng := rand.New(rand.NewPCG(5, 0))
	for range 20 {
		w.second(300, func(int) { n.getNow(fmt.Sprintf("k%03d", rng.IntN(1000))) })
	}
	n.wantBecause(2, "")
	if r := n.table.replica(2); r.load.watch.Load().heat.keys != nil {
		t.Error("keys are sampled")
	}
}

func TestTheSystemRangeIsNeverSplitByLoad(t *testing.T) {
	t.Parallel()
	w, n := hotNode(t, nil)
	for range 12 {
		w.second(300, func(i int) {
			n.start(&kv.Request{
				Verb: kv.VerbGet, Key: []byte{kv.SystemPrefix, byte(i), byte(i)},
			})
		})
	}
	if len(n.table.byKey()) != 2 || n.lastFact(1).GetHotBecause() != becauseSystem {
		t.Errorf("%d ranges, %v", len(n.table.byKey()), n.lastFact(1))
	}
}

func TestAHotRangeWithoutAnIDSaysSoAndIsSplitLater(t *testing.T) {
	t.Parallel()
	ready, last := false, ids.RangeID(100)
	w, n := hotNode(t, func(c *Config) {
		c.NextRangeID = func() (ids.RangeID, bool) { last++; return last, ready }
	})
	rng := rand.New(rand.NewPCG(6, 0))
	read := func(int) { n.getNow(fmt.Sprintf("k%03d", rng.IntN(1000))) }
	for range 12 {
		w.second(300, read)
	}
	n.wantBecause(2, becauseNoID)
	ready = true
	if s := w.until(25, 300, read, func() bool { return len(n.ranges()) > 1 }); s == 25 {
		t.Fatalf("not split: %q", n.lastFact(2).GetHotBecause())
	}
	w.maintain(1)
	if because := n.lastFact(2).GetHotBecause(); because != "" {
		t.Errorf("after the split %q", because)
	}
}

// What candidates believe from the part that they have seen is compared with the
// whole: the key that is chosen halves the load of all requests, and where there
// is such a key one is found.
func TestTheChosenKeyHalvesAllOfTheLoad(t *testing.T) {
	t.Parallel()
	d := &metapb.RangeDescriptor{Start: key(""), End: key("z"), RangeId: 2}
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 8))
		zipf := rand.NewZipf(rng, 1.05+rng.Float64(), 1+9*rng.Float64(), 9999)
		scatter := rng.Uint64() | 1
		draw := func() string { // of ten thousand keys
			switch seed % 3 {
			case 0:
				return fmt.Sprintf("k%04d", rng.IntN(10_000))
			case 1:
				return fmt.Sprintf("k%04d", zipf.Uint64()*scatter%10_007%10_000)
			default:
				return fmt.Sprintf("k%04d", min(9999, int(math.Abs(rng.NormFloat64())*2000)))
			}
		}
		c, all := choice{undecided: true}, []string(nil)
		for window := range 4 { // a candidate in a small gap may be missed at first
			k := newKeySamples(ids.RangeID(seed), time.Duration(window), rates{})
			all = all[:0]
			for range 1000 {
				s := draw()
				all = append(all, s)
				k.record(key(s), nil, 1)
			}
			if c = k.choose(d, false); c.key != nil {
				break
			}
		}
		sort.Strings(all)
		imbalance := func(s string) float64 {
			left := sort.SearchStrings(all, s)
			return math.Abs(float64(len(all)-2*left)) / float64(len(all))
		}
		best := 1.0
		for _, s := range all {
			best = min(best, imbalance(s))
		}
		switch {
		case c.undecided:
			t.Errorf("seed %d: undecided", seed)
		case c.key != nil:
			got := imbalance(strings.TrimPrefix(string(c.key), string(key(""))))
			if got > maxImbalance+0.1 {
				t.Errorf("seed %d: the chosen key leaves an imbalance of %.2f, best is %.2f",
					seed, got, best)
			}
		case best < 0.1 && !strings.HasPrefix(c.because, "one key"):
			t.Errorf("seed %d: an imbalance of %.2f was possible, but %q", seed, best, c.because)
		}
	}
}

// A key at an end of the range cuts nothing off.
func TestOnlyKeysInsideTheRangeAreChosen(t *testing.T) {
	t.Parallel()
	d := &metapb.RangeDescriptor{Start: key("m"), End: key("n"), RangeId: 2}
	k := newKeySamples(2, 0, rates{})
	for i := range 400 {
		k.record(key([]string{"m", "l", "n", "o"}[i%4]), nil, 1)
	}
	if c := k.choose(d, false); c.key != nil || c.undecided {
		t.Errorf("chosen: %q, %+v", c.key, c)
	}
}

// leaping is a clock that many goroutines may read, and on which time flies.
type leaping struct{ stepping }

func (c *leaping) Monotonic() time.Duration {
	return 20 * time.Millisecond * time.Duration(c.ms.Add(1))
}

// Many goroutines read, write and scan while maintenance takes samples, keys are
// recorded and ranges split under them. For -race.
func TestLoadIsKeptAndSplitsHappenUnderManyGoroutines(t *testing.T) {
	t.Parallel()
	n := newTunedBusyNode(t, func(c *Config) {
		c.Physical, c.LoadSplitOps = &leaping{}, 1
		c.OnFact = func(*metapb.RangeFact) {}
	})
	defer n.stop()
	var clients, upkeep sync.WaitGroup
	var over atomic.Bool
	for c := range uint64(4) {
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(c, 9))
			for i := uint64(0); i < 100_000 && n.table.LoadSplits() < 2; i++ {
				k := key(fmt.Sprintf("k%02d", rng.IntN(100)))
				req := &kv.Request{Verb: kv.VerbGet, Key: k}
				switch rng.IntN(8) {
				case 0:
					req = &kv.Request{Verb: kv.VerbPut, Key: k, Value: k, Identity: kv.Identity{
						Client: c + 1, Sequence: i, Floor: n.clock.Peek(),
					}}
				case 1:
					req = &kv.Request{Verb: kv.VerbScan, Key: k, End: append(k, 0), Limit: 10}
				}
				if r := n.do(req); r.Code != kv.CodeOK && r.Code != kv.CodeNotFound {
					t.Errorf("verb %v: code %v %s", req.Verb, r.Code, r.Message)
				}
			}
		})
	}
	upkeep.Go(func() {
		for !over.Load() {
			n.table.Maintain()
			n.table.Facts()
			runtime.Gosched()
		}
	})
	clients.Wait()
	over.Store(true)
	upkeep.Wait()
	if n.table.LoadSplits() < 2 {
		t.Errorf("%d load splits", n.table.LoadSplits())
	}
}
