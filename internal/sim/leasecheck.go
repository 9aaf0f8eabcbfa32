package sim

import (
	"bytes"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/ranges"
)

// authority is who may serve a span: a term of a range, in one generation of
// its descriptor.
type authority struct {
	id   ids.RangeID
	term ids.Term
	gen  uint64
}

// served is what an authority did: the highest timestamp of its reads, or the
// lowest of its writes.
type served struct {
	authority
	start, end []byte
	ts         hlc.Timestamp
}

// leaseChecker holds leases, reads and writes of all nodes against one another.
type leaseChecker struct {
	sim       *Sim
	holders   map[ids.RangeID][]*node  // who was seen to hold a lease, and may still
	committed map[ids.RangeID]ids.Term // highest term at which an entry was committed
	first     map[leaderKey]uint64     // first index of a term's entries
	starts    map[ids.RangeID][]byte   // where a range begins, for all its life
	reads     []*served                // highest, by authority
	writes    []*served                // lowest, by authority
	readAt    map[authority]*served    // the same
	writeAt   map[authority]*served    //
	highest   int64                    // wall clock of any process, ever
	stamp     hlc.Timestamp            // of any process, ever
	lead      time.Duration            // by how much restarts may have driven clocks ahead
	leadAt    time.Duration
}

func newLeaseChecker(s *Sim) *leaseChecker {
	return &leaseChecker{
		sim: s, holders: map[ids.RangeID][]*node{}, committed: map[ids.RangeID]ids.Term{},
		first: map[leaderKey]uint64{}, starts: map[ids.RangeID][]byte{},
		readAt: map[authority]*served{}, writeAt: map[authority]*served{},
	}
}

// after looks at what an event of a node may have changed.
func (c *checker) after(n *node) {
	if !n.alive || n.table == nil {
		return
	}
	if n.leasesMoved {
		n.leasesMoved = false
		c.lease.look(n)
	}
	c.lease.clock(n)
	if n.polled {
		n.polled = false
		c.tiles.look(n)
	}
}

// look asks a node which leases it holds now. A lease can only begin in an event
// of its own node, and ends by itself: so whoever holds one now is compared with
// those who were seen to hold one, and are asked again.
func (c *leaseChecker) look(n *node) {
	n.table.EachLease(func(id ids.RangeID, term ids.Term) {
		c.sim.counters["leases_seen"]++
		if at := c.committed[id]; term < at {
			c.sim.fail("%s holds the lease of %s at term %d after a commit at term %d",
				n, id, term, at)
		}
		known, others := false, c.holders[id][:0]
		for _, m := range c.holders[id] {
			if m == n {
				known = true
			} else if other, ok := m.holds(id); !ok {
				continue
			} else {
				c.sim.fail("%s (term %d) and %s (term %d) both hold the lease of %s",
					m, other, n, term, id)
			}
			others = append(others, m)
		}
		if !known {
			others = append(others, n)
		}
		c.holders[id] = others
	})
}

// holds says whether the node's process holds the lease of a range now. A
// machine that is frozen answers nobody, and its clocks stand still.
func (n *node) holds(id ids.RangeID) (ids.Term, bool) {
	if !n.alive || n.table == nil || n.physical.frozenAt >= 0 {
		return 0, false
	}
	return n.table.HoldsLease(id)
}

// sent learns from messages of leaders what is committed in which term.
func (c *leaseChecker) sent(id ids.RangeID, m *raftpb.Message) {
	k := leaderKey{id, m.GetTerm()}
	for _, e := range m.GetEntries() {
		if e.GetTerm() == m.GetTerm() {
			if at, ok := c.first[k]; !ok || e.GetIndex() < at {
				c.first[k] = e.GetIndex()
			}
			break
		}
	}
	at, ok := c.first[k]
	if !ok || m.GetCommit() < at || ids.Term(m.GetTerm()) <= c.committed[id] {
		return
	}
	term := ids.Term(m.GetTerm())
	c.committed[id] = term
	for _, n := range c.holders[id] {
		if held, ok := n.holds(id); ok && held < term {
			c.sim.fail("%s holds the lease of %s at term %d, term %d has committed",
				n, id, held, term)
		}
	}
}

// witness is one process's ranges.Witness.
type witness struct{ n *node }

var _ ranges.Witness = (*witness)(nil)

// Read checks a read that is about to be answered.
func (w *witness) Read(id ids.RangeID, term ids.Term, ts hlc.Timestamp, lease bool) {
	name := "reads_by_index"
	if lease {
		name = "reads_by_lease"
	}
	c := w.n.sim.checker.lease
	c.sim.counters[name]++
	c.sim.checker.tiles.served(w.n, id, ts)
	if me, ok := c.authority(w.n, id, term); ok {
		c.read(w.n, me, ts)
	}
}

// Write checks a write that was evaluated: it lies above every read of its span.
func (w *witness) Write(id ids.RangeID, term ids.Term, ts hlc.Timestamp) {
	c := w.n.sim.checker.lease
	c.sim.checker.tiles.wrote(w.n, id, term)
	if me, ok := c.authority(w.n, id, term); ok {
		c.written(w.n, me, ts)
	}
}

// read: no later leader has written at or below its timestamp.
func (c *leaseChecker) read(n *node, me *served, ts hlc.Timestamp) {
	for _, o := range c.writes {
		if o.ts <= ts && me.before(o) {
			c.sim.fail("%s serves a read of %s at %d in term %d, but %s has written at %d "+
				"in term %d", n, me.id, ts, me.term, o.id, o.ts, o.term)
		}
	}
	c.note(&c.reads, c.readAt, me).raise(ts)
}

// written: no earlier leader, nor this one, has served a read at or above its
// timestamp.
func (c *leaseChecker) written(n *node, me *served, ts hlc.Timestamp) {
	for _, o := range c.reads {
		if o.ts >= ts && (o.before(me) || o.id == me.id && o.term == me.term) {
			c.sim.fail("%s writes to %s at %d in term %d, but %s has served a read at %d "+
				"in term %d", n, me.id, ts, me.term, o.id, o.ts, o.term)
		}
	}
	c.note(&c.writes, c.writeAt, me).lower(ts)
}

// authority describes who serves; false: the replica is not there any more.
func (c *leaseChecker) authority(n *node, id ids.RangeID, term ids.Term) (*served, bool) {
	start, ok := c.starts[id]
	if !ok {
		r, err := n.store.State().Replica(id)
		if err != nil || r == nil {
			return nil, false
		}
		start = r.Descriptor.Start
		c.starts[id] = start
	}
	d, _, ok := n.table.Route(start)
	if !ok || ids.RangeID(d.RangeId) != id {
		return nil, false
	}
	return &served{authority: authority{id, term, d.Generation}, start: d.Start, end: d.End}, true
}

// before says whether another authority over a common key came later: a later
// term of the same range, or the half of a split. Generations order the ranges
// that hold a key.
func (a *served) before(b *served) bool {
	if a.id == b.id {
		return a.term < b.term && overlap(a, b)
	}
	return a.gen < b.gen && overlap(a, b)
}

func overlap(a, b *served) bool {
	return bytes.Compare(a.start, b.end) < 0 && bytes.Compare(b.start, a.end) < 0
}

func (c *leaseChecker) note(
	list *[]*served, at map[authority]*served, me *served,
) *served {
	if o := at[me.authority]; o != nil {
		return o
	}
	me.ts = 0
	at[me.authority] = me
	*list = append(*list, me)
	return me
}

func (a *served) raise(ts hlc.Timestamp) { a.ts = max(a.ts, ts) }

func (a *served) lower(ts hlc.Timestamp) {
	if a.ts == 0 || ts < a.ts {
		a.ts = ts
	}
}

// clock looks for a hybrid clock that has run away from all wall clocks. A
// restart may begin a window ahead, and each one that follows at once a part of
// a window further (hlc.Hybrid.NextBound); as time passes the wall clocks catch
// up.
func (c *leaseChecker) clock(n *node) {
	c.highest = max(c.highest, n.physical.Wall())
	c.stamp = max(c.stamp, n.clock.Peek())
	limit := max(boundWindow, c.sim.options.Promise) + c.leadNow() + futureReads + clockSliver
	if ahead := n.clock.Peek().Wall() - c.highest; ahead > limit.Milliseconds() {
		c.sim.fail("the clock of %s is %d ms ahead of every wall clock, at most %s is allowed",
			n, ahead, limit)
	}
}

// future draws a timestamp for a read: above all that was acknowledged, and up
// to futureReads ahead of the wall clocks.
func (c *leaseChecker) future(ahead time.Duration) hlc.Timestamp {
	return max(c.stamp, hlc.New(c.highest+ahead.Milliseconds(), 0))
}

// clockSliver covers what is added by a few milliseconds here and there.
const clockSliver = 100 * time.Millisecond

// futureReads is how far ahead clients ask for reads.
const futureReads = 400 * time.Millisecond

func (c *leaseChecker) leadNow() time.Duration {
	return max(0, c.lead-(c.sim.loop.now-c.leadAt))
}

// restarted notes that a process begins at its bound.
func (c *leaseChecker) restarted() {
	c.lead, c.leadAt = c.leadNow()+boundWindow/4, c.sim.loop.now
}
