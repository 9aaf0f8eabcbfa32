package loadtest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Reporter is told of a run as it goes. Its methods are called from one
// goroutine.
type Reporter interface {
	// Begin comes once, before the first operation.
	Begin(c *Config)
	// Second comes once a second for each operation of the workload.
	Second(s Second)
	// End comes once.
	End(r *Result)
}

// JSONReporter writes one object a line: seconds, then the result.
type JSONReporter struct{ Encoder *json.Encoder }

// Begin writes nothing.
func (j JSONReporter) Begin(*Config) {}

// Second writes a line. A reader that has gone away does not stop the run.
func (j JSONReporter) Second(s Second) { _ = j.Encoder.Encode(s) }

// End writes the result.
func (j JSONReporter) End(r *Result) { _ = j.Encoder.Encode(r) }

// TableReporter writes for people.
type TableReporter struct {
	Out   io.Writer
	lines int
	note  string
}

const (
	headerEvery = 20
	// shownRanges is how many ranges with the longest gaps are printed.
	shownRanges = 5
)

// Begin says what runs.
func (t *TableReporter) Begin(c *Config) {
	loop := "closed loop"
	t.note = "ms, closed loop"
	if c.Rate > 0 {
		loop = fmt.Sprintf("open loop, %g op/s", c.Rate)
		t.note = "ms, from intended start"
	}
	t.printf("%s   %s, %d clients, %d records, values of %d B, %s, seed %d\n",
		c.Workload.Name, loop, c.Clients, c.Records, c.ValueSize, c.distribution(), c.Seed)
	if c.Warmup > 0 {
		t.printf("warming up for %v, which is not measured\n", c.Warmup)
	}
}

const lineFormat = "%8s %7s %9s %9s %8s %8s %8s %8s %8s  %s\n"

// Second writes a line, and a header above each 20.
func (t *TableReporter) Second(s Second) {
	if t.lines%headerEvery == 0 {
		t.header("elapsed", "cum/s", "max", "op  ("+t.note+")")
	}
	t.lines++
	t.printf(lineFormat, fmt.Sprintf("%.1fs", s.Elapsed), strconv.FormatInt(s.Errors, 10),
		rate(s.PerSecond), rate(s.CumulativeOps), short(s.P50), short(s.P95), short(s.P99),
		short(s.P999), short(s.Max), s.Operation)
}

func (t *TableReporter) header(first, fourth, ninth, last string) {
	t.printf(lineFormat, first, "errors", "ops/s", fourth, "p50", "p95", "p99", "p99.9",
		ninth, last)
}

// End writes totals, errors, gaps and processor time.
func (t *TableReporter) End(r *Result) {
	t.printf("\n")
	t.header("count", "mean", "max", "total  ("+t.note+")")
	for _, o := range append(slices.Clone(r.Operations), r.Total) {
		if o.Operation == r.Total.Operation && len(r.Operations) == 1 {
			break
		}
		t.printf(lineFormat, strconv.FormatInt(o.Count, 10), strconv.FormatInt(o.Errors, 10),
			rate(o.PerSecond), short(o.Mean), short(o.P50), short(o.P95), short(o.P99),
			short(o.P999), short(o.Max), o.Operation)
	}
	t.printf("\n")
	t.failures(r)
	t.availability(&r.Availability)
	if r.CPU != nil {
		t.processors(r.CPU)
	}
	t.printf("result    %s  %s op/s over %.1f s, %s loop, %d clients, seed %d, commit %s\n",
		r.Workload, rate(r.Total.PerSecond), r.Seconds, r.Loop, r.Clients, r.Seed,
		r.Environment.Commit)
}

func (t *TableReporter) failures(r *Result) {
	t.kinds("errors", r.Total.ErrorKinds, r.ErrorExamples)
	t.kinds("warm-up", r.WarmupErrors, r.ErrorExamples)
	if text, ok := r.ErrorExamples["ranges-unknown"]; ok {
		t.printf("ranges    could not be listed: %s\n", brief(text))
	}
	if m := r.Total.Missing; m > 0 {
		t.printf("missing   %d reads found nothing: load with the same --records and keys first\n", m)
	}
	if r.NeverStarted > 0 {
		t.printf("overload  %d operations were due and never started, for want of a free client:"+
			" the store is slower than --rate, or --clients too few\n", r.NeverStarted)
	}
}

func (t *TableReporter) kinds(title string, kinds map[string]int64, examples map[string]string) {
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		t.printf("%-9s %d %s", title, kinds[kind], kind)
		if text := examples[kind]; text != "" {
			t.printf(", first: %s", brief(text))
		}
		t.printf("\n")
	}
}

func (t *TableReporter) availability(a *Availability) {
	t.printf("gap       %s ms without a success, at %.1f s (mean distance %s ms)\n",
		short(a.Overall.Millis), a.Overall.AtSecond, short(a.Overall.MeanMillis))
	if len(a.Operations) > 1 {
		for _, name := range slices.Sorted(maps.Keys(a.Operations)) {
			t.gap("  of "+name, a.Operations[name])
		}
	}
	what := "buckets of keys (the store's ranges are not known)"
	if a.RangesKnown {
		what = fmt.Sprintf("ranges (%d at the start, not known at the end)", a.RangesAtStart)
		if a.RangesAtEnd > 0 {
			what = fmt.Sprintf("ranges (%d at the start, %d at the end)", a.RangesAtStart,
				a.RangesAtEnd)
		}
	}
	t.printf("          longest by %s:\n", what)
	for i, r := range a.Ranges {
		if i == shownRanges {
			break
		}
		name := "  bucket"
		if r.Range != 0 {
			name = "  " + r.Range.String()
		}
		if r.Changed {
			name += " (changed)"
		}
		t.gap(name+" from "+r.Start, r.Gap)
	}
}

func (t *TableReporter) gap(name string, g Gap) {
	t.printf("          %-38s %9s ms at %6.1f s, %d successes, mean distance %s ms\n",
		name, short(g.Millis), g.AtSecond, g.Successes, short(g.MeanMillis))
}

func (t *TableReporter) processors(c *CPU) {
	servers := "not asked for (--server-pids)"
	switch {
	case len(c.MissingPIDs) > 0:
		servers = fmt.Sprintf("unknown, processes %v were not there all the time", c.MissingPIDs)
	case c.ServerMicros != nil:
		servers = fmt.Sprintf("%.1f µs/op (%.2f cores)", *c.ServerMicros, c.ServerCores)
	}
	t.printf("cpu       servers %s; this tool %.1f µs/op (%.2f cores)\n",
		servers, c.ClientMicros, c.ClientCores)
}

func (t *TableReporter) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(t.Out, format, args...) // a reader that left does not stop the run
}

// short prints a number with about three digits.
func short(x float64) string {
	switch {
	case x == 0:
		return "0"
	case x < 10:
		return strconv.FormatFloat(x, 'f', 2, 64)
	case x < 100:
		return strconv.FormatFloat(x, 'f', 1, 64)
	default:
		return strconv.FormatFloat(x, 'f', 0, 64)
	}
}

func rate(x float64) string { return strconv.FormatFloat(x, 'f', 0, 64) }

// brief cuts the text of an error for a line; JSON has it whole.
func brief(text string) string {
	const shown = 200
	if len(text) <= shown {
		return text
	}
	return strings.ToValidUTF8(text[:shown], "") + "…"
}

// quoted shows the start of a range.
func quoted(key []byte) string {
	const shown = 24
	if len(key) == 0 {
		return "the first key"
	}
	s := strconv.Quote(string(key[:min(len(key), shown)]))
	if len(key) > shown {
		return strings.TrimSuffix(s, `"`) + `…"`
	}
	return s
}
