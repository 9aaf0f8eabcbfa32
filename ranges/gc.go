package ranges

import (
	"encoding/binary"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// Garbage collection: first the threshold is replicated (every read at or
// below it is refused from then on), then pages of deletions follow as
// ordinary write entries, made by the leader.
//
// A page holds its span exclusively while it is read and until it is applied,
// because it removes versions that the statistics of a concurrent write would
// count, and afterwards memory forgets what it knows of newest versions.

// gcSteps is how many thresholds fit into a window: finer ones would scan more
// often for little.
const gcSteps = 8

// collection is one pass over the range.
type collection struct {
	r              *Replica
	term           ids.Term
	old, threshold hlc.Timestamp
	cursor         []byte
	hold           hold
}

func (r *Replica) wantsCollection(s *state) bool {
	return s.data.Stats.GarbageBytes >= r.table.gcTrigger && r.upkeep.gc == nil
}

// collect begins a pass if the window has moved far enough since the last one.
func (r *Replica) collect(s *state) {
	window := r.table.cfg.GCWindow.Milliseconds()
	horizon := r.table.cfg.Physical.Wall() - window
	if horizon <= 0 || r.change != nil || s.frozen() {
		return
	}
	threshold := hlc.New(horizon, 0)
	if last := max(s.threshold, r.upkeep.collected); last.Wall()+window/gcSteps > horizon {
		if r.upkeep.collected >= s.threshold {
			return
		}
		threshold = s.threshold // an earlier leader did not finish it
	}
	c := &collection{
		r: r, term: s.lead.term, old: r.upkeep.collected,
		threshold: max(threshold, s.threshold), cursor: s.desc.GetStart(),
	}
	r.upkeep.gc = c
	if c.threshold == s.threshold {
		c.page()
		return
	}
	body := binary.LittleEndian.AppendUint64(nil, uint64(c.threshold))
	err := r.propose(r.headerFor(kindGCThreshold), body, func(v verdict) {
		if v != applied {
			c.end(false)
			return
		}
		c.page()
	})
	if err != nil {
		c.end(false)
	}
}

// end finishes the pass.
func (c *collection) end(complete bool) {
	c.r.latches.release(&c.hold)
	if c.r.upkeep.gc != c {
		return
	}
	c.r.upkeep.gc = nil
	if complete {
		c.r.upkeep.collected = c.threshold
		return
	}
	c.r.mark()
}

// page takes the rest of the range for itself.
func (c *collection) page() {
	end := c.r.descriptor().GetEnd()
	if string(c.cursor) >= string(end) {
		c.end(true)
		return
	}
	c.hold = hold{start: string(c.cursor), end: string(end), exclusive: true}
	c.r.latches.acquire(&c.hold, c)
}

func (c *collection) aborted() { c.end(false) }

// granted reads a page, away from the shard.
func (c *collection) granted() {
	r := c.r
	if !r.leadsIn(c.term) || r.state.Load().frozen() {
		c.end(false)
		return
	}
	end := r.descriptor().GetEnd() // a split, or a merge, may have passed
	if string(c.cursor) >= string(end) {
		c.end(true)
		return
	}
	st := r.table.cfg.Store
	r.offShard(func() func() {
		b := st.NewBatch()
		delta, resume, err := mvcc.GCPage(st.State().DB(), b.Pebble(), c.cursor, end,
			c.old, c.threshold, gcPageBytes)
		return func() {
			defer b.Close()
			c.write(b, delta, resume, err)
		}
	})
}

// write proposes a page and goes on with the next one when it is applied.
func (c *collection) write(b *store.Batch, delta mvcc.Delta, resume []byte, err error) {
	r := c.r
	if err != nil {
		r.table.cfg.Logger.Error("garbage collection", "range", r.id, "error", err)
	}
	if err != nil || c.hold.done || !r.leadsIn(c.term) {
		c.end(false)
		return
	}
	next := func() {
		r.latches.release(&c.hold)
		if resume == nil {
			c.end(true)
			return
		}
		c.cursor = resume
		c.page()
	}
	if b.Empty() {
		next()
		return
	}
	h := r.headerFor(kindWrite)
	h.delta = delta
	err = r.propose(h, b.Pebble().Repr(), func(v verdict) {
		if v != applied {
			c.end(false)
			return
		}
		r.recent.forget(r.table.cfg.Clock.Peek(), r.state.Load().applied)
		next()
	})
	if err != nil {
		c.end(false)
	}
}
