package loadtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// heard keeps what a run of probes reports, and when it was ready.
type heard struct {
	plan   ProbePlan
	start  time.Time
	ready  time.Duration
	result *ProbeResult
}

func (h *heard) Begin(p ProbePlan)  { h.plan = p }
func (h *heard) Ready()             { h.ready = time.Since(h.start) }
func (h *heard) End(r *ProbeResult) { h.result = r }
func (h *heard) view(phase, of, op string) ProbeView {
	i := slices.IndexFunc(h.result.Views, func(v ProbeView) bool {
		return v.Phase == phase && v.Of == of && v.Operation == op
	})
	if i < 0 {
		return ProbeView{Ranges: -1}
	}
	return h.result.Views[i]
}

// tenRanges are led by nodes 1, 2 and 3 in turn.
func tenRanges() []Range {
	var all []Range
	for i := range 10 {
		all = append(all, Range{
			ID: ids.RangeID(i + 2), Start: []byte{byte('a' + i)}, End: []byte{byte('b' + i)},
			Leader: ids.NodeID(i%3 + 1),
		})
	}
	return all
}

func probeFake(t *testing.T, c ProbeConfig, f *fakeStore) *heard {
	t.Helper()
	h := &heard{start: time.Now()}
	f.start = h.start
	if err := Probe(t.Context(), c, f, h); err != nil {
		t.Fatal(err)
	}
	return h
}

// lostAt answers within a millisecond, but what node 2 leads does not answer
// between two times; what waits then is answered at the end of it.
func lostAt(from, to time.Duration) func(at time.Duration, key []byte) (time.Duration, error) {
	return func(at time.Duration, key []byte) (time.Duration, error) {
		if (key[0]-'a')%3 == 1 && at >= from && at < to {
			return to - at + time.Millisecond, nil
		}
		return time.Millisecond, nil
	}
}

func probeConfig() ProbeConfig {
	return ProbeConfig{
		Ranges: tenRanges(), ReadRate: 50, WriteRate: 25, Victim: 2,
		Dense: 2, DenseEvery: 10 * time.Millisecond, Warmup: time.Second, Calm: 2 * time.Second,
		Duration: 4 * time.Second, Timeout: 10 * time.Second, ValueSize: 8, Seed: 1,
	}
}

func TestAnOutageLiesBetweenTheLongestWaitAndTheLongestGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := probeFake(t, probeConfig(), &fakeStore{answer: lostAt(4*time.Second, 4500*time.Millisecond)})
		if h.ready != 3*time.Second || h.plan.Victims != 3 || h.plan.Dense != 2 {
			t.Errorf("ready after %v, plan %+v", h.ready, h.plan)
		}
		for _, op := range []string{"read", "update"} {
			every := map[string]float64{"read": 160, "update": 320}[op]
			for _, of := range []string{"all", "victim", "dense"} {
				v := h.view("fault", of, op)
				if v.WaitWorst > 502 || v.GapWorst < 500 || v.GapWorst > v.WaitWorst+every+2 {
					t.Errorf("%s of %s: wait %v, gap %v, lost for 500 ms", op, of, v.WaitWorst, v.GapWorst)
				}
				if of == "dense" && (v.GapWorst > 512 || v.WaitWorst < 490 || v.PeriodMillis != 10) {
					t.Errorf("%s of dense ranges: wait %v, gap %v", op, v.WaitWorst, v.GapWorst)
				}
			}
			if v := h.view("fault", "others", op); v.GapWorst > every+2 || v.WaitWorst > 2 {
				t.Errorf("%s of ranges that were there: %+v", op, v)
			}
			if v := h.view("calm", "all", op); v.GapWorst > every+2 || v.Ranges != 10 || v.Errors != 0 {
				t.Errorf("%s before: %+v", op, v)
			}
		}
		if x := h.result.Total; x.Errors != 0 || x.Victims != 3 || x.Count < 1000 {
			t.Errorf("total: %+v", x)
		}
	})
}

func TestARangeThatIsGoneToTheEndIsOpenAndItsGapLastsUntilThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := probeConfig()
		c.Timeout = time.Second
		h := probeFake(t, c, &fakeStore{answer: lostAt(4*time.Second, time.Hour)})
		for _, op := range []string{"read", "update"} {
			v := h.view("fault", "victim", op)
			if v.Open != 3 || v.GapWorst < 3000 || v.WaitMedian < 2700 || v.Errors == 0 {
				t.Errorf("%s: %+v", op, v)
			}
			if v := h.view("fault", "others", op); v.Open != 0 || v.Errors != 0 {
				t.Errorf("%s of the others: %+v", op, v)
			}
		}
		if h.result.Total.ErrorKinds["timeout"] != h.result.Total.Errors {
			t.Errorf("kinds: %v", h.result.Total.ErrorKinds)
		}
	})
}

func TestProbesThatAreStoppedReportWhatTheySaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := probeConfig()
		c.Duration = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		h := &heard{start: time.Now()}
		store := &fakeStore{start: h.start, answer: lostAt(0, 0)}
		if err := Probe(ctx, c, store, h); err != nil {
			t.Fatal(err)
		}
		if v := h.view("fault", "all", "read"); v.Errors != 0 || v.Open != 0 || v.Count == 0 {
			t.Errorf("%+v", v)
		}
	})
}

func TestMistakesInProbesAreNamed(t *testing.T) {
	t.Parallel()
	for _, wrong := range []func(c *ProbeConfig){
		func(c *ProbeConfig) { c.ReadRate, c.WriteRate = 0, 0 },
		func(c *ProbeConfig) { c.Dense = -1 },
		func(c *ProbeConfig) { c.DenseEvery = 0 },
		func(c *ProbeConfig) { c.Duration = 0 },
		func(c *ProbeConfig) { c.Timeout = 0 },
		func(c *ProbeConfig) { c.Ranges = nil },
	} {
		c := probeConfig()
		wrong(&c)
		if err := Probe(t.Context(), c, &fakeStore{}, &heard{}); err == nil {
			t.Errorf("accepted: %+v", c)
		}
	}
}

func TestProbesSpeakInLines(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	j := JSONProbes{Encoder: json.NewEncoder(&out)}
	j.Ready()
	r := &ProbeResult{
		Views: []ProbeView{{Type: "probe", Phase: "fault", Of: "all", Operation: "read", GapWorst: 7}},
		Total: ProbeTotal{Type: "probes", Errors: 1, ErrorKinds: map[string]int64{"timeout": 1}},
	}
	j.End(r)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || lines[0] != `{"type":"ready"}` ||
		!strings.Contains(lines[1], `"gap_worst_ms":7`) || !strings.Contains(lines[2], `"errors":1`) {
		t.Errorf("%q", lines)
	}
	out.Reset()
	table := TableProbes{Out: &out}
	table.Begin(ProbePlan{Ranges: 3, Dense: 1, DenseEvery: time.Millisecond})
	table.Ready()
	r.Total.ErrorExamples = map[string]string{"timeout": "too late"}
	table.End(r)
	for _, words := range []string{"3 ranges", "every 1ms", "fault  all", "too late"} {
		if !strings.Contains(out.String(), words) {
			t.Errorf("no %q in\n%s", words, out.String())
		}
	}
}

func TestSplitKeysCutTheLoadIntoEqualRanges(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 3, 48, 1000} {
		keys := SplitKeys("user", n)
		if len(keys) != n-1 || !slices.IsSortedFunc(keys, bytes.Compare) {
			t.Fatalf("%d ranges: %d keys, in order: %v", n, len(keys),
				slices.IsSortedFunc(keys, bytes.Compare))
		}
		space, count := keyspace{prefix: "user"}, make([]int, n)
		for i := range uint64(n * 200) {
			at, found := slices.BinarySearchFunc(keys, space.append(nil, i), bytes.Compare)
			if found {
				at++
			}
			count[at]++
		}
		if least, most := slices.Min(count), slices.Max(count); least < 100 || most > 300 {
			t.Errorf("%d ranges hold %d to %d of 200 records each", n, least, most)
		}
	}
}

func TestBisectNeverSplitsARangeTwiceAtOnce(t *testing.T) {
	t.Parallel()
	for range 50 {
		n := rand.IntN(200)
		var keys [][]byte
		for i := range n {
			keys = append(keys, fmt.Appendf(nil, "%06d", i))
		}
		var done [][]byte
		for _, level := range Bisect(keys) {
			for i := range level[1:] {
				between := slices.ContainsFunc(done, func(k []byte) bool {
					return bytes.Compare(level[i], k) < 0 && bytes.Compare(k, level[i+1]) < 0
				})
				if !between {
					t.Fatalf("%s and %s split one range", level[i], level[i+1])
				}
			}
			done = append(done, level...)
		}
		slices.SortFunc(done, bytes.Compare)
		if !slices.EqualFunc(done, keys, bytes.Equal) {
			t.Fatalf("%d keys became %d", n, len(done))
		}
	}
}
