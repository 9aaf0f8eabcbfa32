package store

import (
	"fmt"
	"math"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// BenchmarkAppendCommit is one pass of a shard: entries of many groups in one
// batch, committed, synced and waited for, and the applied data unsynced.
func BenchmarkAppendCommit(b *testing.B) {
	for _, groups := range []int{1, 48} {
		b.Run(fmt.Sprintf("groups=%d", groups), func(b *testing.B) {
			o := testOptions(nil)
			o.Dir, o.CacheBytes, o.MemTableBytes = b.TempDir(), 0, 0
			s := mustOpen(b, o)
			defer func() { must(b, s.Close()) }()
			logs := make([]*GroupLog, groups)
			for i := range logs {
				logs[i] = mustGroup(b, s, ids.RangeID(i+1))
			}
			data := string(make([]byte, 300))
			b.ReportAllocs()
			b.ResetTimer()
			for n := range uint64(b.N) {
				batch := s.NewBatch()
				for _, g := range logs {
					must(b, g.Append(batch, []*raftpb.Entry{entry(n+1, 1, data)}))
					if n > 0 && n%64 == 0 {
						must(b, g.Truncate(batch, ids.Index(n-8)))
					}
				}
				p, err := s.CommitSync(batch)
				must(b, err)
				must(b, p.Wait())
				batch.Close()
			}
			b.ReportMetric(float64(b.N*groups)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

// BenchmarkEntriesFromCache is what a leader does for every append it sends.
func BenchmarkEntriesFromCache(b *testing.B) {
	s := openTest(b)
	g := mustGroup(b, s, 1)
	s.with(b, false, func(batch *Batch) { must(b, g.Append(batch, entries(1, 64, 1))) })
	b.ReportAllocs()
	for b.Loop() {
		if es, err := g.Entries(33, 65, math.MaxUint64); err != nil || len(es) != 32 {
			b.Fatal(len(es), err)
		}
	}
}

// BenchmarkSimulatedOpen is what a restart costs the simulator.
func BenchmarkSimulatedOpen(b *testing.B) {
	o := testOptions(vfs.NewMem())
	o.Simulated, o.MemTableBytes = true, 0
	for b.Loop() {
		must(b, mustOpen(b, o).Close())
	}
}
