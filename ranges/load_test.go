package ranges

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc/osclock"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// second is a second of load: so many requests, then maintenance.
func (w *world) second(requests int, request func(i int)) {
	w.t.Helper()
	for i := range requests {
		request(i)
	}
	w.maintain(1)
}

// getNow reads by lease, at once.
func (n *node) getNow(k string) {
	n.w.t.Helper()
	if c := n.start(&kv.Request{Verb: kv.VerbGet, Key: key(k)}); c.count != 1 {
		n.w.t.Fatalf("a read by lease was answered %d times", c.count)
	}
}

// factsOf are the facts that placement got of a range, from the given one on.
func (n *node) factsOf(r ids.RangeID, from int) (list []*metapb.RangeFact) {
	for _, f := range n.facts[from:] {
		if f.GetDescriptor_().GetRangeId() == uint64(r) {
			list = append(list, f)
		}
	}
	return list
}

func (n *node) lastFact(r ids.RangeID) *metapb.RangeFact {
	n.w.t.Helper()
	list := n.factsOf(r, 0)
	if len(list) == 0 {
		n.w.t.Fatalf("no fact of %v", r)
	}
	return list[len(list)-1]
}

// near says whether got is want but for a part of it.
func near(got, want, part float64) bool { return math.Abs(got-want) <= part*want }

func TestLoadForgetsAndSaysWhatItKnowsOfThePast(t *testing.T) {
	t.Parallel()
	const rate = 100
	run := func(known float64, seconds int) float64 {
		m := &meter{}
		w := &watch{weight: known}
		for i := range seconds {
			m.reads.add(rate, 10*rate)
			w = m.sample(w, time.Duration(i+1)*time.Second)
		}
		if !near(w.load().readBytes, 10*w.load().reads, 1e-9) || w.load().writes != 0 {
			t.Errorf("load is %+v", w.load())
		}
		return w.load().reads
	}
	if got, want := run(1, 10), rate*(1-math.Exp(-1)); !near(got, want, 1e-9) {
		t.Errorf("ten seconds after a rest %.2f, want %.2f", got, want)
	}
	if got := run(0, 1); !near(got, rate, 1e-9) {
		t.Errorf("a second after an election %.2f, want %d", got, rate)
	}
	// The length of the samples makes no difference while the rate stays.
	m, w := &meter{}, &watch{weight: 1}
	for i := range 40 {
		m.reads.add(rate/2, 0)
		if i%3 != 1 {
			w = m.sample(w, time.Duration(i+1)*time.Second/2)
		}
	}
	if got, want := w.load().reads, rate*(1-math.Exp(-2)); !near(got, want, 1e-9) {
		t.Errorf("with uneven samples %.2f, want %.2f", got, want)
	}
}

func TestTrafficWrapsRoundUnnoticed(t *testing.T) {
	t.Parallel()
	var c traffic
	c.word.Store(math.MaxUint64 - 5)
	before := c.word.Load()
	for range 3 {
		c.add(2, 1000)
	}
	if ops, bytes := trafficBetween(before, c.word.Load()); ops != 6 || bytes != 3000 {
		t.Errorf("%v operations, %v bytes", ops, bytes)
	}
}

// No step of the counters may keep work from being measured, or have all of it
// measured.
func TestEveryPatternOfWorkIsMeasuredInProportion(t *testing.T) {
	t.Parallel()
	for _, step := range []uint64{
		1, 2, 3, 7, 16, 17, 31, 32, 33, 64, 1 << trafficBits, 1<<trafficBits + 116,
		8<<trafficBits + 8*116, 32 << trafficBits,
	} {
		const works = 1 << 14
		count := 0
		for i := range uint64(works) {
			if drawn(i * step) {
				count++
			}
		}
		if !near(float64(count), works/measureEvery, 0.1) {
			t.Errorf("step %#x: %d of %d were measured", step, count, works)
		}
		k := newKeySamples(2, 0, rates{reads: 100 * sampledPerSecond})
		count = 0
		for i := range uint64(works) {
			if k.wants(i * step) {
				count++
			}
		}
		if !near(float64(count), works/100, 0.15) {
			t.Errorf("step %#x: %d of %d were recorded", step, count, works)
		}
	}
}

func TestFactsFollowTheLoadAndNotEverySecond(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	w.lease = leased
	n := w.nodes[1]
	n.put("k", "0123456789")
	w.maintain(3)
	read := func(int) { n.getNow("k") }
	for range 60 {
		w.second(200, read)
	}
	f := n.lastFact(2)
	if !near(f.GetReadsPerSecond(), 200, 0.3) || f.GetReadBytesPerSecond() < 1000 {
		t.Errorf("placement was told of %v reads and %d bytes a second",
			f.GetReadsPerSecond(), f.GetReadBytesPerSecond())
	}
	from := len(n.facts)
	for range 20 {
		w.second(200, read)
	}
	if list := n.factsOf(2, from); len(list) > 0 {
		t.Errorf("%d facts of a load that stays, the last one %v", len(list), list[len(list)-1])
	}
	if f := n.table.Facts()[1]; !near(f.GetReadsPerSecond(), 200, 0.01) {
		t.Errorf("the full report says %v reads", f.GetReadsPerSecond())
	}
	for range 5 {
		w.second(1000, read)
	}
	if f := n.lastFact(2); f.GetReadsPerSecond() < 350 {
		t.Errorf("five seconds after the load rose placement knows of %v", f.GetReadsPerSecond())
	}
	from = len(n.facts)
	w.maintain(120)
	list := n.factsOf(2, from)
	if len(list) == 0 || len(list) > 30 || list[len(list)-1].GetReadsPerSecond() != 0 {
		t.Errorf("%d facts after the load ended", len(list))
	}
}

func TestWritesCountTheirKeysAndBytes(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	n := w.nodes[1]
	n.put("k", "v") // wakes the range
	w.maintain(1)
	m := &n.table.replica(2).load
	before := m.writes.word.Load()
	n.put("abc", "0123456789") // 1 byte of prefix
	n.do(&kv.Request{Verb: kv.VerbAtomic, Identity: n.identity(), Ops: []kv.Op{
		{Key: key("a"), Value: []byte("1")}, {Key: key("b"), Value: []byte("2")},
	}})
	n.do(&kv.Request{
		Verb: kv.VerbDeleteRange, Key: key("a"), End: key("b"), Timestamp: n.clock.Peek(),
		Identity: n.identity(),
	})
	ops, bytes := trafficBetween(before, m.writes.word.Load())
	if ops != 5 || bytes != 14+6+2+4 {
		t.Errorf("%v operations, %v bytes", ops, bytes)
	}
}

// A new leader does not know the load of before; it says so by telling none, and
// tells the truth after a second, not after ten.
func TestNewLeaderDoesNotTakeItsRangeForIdle(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	w.lease = trueLease
	l := w.leader(2)
	l.put("k", "v")
	for range 15 {
		w.second(100, func(int) { l.getNow("k") })
	}
	to := l.id%3 + 1
	w.transfer(2, to)
	n := w.nodes[to]
	list := n.factsOf(2, 0)
	first := list[len(list)-1]
	if first.GetReadsPerSecond() != 0 || first.GetTerm() == 0 {
		t.Errorf("the first fact of the new leader is %v", first)
	}
	from := len(n.facts)
	for range 2 {
		w.second(100, func(int) { n.getNow("k") })
	}
	list = n.factsOf(2, from)
	if len(list) == 0 || !near(list[0].GetReadsPerSecond(), 100, 0.1) {
		t.Errorf("after two seconds the new leader told %v", list)
	}
	// The old one forgets.
	w.maintain(12)
	if old := l.table.replica(2).load.watch.Load(); old != nil {
		t.Errorf("the old leader remembers %+v", old)
	}
}

// Even if there is no load: the second fact of a leadership says so.
func TestNewLeaderOfAnIdleRangeTellsThatItIsIdle(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("k", "v")
	w.maintain(5)
	to := w.nodes[l.id%3+1]
	w.transfer(2, to.id)
	from := len(to.facts)
	w.maintain(3)
	if list := to.factsOf(2, from); len(list) != 1 || list[0].GetWritesPerSecond() != 0 {
		t.Errorf("it told %v", list)
	}
}

// Not parallel: it counts allocations.
func TestAnIdleRangeCostsNothing(t *testing.T) {
	w := oneNode(t, nil)
	w.lease = leased
	n := w.nodes[1]
	for i := range 20 {
		n.put(fmt.Sprintf("k%02d", i), "v")
	}
	for range 5 {
		w.second(300, func(i int) { n.getNow(fmt.Sprintf("k%02d", i%20)) })
	}
	r := n.table.replica(2)
	if r.load.watch.Load() == nil {
		t.Fatal("nobody watches a range under load")
	}
	if allocs := testing.AllocsPerRun(1000, func() {
		r.countRead(r.descriptor().GetStart(), nil, 100)
		r.clockOut(r.clockIn())
	}); allocs != 0 {
		t.Errorf("counting a read allocates %v times", allocs)
	}
	w.maintain(200)
	if r.load.watch.Load() != nil || len(n.table.dirty.watched) != 0 {
		t.Fatalf("an idle range is watched: %+v", r.load.watch.Load())
	}
	from := len(n.facts)
	if allocs := testing.AllocsPerRun(100, func() {
		w.wall += 1000
		n.table.Maintain()
	}); allocs != 0 {
		t.Errorf("maintenance of idle ranges allocates %v times", allocs)
	}
	if len(n.facts) != from {
		t.Errorf("idle ranges sent %d facts", len(n.facts)-from)
	}
}

// stepClock is a world's clock on which each reading takes time.
type stepClock struct {
	*world
	step, passed time.Duration
}

func (c *stepClock) Monotonic() time.Duration {
	c.passed += c.step
	return c.world.Monotonic() + c.passed
}

func TestTimeIsMeasuredForReadsScansAndWrites(t *testing.T) {
	t.Parallel()
	clock := &stepClock{step: 100 * time.Microsecond}
	w := newWorld(t, 1, func(c *Config) {
		clock.world = c.Physical.(*world)
		c.Physical, c.LoadSplitCPU, c.LoadSplitOps = clock, -1, -1
	})
	w.bootstrap()
	w.lease = leased
	n := w.nodes[1]
	r := n.table.replica(2)
	micros := func(f func()) float64 {
		before := r.load.busy.Load()
		f()
		return float64(r.load.busy.Load()-before) / float64(time.Microsecond)
	}
	const times = 2000
	// Each is taken to last one step; a write is five pieces of work: on its
	// caller's goroutine, its evaluation, the proposal, and both parts of applying.
	if got := micros(func() {
		for i := range times {
			n.put(fmt.Sprint("k", i%50), "v")
		}
	}); !near(got, 5*100*times, 0.2) {
		t.Errorf("%d writes took %.0f µs", times, got)
	}
	if got := micros(func() {
		for range times {
			n.getNow("k7")
		}
	}); !near(got, 100*times, 0.2) {
		t.Errorf("%d reads took %.0f µs", times, got)
	}
	if got := micros(func() {
		for range 50 {
			n.do(&kv.Request{Verb: kv.VerbScan, Key: key("a"), End: key("z")})
		}
	}); !near(got, 100*50, 0.01) {
		t.Errorf("50 scans took %.0f µs", got)
	}
	frame := make([]Call, 8)
	for i := range frame {
		frame[i] = Call{&kv.Request{Verb: kv.VerbGet, Key: key("k7")}, func(*kv.Response) {}}
	}
	if got := micros(func() {
		for range times {
			n.table.SubmitBatch(frame)
		}
	}); !near(got, 100*times, 0.2) {
		t.Errorf("%d frames of reads took %.0f µs", times, got)
	}
}

func TestAbsorbedRangeBringsItsLoad(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	w.lease = leased
	n := w.nodes[1]
	n.put("a", "v")
	n.put("m", "v")
	_, right := w.split(2, "m")
	w.maintain(150)
	l, r := n.table.replica(2), n.table.replica(ids.RangeID(right.GetRangeId()))
	l.takeLoad(r)
	if l.load.watch.Load() != nil {
		t.Error("no load is taken for some")
	}
	for range 30 {
		w.second(100, func(int) { n.getNow("m") })
	}
	want := r.load.watch.Load().load().reads
	l.takeLoad(r)
	if got := l.load.watch.Load().load().reads; !near(got, want, 1e-9) {
		t.Errorf("the left half has %v reads a second, the right one had %v", got, want)
	}
	w.maintain(1)
	if f := n.lastFact(2); !near(f.GetReadsPerSecond(), want, 0.15) {
		t.Errorf("placement was told of %v", f.GetReadsPerSecond())
	}
}

// BenchmarkLoadOfARead measures what keeping the load adds to a get by lease: the
// count, and one reading of a real clock at either end for one in measureEvery.
func BenchmarkLoadOfARead(b *testing.B) {
	w := oneNode(b, func(c *Config) { c.Physical = osclock.New() })
	w.lease = leased
	n := w.nodes[1]
	n.put("k", "v")
	r := n.table.replica(2)
	frame := &leaseReads{table: n.table, list: make([]read, 1)}
	frame.list[0].r = r
	k := key("k")
	b.ReportAllocs()
	cpu := cpuTime(b)
	for b.Loop() {
		frame.timed, frame.list[0].timed = 0, false
		frame.clockIn(&frame.list[0], 0)
		r.countRead(k, nil, 100)
		frame.clockOut()
	}
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
}
