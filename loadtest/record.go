package loadtest

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	// maxRecorders bounds the recorders, and with them the histograms; clients
	// share them beyond. Their locks are held for tens of nanoseconds.
	maxRecorders = 16

	// Latencies are kept in microseconds to three digits.
	highestMicros     = int64(10 * time.Minute / time.Microsecond)
	significantDigits = 3
)

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, highestMicros, significantDigits)
}

// outcome is what came of one operation.
type outcome struct {
	operation Operation
	latency   time.Duration // from the intended start
	warm      bool          // of the warm-up: only errors count
	inWindow  bool          // ended before the window did
	missing   bool          // a read that found nothing
	rows      int           // of a scan
	errorKind string        // "": success
}

// tally sums up outcomes of one operation.
type tally struct {
	latencies *hdrhistogram.Histogram // of measured successes; nil: none yet
	count     int64                   // measured successes
	inWindow  int64
	missing   int64
	rows      int64
	errors    map[string]int64 // by kind, warm-up apart
	warm      map[string]int64
}

func (t *tally) add(o outcome) {
	switch {
	case o.errorKind != "" && o.warm:
		count(&t.warm, o.errorKind, 1)
	case o.errorKind != "":
		count(&t.errors, o.errorKind, 1)
	case !o.warm:
		if t.latencies == nil {
			t.latencies = newHistogram()
		}
		micros := min(max(o.latency.Microseconds(), 1), highestMicros)
		_ = t.latencies.RecordValue(micros) // within bounds, so it cannot fail
		t.count++
		t.rows += int64(o.rows)
		if o.inWindow {
			t.inWindow++
		}
		if o.missing {
			t.missing++
		}
	}
}

func count(m *map[string]int64, kind string, n int64) {
	if *m == nil {
		*m = make(map[string]int64)
	}
	(*m)[kind] += n
}

// merge adds o to t.
func (t *tally) merge(o *tally) {
	if o.latencies != nil && o.count > 0 {
		if t.latencies == nil {
			t.latencies = newHistogram()
		}
		t.latencies.Merge(o.latencies)
	}
	t.count += o.count
	t.inWindow += o.inWindow
	t.missing += o.missing
	t.rows += o.rows
	for kind, n := range o.errors {
		count(&t.errors, kind, n)
	}
	for kind, n := range o.warm {
		count(&t.warm, kind, n)
	}
}

// reset empties t and keeps its histogram.
func (t *tally) reset() {
	latencies := t.latencies
	if latencies != nil && t.count > 0 {
		latencies.Reset()
	}
	*t = tally{latencies: latencies}
}

func (t *tally) errorCount() int64 {
	var n int64
	for _, k := range t.errors {
		n += k
	}
	return n
}

// tallies has one tally per operation.
type tallies [operationCount]tally

func (t *tallies) merge(o *tallies) {
	for i := range t {
		t[i].merge(&o[i])
	}
}

func (t *tallies) reset() {
	for i := range t {
		t[i].reset()
	}
}

// all sums up the operations.
func (t *tallies) all() *tally {
	var sum tally
	for i := range t {
		sum.merge(&t[i])
	}
	return &sum
}

// recorder takes outcomes of some clients.
type recorder struct {
	mu      sync.Mutex
	tallies tallies
}

func (r *recorder) add(o outcome) {
	r.mu.Lock()
	r.tallies[o.operation].add(o)
	r.mu.Unlock()
}

// drain moves everything into t.
func (r *recorder) drain(t *tallies) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t.merge(&r.tallies)
	r.tallies.reset()
}

// Latency are percentiles in milliseconds.
type Latency struct {
	Mean float64 `json:"mean_ms"`
	P50  float64 `json:"p50_ms"`
	P95  float64 `json:"p95_ms"`
	P99  float64 `json:"p99_ms"`
	P999 float64 `json:"p999_ms"`
	Max  float64 `json:"max_ms"`
}

func (t *tally) latency() Latency {
	if t.latencies == nil || t.count == 0 {
		return Latency{}
	}
	millis := func(micros float64) float64 { return micros / 1000 }
	at := func(q float64) float64 { return millis(float64(t.latencies.ValueAtQuantile(q))) }
	return Latency{
		Mean: millis(t.latencies.Mean()),
		P50:  at(50), P95: at(95), P99: at(99), P999: at(99.9),
		Max: millis(float64(t.latencies.Max())),
	}
}
