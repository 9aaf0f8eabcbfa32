package placement

import (
	"runtime"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const (
	manyNodes  = 1000
	manyRanges = 1_000_000
)

// manyFact is a range of common size with a little load.
func manyFact(i, generation uint64) *metapb.RangeFact {
	f := benchFact(manyNodes, i, generation, 1)
	which := i / manyNodes // so that nodes hold the same
	f.Stats = &metapb.RangeStats{ValueBytes: int64(24+which*7919%16) << 20}
	f.CpuMicrosPerSecond = 300 + which*31%1400
	f.WriteBytesPerSecond = 1000 + which*17%5000
	return f
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// millionDriver returns a driver that has heard all, and the reports that keep it so.
func millionDriver(b *testing.B) (*Driver, []*metapb.NodeReport) {
	before := heap()
	d := NewDriver(Config{Self: 1, ClusterID: 7, KV: newMemKV()})
	d.SetActive(true, 0)
	reports := make([]*metapb.NodeReport, manyNodes)
	for n := range reports {
		id := uint64(n + 1)
		desc := &metapb.NodeDescriptor{NodeId: id, StoreId: id, Address: "a:1"}
		d.cluster.register(desc, 1)
		reports[n] = &metapb.NodeReport{Node: desc, Full: true, Leaders: manyRanges / manyNodes,
			DiskBytes: 1 << 40, DiskFreeBytes: 1 << 39}
	}
	for n, r := range reports {
		for i := uint64(n); i < manyRanges; i += manyNodes {
			r.Facts = append(r.Facts, manyFact(i, 1))
		}
		d.Report(0, r)
		r.Facts, r.Full = nil, false
	}
	b.Logf("%d bytes of memory per range, directory and all", (heap()-before)/manyRanges)
	for now := time.Duration(0); now < time.Minute; now += time.Second {
		for _, r := range reports {
			d.Report(now, r)
		}
		d.Step(now)
	}
	for d.cluster.sweep.going { // the first look at every range, a part with each step
		d.Step(time.Minute)
	}
	if !d.planning || d.cluster.ops.Len() != 0 {
		b.Fatalf("not at rest: %v", d.Status(time.Minute).GetProblems())
	}
	return d, reports
}

// BenchmarkStep is one step of a driver of a million ranges: when nothing happened,
// after a thousand facts, when every scheduler looks and finds nothing to do, and
// when a new node makes the cluster uneven.
func BenchmarkStep(b *testing.B) {
	d, reports := millionDriver(b)
	c := d.cluster
	now := time.Minute
	b.Run("quiet", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d.Step(now)
		}
	})
	generation := uint64(1)
	b.Run("thousand-facts", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			generation++
			facts := make([][]*metapb.RangeFact, manyNodes)
			for k := range uint64(1000) {
				i := (k*999_983 + generation) % manyRanges
				facts[i%manyNodes] = append(facts[i%manyNodes], manyFact(i, generation))
			}
			b.StartTimer()
			for n, some := range facts {
				if len(some) > 0 {
					reports[n].Facts = some
					d.Report(now, reports[n])
					reports[n].Facts = nil
				}
			}
			d.Step(now)
		}
	})
	b.Run("all-schedulers-look", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.unbalanced = true
			d.Step(now)
		}
	})
	desc := &metapb.NodeDescriptor{NodeId: manyNodes + 1, StoreId: manyNodes + 1, Address: "a:1"}
	c.register(desc, 1)
	d.Report(now, &metapb.NodeReport{Node: desc, Full: true, DiskBytes: 1 << 40,
		DiskFreeBytes: 1 << 39})
	c.nodes[ids.NodeID(manyNodes+1)].phase = phaseSettled
	for c.sweep.going {
		c.sweepSome()
	}
	b.Run("a-node-joined", func(b *testing.B) {
		planned := 0
		for b.Loop() {
			c.unbalanced = true
			ops, _ := c.schedule(budget{transfers: 2000, moves: 1000, limit: 1000})
			planned += len(ops)
		}
		b.ReportMetric(float64(planned)/float64(b.N), "operators/op")
	})
	for _, r := range c.dir.byID {
		r.avoid = manyNodes + 1
	}
	b.Run("nothing-may-go-there", func(b *testing.B) { // looked for in vain
		for b.Loop() {
			c.unbalanced = true
			for _, n := range c.nodes {
				n.sched.barrenUntil = 0
			}
			all := budget{transfers: 2000, moves: 1000, limit: 1000}
			if ops, _ := c.schedule(all); len(ops) > 0 {
				b.Fatal(ops)
			}
		}
	})
}
