package loadtest

import "time"

// Second is one line: an operation in about one second. Its JSON is a
// contract; fields are only added.
type Second struct {
	Type          string           `json:"type"`      // "second"
	Elapsed       float64          `json:"elapsed_s"` // since the end of the warm-up
	Operation     string           `json:"op"`
	Errors        int64            `json:"errors"` // of this second
	ErrorKinds    map[string]int64 `json:"error_kinds,omitempty"`
	Missing       int64            `json:"missing"`
	PerSecond     float64          `json:"ops_per_s"`
	CumulativeOps float64          `json:"cumulative_ops_per_s"`
	Latency
}

// OperationResult sums an operation up, or all of them.
type OperationResult struct {
	Operation  string           `json:"op"`
	Count      int64            `json:"count"`     // measured successes
	PerSecond  float64          `json:"ops_per_s"` // of those that ended in the window
	Errors     int64            `json:"errors"`
	ErrorKinds map[string]int64 `json:"error_kinds,omitempty"`
	Missing    int64            `json:"missing"` // reads that found nothing
	Rows       int64            `json:"rows,omitempty"`
	Latency
}

// Availability says how long nothing succeeded.
type Availability struct {
	Overall       Gap            `json:"overall"`
	Operations    map[string]Gap `json:"operations"`
	RangesKnown   bool           `json:"ranges_known"` // false: Ranges are buckets of keys
	RangesAtStart int            `json:"ranges_at_start"`
	RangesAtEnd   int            `json:"ranges_at_end"` // 0: not known
	Ranges        []RangeGap     `json:"ranges"`        // longest gap first
}

// Result is a whole run. Its JSON is a contract; fields are only added.
type Result struct {
	Type          string            `json:"type"` // "result"
	Workload      string            `json:"workload"`
	Loop          string            `json:"loop"` // "closed", or "open": from the intended start
	Rate          float64           `json:"rate"` // 0: closed
	Distribution  Distribution      `json:"distribution"`
	Started       time.Time         `json:"started"`
	Seconds       float64           `json:"seconds"` // the window, without the warm-up
	WarmupSeconds float64           `json:"warmup_s"`
	Clients       int               `json:"clients"`
	Records       uint64            `json:"records"`
	ValueSize     int               `json:"value_size"`
	Seed          uint64            `json:"seed"`
	Operations    []OperationResult `json:"operations"`
	Total         OperationResult   `json:"total"`
	WarmupErrors  map[string]int64  `json:"warmup_errors,omitempty"`
	// ErrorExamples has the text of the first error of each kind.
	ErrorExamples map[string]string `json:"error_examples,omitempty"`
	// NeverStarted operations of the open loop were due and found no client.
	NeverStarted int64        `json:"never_started"`
	Availability Availability `json:"availability"`
	CPU          *CPU         `json:"cpu,omitempty"`
	Environment  Environment  `json:"environment"`
}
