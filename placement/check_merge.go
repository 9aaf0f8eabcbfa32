package placement

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// When ranges count as cold, and how many are merged at a time. A range that was
// split for its load bore twenty times as much: it does not come back here by noise.
const (
	coldCPU        = 5000 // microseconds per second
	coldOperations = 100  // per second
	// minMerges is how many merges run at a time, nodesPerMerge for how many nodes
	// there is one more.
	minMerges     = 2
	nodesPerMerge = 8
	// mergeRetry is when neighbours are looked at again that something else kept
	// from being merged.
	mergeRetry = time.Minute
)

// tiny says whether a range by itself would allow a merge.
func (c *cluster) tiny(r *rangeState) bool {
	return c.mergeBelow > 0 && r.id() != systemRange && r.stats != nil &&
		r.load.bytes < c.mergeBelow && r.load.cpu < coldCPU &&
		r.load.writes+r.load.reads < coldOperations
}

// consider keeps the list of ranges that may be merged: in it from when they became
// small and cold, due when they have been so, and unchanged, for long enough. It is
// called when a fact of r has been taken over.
func (c *cluster) consider(r *rangeState) {
	switch tiny := c.tiny(r); {
	case !tiny:
		c.inconsiderable(r)
	case r.mergeAt == never:
		c.reconsider(r, c.now+c.mergeAfter)
	}
}

func (c *cluster) reconsider(r *rangeState, at time.Duration) {
	c.inconsiderable(r)
	r.mergeAt = at
	c.mergeable.Set(rest{until: at, id: r.id()})
}

// inconsiderable takes r off the list.
func (c *cluster) inconsiderable(r *rangeState) {
	if r.mergeAt != never {
		c.mergeable.Delete(rest{until: r.mergeAt, id: r.id()})
		r.mergeAt = never
	}
}

// nextMerge returns the next merge that is due, nil if there is none, and whether
// there may be more: looking is bounded by those whose time has come.
func (c *cluster) nextMerge() (op *operator, more bool) {
	first, ok := c.mergeable.Min()
	if !ok || first.until > c.now {
		return nil, false
	}
	r := c.dir.byID[first.id]
	c.inconsiderable(r)
	if !c.tiny(r) {
		return nil, true
	}
	if due := r.changedAt + c.mergeAfter; due > c.now {
		c.reconsider(r, due)
		return nil, true
	}
	again := farAway
	for _, pair := range [...][2]*rangeState{{r, c.dir.after(r)}, {c.dir.previous(r), r}} {
		left, right := pair[0], pair[1]
		if left == nil || right == nil || !c.smallTogether(left, right) {
			continue // when the neighbour becomes small it asks for itself
		}
		if apart := c.sticky(right); apart > 0 {
			again = min(again, apart) // for ever: it is not looked for again and again
			continue
		}
		if c.unmergeable(left, right) == "" && c.settledFor(left) && c.settledFor(right) {
			if steps := c.mergeSteps(left, right); steps != nil {
				return newMerge(left, right, kindMerge, fmt.Sprintf(
					"%v and %v hold %s together and have been cold for %s", left.id(), right.id(),
					size(left.load.bytes+right.load.bytes), words(c.mergeAfter)), steps), true
			}
		}
		again = min(again, mergeRetry)
	}
	if again < farAway {
		c.reconsider(r, c.now+again)
	}
	return nil, true
}

func newMerge(left, right *rangeState, k kind, reason string, steps []step) *operator {
	op := newOperator(left, k, reason, steps...)
	op.other = right.id()
	return op
}

func (c *cluster) smallTogether(left, right *rangeState) bool {
	return c.tiny(left) && c.tiny(right) && left.load.bytes+right.load.bytes < c.mergeBelow
}

// settledFor says whether this driver has seen no change of r for long enough.
func (c *cluster) settledFor(r *rangeState) bool { return r.changedAt+c.mergeAfter <= c.now }

// unmergeable says in words why two ranges must not be merged now, whatever their
// size; "" if they may.
func (c *cluster) unmergeable(left, right *rangeState) string {
	switch {
	case !bytes.Equal(left.desc.GetEnd(), right.desc.GetStart()):
		return fmt.Sprintf("%v does not begin where %v ends", right.id(), left.id())
	case left.rule.Rule != right.rule.Rule:
		return fmt.Sprintf("%v is under rule %s, %v under rule %s", left.id(), left.rule.Name,
			right.id(), right.rule.Name)
	}
	for _, r := range [...]*rangeState{left, right} {
		switch op := c.holder[r.id()]; {
		case r.id() == systemRange:
			return "range 1, where placement keeps its state, is never merged"
		case op != nil:
			return fmt.Sprintf("%v is busy: %v", r.id(), op)
		case r.restUntil > c.now:
			return fmt.Sprintf("%v rests for another %s", r.id(), words(r.restUntil-c.now))
		case c.headless(r):
			return fmt.Sprintf("%v has no leader", r.id())
		case r.changing():
			return fmt.Sprintf("%v is being changed by its leader", r.id())
		case r.straddles:
			return fmt.Sprintf("%v lies under two rules", r.id())
		}
		if why := c.incomplete(r); why != "" {
			return why
		}
	}
	if l, r := voters(left), voters(right); l != r {
		return fmt.Sprintf("%v has %d copies, %v has %d", left.id(), l, right.id(), r)
	}
	stays, moves := meeting(left, right)
	if c.crowds(moves, stays.votersOf()) {
		return fmt.Sprintf("the copies of %v stand nearer to one another than those of %v",
			stays.id(), moves.id())
	}
	for _, id := range without(stays.votersOf(), moves.votersOf()...) {
		if n := c.nodes[id]; n.sheds() {
			return fmt.Sprintf("%v has a copy on %v, which is %s", stays.id(), id, n.shedWords())
		}
	}
	return ""
}

// meeting says which of two halves stays where it is, and the copies of which come
// there.
func meeting(left, right *rangeState) (stays, moves *rangeState) {
	if left.load.bytes < right.load.bytes {
		return right, left
	}
	return left, right
}

// incomplete says which copy of r is not there or does not answer: a merge needs
// every one.
func (c *cluster) incomplete(r *rangeState) string {
	for _, p := range r.desc.GetReplicas() {
		id := ids.NodeID(p.GetNodeId())
		switch {
		case p.GetRole() != roleVoter:
			return fmt.Sprintf("%v has a learner on %v", r.id(), id)
		case c.nodes[id].phase < phaseLive || c.mute(r, p):
			return fmt.Sprintf("the copy of %v on %v does not answer", r.id(), id)
		}
	}
	return ""
}

// mergeSteps brings the copies of the smaller half to the nodes of the larger one,
// both leaders to one node, and merges. Nil if that cannot be done now.
func (c *cluster) mergeSteps(left, right *rangeState) []step {
	stays, moves := meeting(left, right)
	var target []ids.NodeID
	for _, p := range stays.desc.GetReplicas() {
		n := c.nodes[ids.NodeID(p.GetNodeId())]
		if replicaOn(moves.desc, n.id) == nil &&
			(!n.mayHold() || !c.mayTake(n, moves.load.bytes)) {
			return nil
		}
		target = append(target, n.id)
	}
	if !c.nodes[stays.leader].mayLead() {
		return nil
	}
	steps := c.relocation(moves, target, stays.leader)
	if moves == right {
		for i := range steps {
			steps[i].of = right.id()
		}
	}
	return append(steps, step{kind: merge, other: right.id(), key: right.desc.GetEnd()})
}

// relocation returns the steps that bring the voters of r to exactly the target
// nodes, and its leader to lead (0: wherever it is then). One copy after the other
// moves, such that the copies in between stand as far apart as they can.
func (c *cluster) relocation(r *rangeState, target []ids.NodeID, lead ids.NodeID) []step {
	m := mover{c: c, r: r, leader: r.leader, lead: lead, target: target}
	for _, p := range r.desc.GetReplicas() {
		id := ids.NodeID(p.GetNodeId())
		switch wanted := slices.Contains(target, id); {
		case p.GetRole() == roleVoter:
			m.voters = append(m.voters, id)
			if !wanted {
				m.old = append(m.old, id)
			}
		case !wanted:
			m.do(removeLearner, id)
		}
	}
	for _, id := range target {
		if !slices.Contains(m.voters, id) {
			m.fresh = append(m.fresh, id)
		}
	}
	for len(m.fresh) > 0 || len(m.old) > 0 {
		m.next()
	}
	if lead != 0 && m.leader != lead {
		m.do(transferLeader, lead)
	}
	return m.steps
}

// mover makes the steps of a relocation.
type mover struct {
	c      *cluster
	r      *rangeState
	target []ids.NodeID
	lead   ids.NodeID

	steps      []step
	voters     []ids.NodeID // by the steps so far
	fresh, old []ids.NodeID // to come and to go
	leader     ids.NodeID
}

func (m *mover) do(k stepKind, n ids.NodeID) {
	m.steps = append(m.steps, step{kind: k, node: n})
}

// next moves one copy.
func (m *mover) next() {
	to, from := m.pair()
	if to != 0 {
		m.do(addLearner, to)
		m.do(catchUp, to)
	}
	if from != 0 && from == m.leader && !m.handOver(to) {
		// The only voter that there is.
		m.do(promote, to)
		m.do(transferLeader, to)
		m.do(demote, from)
		m.do(removeLearner, from)
		m.leader = to
	} else {
		switch {
		case from == 0:
			m.do(promote, to)
		case to == 0:
			m.do(demote, from)
			m.do(removeLearner, from)
		default:
			m.steps = append(m.steps, step{kind: swap, node: to, from: from})
			m.do(removeLearner, from)
		}
	}
	without := func(all []ids.NodeID, n ids.NodeID) []ids.NodeID {
		return slices.DeleteFunc(all, func(x ids.NodeID) bool { return x == n })
	}
	m.fresh, m.old, m.voters = without(m.fresh, to), without(m.old, from), without(m.voters, from)
	if to != 0 {
		m.voters = append(m.voters, to)
	}
}

// handOver has a voter lead that stays, before the leader's own copy moves.
func (m *mover) handOver(to ids.NodeID) bool {
	for _, n := range append([]ids.NodeID{m.lead}, m.target...) {
		if n != 0 && n != to && slices.Contains(m.voters, n) {
			m.do(transferLeader, n)
			m.leader = n
			return true
		}
	}
	return false
}

// pair chooses which copy moves next and where, 0 for none: the leader's comes last.
func (m *mover) pair() (to, from ids.NodeID) {
	rank := m.r.rule
	fresh, old := m.fresh, m.old
	if len(fresh) == 0 {
		fresh = []ids.NodeID{0}
	}
	if len(old) > 1 {
		old = slices.DeleteFunc(slices.Clone(old), func(n ids.NodeID) bool { return n == m.leader })
	}
	if len(old) == 0 {
		return fresh[0], 0
	}
	least := -1
	for _, t := range fresh {
		for _, f := range old {
			labels := m.c.labelsAt(m.voters, f, t)
			if near := rank.Collisions(labels); least < 0 || near < least {
				least, to, from = near, t, f
			}
		}
	}
	return to, from
}

// after and previous return the neighbours of r, nil at a gap or an end.
func (dir *directory) after(r *rangeState) (found *rangeState) {
	at := string(r.desc.GetEnd())
	dir.byStart.Ascend(at, func(start string, o *rangeState) bool {
		if start == at {
			found = o
		}
		return false
	})
	return found
}

func (dir *directory) previous(r *rangeState) *rangeState {
	found := dir.before(r.desc.GetStart())
	if found == nil || !bytes.Equal(found.desc.GetEnd(), r.desc.GetStart()) {
		return nil
	}
	return found
}

// mergeWords says how a merge stands, by the mark in a descriptor.
func mergeWords(d *metapb.RangeDescriptor) string {
	m := d.GetMerge()
	other := ids.RangeID(m.GetRangeId())
	switch m.GetPhase() {
	case metapb.MergePhase_MERGE_PHASE_INTENDED:
		return fmt.Sprintf("it is about to absorb %v", other)
	case metapb.MergePhase_MERGE_PHASE_FROZEN:
		return fmt.Sprintf("it is frozen, about to be absorbed by %v", other)
	default:
		return fmt.Sprintf("a merge with %v was given up, and is being cleared away", other)
	}
}
