package loadtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// fakeStore answers after a time; in the bubble of synctest time is virtual.
type fakeStore struct {
	start  time.Time
	answer func(at time.Duration, key []byte) (time.Duration, error)
	calls  atomic.Int64
	ranges []Range
}

func (f *fakeStore) do(ctx context.Context, key []byte) error {
	f.calls.Add(1)
	d, err := f.answer(time.Since(f.start), key)
	select {
	case <-time.After(d):
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fakeStore) Get(ctx context.Context, key []byte) (bool, error) {
	err := f.do(ctx, key)
	return err == nil, err
}
func (f *fakeStore) Put(ctx context.Context, key, _ []byte) error { return f.do(ctx, key) }
func (f *fakeStore) ReadModifyWrite(ctx context.Context, key, _ []byte) (bool, error) {
	return f.Get(ctx, key)
}
func (f *fakeStore) Scan(ctx context.Context, key []byte, limit int) (int, error) {
	return limit, f.do(ctx, key)
}
func (f *fakeStore) ErrorKind(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "timeout"
	}
	return "broken"
}
func (f *fakeStore) Close() error                            { return nil }
func (f *fakeStore) Ranges(context.Context) ([]Range, error) { return f.ranges, nil }

type silent struct{ seconds []Second }

func (s *silent) Begin(*Config)   {}
func (s *silent) Second(x Second) { s.seconds = append(s.seconds, x) }
func (s *silent) End(*Result)     {}

func testConfig(t *testing.T, workload string) Config {
	t.Helper()
	w, err := FindWorkload(workload)
	if err != nil {
		t.Fatal(err)
	}
	return Config{Workload: w, Clients: 4, Duration: 10 * time.Second, Records: 1000,
		ValueSize: 8, KeyPrefix: "user", Seed: 1, Timeout: time.Minute}
}

func runFake(t *testing.T, c Config, f *fakeStore) (*Result, *silent) {
	t.Helper()
	out := &silent{}
	f.start = time.Now()
	result, err := Run(t.Context(), c, f, out)
	if err != nil {
		t.Fatal(err)
	}
	return result, out
}

// stall answers within a millisecond, but nothing that starts between 3 s and
// 5 s ends before 5 s.
func stall(at time.Duration, _ []byte) (time.Duration, error) {
	if at >= 3*time.Second && at < 5*time.Second {
		return 5*time.Second - at, nil
	}
	return time.Millisecond, nil
}

func TestTheOpenLoopChargesAStallToEverybodyWhoWouldHaveCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig(t, "get")
		c.Rate = 100
		r, _ := runFake(t, c, &fakeStore{answer: stall})
		// 999 intended starts in 10 s; the 200 of the stall waited 1 s on average.
		if r.Total.Count != 999 || r.NeverStarted != 0 {
			t.Errorf("%d operations, %d never started", r.Total.Count, r.NeverStarted)
		}
		if near(r.Total.Max, 2000, 15) != nil || near(r.Total.Mean, 200, 20) != nil ||
			near(r.Total.P95, 1500, 30) != nil || r.Total.P50 > 1.5 {
			t.Errorf("latency from the intended start: %+v", r.Total.Latency)
		}
		if near(r.Availability.Overall.Millis, 2000, 15) != nil ||
			near(r.Availability.Overall.AtSecond, 3, 0.1) != nil {
			t.Errorf("gap: %+v", r.Availability.Overall)
		}
	})
}

func TestTheClosedLoopHidesTheSameStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := runFake(t, testConfig(t, "get"), &fakeStore{answer: stall})
		if r.Loop != "closed" || near(r.Total.Max, 2000, 15) != nil || r.Total.P999 > 1.5 {
			t.Errorf("%s loop: %+v", r.Loop, r.Total.Latency)
		}
		if near(r.Availability.Overall.Millis, 2000, 15) != nil {
			t.Errorf("gap: %+v", r.Availability.Overall)
		}
	})
}

func near(got, want, tolerance float64) error {
	if math.Abs(got-want) > tolerance {
		return errors.New("far")
	}
	return nil
}

func TestOperationsThatFindNoClientAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig(t, "get")
		c.Rate, c.Clients, c.Duration = 100, 1, 5*time.Second
		r, _ := runFake(t, c, &fakeStore{
			answer: func(time.Duration, []byte) (time.Duration, error) { return time.Second, nil }})
		if r.Total.Count != 5 || r.NeverStarted != 494 {
			t.Errorf("%d done, %d never started of 499 due", r.Total.Count, r.NeverStarted)
		}
	})
}

func TestTheWarmUpIsLeftOutButItsErrorsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig(t, "get")
		c.Clients, c.Warmup, c.Duration = 1, 2*time.Second, 3*time.Second
		slow := func(at time.Duration, _ []byte) (time.Duration, error) {
			if at < 1*time.Second {
				return 100 * time.Millisecond, errors.New("cold")
			}
			if at < 2*time.Second {
				return 100 * time.Millisecond, nil
			}
			return 10 * time.Millisecond, nil
		}
		r, out := runFake(t, c, &fakeStore{answer: slow})
		if r.Total.Count != 300 || r.Total.Max > 10.1 || near(r.Total.PerSecond, 100, 1) != nil {
			t.Errorf("measured: %+v", r.Total)
		}
		if r.WarmupErrors["broken"] != 10 || r.Total.Errors != 0 ||
			r.ErrorExamples["broken"] != "cold" {
			t.Errorf("warm-up errors %v, errors %d, %v", r.WarmupErrors, r.Total.Errors,
				r.ErrorExamples)
		}
		if len(out.seconds) != 3 || out.seconds[0].Elapsed != 1 {
			t.Errorf("lines: %+v", out.seconds)
		}
	})
}

func TestErrorsAreCountedByKindInTheirSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig(t, "ycsb-a")
		c.Clients, c.Timeout = 1, 500*time.Millisecond
		r, out := runFake(t, c, &fakeStore{
			answer: func(at time.Duration, _ []byte) (time.Duration, error) {
				switch {
				case at >= 4*time.Second && at < 5*time.Second:
					return time.Hour, nil // times out, twice
				case at >= 7*time.Second && at < 8*time.Second:
					return 100 * time.Millisecond, errors.New("no")
				}
				return 10 * time.Millisecond, nil
			}})
		if r.Total.ErrorKinds["timeout"] != 2 || r.Total.ErrorKinds["broken"] != 10 ||
			r.Total.Errors != 12 || r.Total.Count != 800 {
			t.Errorf("total: %+v", r.Total)
		}
		var lines [11]int64
		for _, s := range out.seconds {
			lines[int(math.Round(s.Elapsed))] += s.Errors
		}
		if lines[5]+lines[6] != 2 || lines[8]+lines[9] != 10 || len(out.seconds) != 20 {
			t.Errorf("errors by second: %v in %d lines", lines, len(out.seconds))
		}
	})
}

func TestTheGapOfARangeIsFoundThoughOthersAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig(t, "get")
		c.OrderedKeys, c.Rate, c.Clients = true, 1000, 64
		c.Timeout = 100 * time.Millisecond
		mid := c.keys().append(nil, 500)
		r, _ := runFake(t, c, &fakeStore{
			ranges: []Range{{ID: 7, Start: mid}, {ID: 3, End: mid}},
			answer: func(at time.Duration, key []byte) (time.Duration, error) {
				if at >= 2*time.Second && at < 3*time.Second && bytes.Compare(key, mid) >= 0 {
					return time.Hour, nil
				}
				return time.Millisecond, nil
			}})
		a := r.Availability
		if !a.RangesKnown || len(a.Ranges) != 2 || a.Ranges[0].Range != ids.RangeID(7) ||
			near(a.Ranges[0].Millis, 1000, 30) != nil || a.Ranges[1].Millis > 30 ||
			a.Overall.Millis > 20 || a.Ranges[0].Changed {
			t.Errorf("availability: %+v", a)
		}
	})
}

func TestARunThatIsStoppedStillHasAResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		f := &fakeStore{start: time.Now(),
			answer: func(time.Duration, []byte) (time.Duration, error) { return 100 * 1e6, nil }}
		r, err := Run(ctx, testConfig(t, "put"), f, &silent{})
		if err != nil || r.Total.Count < 90 || near(r.Seconds, 2.5, 0.2) != nil {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestALoadRetriesUntilEveryRecordIsIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig(t, "put")
		c.Records = 500
		f := &fakeStore{start: time.Now()}
		f.answer = func(time.Duration, []byte) (time.Duration, error) {
			if f.calls.Load()%10 == 0 {
				return time.Millisecond, errors.New("no")
			}
			return time.Millisecond, nil
		}
		r, next, err := Load(t.Context(), c, 100, f, &silent{})
		if err != nil || next != 500 || r.Total.Count != 400 || r.Total.Errors == 0 ||
			f.calls.Load() != r.Total.Count+r.Total.Errors {
			t.Errorf("next %d, %+v, %d calls, %v", next, r.Total, f.calls.Load(), err)
		}
	})
}

func TestTablesAndJSONHoldWhatHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig(t, "ycsb-b")
		c.Duration, c.Environment = 21*time.Second, DescribeEnvironment("abc", nil)
		var table, lines bytes.Buffer
		f := &fakeStore{start: time.Now(), answer: stall}
		if _, err := Run(t.Context(), c, f, &TableReporter{Out: &table}); err != nil {
			t.Fatal(err)
		}
		text := table.String()
		for _, want := range []string{"elapsed", "p99.9", "closed loop", "seed 1", "gap ",
			"result ", "update", "commit abc"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		if n := strings.Count(text, "elapsed"); n != 3 { // 42 lines
			t.Errorf("%d headers in\n%s", n, text)
		}
		f.start = time.Now()
		out := JSONReporter{json.NewEncoder(&lines)}
		if _, err := Run(t.Context(), c, f, out); err != nil {
			t.Fatal(err)
		}
		rows := strings.Split(strings.TrimSpace(lines.String()), "\n")
		var result Result
		if err := json.Unmarshal([]byte(rows[len(rows)-1]), &result); err != nil ||
			result.Type != "result" || result.Environment.CPUs == 0 || len(rows) != 43 {
			t.Errorf("%d rows, %v, %+v", len(rows), err, result)
		}
	})
}

func TestGapsOfSuccessesOutOfOrder(t *testing.T) {
	t.Parallel()
	g := newGaps(time.Second, nil)
	for _, at := range []int{500, 1100, 1500, 1400, 1600, 2600, 2500} {
		g.success(Read, nil, time.Duration(at)*time.Millisecond)
	}
	r := g.result(&g.overall, 3*time.Second)
	if r.Millis != 1000 || r.AtSecond != 0.6 || r.Successes != 6 {
		t.Errorf("%+v", r)
	}
	never := g.result(&g.operations[Update], 3*time.Second)
	if never.Millis != 2000 || never.Successes != 0 {
		t.Errorf("nothing ever succeeded: %+v", never)
	}
}

func TestProcessorTimeIsReadAfterTheNameWithBlanks(t *testing.T) {
	t.Parallel()
	stat := "42 (a b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 8 0 1\n"
	if d, err := parseStat([]byte(stat)); err != nil || d != 3*time.Second {
		t.Errorf("%v, %v", d, err)
	}
	if _, err := parseStat([]byte("42 (x) S 1 2")); err == nil {
		t.Error("a short line is accepted")
	}
	a := cpuSample{taken: true, servers: map[int]time.Duration{1: time.Second, 2: 0}}
	b := cpuSample{taken: true, done: 1000, servers: map[int]time.Duration{1: 3 * time.Second, 2: 0}}
	if c := cpuBetween([]int{1, 2}, a, b, 2*time.Second); *c.ServerMicros != 2000 ||
		c.ServerCores != 1 {
		t.Errorf("%+v", c)
	}
	delete(b.servers, 2)
	if c := cpuBetween([]int{1, 2}, a, b, time.Second); c.ServerMicros != nil ||
		len(c.MissingPIDs) != 1 {
		t.Errorf("a server that is gone: %+v", c)
	}
}
