package placement

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

const (
	// scatterFor is how long the scattering of a span is gone on with at most.
	scatterFor = 30 * time.Minute
	// maxScatters bounds the spans that are scattered at a time: of more the oldest is
	// left as it is. maxScattered bounds the ranges of one.
	maxScatters  = 8
	maxScattered = 16384
	// scatterAtOnce bounds the transfers that one request begins at once.
	scatterAtOnce = 32
	// scatterPause is between two looks at a span, scatterStuck for how long nothing of
	// it can be moved before it is left as it is.
	scatterPause = time.Second
	scatterStuck = 2 * time.Minute
	// scattersKept is how many that have ended are remembered, for those who ask.
	scattersKept = 64
)

// scattering is a span whose leaders and copies a person wants spread evenly. It is
// gone on with as copies may move, until the span is even.
type scattering struct {
	id         uint64
	start, end []byte
	until      time.Duration
	stuck      time.Duration // nothing of it runs, or could be moved, since then; never: not so

	ranges, waiting int // at the last look: of the span, and those that could stand better
	leaders, copies uint64
	bytes           int64
	failed          uint64
	ended           bool
	why             string // it ended although the span is not even
}

// scatter begins to spread the leaders and copies of the ranges that overlap [start,
// end), empty meaning to the last, evenly over the nodes: in an order that is random
// but the same for the same span, and with no more moves than are needed. It returns
// what may begin at once; schedule goes on with the rest, also while placement is
// paused. Nil if the span is even. Refused if no range of the span is known. Influence
// must be up to date.
func scatter(
	c *cluster, start, end []byte,
) (s *scattering, ops []*operator, note string, err error) {
	c.countAble()
	limit := c.moveLimit(0)
	p := newPass(c, budget{transfers: scatterAtOnce, moves: limit, limit: limit})
	s = &scattering{id: c.sched.lastScatter + 1, start: start, end: end, stuck: never}
	for _, o := range c.sched.scatters {
		if bytes.Equal(o.start, start) && bytes.Equal(o.end, end) {
			s = o // asked for again, perhaps since the answer was lost
		}
	}
	s.until = c.now + scatterFor
	v := p.scatter(s)
	switch {
	case s.ranges == 0:
		return nil, nil, "", fmt.Errorf("%w: no range between these keys is known", ErrRefused)
	case v == rested:
		return nil, nil, fmt.Sprintf("%s spread evenly already", areWords(s.ranges)), nil
	}
	if s.id > c.sched.lastScatter {
		c.sched.lastScatter = s.id
		c.sched.scatters = append(c.sched.scatters, s)
	}
	for len(c.sched.scatters) > maxScatters {
		c.leave(c.sched.scatters[0], "it gave way to newer ones")
		c.sched.scatters = c.sched.scatters[1:]
	}
	c.sched.next[scattered] = c.now + scatterPause
	return s, p.ops, fmt.Sprintf("%s being spread; what cannot begin now follows as nodes can "+
		"take it, for up to %s", areWords(s.ranges), words(scatterFor)), nil
}

func areWords(ranges int) string {
	if ranges == 1 {
		return "1 range is"
	}
	return fmt.Sprintf("%d ranges are", ranges)
}

// leave ends a scattering; why is empty if its span is even.
func (c *cluster) leave(s *scattering, why string) {
	s.ended, s.why = true, why
	kept := append(c.sched.scattersEnded, s)
	c.sched.scattersEnded = kept[max(0, len(kept)-scattersKept):]
}

// scattering finds one by its id, nil if it is not remembered.
func (c *cluster) scattering(id uint64) *scattering {
	for _, all := range [...][]*scattering{c.sched.scatters, c.sched.scattersEnded} {
		for _, s := range all {
			if s.id == id {
				return s
			}
		}
	}
	return nil
}

// tell notes what an operator of a scattering has moved, when it has ended.
func (s *scattering) tell(c *cluster, op *operator, result outcome) {
	if s == nil {
		return
	}
	if result != succeeded {
		s.failed++
		return
	}
	for _, st := range op.steps {
		switch r := op.rangeOf(c, st); {
		case st.kind == transferLeader:
			s.leaders++
		case st.kind == addLearner && r != nil:
			s.copies++
			s.bytes += r.load.bytes
		}
	}
}

// progress says how far a scattering has come.
func (s *scattering) progress(c *cluster) *adminpb.ScatterProgress {
	p := &adminpb.ScatterProgress{
		Id: s.id, Ranges: uint64(s.ranges), Waiting: uint64(s.waiting), LeadersMoved: s.leaders,
		ReplicasMoved: s.copies, BytesMoved: uint64(max(0, s.bytes)), Failed: s.failed,
		Ended: s.ended, Why: s.why,
	}
	c.ops.Scan(func(_ uint64, op *operator) bool {
		if op.scatter == s.id {
			p.Running++
		}
		return true
	})
	return p
}

// scatterOn goes on with the spans that are being scattered.
func scatterOn(p *pass) verdict {
	s := &p.c.sched
	worst := rested
	s.scatters = slices.DeleteFunc(s.scatters, func(one *scattering) bool {
		v := p.scatter(one)
		switch {
		case v != blocked:
			one.stuck = never
		case one.stuck == never:
			one.stuck = p.c.now
		}
		switch {
		case v == rested:
			p.c.leave(one, "")
		case v == blocked && p.c.now-one.stuck >= scatterStuck:
			p.c.leave(one, fmt.Sprintf("%d of %d ranges could stand better, but nothing of them "+
				"could be moved for %s", one.waiting, one.ranges, words(scatterStuck)))
		case one.until <= p.c.now:
			p.c.leave(one, fmt.Sprintf("it has gone on for %s, and %d of %d ranges could stand "+
				"better still", words(scatterFor), one.waiting, one.ranges))
		default:
			worst = max(worst, v)
			return false
		}
		return true
	})
	return worst
}

// spanCount is what a node has of the ranges of a span, with what operators that run
// will change.
type spanCount struct{ leaders, copies int }

// spanLook is one look at a span.
type spanLook struct {
	*pass
	levels *levels
	ranges []*rangeState // in random order
	counts map[ids.NodeID]*spanCount
	within map[ids.RangeID]bool
	better map[ids.RangeID]bool // ranges that could stand better, and do not move
	moving bool                 // operators of the span run
}

// scatter plans what makes a span more even.
func (p *pass) scatter(s *scattering) verdict {
	look := p.lookAtSpan(s)
	before := len(p.ops)
	uneven := look.spreadLeads()
	uneven = look.spreadCopies() || uneven
	for _, op := range p.ops[before:] {
		op.scatter = s.id
		delete(look.better, op.rng)
	}
	s.ranges, s.waiting = len(look.ranges), len(look.better)
	return p.ended(len(p.ops) > before || look.moving, uneven)
}

func (p *pass) lookAtSpan(s *scattering) *spanLook {
	look := &spanLook{pass: p, levels: levelsOf(p), counts: make(map[ids.NodeID]*spanCount),
		within: make(map[ids.RangeID]bool), better: make(map[ids.RangeID]bool)}
	end := s.end
	if len(end) == 0 {
		end = []byte{0xff}
	}
	p.c.dir.overlapped(s.start, end, func(r *rangeState) bool {
		if r.id() != systemRange {
			look.ranges = append(look.ranges, r)
			look.within[r.id()] = true
			look.take(r)
		}
		return len(look.ranges) < maxScattered
	})
	hash := fnv.New64a()
	hash.Write(s.start) // never fails
	seed := hash.Sum64()
	hash.Write(s.end)
	rng := rand.New(rand.NewPCG(seed, hash.Sum64()))
	rng.Shuffle(len(look.ranges), func(i, j int) {
		look.ranges[i], look.ranges[j] = look.ranges[j], look.ranges[i]
	})
	return look
}

func (s *spanLook) of(n ids.NodeID) *spanCount {
	if s.counts[n] == nil {
		s.counts[n] = &spanCount{}
	}
	return s.counts[n]
}

// take counts a range as it will be when its operator has ended.
func (s *spanLook) take(r *rangeState) {
	for _, p := range r.desc.GetReplicas() {
		s.of(ids.NodeID(p.GetNodeId())).copies++
	}
	if r.leader != 0 {
		s.of(r.leader).leaders++
	}
	if op := s.c.holder[r.id()]; op != nil {
		s.moving = true
		s.foresee(op)
	}
}

func (s *spanLook) foresee(op *operator) {
	for _, st := range op.steps[op.at:] {
		r := op.rangeOf(s.c, st)
		if r == nil {
			continue
		}
		st.effect(s.c, r, func(n ids.NodeID, replicas, leaders int, _ load) {
			s.of(n).copies += replicas
			s.of(n).leaders += leaders
		})
	}
}

// spreadLeads plans transfers between nodes whose counts of leaders in the span
// differ by two or more, and says whether some differ by that.
func (s *spanLook) spreadLeads() (uneven bool) {
	for _, r := range s.ranges {
		from := s.c.nodes[r.leader]
		if from == nil {
			continue
		}
		var to *node
		for _, p := range r.desc.GetReplicas() {
			n := s.c.nodes[ids.NodeID(p.GetNodeId())]
			if n != nil && s.c.canLead(r, n) && r.rank(n) <= r.rank(from) &&
				s.of(from.id).leaders-s.of(n.id).leaders >= 2 &&
				(to == nil || s.of(n.id).leaders < s.of(to.id).leaders) {
				to = n
			}
		}
		if to == nil {
			continue
		}
		uneven = true
		s.better[r.id()] = true
		if s.left.transfers >= 2 && len(s.ops)+2 <= maxPlans && s.movable(r) {
			s.giveLead(r, from, to)
		}
	}
	return uneven
}

// giveLead plans the transfer of r, and of a range outside of the span the other way
// if the counts of all leaders would leave their bounds otherwise.
func (s *spanLook) giveLead(r *rangeState, from, to *node) {
	var back *rangeState
	if len(s.leaders) > 0 && !s.keepsCounts(from, to) {
		s.look(&to.leads, backLooks, func(o *rangeState) (enough bool) {
			if !s.within[o.id()] && o.id() != systemRange && s.movable(o) && s.c.canLead(o, from) &&
				o.rank(from) <= o.rank(to) {
				back = o
			}
			return back != nil
		})
		if back == nil {
			return
		}
	}
	counts := [...]int{s.of(from.id).leaders, s.of(to.id).leaders}
	s.transfer(newTransfer(r, kindRequest, to.id, fmt.Sprintf(
		"scatter: %v leads %d ranges of the span, %v %d", from.id, counts[0], to.id, counts[1])))
	s.of(from.id).leaders--
	s.of(to.id).leaders++
	if back != nil {
		s.transfer(newTransfer(back, kindRequest, from.id, fmt.Sprintf(
			"scatter: in exchange for %v", r.id())))
	}
}

// spreadCopies plans moves between nodes whose counts of copies in the span differ by
// two or more, and says whether some differ by that.
func (s *spanLook) spreadCopies() (uneven bool) {
	holders := slices.Clone(s.levels.nodes)
	order := func() {
		slices.SortStableFunc(holders, func(a, b holder) int {
			return cmp.Compare(s.of(a.n.id).copies, s.of(b.n.id).copies)
		})
	}
	order()
	for _, r := range s.ranges {
		if s.c.nodes[r.leader] == nil {
			continue
		}
		from, to := s.pair(r, holders)
		if from == nil {
			continue
		}
		uneven = true
		s.better[r.id()] = true
		if s.left.moves >= 2 && len(s.ops)+2 <= maxPlans && s.copyable(r) &&
			s.giveCopy(r, from, to) {
			order()
		}
	}
	return uneven
}

// pair finds between which nodes a copy of r should move: from the one that has most
// of the span to the one that has least, as far as the rule allows. Nodes come with
// the least first. Nil if nowhere.
func (s *spanLook) pair(r *rangeState, holders []holder) (from *node, to holder) {
	most := 0
	for _, p := range r.desc.GetReplicas() {
		most = max(most, s.of(ids.NodeID(p.GetNodeId())).copies)
	}
	for _, h := range holders {
		if most-s.of(h.n.id).copies < 2 {
			break // nor is it more with those that follow
		}
		if !h.n.mayHold() || replicaOn(r.desc, h.n.id) != nil {
			continue
		}
		for _, p := range r.desc.GetReplicas() {
			n := s.c.nodes[ids.NodeID(p.GetNodeId())]
			if n == nil || s.of(n.id).copies-s.of(h.n.id).copies < 2 ||
				!s.c.mayReplace(r, n, h.n) {
				continue
			}
			// Of two the leader's own copy stays: it would cost a transfer.
			if from == nil || s.of(n.id).copies > s.of(from.id).copies ||
				s.of(n.id).copies == s.of(from.id).copies && from.id == r.leader {
				from = n
			}
		}
		if from != nil {
			return from, h
		}
	}
	return nil, holder{}
}

// giveCopy plans the move of a copy, and of one from outside of the span the other
// way if the taker would hold too much otherwise: or the spread of bytes would send
// copies back, and perhaps this one. It says whether it could.
func (s *spanLook) giveCopy(r *rangeState, from *node, to holder) bool {
	steps := s.c.moveSteps(r, from.id, to.n.id)
	if steps == nil || !s.c.mayTake(to.n, r.load.bytes) {
		return false
	}
	var back *operator
	if to.n.weight()+r.weight() > (s.levels.even+s.levels.slack)*to.room {
		if back = s.copyBack(r, from, to.n); back == nil {
			return false
		}
	}
	s.move(newOperator(r, kindRequest, fmt.Sprintf(
		"scatter: %v holds %d copies of the span, %v %d", from.id, s.of(from.id).copies,
		to.n.id, s.of(to.n.id).copies), steps...))
	if back != nil {
		s.move(back)
	}
	s.of(from.id).copies--
	s.of(to.n.id).copies++
	return true
}

// copyBack finds a copy outside of the span that makes up for that of r.
func (s *spanLook) copyBack(r *rangeState, from, to *node) (back *operator) {
	if !from.mayHold() {
		return nil
	}
	s.look(&to.holds, backLooks, func(o *rangeState) (enough bool) {
		if s.within[o.id()] || o.id() == systemRange || o.leader == to.id || !s.copyable(o) ||
			!s.c.mayReplace(o, to, from) || !s.c.mayTake(from, o.load.bytes) ||
			2*o.weight() < r.weight() {
			return false
		}
		if steps := s.c.moveSteps(o, to.id, from.id); steps != nil {
			back = newOperator(o, kindRequest, fmt.Sprintf("scatter: in exchange for %v", r.id()),
				steps...)
		}
		return back != nil
	})
	return back
}
