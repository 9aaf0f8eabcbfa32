package placement

import (
	"bytes"
	"fmt"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// MaxHistory is how many operators that ended are remembered, and how many splits
// and merges; older ones are forgotten.
const MaxHistory = 1000

// history is what happened in this tenure, for people. Nothing is decided by it.
type history struct {
	ended  ring[ended]
	shapes ring[reshape]
}

// ring keeps the last MaxHistory of something.
type ring[T any] struct {
	all  []T
	next int // where the next one goes once all is full
}

func (r *ring[T]) push(x T) {
	if len(r.all) < MaxHistory {
		r.all = append(r.all, x)
		return
	}
	r.all[r.next] = x
	r.next = (r.next + 1) % MaxHistory
}

// newest visits what is kept, the newest first.
func (r *ring[T]) newest(visit func(*T) bool) {
	for i := range r.all {
		at := (r.next + len(r.all) - 1 - i) % len(r.all)
		if !visit(&r.all[at]) {
			return
		}
	}
}

// ended is an operator that ended.
type ended struct {
	op      *operator
	at      time.Duration
	outcome outcome
	err     string
}

// reshape is a split or a merge, seen by its effect on the directory.
type reshape struct {
	at          time.Duration
	merged      bool
	left, right ids.RangeID // right is 0 while not known: a split tells its left half first
	key         []byte      // where they touch, or touched
	why         string
}

// chronicle notes what kind of change of shape brings d into the directory, before
// it does: r is what is known of the same range, victims what d evicts.
func (c *cluster) chronicle(r *rangeState, victims []*rangeState, d *metapb.RangeDescriptor) {
	id := ids.RangeID(d.GetRangeId())
	if r != nil && bytes.Equal(r.desc.GetStart(), d.GetStart()) &&
		bytes.Compare(d.GetEnd(), r.desc.GetEnd()) < 0 {
		c.history.shapes.push(reshape{at: c.now, left: id, key: d.GetEnd(), why: c.splitCause(r)})
	}
	for _, v := range victims {
		switch at := bytes.Compare(v.desc.GetStart(), d.GetStart()); {
		case at < 0 && bytes.Equal(v.desc.GetEnd(), d.GetEnd()): // the right half came first
			c.history.shapes.push(reshape{at: c.now, left: v.id(), right: id, key: d.GetStart(),
				why: c.splitCause(v)})
		case at > 0 && bytes.Compare(v.desc.GetEnd(), d.GetEnd()) <= 0:
			c.history.shapes.push(reshape{at: c.now, merged: true, left: id, right: v.id(),
				key: v.desc.GetStart(), why: c.mergeCause(id)})
		}
	}
}

// What a range must have borne, of its size or of a processor, for its split to be
// put down to that. Ranges split by themselves; this only says why, to people.
const (
	sizeShare = 0.75  // of the size at which ranges are split
	loadedCPU = 20000 // microseconds per second
)

// splitCause says why a range was split, as far as its last facts tell.
func (c *cluster) splitCause(r *rangeState) string {
	if op := c.holder[r.id()]; op != nil && op.kind == kindSplit {
		return op.reason
	}
	switch {
	case float64(r.load.bytes) >= sizeShare*float64(c.rangeSize):
		return fmt.Sprintf("it held %s, and ranges are split at %s", size(r.load.bytes),
			size(c.rangeSize))
	case r.load.cpu >= loadedCPU:
		return fmt.Sprintf("its load was %s of processor time, %d writes and %d reads a second",
			cpuWords(r.load.cpu), r.load.writes, r.load.reads)
	}
	return "somebody asked for it, or its load came and went between two reports"
}

// shapeCause says why a split or merge was, with what has come to be known since: the
// right half's descriptor tells if somebody asked for the split.
func (c *cluster) shapeCause(s *reshape) string {
	right, known := c.dir.byStart.Get(string(s.key))
	if !s.merged && known && right.desc.GetStickyUntil() != 0 {
		return "somebody asked for it"
	}
	return s.why
}

func (c *cluster) mergeCause(left ids.RangeID) string {
	if op := c.holder[left]; op != nil && op.other != 0 {
		return op.reason
	}
	return "a former driver of placement began it"
}

// Operators lists running operators, by id, or those that ended in this tenure, the
// newest first (kept: the last MaxHistory).
func (d *Driver) Operators(r *adminpb.OperatorsRequest) *adminpb.OperatorsReply {
	c := d.cluster
	reply := &adminpb.OperatorsReply{Tenure: d.tenure}
	if s := c.scattering(r.GetScatterId()); s != nil {
		reply.Scatter = s.progress(c)
	}
	limit := int(r.GetLimit())
	if limit == 0 {
		limit = defaultListed
	}
	want := ids.RangeID(r.GetRangeId())
	take := func(op *operator, describe func() *adminpb.Operator) {
		of := r.GetScatterId()
		if want != 0 && !op.holds(want) || of != 0 && op.scatter != of {
			return
		}
		if reply.Total++; len(reply.Operators) < limit {
			reply.Operators = append(reply.Operators, describe())
		}
	}
	if r.GetHistory() {
		c.history.ended.newest(func(e *ended) bool {
			take(e.op, func() *adminpb.Operator { return e.describe(c) })
			return true
		})
		return reply
	}
	c.ops.Scan(func(_ uint64, op *operator) bool {
		take(op, func() *adminpb.Operator { return op.describe(c) })
		return true
	})
	return reply
}

// defaultListed is how many operators a listing shows that names no limit.
const defaultListed = 100

// describe shows a running operator.
func (op *operator) describe(c *cluster) *adminpb.Operator {
	return &adminpb.Operator{
		Id: op.id, RangeId: uint64(op.rng), Kind: op.kind.String(), Reason: op.reason,
		Steps: op.stepWords(), At: uint32(op.at),
		AgeSeconds: max(0, c.now-op.created).Seconds(), Outcome: running.String(),
	}
}

// describe shows an operator that ended.
func (e *ended) describe(c *cluster) *adminpb.Operator {
	p := e.op.describe(c)
	p.Outcome, p.Error = e.outcome.String(), e.err
	p.TookSeconds = max(0, e.at-e.op.created).Seconds()
	return p
}

// size says how much something is, as people write it.
func size(bytes int64) string {
	const unit = 1024
	value, units := float64(bytes), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	for value >= unit && len(units) > 1 {
		value, units = value/unit, units[1:]
	}
	if units[0] == "B" || value >= 100 {
		return fmt.Sprintf("%.0f %s", value, units[0])
	}
	return fmt.Sprintf("%.1f %s", value, units[0])
}

// cpuWords says how much processor time something takes, given in microseconds per
// second.
func cpuWords(micros int64) string {
	return fmt.Sprintf("%.1f ms", float64(micros)/1000)
}
