package ranges

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// The comparison of replicas: do they hold the same bytes at the same index? A bug, or
// a disk that lies below its checksums, may let one diverge in silence, and then what
// is read depends on who leads.
//
// Once in CheckEvery a node takes one of the ranges that it leads and that were written
// to since they were compared last, and proposes a seal with a note. It does nothing
// but that every replica, when it has applied it, opens an iterator: so they all see
// the range at the index of the note. Away from the shard each reads all versions and
// keeps the sum. When the leader has its own, Config.Compare is called, which fetches
// those of the others and has Judge count: what most voters hold is right. Whoever
// holds something else stops, after it has counted by itself (package server).
//
// That is not what Applied.Fingerprint says. The fingerprint is carried on by what the
// leader worked out for each entry, so replicas that applied the same entries have the
// same one, whatever their engines did with the bytes. If the bytes of a range are not
// what its fingerprint says, that is counted and logged, and nobody stops for it: the
// copies agree.
//
// What is bounded: one range per CheckEvery and node, maxSums read at a time on a node
// (a replica that would be one more has no answer), maxKeptSums answers kept. A range
// that is not written to is never read. The pages that it reads push others out of the
// block cache: that, and the time of a processor, is the price, and why the pace is
// slow. An iterator, not a snapshot of the engine, holds the index: an ingest over the
// range would cut it out from under a snapshot.
//
// The note is the body of a seal, and not a kind of its own, for a node of a version
// before would halt a replica at a kind that it does not know. It takes a seal for a
// seal, and has no answer.

const (
	maxSums     = 2
	maxKeptSums = 64
	// maxCheckSkips bounds the ranges that one step passes over since they are not
	// led here any more.
	maxCheckSkips = 256
)

// checkNote is the body of a seal that asks for a comparison.
const checkNote = 1

// Sum is what a replica holds at an index.
type Sum struct {
	// Data is what reading every version brought, Recorded what the applied state
	// says.
	Data, Recorded mvcc.Delta
}

// Comparison is one range at one index, as one of its replicas has it.
type Comparison struct {
	Range    ids.RangeID
	Index    ids.Index
	Own      Sum
	Replicas []*metapb.Replica // at the index; shared, must not be changed
}

// checks is what the replicas of a node share about comparisons. Any goroutine.
type checks struct {
	due time.Duration // of the next one; maintenance only

	mu      sync.Mutex
	wanted  map[ids.RangeID]struct{} // led here and written to since
	queue   []ids.RangeID            // of wanted, in order
	running int
	kept    []Comparison // newest last

	counts [Judgements]atomic.Uint64
	bad    atomic.Uint64 // own sums that are not what is recorded
}

// want queues a range, once.
func (c *checks) want(id ids.RangeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.wanted[id]; ok {
		return
	}
	if c.wanted == nil {
		c.wanted = make(map[ids.RangeID]struct{})
	}
	c.wanted[id] = struct{}{}
	c.queue = append(c.queue, id)
}

// next takes the first range of the queue; false: there is none.
func (c *checks) next() (ids.RangeID, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return 0, false
	}
	id := c.queue[0]
	c.queue = c.queue[1:]
	delete(c.wanted, id)
	return id, true
}

// begin claims one of the sums that may be read at a time.
func (c *checks) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running >= maxSums {
		return false
	}
	c.running++
	return true
}

// end gives it back, and keeps what came of it (nil: nothing).
func (c *checks) end(done *Comparison) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	if done == nil {
		return
	}
	if len(c.kept) >= maxKeptSums {
		c.kept = slices.Delete(c.kept, 0, 1)
	}
	c.kept = append(c.kept, *done)
}

// Comparison returns what this node's replica of a range held at an index; false: it
// does not know, or not yet. Any goroutine.
func (t *Table) Comparison(id ids.RangeID, at ids.Index) (Comparison, bool) {
	c := &t.checks
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.kept) - 1; i >= 0; i-- {
		if c.kept[i].Range == id && c.kept[i].Index == at {
			return c.kept[i], true
		}
	}
	return Comparison{}, false
}

func (c *Config) compares() bool { return c.CheckEvery > 0 && c.Compare != nil }

// changedUnchecked queues a range that this replica leads, for its data has changed.
// Shard only.
func (r *Replica) changedUnchecked() {
	if !r.upkeep.unchecked && r.table.cfg.compares() {
		r.upkeep.unchecked = true
		r.table.checks.want(r.id)
	}
}

// checkNext begins a comparison if it is time for one. Part of Maintain.
func (t *Table) checkNext() {
	now := t.cfg.Physical.Monotonic()
	if !t.cfg.compares() || now < t.checks.due {
		return
	}
	for range maxCheckSkips {
		id, ok := t.checks.next()
		if !ok {
			return
		}
		r := t.replica(id)
		if r == nil || !r.state.Load().leads() {
			continue // whoever leads it now knows by itself
		}
		t.checks.due = now + t.cfg.CheckEvery
		if err := r.enqueue(multiraft.TaskFunc(r.startCheck), 0); err != nil {
			t.checks.want(id)
		}
		return
	}
}

// startCheck proposes the note. Shard only.
func (r *Replica) startCheck() {
	r.upkeep.unchecked = false
	s := r.state.Load()
	if !s.leads() {
		return
	}
	if r.change != nil || isJoint(s.desc) || s.desc.GetMerge() != nil {
		r.changedUnchecked() // another time
		return
	}
	err := r.propose(r.headerFor(kindSeal), []byte{checkNote}, func(v verdict) {
		if v != applied && r.state.Load().leads() {
			r.changedUnchecked()
		}
	})
	if err != nil {
		r.changedUnchecked()
	}
}

// view reads the engine as an iterator sees it.
type view struct{ it *pebble.Iterator }

// NewIter opens another iterator over the same state.
func (v view) NewIter(o *pebble.IterOptions) (*pebble.Iterator, error) {
	return v.it.Clone(pebble.CloneOptions{IterOptions: o})
}

// takeSum begins to read what this replica holds at the index that it has just
// applied. On the shard, before anything else of the range is applied.
func (r *Replica) takeSum(s *state) {
	t := r.table
	if !t.cfg.compares() || !s.initialised() {
		return
	}
	if !t.checks.begin() {
		if s.leads() {
			r.changedUnchecked() // another time
		}
		return
	}
	it, err := t.cfg.Store.State().DB().NewIter(&pebble.IterOptions{
		KeyTypes: pebble.IterKeyTypePointsOnly,
	})
	if err != nil {
		t.checks.end(nil)
		t.cfg.Logger.Warn("a comparison of replicas cannot be begun", "range", r.id, "error", err)
		return
	}
	c := Comparison{
		Range: r.id, Index: s.applied, Own: Sum{Recorded: s.data}, Replicas: s.desc.GetReplicas(),
	}
	leads, start, end := s.lead.mine, s.desc.GetStart(), s.desc.GetEnd()
	t.cfg.Execute(func() {
		var err error
		c.Own.Data, err = mvcc.Compute(view{it}, start, end)
		if closeErr := it.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			t.checks.end(nil)
			t.cfg.Logger.Error("read a range to compare its replicas", "range", c.Range, "error", err)
			return
		}
		t.checks.end(&c)
		t.checkRecord(&c)
		if leads {
			t.cfg.Compare(c)
		}
	})
}

// checkRecord says if what was read is not what the applied state says.
func (t *Table) checkRecord(c *Comparison) {
	if c.Own.Data == c.Own.Recorded {
		return
	}
	t.checks.bad.Add(1)
	t.cfg.Logger.Error("a range does not hold what its statistics say", "range", c.Range,
		"index", c.Index, "read", SumWords(c.Own.Data), "recorded", SumWords(c.Own.Recorded))
}

// Result is what came of a comparison.
type Result uint8

// Results of comparisons.
const (
	// AllEqual: every replica holds the same.
	AllEqual Result = iota
	// SomeEqual: those that answered hold the same.
	SomeEqual
	// Different: most voters hold the same, and somebody does not.
	Different
	// Undecided: replicas differ, and no majority of the voters holds the same.
	Undecided

	// Judgements is the number of results.
	Judgements = 4
)

// String names a result for metrics.
func (r Result) String() string {
	return [...]string{"equal", "incomplete", "different", "undecided"}[r]
}

// Judgement is what a comparison has come to.
type Judgement struct {
	Result Result
	Right  mvcc.Delta   // what most voters hold; only if Different
	Wrong  []ids.NodeID // which hold something else, in order of the replicas
}

// Judge counts what the replicas of a range hold at one index; held has an entry for
// each node that answered, this one (self) included.
func (c *Comparison) Judge(held map[ids.NodeID]mvcc.Delta) Judgement {
	voters, answers := 0, 0
	votes := make(map[mvcc.Delta]int)
	for _, x := range c.Replicas {
		d, ok := held[ids.NodeID(x.GetNodeId())]
		if ok {
			answers++
		}
		if x.GetRole() != roleVoter {
			continue
		}
		if voters++; ok {
			votes[d]++
		}
	}
	var j Judgement
	decided := false
	for d, n := range votes {
		if n > voters/2 { // at most one
			j.Right, decided = d, true
		}
	}
	for _, x := range c.Replicas {
		node := ids.NodeID(x.GetNodeId())
		if d, ok := held[node]; ok && decided && d != j.Right {
			j.Wrong = append(j.Wrong, node)
		}
	}
	switch {
	case len(j.Wrong) > 0:
		j.Result = Different
	case !decided && len(votes) > 1:
		j.Result = Undecided
	case answers < len(c.Replicas):
		j.Result = SomeEqual
	}
	return j
}

// Judged counts a judgement for Checks.
func (t *Table) Judged(j Judgement) { t.checks.counts[j.Result].Add(1) }

// Checks returns how many comparisons this node has led to each result, and how many
// ranges of this node did not hold what is recorded of them. Any goroutine.
func (t *Table) Checks() (by [Judgements]uint64, bad uint64) {
	for i := range by {
		by[i] = t.checks.counts[i].Load()
	}
	return by, t.checks.bad.Load()
}

// SumWords says a sum for people.
func SumWords(d mvcc.Delta) string {
	return fmt.Sprintf("%016x: %d versions of %d keys, %d bytes", d.Fingerprint,
		d.Stats.Versions, d.Stats.Keys, d.Stats.KeyBytes+d.Stats.ValueBytes)
}
