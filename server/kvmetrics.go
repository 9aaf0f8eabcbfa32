package server

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Sizes of the request counters. Verbs and codes above them, which this build
// does not know, count as 0 and as the last.
const (
	verbs          = int(kv.VerbReadTimestamp) + 1
	codesKnown     = int(kv.CodeUnknownVerb) + 1
	latencyBuckets = 18
	// latencyUnit is the upper bound of the first bucket; each next is twice it,
	// the last finite one is about 6.5 s.
	latencyUnit = 50 * time.Microsecond
)

// kvMetrics counts requests by verb and verdict, and their latency from when
// their frame was read to when they were answered. Any goroutine.
type kvMetrics struct {
	streams atomic.Int64
	count   [verbs][codesKnown]atomic.Uint64
	buckets [verbs][latencyBuckets + 1]atomic.Uint64
	nanos   [verbs]atomic.Uint64
}

func (m *kvMetrics) answered(v kv.Verb, c kv.Code, took time.Duration) {
	verb, code := int(v), min(int(c), codesKnown-1)
	if verb >= verbs {
		verb = 0
	}
	took = max(took, 0)
	m.count[verb][code].Add(1)
	m.buckets[verb][bucketOf(took)].Add(1)
	m.nanos[verb].Add(uint64(took))
}

// bucketOf returns the first bucket whose upper bound is not below d.
func bucketOf(d time.Duration) int {
	if d <= latencyUnit {
		return 0
	}
	return min(bits.Len64(uint64((d-1)/latencyUnit)), latencyBuckets)
}

func bucketBound(i int) float64 { return (latencyUnit << i).Seconds() }
