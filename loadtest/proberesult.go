package loadtest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// ProbeReporter is told of a run of probes. Its methods are called from one
// goroutine.
type ProbeReporter interface {
	// Begin comes once, before the first operation.
	Begin(p ProbePlan)
	// Ready comes when the calm phase is over.
	Ready()
	// End comes once.
	End(r *ProbeResult)
}

// ProbePlan says how finely a run sees.
type ProbePlan struct {
	Ranges  int
	Victims int // ranges that the victim leads at the start
	Dense   int
	// Periods of one range's reads, one range's writes (0: none), and of both
	// where a range is dense.
	ReadEvery, WriteEvery, DenseEvery time.Duration
	Operations                        float64 // a second, over all
}

// ProbeView is what the probes of some ranges saw of one operation in one
// phase. Its JSON is a contract; fields are only added.
//
// The time for which a range did not serve lies between its longest wait (from
// when an operation was meant to start to the next success) and its longest gap
// (between two successes): they differ by one period at most.
type ProbeView struct {
	Type         string  `json:"type"`  // "probe"
	Phase        string  `json:"phase"` // "calm" or "fault"
	Of           string  `json:"of"`    // "all", "victim", "others" or "dense"
	Operation    string  `json:"op"`    // "read" or "update"
	Ranges       int     `json:"ranges"`
	PeriodMillis float64 `json:"period_ms"` // the longest of them
	GapWorst     float64 `json:"gap_worst_ms"`
	GapMedian    float64 `json:"gap_median_ms"` // over the ranges
	WaitWorst    float64 `json:"wait_worst_ms"`
	WaitMedian   float64 `json:"wait_median_ms"`
	// Open is how many ranges had no success any more until the end.
	Open       int     `json:"open"`
	Count      int64   `json:"count"` // successes
	Errors     int64   `json:"errors"`
	WorstRange string  `json:"worst_range"`
	WorstAt    float64 `json:"worst_at_s"` // from the start of its phase
}

// ProbeTotal sums a run of probes up. Its JSON is a contract; fields are only
// added.
type ProbeTotal struct {
	Type    string `json:"type"` // "probes"
	Ranges  int    `json:"ranges"`
	Victims int    `json:"victim_ranges"`
	Dense   int    `json:"dense_ranges"`
	// The rest is of all operations, of reads or of writes.
	Count         int64             `json:"count"`
	Errors        int64             `json:"errors"`
	ErrorKinds    map[string]int64  `json:"error_kinds,omitempty"`
	ErrorExamples map[string]string `json:"error_examples,omitempty"`
	// CPU is of the calm phase.
	ServerCores float64 `json:"server_cores"`
	ClientCores float64 `json:"client_cores"`
	ReadP50     float64 `json:"calm_read_p50_ms"`
	ReadP99     float64 `json:"calm_read_p99_ms"`
	WriteP50    float64 `json:"calm_update_p50_ms"`
	WriteP99    float64 `json:"calm_update_p99_ms"`
}

// ProbeResult is a whole run of probes.
type ProbeResult struct {
	Views []ProbeView
	Total ProbeTotal
}

func (r *probes) planned() ProbePlan {
	p := ProbePlan{Ranges: len(r.config.Ranges)}
	for i, one := range r.config.Ranges {
		if r.victim(i) && one.Leader != 0 {
			p.Victims++
		}
	}
	for _, one := range r.all {
		p.Operations += 1 / one.every.Seconds()
		switch {
		case one.dense:
			p.DenseEvery = one.every
			if one.kind == Read || r.config.ReadRate == 0 {
				p.Dense++
			}
		case one.kind == Read:
			p.ReadEvery = one.every
		default:
			p.WriteEvery = one.every
		}
	}
	return p
}

func (r *probes) victim(i int) bool {
	return r.config.Victim != 0 && r.config.Ranges[i].Leader == r.config.Victim
}

// result looks at what all probes saw. They have ended.
func (r *probes) result(used *CPU) *ProbeResult {
	result := &ProbeResult{}
	groups := []struct {
		name string
		in   func(p *probe) bool
	}{
		{"all", func(*probe) bool { return true }},
		{"victim", func(p *probe) bool { return r.victim(p.of) }},
		{"others", func(p *probe) bool { return r.config.Victim != 0 && !r.victim(p.of) }},
		{"dense", func(p *probe) bool { return p.dense }},
	}
	for phase, name := range map[probePhase]string{phaseCalm: "calm", phaseFault: "fault"} {
		for _, g := range groups {
			for _, kind := range []Operation{Read, Update} {
				v := r.view(phase, func(p *probe) bool { return p.kind == kind && g.in(p) })
				if v.Ranges == 0 || (phase == phaseCalm && r.config.Calm == 0) {
					continue
				}
				v.Type, v.Phase, v.Of, v.Operation = "probe", name, g.name, kind.String()
				result.Views = append(result.Views, v)
			}
		}
	}
	slices.SortStableFunc(result.Views, func(a, b ProbeView) int {
		return cmp.Compare(a.Phase, b.Phase)
	})
	r.total(&result.Total, used)
	return result
}

// view sums up what the probes in a group saw in a phase.
func (r *probes) view(phase probePhase, in func(p *probe) bool) (v ProbeView) {
	var gaps, waits []time.Duration
	worst := time.Duration(-1)
	begin := map[probePhase]time.Duration{phaseCalm: r.calm, phaseFault: r.fault}[phase]
	for _, p := range r.all {
		if !in(p) {
			continue
		}
		o := &p.seen[phase]
		v.Ranges++
		v.Count += o.count
		v.Errors += o.errors
		if o.open {
			v.Open++
		}
		v.PeriodMillis = max(v.PeriodMillis, millis(p.every))
		gaps, waits = append(gaps, o.gap), append(waits, o.wait)
		if o.gap > worst {
			worst = o.gap
			v.WorstRange = r.config.Ranges[p.of].ID.String()
			v.WorstAt = (o.gapAt - begin).Seconds()
		}
	}
	v.GapMedian, v.GapWorst = medianAndWorst(gaps)
	v.WaitMedian, v.WaitWorst = medianAndWorst(waits)
	return v
}

// medianAndWorst are in milliseconds.
func medianAndWorst(all []time.Duration) (median, worst float64) {
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	n := len(all)
	return millis(all[(n-1)/2]+all[n/2]) / 2, millis(all[n-1])
}

func (r *probes) total(t *ProbeTotal, used *CPU) {
	plan := r.planned()
	t.Type, t.Ranges, t.Victims, t.Dense = "probes", plan.Ranges, plan.Victims, plan.Dense
	if used != nil {
		t.ServerCores, t.ClientCores = used.ServerCores, used.ClientCores
	}
	for phase := range r.outcomes {
		var sum tallies
		for _, one := range r.outcomes[phase] {
			one.drain(&sum)
		}
		if probePhase(phase) == phaseCalm {
			read, write := sum[Read].latency(), sum[Update].latency()
			t.ReadP50, t.ReadP99, t.WriteP50, t.WriteP99 = read.P50, read.P99, write.P50, write.P99
		}
		all := sum.all()
		t.Count += all.count
		t.Errors += all.errorCount()
		for kind, n := range all.errors {
			count(&t.ErrorKinds, kind, n)
		}
	}
	t.ErrorExamples = maps.Clone(r.examples.text)
}

// Ready is a line of JSON that says that the calm phase is over.
type Ready struct {
	Type string `json:"type"` // "ready"
}

// JSONProbes writes one object a line: ready, the views, the total.
type JSONProbes struct{ Encoder *json.Encoder }

// Begin writes nothing.
func (j JSONProbes) Begin(ProbePlan) {}

// Ready writes a line.
func (j JSONProbes) Ready() { _ = j.Encoder.Encode(Ready{Type: "ready"}) }

// End writes the result.
func (j JSONProbes) End(r *ProbeResult) {
	for i := range r.Views {
		_ = j.Encoder.Encode(&r.Views[i])
	}
	_ = j.Encoder.Encode(&r.Total)
}

// TableProbes writes for people.
type TableProbes struct{ Out io.Writer }

// Begin says how finely the run sees.
func (t TableProbes) Begin(p ProbePlan) {
	t.printf("probes    %d ranges, %.0f op/s: each is read every %v and written every %v\n",
		p.Ranges, p.Operations, p.ReadEvery, p.WriteEvery)
	if p.Dense > 0 {
		t.printf("          but for %d, which are read and written every %v\n", p.Dense, p.DenseEvery)
	}
}

// Ready says that the calm phase is over.
func (t TableProbes) Ready() { t.printf("ready     the calm phase is over\n") }

// End writes a table.
func (t TableProbes) End(r *ProbeResult) {
	const format = "%-6s %-7s %-7s %7s %9s %9s %9s %9s %9s %6s %8s\n"
	t.printf(format, "phase", "of", "op", "ranges", "period", "gap worst", "median", "wait worst",
		"median", "open", "errors")
	for _, v := range r.Views {
		t.printf(format, v.Phase, v.Of, v.Operation, fmt.Sprint(v.Ranges), short(v.PeriodMillis),
			short(v.GapWorst), short(v.GapMedian), short(v.WaitWorst), short(v.WaitMedian),
			fmt.Sprint(v.Open), fmt.Sprint(v.Errors))
	}
	x := &r.Total
	t.printf("\n%d operations, %d errors; calm: read p50 %s p99 %s ms, write p50 %s p99 %s ms,"+
		" servers %.2f cores, this tool %.2f\n", x.Count, x.Errors, short(x.ReadP50),
		short(x.ReadP99), short(x.WriteP50), short(x.WriteP99), x.ServerCores, x.ClientCores)
	for _, kind := range slices.Sorted(maps.Keys(x.ErrorKinds)) {
		t.printf("errors    %d %s, first: %s\n", x.ErrorKinds[kind], kind,
			brief(x.ErrorExamples[kind]))
	}
}

func (t TableProbes) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(t.Out, format, args...) // a reader that left does not stop the run
}
