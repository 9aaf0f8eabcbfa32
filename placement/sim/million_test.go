package sim

import (
	"encoding/binary"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// crowd is a driver with very many ranges, whose nodes exist only as the reports
// that they send.
type crowd struct {
	t      testing.TB
	d      *placement.Driver
	now    time.Duration
	nodes  []*metapb.NodeReport // by id, heartbeats
	spread int                  // over so many of the nodes the ranges are spread
	ranges int
	silent ids.NodeID // does not report
}

const crowdNodes = 1000

// copiesOf returns the nodes of range i, the leader first: every node leads and
// holds the same number, and the ranges of one node share theirs with many.
func (c *crowd) copiesOf(i int) [3]uint64 {
	n, round := c.spread, i/c.spread
	at := i % n
	return [3]uint64{
		uint64(at + 1),
		uint64((at+1+round%331)%n + 1),
		uint64((at+400+round%541)%n + 1),
	}
}

func (c *crowd) fact(i int, generation uint64) *metapb.RangeFact {
	key := func(i int) []byte {
		switch i {
		case 0:
			return []byte{kv.UserPrefix}
		case c.ranges:
			return []byte{kv.EndPrefix}
		}
		return binary.BigEndian.AppendUint32([]byte{kv.UserPrefix}, uint32(i))
	}
	copies := c.copiesOf(i)
	d := &metapb.RangeDescriptor{RangeId: uint64(i + 2), Start: key(i), End: key(i + 1),
		Generation: generation, NextReplicaId: 4}
	for j, n := range copies {
		d.Replicas = append(d.Replicas, &metapb.Replica{NodeId: n, ReplicaId: uint64(j + 1)})
	}
	return &metapb.RangeFact{Descriptor_: d, LeaderNode: copies[0], Term: 6,
		Stats:              &metapb.RangeStats{Keys: 1000, ValueBytes: 32 * mib},
		CpuMicrosPerSecond: 400, WritesPerSecond: 10, ReadsPerSecond: 20}
}

func newCrowd(t testing.TB, nodes, ranges int) *crowd {
	c := &crowd{t: t, spread: nodes, ranges: ranges}
	system := &systemKV{rows: make(map[string]placement.KeyValue), away: func() bool { return false }}
	c.d = placement.NewDriver(placement.Config{Self: 1, ClusterID: clusterID, KV: system,
		DeadAfter: time.Minute})
	c.d.SetActive(true, 0)
	for range nodes {
		c.join()
	}
	return c
}

func (c *crowd) join() *metapb.NodeReport {
	n := newNode(ids.NodeID(len(c.nodes)+1), NodeSpec{}.withDefaults(), 0)
	desc := n.describe()
	if n.id > 1 {
		joining := n.describe()
		joining.NodeId = 0
		c.d.Join(&adminpb.JoinRequest{Node: joining}, func(_ *adminpb.JoinReply, err error) {
			if err != nil {
				c.t.Fatal(err)
			}
		})
	}
	r := &metapb.NodeReport{Node: desc, DiskBytes: uint64(n.spec.Disk),
		DiskFreeBytes: uint64(n.spec.Disk / 2), UptimeSeconds: 3600}
	c.nodes = append(c.nodes, r)
	return r
}

// fullReports has every node tell all that it leads, as it does to a new driver.
func (c *crowd) fullReports() {
	n := len(c.nodes)
	for at, r := range c.nodes {
		full := &metapb.NodeReport{Node: r.Node, Full: true, DiskBytes: r.DiskBytes,
			DiskFreeBytes: r.DiskFreeBytes, UptimeSeconds: r.UptimeSeconds}
		if at == 0 {
			full.Facts = append(full.Facts, c.systemFact())
		}
		for i := at; i < c.ranges; i += n {
			full.Facts = append(full.Facts, c.fact(i, 1))
		}
		r.Leaders = uint32(len(full.Facts))
		full.Leaders = r.Leaders
		c.d.Report(c.now, full)
	}
}

func (c *crowd) systemFact() *metapb.RangeFact {
	return &metapb.RangeFact{Term: 6, LeaderNode: 1, Stats: &metapb.RangeStats{},
		Descriptor_: &metapb.RangeDescriptor{RangeId: 1, Start: systemStart(),
			End: []byte{kv.UserPrefix}, Generation: 1, NextReplicaId: 4,
			Replicas: []*metapb.Replica{{NodeId: 1, ReplicaId: 1}, {NodeId: 2, ReplicaId: 2},
				{NodeId: 3, ReplicaId: 3}}}}
}

// second is a second in the life of the cluster: every node reports once, and the
// driver steps four times. It returns the longest step.
func (c *crowd) second() (longest time.Duration) {
	for range 4 {
		c.now += driverEvery
		if c.now%time.Second == 0 {
			for _, r := range c.nodes {
				if r.Node.NodeId != uint64(c.silent) {
					r.UptimeSeconds = (time.Hour + c.now).Seconds()
					c.d.Report(c.now, r)
				}
			}
		}
		longest = max(longest, c.stepped())
	}
	return longest
}

func (c *crowd) stepped() time.Duration {
	begin := threadTime()
	c.d.Step(c.now)
	return threadTime() - begin
}

// atRest lets the driver find that nothing has to be done. It looks at a part of all
// ranges with each step.
func (c *crowd) atRest() {
	for range 30 {
		c.second()
	}
	for range c.ranges / 1000 {
		c.d.Step(c.now)
	}
	if s := c.d.Status(c.now); s.GetOperators() != 0 || s.GetCollecting() ||
		s.GetRanges() != uint64(c.ranges+1) {
		c.t.Fatalf("not at rest: %v", s)
	}
}

// quiet is the time of a step in which nothing changed: the best mean of some rounds,
// for the machine has other things to do, too.
func (c *crowd) quiet() time.Duration {
	const rounds, steps = 20, 100
	best := time.Hour
	for range rounds {
		begin := threadTime()
		for range steps {
			c.d.Step(c.now)
		}
		best = min(best, (threadTime()-begin)/steps)
	}
	return best
}

// changed tells the driver of changes in count ranges, then steps.
func (c *crowd) changed(count int, generation uint64) (told, step time.Duration) {
	for i := range count {
		at := i * 7919 % c.ranges
		n := c.nodes[at%c.spread]
		r := &metapb.NodeReport{Node: n.Node, Leaders: n.Leaders, DiskBytes: n.DiskBytes,
			DiskFreeBytes: n.DiskFreeBytes, UptimeSeconds: n.UptimeSeconds,
			Facts: []*metapb.RangeFact{c.fact(at, generation)}}
		begin := threadTime()
		c.d.Report(c.now, r)
		told += threadTime() - begin
	}
	c.now += driverEvery
	return told, c.stepped()
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A thousand nodes and a million ranges fit into memory, and what a pass costs grows
// with what changed, not with what exists. Times are of the processor; they are
// printed, not asserted.
func TestAMillionRanges(t *testing.T) {
	if testing.Short() {
		t.Skip("takes most of a minute")
	}
	runtime.LockOSThread() // whose time is taken
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	small := newCrowd(t, crowdNodes, 10_000)
	small.fullReports()
	small.atRest()
	quietSmall := small.quiet()

	before := heapInUse()
	c := newCrowd(t, crowdNodes, 1_000_000)
	begin := threadTime()
	c.fullReports()
	t.Logf("full reports of %d nodes, made and taken: %.1f s", crowdNodes,
		(threadTime() - begin).Seconds())
	t.Logf("memory of the directory: %d bytes a range", (heapInUse()-before)/uint64(c.ranges))
	c.atRest()

	quiet := c.quiet()
	t.Logf("a pass when nothing changed: %v at a million ranges, %v at ten thousand", quiet, quietSmall)
	told, step := c.changed(1000, 2)
	t.Logf("1,000 changed ranges: reports %.2f ms, pass %.2f ms", ms(told), ms(step))

	full := c.join()
	full.Full = true
	c.d.Report(c.now, full)
	full.Full = false
	first := c.stepped()
	longest := time.Duration(0)
	for range 20 {
		longest = max(longest, c.second())
	}
	t.Logf("a node was added: first pass %.2f ms, longest of 20 s %.2f ms, %d operators", ms(first),
		ms(longest), c.d.Status(c.now).GetOperators())

	c.silent = 500
	silent, dead := time.Duration(0), time.Duration(0)
	for range 30 {
		silent = max(silent, c.second())
	}
	for range 40 {
		dead = max(dead, c.second())
	}
	t.Logf("a node fell silent: longest pass %.2f ms; it is dead: longest pass %.2f ms, %d operators",
		ms(silent), ms(dead), c.d.Status(c.now).GetOperators())
	if limit := 20*quietSmall + 20*time.Microsecond; quiet > limit {
		t.Errorf("a quiet pass takes %v at a million ranges and %v at ten thousand", quiet, quietSmall)
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// BenchmarkPass is the pass of a driver with a hundred thousand ranges.
func BenchmarkPass(b *testing.B) {
	c := newCrowd(b, crowdNodes, 100_000)
	c.fullReports()
	c.atRest()
	b.Run("quiet", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.d.Step(c.now)
		}
	})
	generation := uint64(1)
	b.Run("thousand-changes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			generation++
			c.changed(1000, generation)
		}
	})
}
