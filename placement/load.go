package placement

import (
	"time"

	"github.com/tidwall/btree"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// load is what ranges cost a node, in whole numbers, so that taking away what was
// added leaves nothing behind. Bytes and applied are of every replica that the node
// holds; everything else is of the ranges that it leads, per second.
type load struct {
	bytes   int64
	applied int64 // bytes written per second, which every copy takes in

	cpu                   int64 // microseconds
	writeBytes, readBytes int64
	writes, reads         int64 // operations
}

func (l *load) add(o load) {
	l.bytes += o.bytes
	l.applied += o.applied
	l.cpu += o.cpu
	l.writeBytes += o.writeBytes
	l.readBytes += o.readBytes
	l.writes += o.writes
	l.reads += o.reads
}

func (l *load) sub(o load) { l.add(o.negative()) }

// held is the part of a range's load that every node with a copy bears.
func (l load) held() load { return load{bytes: l.bytes, applied: l.applied} }

// led is the part that only the node bears which leads the range.
func (l load) led() load { l.bytes, l.applied = 0, 0; return l }

func (l load) negative() load {
	return load{-l.bytes, -l.applied, -l.cpu, -l.writeBytes, -l.readBytes, -l.writes, -l.reads}
}

// most returns the larger of each number.
func (l load) most(o load) load {
	return load{max(l.bytes, o.bytes), max(l.applied, o.applied), max(l.cpu, o.cpu),
		max(l.writeBytes, o.writeBytes), max(l.readBytes, o.readBytes),
		max(l.writes, o.writes), max(l.reads, o.reads)}
}

// unless returns each number, or that of before if this one is less by so little that
// the next leader of a range need not have told all: a load that changes by less than
// a quarter is no news. Without this a range would seem cheaper wherever it goes.
func (l load) unless(before load) load {
	either := func(now, before int64) int64 {
		if now < before && now >= before*3/4 {
			return before
		}
		return now
	}
	return load{l.bytes, either(l.applied, before.applied), either(l.cpu, before.cpu),
		either(l.writeBytes, before.writeBytes), either(l.readBytes, before.readBytes),
		either(l.writes, before.writes), either(l.reads, before.reads)}
}

// loadOf takes a range's load from a fact.
func loadOf(f *metapb.RangeFact) load {
	return load{
		bytes:      f.GetStats().GetKeyBytes() + f.GetStats().GetValueBytes(),
		applied:    int64(f.GetWriteBytesPerSecond()),
		cpu:        int64(f.GetCpuMicrosPerSecond()),
		writeBytes: int64(f.GetWriteBytesPerSecond()),
		readBytes:  int64(f.GetReadBytesPerSecond()),
		writes:     int64(f.GetWritesPerSecond()),
		reads:      int64(f.GetReadsPerSecond()),
	}
}

// charge is a node's load with what running operators will change.
func (n *node) charge() load {
	l := n.load
	l.add(n.pending.load)
	return l
}

// A range is warm for a node if it costs it at least this. The sets of warm ranges
// are what schedulers look through for load; they stay small because a node has
// only so many cores and so much disk: with 64 cores, 64,000 entries.
const (
	warmCPU     = 1000      // of a range that it leads: microseconds per second
	warmApplied = 128 << 10 // of a range that it holds: bytes per second
)

// warmth is the place of a range in a set ordered by load.
type warmth struct {
	load int64
	id   ids.RangeID
}

// warmSet is an ordered set of ranges by load; nil is an empty one.
type warmSet struct{ set *btree.BTreeG[warmth] }

func (w *warmSet) change(entry warmth, sign int64) {
	if w.set == nil {
		w.set = btree.NewBTreeGOptions(func(a, b warmth) bool {
			return a.load < b.load || a.load == b.load && a.id < b.id
		}, btree.Options{NoLocks: true})
	}
	if sign > 0 {
		w.set.Set(entry)
	} else {
		w.set.Delete(entry)
	}
}

// descend visits the entries of at most limit, the largest first.
func (w *warmSet) descend(limit int64, visit func(warmth) bool) {
	if w.set != nil {
		w.set.Descend(warmth{limit, ^ids.RangeID(0)}, visit)
	}
}

// weigh adds a range to (sign 1), or takes it from (-1), the loads and sets of its
// nodes. It is called around every change of a range's replicas, leader or load, so
// that the sums never have to be made anew.
func (c *cluster) weigh(r *rangeState, sign int64) {
	held, led := r.load.held(), r.load.led()
	if sign < 0 {
		held, led = held.negative(), led.negative()
	}
	for _, p := range r.desc.GetReplicas() {
		n := c.node(ids.NodeID(p.GetNodeId()))
		n.load.add(held)
		if r.load.applied >= warmApplied {
			n.sched.wet.change(warmth{r.load.applied, r.id()}, sign)
		}
	}
	c.sched.loadsMoved = true
	if r.leader != 0 {
		n := c.node(r.leader)
		n.load.add(led)
		if r.load.cpu >= warmCPU {
			n.sched.warm.change(warmth{r.load.cpu, r.id()}, sign)
		}
	}
	if sign > 0 {
		c.prefer(r)
	} else {
		c.sched.misled.Delete(r.id())
	}
}

// A leader that took over measures the load of its range from nothing, with a memory
// of some ten seconds. Until it has measured for meterSettles the range counts with
// what it had before, if that is more: or its new node would look idle, draw the
// next range, and all of them would have to leave again.
const meterSettles = 20 * time.Second

// settling is a range whose leader measures since a short while.
type settling struct {
	until time.Duration
	told  load // by the new leader
	heard bool
}

// settlingUntil is an entry of the queue of settling ranges, which is in order of
// time because all of them take equally long.
type settlingUntil struct {
	id    ids.RangeID
	until time.Duration
}

// tookOver notes that r has another leader, whose numbers are low at first. Called
// after every change to a known leader.
func (c *cluster) tookOver(r *rangeState) {
	if r.leader == 0 || r.load.led() == (load{}) {
		return
	}
	until := c.now + meterSettles
	if c.sched.settling == nil {
		c.sched.settling = make(map[ids.RangeID]settling)
	}
	c.sched.settling[r.id()] = settling{until: until}
	c.sched.settles = append(c.sched.settles, settlingUntil{r.id(), until})
}

// believed is the load that r counts with, given a fact of its leader.
func (c *cluster) believed(r *rangeState, f *metapb.RangeFact) load {
	told := loadOf(f)
	s, ok := c.sched.settling[r.id()]
	if !ok {
		return told
	}
	s.told, s.heard = told, true
	c.sched.settling[r.id()] = s
	kept := r.load
	kept.bytes = told.bytes // of bytes the new leader knows as much as the old one
	return told.most(kept)
}

// maxSettled bounds the ranges that one Step lets settle. A third of all ranges may
// have got another leader in the same second.
const maxSettled = 8192

// settle lets the ranges count with what their leaders say, once those have
// measured for long enough. Those that it does not come to stay as they are until one of
// the next Steps: they count with the larger of two loads, and are not moved for load.
func (c *cluster) settle() {
	s := &c.sched
	for range maxSettled {
		if len(s.settles) == 0 || s.settles[0].until > c.now {
			return
		}
		due := s.settles[0]
		s.settles = s.settles[1:]
		now, ok := s.settling[due.id]
		if !ok || now.until != due.until {
			continue // its leader changed again
		}
		delete(s.settling, due.id)
		if r := c.dir.byID[due.id]; r != nil && now.heard {
			c.weigh(r, -1)
			r.load = now.told.unless(r.load)
			c.weigh(r, +1)
		}
	}
}
