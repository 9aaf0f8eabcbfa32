package sim

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Short names of the roles.
const (
	roleVoter    = metapb.ReplicaRole_REPLICA_ROLE_VOTER
	roleLearner  = metapb.ReplicaRole_REPLICA_ROLE_LEARNER
	roleIncoming = metapb.ReplicaRole_REPLICA_ROLE_VOTER_INCOMING
	roleDemoting = metapb.ReplicaRole_REPLICA_ROLE_VOTER_DEMOTING
)

const (
	jointFor = 2 * tick // how long a joint configuration lasts
	mergeFor = 6 * tick // from the intent of a merge until it is absorbed
)

// simRange is one range as all its copies together know it.
type simRange struct {
	id       ids.RangeID
	desc     *metapb.RangeDescriptor // immutable: replaced by every change
	from, to position
	bytes    int64

	leader  ids.NodeID // 0: none
	term    uint64
	vacated time.Duration   // when it lost its leader
	caught  map[uint64]bool // learners that hold the log, by replica id
	change  *change         // under way; nil: none

	asked, meter, told rates // by clients now; decayed; as last told
	toldBytes          int64
	toldCaught         int           // learners that hold the log, as last told
	hotSince           time.Duration // 0: it is not
	lastSplit          time.Duration
	hotBecause         string
	noSplit            int64 // bytes at which no split was possible
}

// change is what has begun and takes a moment.
type change struct {
	due   time.Duration
	left  *simRange // of a merge, the same in both halves; nil: a joint configuration
	right *simRange
}

func systemStart() []byte { return []byte{kv.SystemPrefix} }

func replicaOn(d *metapb.RangeDescriptor, n ids.NodeID) *metapb.Replica {
	for _, p := range d.GetReplicas() {
		if ids.NodeID(p.GetNodeId()) == n {
			return p
		}
	}
	return nil
}

// halves returns the nodes that vote before and after a joint configuration;
// outside of one they are the same.
func halves(d *metapb.RangeDescriptor) (before, after []ids.NodeID) {
	for _, p := range d.GetReplicas() {
		n := ids.NodeID(p.GetNodeId())
		if p.GetRole() == roleVoter || p.GetRole() == roleDemoting {
			before = append(before, n)
		}
		if p.GetRole() == roleVoter || p.GetRole() == roleIncoming {
			after = append(after, n)
		}
	}
	return before, after
}

func joint(d *metapb.RangeDescriptor) bool {
	return slices.ContainsFunc(d.GetReplicas(), func(p *metapb.Replica) bool {
		return p.GetRole() != roleVoter && p.GetRole() != roleLearner
	})
}

func hasLearner(d *metapb.RangeDescriptor) bool {
	return slices.ContainsFunc(d.GetReplicas(), func(p *metapb.Replica) bool {
		return p.GetRole() == roleLearner
	})
}

// survives is how many more nodes may fail so that d keeps its majorities of those that
// are up; -1: it has lost one already.
func (w *World) survives(d *metapb.RangeDescriptor, up func(ids.NodeID) bool) int {
	least := 1 << 30
	before, after := halves(d)
	for _, half := range [][]ids.NodeID{before, after} {
		live := 0
		for _, n := range half {
			if up(n) {
				live++
			}
		}
		least = min(least, live-(len(half)/2+1))
	}
	return max(-1, least)
}

// insert adds a range to every index.
func (w *World) insert(r *simRange) {
	if r.caught == nil {
		r.caught = make(map[uint64]bool)
	}
	w.ranges[r.id] = r
	if r.id != systemID {
		w.byStart.Set(string(r.desc.GetStart()), r)
	}
	w.hold(r, true)
	if r.leader != 0 {
		w.node(r.leader).leads[r.id] = true
	} else {
		r.vacated = w.now
		w.vacant.Insert(r.id)
	}
	if hasLearner(r.desc) {
		w.learning.Insert(r.id)
	}
	w.tell(r)
}

// remove takes a range out of every index.
func (w *World) remove(r *simRange) {
	w.hold(r, false)
	if r.leader != 0 {
		delete(w.node(r.leader).leads, r.id)
	}
	w.vacant.Delete(r.id)
	w.changing.Delete(r.id)
	w.learning.Delete(r.id)
	w.active.Delete(r.id)
	w.byStart.Delete(string(r.desc.GetStart()))
	delete(w.ranges, r.id)
}

func (w *World) hold(r *simRange, holds bool) {
	for _, p := range r.desc.GetReplicas() {
		n := w.node(ids.NodeID(p.GetNodeId()))
		if holds {
			n.holds[r.id] = true
			n.bytes += r.bytes
		} else {
			delete(n.holds, r.id)
			n.bytes -= r.bytes
		}
	}
}

// grow changes the size of a range on all its nodes.
func (w *World) grow(r *simRange, by int64) {
	r.bytes += by
	for _, p := range r.desc.GetReplicas() {
		n := w.node(ids.NodeID(p.GetNodeId()))
		if n.bytes += by; n.bytes > n.spec.Disk {
			w.violate("the disk of %v is full", n.id)
		}
	}
}

// next returns a copy of r's descriptor with the generation that a change gives.
func (r *simRange) next() *metapb.RangeDescriptor {
	d := &metapb.RangeDescriptor{
		RangeId: r.desc.RangeId, Start: r.desc.Start, End: r.desc.End,
		Generation: r.desc.Generation + 1, NextReplicaId: r.desc.NextReplicaId,
		Merge: r.desc.Merge,
	}
	for _, p := range r.desc.GetReplicas() {
		d.Replicas = append(d.Replicas,
			&metapb.Replica{NodeId: p.NodeId, ReplicaId: p.ReplicaId, Role: p.Role})
	}
	return d
}

// become replaces the descriptor by one with the same span.
func (w *World) become(r *simRange, d *metapb.RangeDescriptor) {
	w.judge(r.desc, d)
	w.hold(r, false)
	r.desc = d
	w.hold(r, true)
	if joint(d) {
		r.change = &change{due: w.now + jointFor}
		w.changing.Insert(r.id)
	}
	if hasLearner(d) {
		w.learning.Insert(r.id)
	} else {
		w.learning.Delete(r.id)
	}
	w.tell(r)
}

// lead gives a range a leader and its load meter a fresh start: what the last one
// measured is not known here.
func (w *World) lead(r *simRange, leader ids.NodeID) {
	if old := w.node(r.leader); old != nil {
		delete(old.leads, r.id)
		delete(old.dirty, r.id)
	}
	if w.vacant.Contains(r.id) {
		w.vacant.Delete(r.id)
		w.tally.leaderless = max(w.tally.leaderless, w.now-r.vacated)
	}
	r.leader = leader
	r.term++
	r.meter, r.hotSince, r.hotBecause = rates{}, 0, ""
	w.node(leader).leads[r.id] = true
	w.tell(r)
}

// vacate takes its leader from a range.
func (w *World) vacate(r *simRange) {
	delete(w.node(r.leader).leads, r.id)
	r.leader, r.vacated = 0, w.now
	w.vacant.Insert(r.id)
}

// elect gives a range a new leader if it waited long enough and a majority is up.
func (w *World) elect(r *simRange) {
	if w.now-r.vacated < electionAfter || w.survives(r.desc, w.up) < 0 {
		return
	}
	_, after := halves(r.desc)
	after = slices.DeleteFunc(after, func(n ids.NodeID) bool { return !w.up(n) })
	w.lead(r, after[w.rng.IntN(len(after))])
}

// finish ends what had begun, if there is a leader to end it.
func (w *World) finish(r *simRange) {
	if r.change.left == nil && (r.leader == 0 || w.survives(r.desc, w.up) < 0) {
		return
	}
	c := r.change
	w.changing.Delete(r.id)
	r.change = nil
	if c.left != nil {
		w.endMerge(c.left, c.right)
		return
	}
	d := r.next()
	for _, p := range d.Replicas {
		switch p.Role {
		case roleIncoming:
			p.Role = roleVoter
		case roleDemoting:
			p.Role = roleLearner
			r.caught[p.ReplicaId] = true
		}
	}
	w.become(r, d)
}

// split cuts a range at a key; nil means where bytes halve.
func (w *World) split(r *simRange, key []byte) error {
	if r.id == systemID || r.leader == 0 || r.change != nil || r.desc.Merge != nil {
		return fmt.Errorf("%v cannot be split now", r.id)
	}
	if key == nil {
		key = w.keys.key((r.from + r.to) / 2)
	}
	if bytes.Compare(key, r.desc.Start) <= 0 || bytes.Compare(key, r.desc.End) >= 0 {
		return fmt.Errorf("%v has no key to be split at", r.id)
	}
	id, err := w.newID(w.node(r.leader))
	if err != nil {
		return err
	}
	at := w.keys.position(key)
	left, right := r.next(), r.next()
	left.End, right.Start, right.RangeId = key, key, uint64(id)
	var share float64
	if r.to > r.from {
		share = float64(r.to-at) / float64(r.to-r.from)
	}
	half := &simRange{
		id: id, desc: right, from: at, to: r.to, bytes: int64(float64(r.bytes) * share),
		leader: r.leader, term: 1, caught: make(map[uint64]bool), lastSplit: w.now,
	}
	for replica, caught := range r.caught { // order-free
		half.caught[replica] = caught
	}
	w.remove(r)
	r.desc, r.to, r.bytes, r.lastSplit, r.noSplit = left, at, r.bytes-half.bytes, w.now, 0
	total := r.asked.cpu + r.asked.writes + r.asked.reads
	w.ask(r)
	w.ask(half)
	if total > 0 { // both begin with their share of what was measured
		part := (half.asked.cpu + half.asked.writes + half.asked.reads) / total
		half.meter = r.meter.times(part)
		r.meter = r.meter.times(1 - part)
	}
	r.hotSince, r.hotBecause = 0, ""
	w.insert(r)
	w.insert(half)
	w.resume(r)
	w.resume(half)
	w.fork(r, half)
	w.tally.splits++
	return nil
}

// resume has the load of a range that entered again looked after.
func (w *World) resume(r *simRange) {
	if r.meter.some() || r.asked.some() {
		w.active.Insert(r.id)
	}
}

// merge begins to merge two neighbours that the same node leads.
func (w *World) merge(left *simRange, o *metapb.Order) error {
	right := w.ranges[ids.RangeID(o.GetOtherRangeId())]
	switch {
	case right == nil || right.desc.GetGeneration() != o.GetOtherGeneration():
		return fmt.Errorf("the right neighbour is not as ordered")
	case left.id == systemID || !bytes.Equal(left.desc.End, right.desc.Start):
		return fmt.Errorf("%v and %v are not neighbours", left.id, right.id)
	case right.leader != left.leader || right.change != nil || right.desc.Merge != nil:
		return fmt.Errorf("%v is busy or led elsewhere", right.id)
	case !aligned(left.desc, right.desc):
		return fmt.Errorf("%v and %v are not aligned", left.id, right.id)
	}
	for _, p := range left.desc.Replicas {
		if !w.up(ids.NodeID(p.GetNodeId())) {
			return fmt.Errorf("n%d does not answer", p.GetNodeId())
		}
	}
	l, r := left.next(), right.next()
	l.Merge = &metapb.MergeMark{Phase: metapb.MergePhase_MERGE_PHASE_INTENDED,
		RangeId: uint64(right.id), Generation: l.Generation}
	r.Merge = &metapb.MergeMark{Phase: metapb.MergePhase_MERGE_PHASE_FROZEN,
		RangeId: uint64(left.id), Generation: l.Generation}
	w.become(left, l)
	w.become(right, r)
	left.change = &change{due: w.now + mergeFor, left: left, right: right}
	right.change = left.change
	w.changing.Insert(left.id)
	return nil
}

// aligned says whether two descriptors have voters on the same nodes, and nothing
// else.
func aligned(a, b *metapb.RangeDescriptor) bool {
	if len(a.Replicas) != len(b.Replicas) || hasLearner(a) || hasLearner(b) ||
		joint(a) || joint(b) {
		return false
	}
	for _, p := range a.Replicas {
		if replicaOn(b, ids.NodeID(p.GetNodeId())) == nil {
			return false
		}
	}
	return true
}

// endMerge absorbs the right half, or undoes the merge if a node was lost.
func (w *World) endMerge(left, right *simRange) {
	right.change = nil
	whole := left.leader != 0 && left.leader == right.leader
	for _, p := range left.desc.Replicas {
		whole = whole && w.up(ids.NodeID(p.GetNodeId()))
	}
	if !whole {
		for _, r := range []*simRange{left, right} {
			d := r.next()
			d.Merge = nil
			w.become(r, d)
		}
		return
	}
	d := left.next()
	d.Generation = max(left.desc.Generation, right.desc.Generation) + 1
	d.End, d.Merge = right.desc.End, nil
	w.remove(right)
	w.remove(left)
	left.desc, left.to, left.bytes = d, right.to, left.bytes+right.bytes
	left.meter = left.meter.plus(right.meter)
	w.ask(left)
	w.insert(left)
	w.resume(left)
	w.tally.merges++
}
