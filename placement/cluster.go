package placement

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"github.com/tidwall/btree"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// cluster is the value that checkers and schedulers read: nodes, ranges,
// operators, rules, time. Only the methods in this file, nodes.go, ruling.go,
// standing.go and operator.go change it; each keeps every counter and list here in
// step with what it changes.
type cluster struct {
	suspectAfter time.Duration
	deadAfter    time.Duration
	rangeSize    int64
	mergeBelow   int64 // bytes of two neighbours together; 0: nothing is merged
	mergeAfter   time.Duration
	wall         func() int64  // time of day in milliseconds; nil: see wallNow
	since        time.Duration // begin of this tenure
	now          time.Duration

	nodes           map[ids.NodeID]*node
	order           []ids.NodeID  // of nodes, ascending: what decides iterates over this
	registered      int           // and not decommissioned
	registryVersion hlc.Timestamp // highest of all descriptors; rises with each change
	nextPhase       time.Duration // no node changes its phase before
	leaving         []ids.NodeID  // drain or are decommissioned, ascending

	ruleSet  *rules.Set
	rulings  map[*rules.Rule]*ruling
	topology uint64 // rises when nodes come, go or change what rules see of them
	ruled    uint64 // topology when all rulings were last brought up to date
	sweep    sweep
	settings *metapb.PlacementSettings
	setAt    hlc.Timestamp // version of settings in range 1

	dir          *directory
	ops          btree.Map[uint64, *operator] // that run, by id
	holder       map[ids.RangeID]*operator    // which of them a range is busy with
	lastOperator uint64                       // id of the last one that began
	history      history

	// Ranges that need something, the most endangered first, and those of them
	// that have not been checked since something changed that could help.
	unwell    *btree.BTreeG[wanting]
	attention *btree.BTreeG[wanting]
	resting   *btree.BTreeG[rest] // ranges whose rest ends at a known time
	mergeable *btree.BTreeG[rest] // small cold ranges, by when they may be merged

	under      btree.Set[ids.RangeID]
	leaderless btree.Set[ids.RangeID]
	changing   btree.Set[ids.RangeID] // between two configurations, or merging
	tolerates  [maxTolerates + 1]int  // ranges by the failures that they survive
	reviews    uint64                 // of ranges, so far: what the work grows with

	unbalanced bool          // leader counts or nodes changed since the last balanced verdict
	balanceAt  time.Duration // look again then although nothing changed
	offset     uint64        // where the balancer begins among a node's ranges
	sched      scheduling    // what the schedulers remember
}

// rest is a time at which something about a range ends.
type rest struct {
	until time.Duration
	id    ids.RangeID
}

// wanting is a range that needs something. The order is that of its fields: what
// the next failure may stop comes first, then what has waited longest.
type wanting struct {
	need      need
	tolerates uint8
	since     time.Duration
	id        ids.RangeID
}

func wantingOrder(a, b wanting) bool {
	return cmp.Or(cmp.Compare(a.need, b.need), cmp.Compare(a.tolerates, b.tolerates),
		cmp.Compare(a.since, b.since), cmp.Compare(a.id, b.id)) < 0
}

// need says what a range needs, the most urgent first.
type need uint8

const (
	needUrgent  need = iota // the next failure may stop it
	needRepair              // has fewer live voters than it should
	needCleanup             // has replicas that it should not have
	needLeave               // has copies on nodes that are decommissioned
	needRule                // stands where its rule does not want it, or under two rules
	needNothing
	needs = int(needNothing)
)

// maxTolerates is where the count of survivable failures is cut off.
const maxTolerates = 7

// health is what follows from a range's replicas, its rule and its nodes.
type health struct {
	counted    bool
	need       need
	under      bool
	leaderless bool
	changing   bool
	tolerates  uint8
}

func newCluster(cfg Config, now time.Duration) *cluster {
	c := &cluster{
		suspectAfter: cfg.SuspectAfter,
		deadAfter:    cfg.DeadAfter,
		rangeSize:    cfg.RangeSize,
		mergeBelow:   cfg.MergeBelow,
		mergeAfter:   cfg.MergeAfter,
		wall:         cfg.Wall,
		since:        now,
		now:          now,
		nodes:        make(map[ids.NodeID]*node),
		nextPhase:    now,
		holder:       make(map[ids.RangeID]*operator),
		dir:          newDirectory(),
		settings:     &metapb.PlacementSettings{},
		unbalanced:   true,
		balanceAt:    never,
	}
	restOrder := func(a, b rest) bool {
		return a.until < b.until || a.until == b.until && a.id < b.id
	}
	alone := btree.Options{NoLocks: true}
	c.resting = btree.NewBTreeGOptions(restOrder, alone)
	c.mergeable = btree.NewBTreeGOptions(restOrder, alone)
	c.unwell = btree.NewBTreeGOptions(wantingOrder, alone)
	c.attention = btree.NewBTreeGOptions(wantingOrder, alone)
	c.setRules(rules.Default(cfg.ReplicationFactor))
	return c
}

// oddFloor returns the largest odd number up to n, at least 1.
func oddFloor(n int) int { return max(1, n-1+n%2) }

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
		c.weigh(r, -1)
		c.rehold(r, d)
		c.weigh(r, +1)
		r.changedAt = c.now
		c.consider(r)
		return r
	}
	victims, ok := c.dir.room(d)
	if !ok {
		return nil
	}
	c.chronicle(r, victims, d)
	for _, v := range victims {
		c.evict(v)
	}
	if r == nil {
		r = &rangeState{restUntil: never, mergeAt: never, since: never}
	} else {
		c.weigh(r, -1)
		c.hold(r, false)
		c.dir.remove(r)
		delete(c.sched.settling, r.id()) // another span, another load
	}
	r.desc, r.changedAt = d, c.now
	c.dir.insert(r)
	c.hold(r, true)
	c.weigh(r, +1)
	c.rule(r)
	c.consider(r)
	return r
}

// evict forgets a range that a newer descriptor replaced.
func (c *cluster) evict(r *rangeState) {
	c.lead(r, 0, r.term)
	c.weigh(r, -1)
	c.hold(r, false)
	c.discount(r)
	c.inconsiderable(r)
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
	c.weigh(r, -1)
	if r.leader != 0 {
		c.node(r.leader).leads.Delete(r.id())
	}
	if leader != 0 {
		c.node(leader).leads.Insert(r.id())
	}
	r.leader = leader
	c.tookOver(r)
	c.weigh(r, +1)
	if op := c.holder[r.id()]; op != nil {
		c.index(op)
	}
	c.unbalanced = true
}

func (c *cluster) observe(r *rangeState, f *metapb.RangeFact) {
	c.weigh(r, -1)
	r.stats, r.load, r.hotBecause = f.GetStats(), c.believed(r, f), f.GetHotBecause()
	c.weigh(r, +1)
	if !slices.Equal(r.silent, f.GetSilent()) {
		c.unbalanced = true
	}
	r.caughtUp, r.silent, r.silentAt = f.GetCaughtUp(), f.GetSilent(), c.now
	c.consider(r)
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
func (c *cluster) review(r *rangeState) { c.reviewSince(r, c.now) }

// reviewSince is review for what changed at a time before now. A range that needs
// something has waited since then, even if another review came first.
func (c *cluster) reviewSince(r *rangeState, since time.Duration) {
	c.reviews++
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
	if h.changing {
		c.changing.Insert(r.id())
	}
	if h.need != needNothing {
		if r.since == never || since < r.since {
			r.since = since
		}
		c.unwell.Set(r.wanting())
		c.attention.Set(r.wanting())
	} else {
		r.since = never
	}
	c.prefer(r)
}

// wanting returns the entry of r in the lists of ranges that need something.
func (r *rangeState) wanting() wanting {
	return wanting{r.health.need, r.health.tolerates, r.since, r.id()}
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
	if r.health.changing {
		c.changing.Delete(r.id())
	}
	if r.health.need != needNothing {
		c.unwell.Delete(r.wanting())
		c.attention.Delete(r.wanting())
	}
	r.health = health{}
}

// wake has every range that needs something checked again: a node came, left,
// or may be used for more than before. The copies share their nodes.
func (c *cluster) wake() { c.attention = c.unwell.Copy() }

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

// headless says whether nobody is known to lead r now.
func (c *cluster) headless(r *rangeState) bool {
	leader := c.nodes[r.leader]
	return leader == nil || leader.phase < phaseLive
}

// condition is the health of r as it is now, for decisions: that of its last review
// unless reviews are behind.
func (c *cluster) condition(r *rangeState) health {
	if c.sweep.behind() {
		return c.assess(r)
	}
	return r.health
}

// assess derives the health of a range; pure.
func (c *cluster) assess(r *rangeState) health {
	var in, out half
	var room [maxCopies]rules.Labels
	voters := room[:0]
	dead, learners, leaves, misplaced := false, false, false, false
	for _, replica := range r.desc.GetReplicas() {
		n := c.nodes[ids.NodeID(replica.GetNodeId())]
		live := n != nil && n.phase >= phaseLive
		before, after := votes(replica.GetRole())
		in.add(after, live)
		out.add(before, live)
		learners = learners || replica.GetRole() == roleLearner
		if n == nil || !before && !after {
			continue
		}
		dead = dead || n.phase == phaseDead
		leaves = leaves || n.standing == standingDecommissioning
		misplaced = misplaced || n.desc != nil && !r.rule.Allows(n.labels)
		if len(voters) < maxCopies {
			voters = append(voters, n.labels)
		}
	}
	h := health{
		need:       needNothing,
		leaderless: c.headless(r),
		under:      min(in.live, out.live) < c.current(r.rule).goal(),
		changing:   r.changing(),
		tolerates:  uint8(min(in.tolerates(), out.tolerates(), maxTolerates)),
	}
	few := in.voters < r.rule.Replicas
	switch {
	case h.changing: // its leader ends that by itself
	case (dead || few) && h.tolerates == 0:
		h.need = needUrgent
	case dead || few:
		h.need = needRepair
	case in.voters > r.rule.Replicas, learners:
		h.need = needCleanup
	case leaves:
		h.need = needLeave
	case misplaced, r.straddles, r.rule.Collisions(voters) > r.rule.ideal:
		h.need = needRule
	}
	return h
}

// maxCopies is more voters than a range ever has: 7, and 7 to replace them.
const maxCopies = 16
