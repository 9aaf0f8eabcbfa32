package loadtest

import (
	"maps"
	"time"
)

// watch reports on a run from one goroutine: a line a second, and the samples
// of processor time at both ends of the window.
type watch struct {
	run  *run
	out  Reporter
	sum  tallies       // of the whole run
	last time.Duration // end of the interval before

	before, after cpuSample
	begin, end    time.Duration // when they were taken
}

// until reports until ended is closed.
func (w *watch) until(ended <-chan struct{}) {
	ticker := time.NewTicker(reportEvery)
	defer ticker.Stop()
	warm := time.NewTimer(w.run.config.Warmup)
	defer warm.Stop()
	var over <-chan time.Time
	if w.run.pace.end > 0 {
		timer := time.NewTimer(w.run.pace.end)
		defer timer.Stop()
		over = timer.C
	}
	for {
		select {
		case <-warm.C:
			w.begin = w.run.pace.now()
			w.before = w.sample()
		case <-over:
			w.end = w.run.pace.now()
			w.after = w.sample()
		case <-ticker.C:
			w.interval()
		case <-ended:
			if !w.after.taken { // ended by the number of operations, or stopped
				w.end = w.run.pace.now()
				w.after = w.sample()
			}
			w.interval()
			return
		}
	}
}

func (w *watch) sample() cpuSample {
	return sampleCPU(w.run.config.ServerPIDs, w.run.done.Load())
}

// interval reports what came since the interval before. Slivers at the end of
// a run are summed up but not reported: their rates mean nothing.
func (w *watch) interval() {
	now := w.run.pace.now()
	from := max(w.last, w.run.config.Warmup)
	var t tallies
	for _, r := range w.run.recorders {
		r.drain(&t)
	}
	w.sum.merge(&t)
	w.last = now
	length := now - from
	if length < reportEvery/10 {
		return
	}
	elapsed := now - w.run.config.Warmup
	for _, s := range w.run.config.Workload.Mix {
		one, sum := &t[s.Operation], &w.sum[s.Operation]
		w.out.Second(Second{
			Type:          "second",
			Elapsed:       elapsed.Seconds(),
			Operation:     s.Operation.String(),
			Errors:        one.errorCount(),
			ErrorKinds:    one.errors,
			Missing:       one.missing,
			PerSecond:     float64(one.count) / length.Seconds(),
			CumulativeOps: float64(sum.count) / elapsed.Seconds(),
			Latency:       one.latency(),
		})
	}
}

// result sums the run up. atStart and atEnd are the store's ranges, if known.
func (w *watch) result(atStart, atEnd []Range) *Result {
	r, c := w.run, &w.run.config
	window := max(w.end-c.Warmup, 0)
	if c.Duration > 0 {
		window = min(window, c.Duration)
	}
	all := w.sum.all()
	result := &Result{
		Type: "result", Workload: c.Workload.Name, Loop: c.loop(), Rate: c.Rate,
		Distribution: c.distribution(), Started: r.pace.start.UTC(),
		Seconds: window.Seconds(), WarmupSeconds: c.Warmup.Seconds(),
		Clients: c.Clients, Records: c.Records, ValueSize: c.ValueSize, Seed: c.Seed,
		Total:        operationResult("all", all, window),
		WarmupErrors: all.warm,
		NeverStarted: r.pace.neverStarted(w.end),
		Availability: Availability{
			Overall:       r.gaps.result(&r.gaps.overall, w.end),
			Operations:    make(map[string]Gap),
			RangesKnown:   len(atStart) > 0,
			RangesAtStart: len(atStart), RangesAtEnd: len(atEnd),
			Ranges: r.gaps.rangeResults(w.end, atEnd),
		},
		CPU:         cpuBetween(c.ServerPIDs, w.before, w.after, w.end-w.begin),
		Environment: c.Environment,
	}
	for _, s := range c.Workload.Mix {
		name := s.Operation.String()
		result.Operations = append(result.Operations,
			operationResult(name, &w.sum[s.Operation], window))
		result.Availability.Operations[name] =
			r.gaps.result(&r.gaps.operations[s.Operation], w.end)
	}
	r.examples.Lock()
	defer r.examples.Unlock()
	result.ErrorExamples = maps.Clone(r.examples.text)
	return result
}

func operationResult(name string, t *tally, window time.Duration) OperationResult {
	r := OperationResult{
		Operation: name, Count: t.count, Missing: t.missing, Rows: t.rows,
		Errors: t.errorCount(), ErrorKinds: t.errors, Latency: t.latency(),
	}
	if window > 0 {
		r.PerSecond = float64(t.inWindow) / window.Seconds()
	}
	return r
}
