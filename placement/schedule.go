package placement

import (
	"time"

	"github.com/tidwall/btree"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// budget is how many operators may begin now.
type budget struct {
	transfers int // that move leaders only
	moves     int // that change replicas
	limit     int // of operators that change replicas at a time
}

// scheduler names one of those that make a good placement better; what is broken is
// for the checkers. They run in this order: leaders, which move within milliseconds
// and cost nothing, before copies.
type scheduler uint8

const (
	leadersByRule  scheduler = iota // leaders go where rules want them, and off nodes that drain
	leadersByCount                  // every node leads equally many ranges
	leadersByLoad                   // and bears an equal part of their processor time
	copiesByBytes                   // every node holds equally much, by the size of its disk
	hotNodes                        // what those cannot cool: copies of hot ranges
	scattered                       // spans that a person wants spread
	schedulers
)

// Pauses of the schedulers.
const (
	// lookAgain is when an imbalance that could not be mended is tried again.
	lookAgain = 5 * time.Second
	// loadPause is how long after a look at the load the next one comes, however
	// often the load changes; looks for other causes come at once.
	loadPause = time.Second
	// maxLooks bounds the ranges that one scheduler looks at in one pass; the next
	// pass goes on elsewhere among a node's ranges.
	maxLooks = 4096
	// maxPlans bounds the operators of one pass.
	maxPlans = 64
)

// verdict is how a scheduler found the cluster.
type verdict uint8

const (
	rested   verdict = iota // even enough
	watching                // uneven, but not for long enough to act
	blocked                 // uneven, and nothing can be moved now
	acted                   // operators were planned, or more would be if they were allowed
)

// scheduling is what the schedulers remember between passes.
type scheduling struct {
	next       [schedulers]time.Duration // when each looks again
	last       [schedulers]time.Duration // when each looked
	begun      bool                      // next and last hold times
	able       int                       // nodes that may be given copies, at the last pass
	loadsMoved bool                      // some range's load, or who bears it, changed

	misled        btree.Set[ids.RangeID] // ranges with a voter that the rule would rather see lead
	settling      map[ids.RangeID]settling
	settles       []settlingUntil
	scatters      []*scattering // that go on, the oldest first
	scattersEnded []*scattering // the last of those that do not
	lastScatter   uint64        // id of the last one that began
}

// nodeSched is what the schedulers keep of a node.
type nodeSched struct {
	warm warmSet // the ranges that it leads, by processor time
	wet  warmSet // the ranges that it holds, by bytes written
	over [gauges]overload
	// barrenUntil is until when its copies are not looked through again for one to
	// move; barrenFor is the number of nodes that could have taken one.
	barrenUntil time.Duration
	barrenFor   int
	shunUntil   time.Duration // balancing sends it no copies before; see shun
	shuns       uint
	coolUntil   time.Duration // no further copy is moved away because of load before
}

// pass is one round of the schedulers. What it plans counts into the load at once,
// so that the next decision sees it.
type pass struct {
	c       *cluster
	left    budget
	planned map[ids.RangeID]bool
	ops     []*operator

	leaders []*node // that may lead, by id
	mean    float64 // leaders of each of them
	looks   int
}

// schedule returns operators that make the placement better, and whether something
// is uneven that cannot be mended now. It is called with every step and returns at
// once when nothing that matters has changed. Pure but for counting its own plans
// into the load and remembering when it looked.
func (c *cluster) schedule(b budget) (ops []*operator, stuck bool) {
	c.settle()
	if !c.due(b) {
		return nil, false
	}
	c.influence()
	p := newPass(c, b)
	s := &c.sched
	for k := range schedulers {
		if s.next[k] > c.now || !p.affords(k) || k != scattered && c.settings.GetPaused() {
			continue
		}
		s.last[k] = c.now
		p.looks = 0
		switch p.run(k) {
		case rested:
			s.next[k] = farAway
		case watching:
			s.next[k] = c.now + loadPause
		case blocked:
			stuck = true
			s.next[k] = c.now + lookAgain
		case acted: // looks again when one of them has ended, or at the latest then
			s.next[k] = c.now + loadPause
		}
	}
	c.offset += maxLooks
	return p.ops, stuck
}

// due says whether any scheduler should look now.
func (c *cluster) due(b budget) bool {
	s := &c.sched
	if c.unbalanced || !s.begun {
		c.unbalanced, s.begun = false, true
		for k := range schedulers {
			s.next[k] = c.now
		}
	}
	if s.loadsMoved {
		s.loadsMoved = false
		for _, k := range [...]scheduler{leadersByLoad, copiesByBytes, hotNodes} {
			s.next[k] = min(s.next[k], s.last[k]+loadPause)
		}
	}
	if b.transfers <= 0 && b.moves <= 0 {
		return false
	}
	for _, at := range s.next {
		if at <= c.now {
			return true
		}
	}
	return false
}

func newPass(c *cluster, b budget) *pass {
	c.countAble()
	b.moves = min(b.moves, spare(b.limit, b.moves))
	p := &pass{c: c, left: b}
	total := 0
	for _, id := range c.order {
		if n := c.nodes[id]; n.mayLead() {
			p.leaders = append(p.leaders, n)
			total += n.leaders()
		}
	}
	if len(p.leaders) > 0 {
		p.mean = float64(total) / float64(len(p.leaders))
	}
	return p
}

// affords says whether a scheduler could begin anything; if not it keeps its turn.
func (p *pass) affords(k scheduler) bool {
	switch k {
	case copiesByBytes:
		return p.left.moves > 0
	case hotNodes, scattered:
		return p.left.moves > 0 || p.left.transfers > 0
	default:
		return p.left.transfers > 0
	}
}

func (p *pass) run(k scheduler) verdict {
	switch k {
	case leadersByRule:
		return followRules(p)
	case leadersByCount:
		return evenCounts(p)
	case leadersByLoad:
		return evenLoads(p)
	case copiesByBytes:
		return evenBytes(p)
	case hotNodes:
		return coolNodes(p)
	default:
		return scatterOn(p)
	}
}

// transfer plans to move a leader.
func (p *pass) transfer(op *operator) {
	p.left.transfers--
	p.plan(op)
}

// move plans to change replicas.
func (p *pass) move(op *operator) {
	p.left.moves--
	p.plan(op)
}

func (p *pass) plan(op *operator) {
	if p.planned == nil {
		p.planned = make(map[ids.RangeID]bool)
	}
	p.planned[op.rng] = true
	p.c.expect(op)
	p.ops = append(p.ops, op)
}

// full says whether nothing more may be planned of the kind that left counts.
func (p *pass) full(left int) bool { return left <= 0 || len(p.ops) >= maxPlans }

// ended is the verdict of a scheduler that planned something or did not, and found
// something to mend or did not.
func (p *pass) ended(planned, uneven bool) verdict {
	switch {
	case planned:
		return acted
	case uneven:
		return blocked
	default:
		return rested
	}
}

// free says whether nothing keeps r from being changed now: no operator, no rest, a
// leader that can be asked, no change under way.
func (p *pass) free(r *rangeState) bool {
	return !p.planned[r.id()] && !p.c.busy(r.id()) && r.restUntil <= p.c.now &&
		!p.c.headless(r) && !r.changing()
}

// rangeSet is an ordered set of ranges.
type rangeSet interface {
	Len() int
	GetAt(i int) (ids.RangeID, bool)
	Ascend(pivot ids.RangeID, visit func(ids.RangeID) bool)
	Scan(visit func(ids.RangeID) bool)
}

// look visits the ranges of a set, from a place that differs from pass to pass, until
// there were enough, at most limit of them.
func (p *pass) look(set rangeSet, limit int, visit func(*rangeState) (enough bool)) {
	size := set.Len()
	if size == 0 {
		return
	}
	start, _ := set.GetAt(int(p.c.offset % uint64(size)))
	seen, enough := 0, false
	see := func(id ids.RangeID) bool {
		if seen++; seen > limit {
			return false
		}
		if p.looks++; p.looks > maxLooks {
			return false
		}
		enough = visit(p.c.dir.byID[id])
		return !enough
	}
	set.Ascend(start, see)
	if !enough {
		set.Scan(func(id ids.RangeID) bool { return id < start && see(id) })
	}
}
