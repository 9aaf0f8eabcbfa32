package sim

import (
	"bytes"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// tiles is what the ranges of the cluster have been, by the newest descriptor that
// any replica has ever applied. What one has applied is committed, so it stays
// true when that replica loses it in a crash. For each key there is one newest
// descriptor; these tile the keyspace at all times, each whole, since a split
// brings both halves at once, and so does a merge what was two.
type tiles struct {
	sim     *Sim
	list    []*metapb.RangeDescriptor // the newest of each key, in order; empty: nothing yet
	known   map[version]string        // every descriptor that was seen, in words
	highest map[ids.RangeID]uint64    // generation
	over    map[ids.RangeID]*merged   // ranges that were absorbed
	frozen  map[ids.RangeID]*frost    // ranges that serve nothing now
}

// version is one descriptor of a range.
type version struct {
	id  ids.RangeID
	gen uint64
}

// merged is the end of a range: its left neighbour has its keys from this
// generation on.
type merged struct {
	by   ids.RangeID
	gen  uint64
	last uint64 // generation of the range that ended
}

// frost is when a range froze: what is served in it afterwards would lie above.
type frost struct {
	start []byte
	gen   uint64
	stamp hlc.Timestamp // above all that any node had issued
	term  ids.Term      // the freeze's, or a later one
}

func newTiles(s *Sim) *tiles {
	return &tiles{
		sim: s, known: map[version]string{}, highest: map[ids.RangeID]uint64{},
		over: map[ids.RangeID]*merged{}, frozen: map[ids.RangeID]*frost{},
	}
}

// look takes in what a node's replicas have applied. It is called after each pass
// of a shard. A node has no replica that begins where no tile does, but for the
// right half of a split that it is the first to apply, beside the left one.
func (c *tiles) look(n *node) {
	if n.known == nil {
		for _, r := range n.replicas() { // a process that begins
			c.see(n, r.Descriptor)
		}
		n.known = []*metapb.RangeDescriptor{}
		c.whole(n)
	}
	at, count, same := []byte{kv.SystemPrefix}, 0, true
	next := 0
	for bytes.Compare(at, []byte{kv.EndPrefix}) < 0 {
		d, _, here := n.table.Route(at)
		if here {
			if count >= len(n.known) || n.known[count] != d {
				n.known = append(n.known[:count], d)
				same = false
			}
			count++
			at = d.End
			continue
		}
		for next < len(c.list) && bytes.Compare(c.list[next].Start, at) <= 0 {
			next++
		}
		if next == len(c.list) {
			break
		}
		at = c.list[next].Start
	}
	if len(n.known) != count {
		n.known, same = n.known[:count], false
	}
	if same {
		return
	}
	for _, d := range n.known {
		c.see(n, d)
	}
	c.whole(n)
}

// see takes in one descriptor.
func (c *tiles) see(n *node, d *metapb.RangeDescriptor) {
	id := ids.RangeID(d.RangeId)
	v := version{id, d.Generation}
	words := describe(d)
	if was, ok := c.known[v]; ok {
		if was != words {
			c.sim.fail("%s has %s at generation %d as %s, another replica as %s",
				n, id, d.Generation, words, was)
		}
		return
	}
	c.known[v] = words
	if o := c.over[id]; o != nil && d.Generation > o.last {
		c.sim.fail("%s was absorbed by %s at generation %d, and is at generation %d on %s",
			id, o.by, o.gen, d.Generation, n)
	}
	if d.Generation > c.highest[id] {
		c.highest[id] = d.Generation
		c.marks(n, d)
	}
	c.lay(n, d)
}

// marks follows the course of merges.
func (c *tiles) marks(n *node, d *metapb.RangeDescriptor) {
	id := ids.RangeID(d.RangeId)
	switch d.GetMerge().GetPhase() {
	case metapb.MergePhase_MERGE_PHASE_FROZEN:
		c.sim.count("merge_freezes")
		f := &frost{
			start: d.Start, gen: d.Generation,
			stamp: max(c.sim.checker.lease.stamp, n.clock.Peek()),
		}
		if r, err := n.store.State().Replica(id); err == nil && r != nil {
			f.term = ids.Term(r.Applied.Term)
		}
		c.frozen[id] = f
		c.sim.ambush(d)
		return
	case metapb.MergePhase_MERGE_PHASE_INTENDED:
		c.sim.count("merge_intents")
	case metapb.MergePhase_MERGE_PHASE_ABORTED:
		c.sim.count("merges_aborted")
	}
	if c.frozen[id] != nil {
		c.sim.count("merge_thaws")
		delete(c.frozen, id)
	}
}

// lay puts a descriptor over all older ones of the same keys.
func (c *tiles) lay(n *node, d *metapb.RangeDescriptor) {
	var list []*metapb.RangeDescriptor
	older, newer := 0, 0
	for _, t := range c.list {
		if !overlapping(t, d) {
			list = append(list, t)
			continue
		}
		if t.RangeId != d.RangeId && t.Generation == d.Generation {
			c.sim.fail("r%d %s and, on %s, r%d %s hold the same keys at the same generation",
				t.RangeId, describe(t), n, d.RangeId, describe(d))
		}
		if t.Generation >= d.Generation {
			list = append(list, t)
			newer++
			continue
		}
		older++
		if t.RangeId != d.RangeId && bytes.Compare(t.Start, d.Start) > 0 {
			c.absorbed(n, t, d)
		}
		if bytes.Compare(t.Start, d.Start) < 0 || bytes.Compare(t.End, d.End) > 0 {
			list = append(list, t) // a half of it comes; the other one must, too
		}
	}
	switch {
	case newer > 0 && older > 0:
		c.sim.fail("on %s r%d %s is newer than a part of what it overlaps only:\n%s",
			n, d.RangeId, describe(d), c.describe())
	case newer == 0:
		list = append(list, d)
		sort.SliceStable(list, func(i, j int) bool {
			return bytes.Compare(list[i].Start, list[j].Start) < 0
		})
	}
	c.list = list
}

// absorbed checks the end of a range: it had frozen for the one that has its keys
// now.
func (c *tiles) absorbed(n *node, right, left *metapb.RangeDescriptor) {
	id := ids.RangeID(right.RangeId)
	if c.over[id] != nil {
		return
	}
	m := right.GetMerge()
	if m.GetPhase() != metapb.MergePhase_MERGE_PHASE_FROZEN || m.RangeId != left.RangeId {
		c.sim.fail("r%d %s has been absorbed, on %s, by r%d %s, without being frozen for it",
			right.RangeId, describe(right), n, left.RangeId, describe(left))
	}
	c.over[id] = &merged{
		by: ids.RangeID(left.RangeId), gen: left.Generation, last: right.Generation,
	}
	c.sim.count("merges")
	c.sim.loop.tracef("%s is absorbed by r%d", id, left.RangeId)
}

// whole makes sure that the newest descriptors are whole and tile the keyspace.
func (c *tiles) whole(n *node) {
	if len(c.list) == 0 {
		return
	}
	// An old descriptor that only a part of the keys has overtaken stays in the
	// list until the other half has come: then nothing is left of it.
	c.list = slices.DeleteFunc(c.list, func(d *metapb.RangeDescriptor) bool {
		at := d.Start
		for _, t := range c.list {
			if t.Generation > d.Generation && bytes.Compare(t.Start, at) <= 0 &&
				bytes.Compare(t.End, at) > 0 {
				at = t.End
			}
		}
		return bytes.Compare(at, d.End) >= 0
	})
	at := []byte{kv.SystemPrefix}
	for _, d := range c.list {
		if !bytes.Equal(d.Start, at) {
			c.sim.fail("after a pass of %s the newest descriptors do not tile the keyspace at %x:\n%s",
				n, at, c.describe())
			return
		}
		at = d.End
	}
	if !bytes.Equal(at, []byte{kv.EndPrefix}) {
		c.sim.fail("after a pass of %s the keyspace ends at %x:\n%s", n, at, c.describe())
	}
}

func (c *tiles) describe() string {
	var b strings.Builder
	for _, d := range c.list {
		fmt.Fprintf(&b, "  r%d %s\n", d.RangeId, describe(d))
	}
	return b.String()
}

func overlapping(a, b *metapb.RangeDescriptor) bool {
	return bytes.Compare(a.Start, b.End) < 0 && bytes.Compare(b.Start, a.End) < 0
}

// served checks a read that is about to be answered: a range that is frozen, or
// was absorbed by whomever, answers only what it had let in before, which lies
// below all clocks of then.
func (c *tiles) served(n *node, id ids.RangeID, ts hlc.Timestamp) {
	f := c.frozen[id]
	if f == nil || f.thawed(n, id) {
		return
	}
	if ts > f.stamp {
		c.sim.fail("%s serves a read of %s at %d, which %s", n, id, ts, c.fate(id))
		return
	}
	c.sim.count("reads_let_in_before_a_freeze")
}

// wrote checks a write that was evaluated. A leader of an earlier term may not
// know yet that it is none any more.
func (c *tiles) wrote(n *node, id ids.RangeID, term ids.Term) {
	if f := c.frozen[id]; f != nil && term >= f.term && !f.thawed(n, id) {
		c.sim.fail("%s evaluates a write of %s in term %d, which %s", n, id, term, c.fate(id))
	}
}

// thawed says whether a node's replica is past the freeze: it thawed in the pass
// that is not over yet.
func (f *frost) thawed(n *node, id ids.RangeID) bool {
	d, _, ok := n.table.Route(f.start)
	return ok && ids.RangeID(d.RangeId) == id && d.Generation > f.gen
}

func (c *tiles) fate(id ids.RangeID) string {
	f := c.frozen[id]
	if o := c.over[id]; o != nil {
		return fmt.Sprintf("%s has absorbed at generation %d", o.by, o.gen)
	}
	return fmt.Sprintf("froze below %d in term %d", f.stamp, f.term)
}

// replicas lists what a node's store holds, without what is left of ranges that
// were absorbed and whose groups are about to end.
func (n *node) replicas() []*store.ReplicaState {
	all, err := n.store.State().Replicas()
	if err != nil {
		n.sim.fail("replicas of %s: %v", n, err)
	}
	return slices.DeleteFunc(all, func(r *store.ReplicaState) bool {
		id := ids.RangeID(r.Descriptor.RangeId)
		if n.sim.checker.tiles.over[id] == nil && r.Descriptor.Merge == nil {
			return false
		}
		next, err := n.store.Log().Tombstone(id)
		return err == nil && next == ids.EveryReplica
	})
}

// others says whether a node holds replicas of other ranges in a span.
func (n *node) others(d *metapb.RangeDescriptor) bool {
	return slices.ContainsFunc(n.replicas(), func(r *store.ReplicaState) bool {
		return r.Descriptor.RangeId != d.RangeId && overlapping(r.Descriptor, d)
	})
}
