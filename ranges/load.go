package ranges

import (
	"cmp"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// The load of a range, at its leader: operations, bytes, and the time that
// goroutines spend on it. Requests only count. Once a second maintenance looks
// at the ranges that are being watched, and at no other, and lets what was
// counted flow into averages that forget with loadMemory.
//
// A range is watched from the first request after a rest, or from the beginning
// of a leadership, until nothing is left of its load. So an idle range costs
// nothing, and has no more than its counters.
//
// Time is measured for one piece of work in measureEvery, and counts as many
// times: the clock that counts suspend is a system call, which costs a fifth of
// a get. Which piece it is, is drawn from counters, so that no pattern of work
// falls into step with it, and a simulation that is replayed measures the same.
// It is time that passes, not processor time: waits for a disk, and for a
// processor on a machine that is too busy, count. What they tell is the same: this
// range keeps the node busy. measureMost cuts off what was no work at all. Not
// in it is what ranges share: raft, the log, the engine's commits, the wire.

const (
	// loadMemory is how fast a load is forgotten: to a third in this time.
	loadMemory = 10 * time.Second
	// minSample is the shortest time over which a rate is taken.
	minSample = 500 * time.Millisecond
	// loadGrace is how long the load of a range is kept that this node does not
	// lead: the right half of a split is to be elected, a leader may come back.
	loadGrace = loadMemory

	measureBits  = 5
	measureEvery = 1 << measureBits
	measureMost  = 2 * time.Millisecond
	unmeasured   = time.Duration(math.MinInt64)
)

// meter counts what a replica serves. Any goroutine, but for turn.
type meter struct {
	reads, writes traffic
	busy          atomic.Int64          // nanoseconds
	watch         atomic.Pointer[watch] // nil: at rest
	told          atomic.Pointer[told]  // nil: nothing yet
	turn          uint64                // of clockIn. Shard only
}

// traffic counts operations and bytes in one word, so that a request pays for one
// atomic addition: bytes below, operations above. Both wrap round; differences are
// right for less than 2^40 bytes (1 TiB) and 2^24 operations.
type traffic struct{ word atomic.Uint64 }

const trafficBits = 40

// add returns the count, which is another one for each caller.
func (t *traffic) add(operations, bytes int) uint64 {
	return t.word.Add(uint64(operations)<<trafficBits + uint64(bytes))
}

func trafficBetween(from, to uint64) (operations, bytes float64) {
	d := to - from
	return float64(d >> trafficBits), float64(d & (1<<trafficBits - 1))
}

// rates are a load, per second; cpu in microseconds.
type rates struct{ reads, writes, readBytes, writeBytes, cpu float64 }

func (a rates) operations() float64 { return a.reads + a.writes }

func (a rates) times(f float64) rates {
	return rates{a.reads * f, a.writes * f, a.readBytes * f, a.writeBytes * f, a.cpu * f}
}

func (a rates) plus(b rates) rates {
	return rates{
		a.reads + b.reads, a.writes + b.writes,
		a.readBytes + b.readBytes, a.writeBytes + b.writeBytes, a.cpu + b.cpu,
	}
}

// What a load must have moved by for placement to be told: more than a quarter,
// and more than these. They are low, because many ranges with little each may
// be much.
const (
	loadFactStep       = 4
	loadFactOperations = 5
	loadFactBytes      = 4 << 10
	loadFactCPU        = 1000
	// restOperations is below what a watched range is let go, if it had no
	// request since the last look.
	restOperations = 1
)

// movedTo says whether b differs from a by more than placement should miss.
func (a rates) movedTo(b rates) bool {
	moved := func(x, y, floor float64) bool {
		d := math.Abs(x - y)
		return d > floor && d*loadFactStep > x
	}
	return b == rates{} && a != b ||
		moved(a.reads, b.reads, loadFactOperations) ||
		moved(a.writes, b.writes, loadFactOperations) ||
		moved(a.readBytes, b.readBytes, loadFactBytes) ||
		moved(a.writeBytes, b.writeBytes, loadFactBytes) ||
		moved(a.cpu, b.cpu, loadFactCPU)
}

// watch is the load of a watched range when it was last looked at. Immutable;
// maintenance, and on the shard splits and merges, put a new one in its place.
type watch struct {
	at            time.Duration
	reads, writes uint64 // the counts then
	busy          int64
	// sum is the average as far as it is known, and weight says how far: 1 if all
	// the past is known, 0 at the beginning of a leadership, when another node
	// knows what the load was. Without it a leader would believe for ten seconds
	// that its range is almost idle.
	sum    rates
	weight float64
	heat   heat
}

func (w *watch) load() rates {
	if w == nil || w.weight == 0 {
		return rates{}
	}
	return w.sum.times(1 / w.weight)
}

// measured says whether the load is known.
func (w *watch) measured() bool { return w == nil || w.weight > 0 }

func (w *watch) because() string {
	if w == nil {
		return ""
	}
	return w.heat.because
}

// sample is w after what was counted since flowed in.
func (m *meter) sample(w *watch, now time.Duration) *watch {
	next := *w
	m.stamp(&next, now)
	seconds := (now - w.at).Seconds()
	keep := math.Exp(-seconds / loadMemory.Seconds())
	reads, readBytes := trafficBetween(w.reads, next.reads)
	writes, writeBytes := trafficBetween(w.writes, next.writes)
	busy := float64(next.busy-w.busy) / float64(time.Microsecond)
	counted := rates{reads, writes, readBytes, writeBytes, busy}
	next.sum = w.sum.times(keep).plus(counted.times((1 - keep) / seconds))
	next.weight = w.weight*keep + 1 - keep
	return &next
}

// stamp lets a watch count from now on.
func (m *meter) stamp(w *watch, now time.Duration) {
	w.at = now
	w.reads, w.writes, w.busy = m.reads.word.Load(), m.writes.word.Load(), m.busy.Load()
}

// resting says that nothing was asked of the range since before, and little is
// left of its load.
func (w *watch) resting(before *watch) bool {
	load := w.load()
	return w.reads == before.reads && w.writes == before.writes &&
		load.operations() < restOperations && load.cpu < loadFactCPU
}

// told is what a leader remembers of the last fact that placement was told: as
// much as it takes to see that there is something new. Immutable.
type told struct {
	term             ids.Term
	generation       uint64
	stats            mvcc.Stats
	caughtUp, silent []uint64
	load             rates
	measured         bool // load was known
	because          string
}

func (t *told) size() int64 { return t.stats.KeyBytes + t.stats.ValueBytes }

// counted counts, and watches the range if nobody does. It returns where the
// keys of the request belong, if they are wanted. Any goroutine.
func (r *Replica) counted(t *traffic, operations, bytes int) *keySamples {
	word := t.add(operations, bytes)
	w := r.load.watch.Load()
	if w == nil {
		r.wake(1)
		return nil
	}
	if k := w.heat.keys; k != nil && k.wants(word) {
		return k
	}
	return nil
}

// countRead counts a read of [start, end), or of the key start if end is empty,
// that returned so many bytes. Any goroutine.
func (r *Replica) countRead(start, end []byte, bytes int) {
	if k := r.counted(&r.load.reads, 1, bytes); k != nil {
		k.record(start, end, costOf(bytes))
	}
}

// countScan counts a page, as far as it was read.
func (rd *read) countScan(rows []kv.KeyValue, resume []byte, reverse bool) {
	bytes := 0
	for i := range rows {
		bytes += len(rows[i].Key) + len(rows[i].Value)
	}
	start, end := rd.start, rd.end
	switch {
	case resume != nil && reverse:
		start = resume
	case resume != nil:
		end = resume
	}
	rd.r.countRead(start, end, bytes)
}

// countWrite counts a write that was evaluated. Shard only.
func (r *Replica) countWrite(ops []op) {
	bytes := 0
	for i := range ops {
		bytes += len(ops[i].key) + len(ops[i].value)
	}
	k := r.counted(&r.load.writes, len(ops), bytes)
	for i := range ops {
		if k != nil {
			k.record(ops[i].key, nil, writeCost*costOf(len(ops[i].key)+len(ops[i].value)))
		}
	}
}

// countDeletion counts a page of a range deletion, whose keys are in order.
// Shard only.
func (r *Replica) countDeletion(keys []newestKey) {
	bytes := 0
	for i := range keys {
		bytes += len(keys[i].key)
	}
	k := r.counted(&r.load.writes, len(keys), bytes)
	if k != nil && len(keys) > 0 {
		k.record(keys[0].key, keys[len(keys)-1].key, writeCost*float64(len(keys)))
	}
}

// drawn says whether the nth piece of work is measured. Multiples of the golden
// ratio fill a circle evenly whatever the step, so no pattern escapes.
func drawn(n uint64) bool { return n*golden>>(64-measureBits) == 0 }

const golden = 0x9E3779B97F4A7C15

// clockIn begins a piece of work on the shard, and clockOut ends it. Most are
// not measured, and none of a follower.
func (r *Replica) clockIn() time.Duration {
	r.load.turn++
	return r.clockInAs(r.load.turn)
}

// clockInAs begins the nth piece of work on any goroutine.
func (r *Replica) clockInAs(n uint64) time.Duration {
	if !drawn(n) || !r.state.Load().lead.mine {
		return unmeasured
	}
	return r.table.cfg.Physical.Monotonic()
}

func (r *Replica) clockOut(began time.Duration) {
	if began != unmeasured {
		r.spentAs(r.table.cfg.Physical.Monotonic() - began)
	}
}

// clockInReads begins a reader's job. One with a scan stands for itself alone:
// there are few, and they are dear and unlike one another.
func (r *Replica) clockInReads(list []*read) (began time.Duration, alone bool) {
	for _, rd := range list {
		if rd.req.Verb == kv.VerbScan {
			return r.table.cfg.Physical.Monotonic(), true
		}
	}
	return r.clockInAs(r.load.reads.word.Load()), false
}

func (r *Replica) clockOutReads(began time.Duration, alone bool) {
	if alone {
		r.spent(r.table.cfg.Physical.Monotonic() - began)
		return
	}
	r.clockOut(began)
}

// clockIn begins the ith read of a frame. A frame is measured as a whole, if any
// of its reads is drawn, and each of those gets the part of one read.
func (b *leaseReads) clockIn(rd *read, i int) {
	if b.table.cfg.Pause != nil || !drawn(rd.r.load.reads.word.Load()+uint64(i)) {
		return
	}
	if b.timed == 0 {
		b.began = b.table.cfg.Physical.Monotonic()
	}
	b.timed++
	rd.timed = true
}

// clockOut ends a frame.
func (b *leaseReads) clockOut() {
	if b.timed == 0 {
		return
	}
	each := (b.table.cfg.Physical.Monotonic() - b.began) / time.Duration(len(b.list))
	for i := range b.list {
		if rd := &b.list[i]; rd.timed {
			rd.r.spentAs(each)
		}
	}
}

// spentAs notes the time of a piece of work that stands for others like it.
func (r *Replica) spentAs(d time.Duration) {
	r.spent(measureEvery * min(d, measureMost))
}

// spent notes time. Any goroutine.
func (r *Replica) spent(d time.Duration) { r.load.busy.Add(int64(max(0, d))) }

// wake has the range watched. known: 1 if it was at rest until now, 0 if another
// node led it. Any goroutine.
func (r *Replica) wake(known float64) {
	w := &watch{weight: known}
	r.load.stamp(w, r.table.cfg.Physical.Monotonic())
	if r.load.watch.CompareAndSwap(nil, w) {
		r.table.dirty.watch(r)
	}
}

// watch adds a range whose watch was just made.
func (d *dirtySet) watch(r *Replica) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watched = append(d.watched, r)
}

// lookAtLoads looks at the watched ranges, in order of their ids, and marks those
// with news for placement.
func (t *Table) lookAtLoads() {
	t.dirty.mu.Lock()
	list := t.dirty.watched
	t.dirty.watched = nil
	t.dirty.mu.Unlock()
	if len(list) == 0 {
		return
	}
	slices.SortFunc(list, func(a, b *Replica) int { return cmp.Compare(a.id, b.id) })
	now := t.cfg.Physical.Monotonic()
	list = slices.DeleteFunc(list, func(r *Replica) bool { return !r.look(now) })
	t.dirty.mu.Lock()
	defer t.dirty.mu.Unlock()
	t.dirty.watched = append(list, t.dirty.watched...)
	if len(t.dirty.watched) == 0 {
		t.dirty.watched = nil // of a burst, such as a start
	}
}

// look takes a sample, and says whether the range is still watched. Whoever else
// puts a new watch in its place (a split, a merge) wins.
func (r *Replica) look(now time.Duration) (watched bool) {
	m, s := &r.load, r.state.Load()
	w := m.watch.Load()
	var next *watch
	var split *loadSplit
	switch {
	case w == nil:
		return false
	case s.destroyed || !s.lead.mine && now-w.at >= loadGrace:
		// Nobody asks for it any more.
	case !s.lead.mine || now-w.at < minSample:
		return true
	default:
		next = m.sample(w, now)
		split = r.warm(next, s)
		if next.resting(w) {
			next = nil
		}
	}
	if !m.watch.CompareAndSwap(w, next) {
		return true
	}
	if split != nil {
		r.beginLoadSplit(split)
	}
	if s.leads() && r.loadIsOld() {
		r.table.mark(r.id)
	}
	return next != nil
}

// loadIsOld says whether placement should hear of the load. Not before it knows
// of the leadership.
func (r *Replica) loadIsOld() bool {
	f, w := r.load.told.Load(), r.load.watch.Load()
	if f == nil {
		return false
	}
	return w.measured() && (!f.measured || f.load.movedTo(w.load())) || f.because != w.because()
}

// replaceWatch puts in what change makes of the present watch, from now on, nil
// if there is none; if change returns nil everything stays as it is.
func (r *Replica) replaceWatch(change func(w *watch) *watch) {
	now := r.table.cfg.Physical.Monotonic()
	for {
		w := r.load.watch.Load()
		next := change(w)
		if next == nil {
			return
		}
		r.load.stamp(next, now)
		if r.load.watch.CompareAndSwap(w, next) {
			if w == nil {
				r.table.dirty.watch(r)
			}
			return
		}
	}
}

// shareLoad gives the right half of a split half the load, so that placement may
// move it at once; what each really has shows within seconds. The shard of r,
// before the right half's group is born.
func (r *Replica) shareLoad(right *Replica) {
	var half *watch
	now := r.table.cfg.Physical.Monotonic()
	r.replaceWatch(func(w *watch) *watch {
		half = nil
		if w == nil {
			return nil
		}
		half = &watch{
			sum: w.sum.times(0.5), weight: w.weight, heat: heat{quiet: now + loadSplitPause},
		}
		return half
	})
	if half == nil {
		return
	}
	copied := *half
	right.replaceWatch(func(*watch) *watch { return &copied })
}

// takeLoad adds the load of a right neighbour that r has absorbed. The shard of r.
func (r *Replica) takeLoad(right *Replica) {
	more := right.load.watch.Load().load()
	if more == (rates{}) {
		return
	}
	r.replaceWatch(func(w *watch) *watch { return &watch{sum: w.load().plus(more), weight: 1} })
}
