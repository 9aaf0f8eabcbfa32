package placement

import (
	"bytes"
	"slices"
	"time"

	"github.com/tidwall/btree"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// cluster is the value that checkers and schedulers read: nodes, ranges,
// operators, time. Only the methods in this file, nodes.go and driver.go change
// it; each keeps every counter and list here in step with what it changes.
type cluster struct {
	factor       int // voters wanted, odd: an even count survives no more failures
	suspectAfter time.Duration
	deadAfter    time.Duration
	since        time.Duration // begin of this tenure
	now          time.Duration

	nodes           map[ids.NodeID]*node
	order           []ids.NodeID // of nodes, ascending: what decides iterates over this
	registered      int
	registryVersion hlc.Timestamp // highest of all descriptors; rises with each change
	nextPhase       time.Duration // no node changes its phase before

	dir *directory
	ops btree.Map[ids.RangeID, *operator]

	// Ranges that need something, by urgency, and those of them that have not
	// been checked since something changed that could help.
	unwell    [needs]btree.Set[ids.RangeID]
	attention [needs]btree.Set[ids.RangeID]
	resting   *btree.BTreeG[rest] // ranges whose rest ends at a known time

	under      btree.Set[ids.RangeID]
	leaderless btree.Set[ids.RangeID]
	tolerates  [maxTolerates + 1]int // ranges by the failures that they survive

	unbalanced bool          // leader counts or nodes changed since the last balanced verdict
	balanceAt  time.Duration // look again then although nothing changed
	offset     uint64        // where the balancer begins among a node's ranges
}

// rest is the end of a range's rest.
type rest struct {
	until time.Duration
	id    ids.RangeID
}

// need says what a range needs, the most urgent first.
type need uint8

const (
	needUrgent  need = iota // the next failure may stop it
	needRepair              // has fewer live voters than it should
	needCleanup             // has replicas that it should not have
	needNothing
	needs = int(needNothing)
)

// maxTolerates is where the count of survivable failures is cut off.
const maxTolerates = 7

// health is what follows from a range's replicas and the phases of its nodes.
type health struct {
	counted    bool
	need       need
	under      bool
	leaderless bool
	tolerates  uint8
}

func newCluster(cfg Config, now time.Duration) *cluster {
	c := &cluster{
		factor:       oddFloor(cfg.ReplicationFactor),
		suspectAfter: cfg.SuspectAfter,
		deadAfter:    cfg.DeadAfter,
		since:        now,
		now:          now,
		nodes:        make(map[ids.NodeID]*node),
		nextPhase:    now,
		dir:          newDirectory(),
		unbalanced:   true,
		balanceAt:    never,
	}
	c.resting = btree.NewBTreeGOptions(func(a, b rest) bool {
		return a.until < b.until || a.until == b.until && a.id < b.id
	}, btree.Options{NoLocks: true})
	return c
}

// oddFloor returns the largest odd number up to n, at least 1.
func oddFloor(n int) int { return max(1, n-1+n%2) }

// goal is how many live voters a range should have, given the registry.
func (c *cluster) goal() int { return oddFloor(min(c.factor, c.registered)) }

// learn merges a leader's fact. The descriptor goes by generation, everything
// else by term, each on its own: both only rise. It returns the range if
// anything was taken over, else nil, and ranges that were evicted vanish.
func (c *cluster) learn(from ids.NodeID, f *metapb.RangeFact) *rangeState {
	d, term := f.GetDescriptor_(), ids.Term(f.GetTerm())
	if !wellFormed(d) {
		return nil
	}
	leader := ids.NodeID(f.GetLeaderNode())
	if leader == 0 {
		leader = from
	}
	r := c.dir.byID[ids.RangeID(d.GetRangeId())]
	if r == nil || ids.Generation(d.GetGeneration()) > r.generation() {
		placed := c.place(r, d)
		if placed == nil {
			return nil
		}
		r = placed
	} else if term < r.term {
		return nil
	}
	switch {
	case term < r.term: // a newer descriptor out of an older term
	case term == r.term && r.leader != 0 && r.leader != leader:
		// A term has one leader. What contradicts that is not believed.
	case ids.Generation(d.GetGeneration()) < r.generation():
		if term == r.term {
			return nil // the leader itself has told us more since
		}
		c.lead(r, leader, term) // has not applied the newest descriptor yet
	default:
		c.lead(r, leader, term)
		c.observe(r, f)
	}
	c.review(r)
	return r
}

// place lets a descriptor that is newer than r's (nil: unknown) enter the
// directory, unless it overlaps something at least as new.
func (c *cluster) place(r *rangeState, d *metapb.RangeDescriptor) *rangeState {
	if r != nil && bytes.Equal(r.desc.GetStart(), d.GetStart()) &&
		bytes.Equal(r.desc.GetEnd(), d.GetEnd()) {
		// The common case, a change of replicas. Nothing else can be where r is.
		c.rehold(r, d)
		return r
	}
	victims, ok := c.dir.room(d)
	if !ok {
		return nil
	}
	for _, v := range victims {
		c.evict(v)
	}
	if r == nil {
		r = &rangeState{restUntil: never}
	} else {
		c.hold(r, false)
		c.dir.remove(r)
	}
	r.desc = d
	c.dir.insert(r)
	c.hold(r, true)
	return r
}

// evict forgets a range that a newer descriptor replaced.
func (c *cluster) evict(r *rangeState) {
	c.lead(r, 0, r.term)
	c.hold(r, false)
	c.discount(r)
	c.dir.remove(r)
}

// hold keeps the nodes' sets of replicas.
func (c *cluster) hold(r *rangeState, holds bool) {
	for _, replica := range r.desc.GetReplicas() {
		n := c.node(ids.NodeID(replica.GetNodeId()))
		if holds {
			n.holds.Insert(r.id())
		} else {
			n.holds.Delete(r.id())
		}
	}
}

// rehold replaces the descriptor of r by one with the same span.
func (c *cluster) rehold(r *rangeState, d *metapb.RangeDescriptor) {
	old := r.desc
	r.desc = d
	for _, p := range old.GetReplicas() {
		if n := ids.NodeID(p.GetNodeId()); replicaOn(d, n) == nil {
			c.node(n).holds.Delete(r.id())
		}
	}
	for _, p := range d.GetReplicas() {
		if n := ids.NodeID(p.GetNodeId()); replicaOn(old, n) == nil {
			c.node(n).holds.Insert(r.id())
		}
	}
}

// lead notes who leads r, 0 for nobody known.
func (c *cluster) lead(r *rangeState, leader ids.NodeID, term ids.Term) {
	r.term = term
	if r.leader == leader {
		return
	}
	if r.leader != 0 {
		c.node(r.leader).leads.Delete(r.id())
	}
	if leader != 0 {
		c.node(leader).leads.Insert(r.id())
	}
	r.leader = leader
	c.unbalanced = true
}

func (c *cluster) observe(r *rangeState, f *metapb.RangeFact) {
	r.stats = f.GetStats()
	r.writes, r.reads = f.GetWritesPerSecond(), f.GetReadsPerSecond()
	if !slices.Equal(r.silent, f.GetSilent()) {
		c.unbalanced = true
	}
	r.caughtUp, r.silent = f.GetCaughtUp(), f.GetSilent()
}

// disown takes the leadership of every range that n leads by the directory but
// not by its full report.
func (c *cluster) disown(n *node, reported map[ids.RangeID]bool) {
	var lost []*rangeState
	n.leads.Scan(func(id ids.RangeID) bool {
		if !reported[id] {
			lost = append(lost, c.dir.byID[id])
		}
		return true
	})
	for _, r := range lost {
		c.lead(r, 0, r.term)
		c.review(r)
	}
}

// review derives the health of r again, after its replicas, its leader or the
// phase of a node it lives on changed.
func (c *cluster) review(r *rangeState) {
	c.discount(r)
	h := c.assess(r)
	h.counted = true
	r.health = h
	c.tolerates[h.tolerates]++
	if h.under {
		c.under.Insert(r.id())
	}
	if h.leaderless {
		c.leaderless.Insert(r.id())
	}
	if h.need != needNothing {
		c.unwell[h.need].Insert(r.id())
		c.attention[h.need].Insert(r.id())
	}
}

// discount takes r out of every counter and list.
func (c *cluster) discount(r *rangeState) {
	if !r.health.counted {
		return
	}
	c.tolerates[r.health.tolerates]--
	if r.health.under {
		c.under.Delete(r.id())
	}
	if r.health.leaderless {
		c.leaderless.Delete(r.id())
	}
	if r.health.need != needNothing {
		c.unwell[r.health.need].Delete(r.id())
		c.attention[r.health.need].Delete(r.id())
	}
	r.health = health{}
}

// wake has every range that needs something checked again: a node came, left,
// or may be used for more than before. The copies share their nodes.
func (c *cluster) wake() {
	for i := range c.unwell {
		c.attention[i] = *c.unwell[i].Copy()
	}
}

// rested has the ranges checked again whose rest is over.
func (c *cluster) rested() {
	for {
		first, ok := c.resting.Min()
		if !ok || first.until > c.now {
			return
		}
		c.resting.Delete(first)
		if r := c.dir.byID[first.id]; r != nil && r.restUntil <= c.now {
			c.review(r)
		}
	}
}

// giveRest forbids operators on r for a while.
func (c *cluster) giveRest(r *rangeState, pause time.Duration) {
	r.restUntil = c.now + pause
	c.resting.Set(rest{until: r.restUntil, id: r.id()})
}

// assess derives the health of a range; pure.
func (c *cluster) assess(r *rangeState) health {
	var in, out half
	dead, learners := false, false
	for _, replica := range r.desc.GetReplicas() {
		n := c.nodes[ids.NodeID(replica.GetNodeId())]
		live := n != nil && n.phase >= phaseLive
		before, after := votes(replica.GetRole())
		in.add(after, live)
		out.add(before, live)
		dead = dead || (before || after) && n != nil && n.phase == phaseDead
		learners = learners || replica.GetRole() == metapb.ReplicaRole_REPLICA_ROLE_LEARNER
	}
	leader := c.nodes[r.leader]
	h := health{
		need:       needNothing,
		leaderless: leader == nil || leader.phase < phaseLive,
		under:      min(in.live, out.live) < c.goal(),
		tolerates:  uint8(min(in.tolerates(), out.tolerates(), maxTolerates)),
	}
	switch {
	case joint(r.desc): // its leader leaves the joint configuration by itself
	case dead && h.tolerates == 0, in.voters < c.factor && h.tolerates == 0:
		h.need = needUrgent
	case dead, in.voters < c.factor:
		h.need = needRepair
	case in.voters > c.factor, learners:
		h.need = needCleanup
	}
	return h
}
