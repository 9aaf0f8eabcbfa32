package sim

import (
	"io"
	"math/rand/v2"
	"time"
)

// Options shape a run. Derive makes them from a seed.
type Options struct {
	Seed                  uint64
	Nodes                 int
	Clients               int
	Duration              time.Duration // of the safety phase, virtual
	Think                 time.Duration // longest pause between a client's calls
	FaultEvery            time.Duration // mean time between faults
	Disk                  time.Duration // usual latency of a sync
	RangeSize             int64
	BulkBytes             int
	MaxSplits             int
	MaxLogBytes           int64
	SnapshotInMemoryBytes int64
	Promise               time.Duration // how long a promise between nodes lasts
	AskEvery              time.Duration // between requests for support
	Drift                 float64       // of lease clocks, at most
	ReadPauses            float64       // how likely a read is suspended between its steps
	Freezes               bool          // machines freeze, clocks and all
	RowCache              int64         // bytes for hot rows; 0: none
	Placement             Placing       // what placement does, and is asked for
	Trace                 io.Writer     // nil: no trace in words
	Logs                  bool          // nodes' logs go to the trace
}

// Derive draws a run's options from its seed.
func Derive(seed uint64) Options {
	r := stream(seed, concernNode+1)
	o := Options{
		Seed: seed, Nodes: 3 + r.IntN(3), Clients: 3 + r.IntN(4),
		Duration: 60 * time.Second, Think: between(r, 20, 400) * time.Millisecond,
		FaultEvery: between(r, 300, 2500) * time.Millisecond,
		Disk:       between(r, 50, 1000) * time.Microsecond,
		RangeSize:  32<<10 + r.Int64N(128<<10), BulkBytes: 1 << (6 + r.IntN(6)),
		MaxSplits: 4 + r.IntN(12), MaxLogBytes: 16<<10 + r.Int64N(256<<10),
		SnapshotInMemoryBytes: 100 << 10,
	}
	if chance(r, 0.3) {
		o.SnapshotInMemoryBytes = 1
	}
	o.Promise, o.AskEvery, o.Drift = 250*time.Millisecond, 50*time.Millisecond, maxDrift
	if chance(r, 0.4) {
		o.Promise = between(r, 100, 1500) * time.Millisecond
		o.AskEvery = o.Promise / time.Duration(3+r.IntN(5))
	}
	o.ReadPauses = r.Float64() * 0.1
	o.Freezes = chance(r, 0.25)
	if chance(r, 0.75) {
		o.RowCache = 1 << 20
	}
	o.derivePlacing(stream(seed, concernPlacing))
	return o
}

// Placing shapes what placement does in a run, and what people ask of it.
type Placing struct {
	Zones        int // machines stand in so many zones; 0: nobody says where they stand
	Replicas     int // of a range, where no rule says otherwise
	Spread       bool
	DeadAfter    time.Duration
	LongOutages  bool          // a crash may last for longer than DeadAfter
	MergeBelow   int64         // 0: ranges are merged by request only
	MergeAfter   time.Duration //
	LoadSplitOps float64       // negative: no range is split by its load
	AskEvery     time.Duration // mean time between requests of people; 0: there are none
	Merges       float64       // how likely a fault is a merge past placement, besides
	Ambushes     float64       // how likely something breaks just when a range has frozen
	// Replace: a machine is decommissioned, and a new one joins before.
	Replace bool
}

// derivePlacing draws what concerns placement, and adds machines for it.
func (o *Options) derivePlacing(r *rand.Rand) {
	if chance(r, 0.15) {
		o.Nodes = min(maxMachines, o.Nodes+1+r.IntN(2))
	}
	p := Placing{
		Replicas: 3, DeadAfter: time.Minute, LoadSplitOps: -1,
		AskEvery: between(r, 700, 4000) * time.Millisecond,
	}
	if chance(r, 0.5) {
		p.Zones = 2 + r.IntN(2)
		p.Spread = chance(r, 0.7)
	}
	if o.Nodes >= 5 && chance(r, 0.3) {
		p.Replicas = 5
	}
	if chance(r, 0.4) {
		p.DeadAfter, p.LongOutages = between(r, 7, 14)*time.Second, true
	}
	if chance(r, 0.4) {
		// Well below the size at which ranges split, or they never come to rest.
		p.MergeBelow, p.MergeAfter = o.RangeSize/5, between(r, 2, 12)*time.Second
	}
	if chance(r, 0.3) {
		p.LoadSplitOps = 3 + 20*r.Float64()
	}
	p.Replace = chance(r, 0.25)
	if chance(r, 0.15) {
		p.Merges = 0.5
	}
	p.Ambushes = 0.6 * r.Float64()
	o.Placement = p
}

// maxMachines bounds the machines that a run begins with.
const maxMachines = 7
