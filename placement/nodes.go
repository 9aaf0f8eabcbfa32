package placement

import (
	"slices"
	"time"

	"github.com/tidwall/btree"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// phase says how a node is, by the time since its last report.
type phase uint8

const (
	phaseDead    phase = iota // silent for longer than DeadAfter: its replicas are replaced
	phaseSuspect              // silent for longer than SuspectAfter: no target, counts as failed
	phaseLive
	phaseSettled // live for a while without a break: may be given leaders
)

const (
	// settleFactor times SuspectAfter is how long a node must be live before
	// leaders go there, so that one which comes and goes does not draw them.
	settleFactor = 2
	// fullBelow is the least share of free disk space, as a divisor, that a
	// node needs to be given a replica: 1/20 = 5 %.
	fullBelow = 20
)

// node is what the driver knows of one node. Every node that a descriptor, a
// report or the registry names has one.
type node struct {
	id      ids.NodeID
	desc    *metapb.NodeDescriptor // nil: not read from the registry (yet)
	version hlc.Timestamp          // of desc in range 1

	phase      phase
	lastReport time.Duration // or the begin of the tenure, or of our knowledge
	liveSince  time.Duration
	reported   bool // to this driver
	full       bool // has told this driver all that it leads
	wantFull   bool
	told       fullReport
	agreed     time.Duration // when its count of leaders last was ours, or we asked for all

	readOnly  bool
	draining  bool
	crowded   bool // disk nearly full
	disk      uint64
	diskFree  uint64
	program   string        // version of the program, for people
	started   time.Duration // of the process, in our time
	editing   bool          // its descriptor is being written or looked up
	lookupAt  time.Duration // an unregistered node is not looked up again before
	nodesSent hlc.Timestamp // registry version of the last list that went there
	sends     int           // of that version
	sentAt    time.Duration

	holds btree.Set[ids.RangeID] // replicas of any role
	leads btree.Set[ids.RangeID]

	// What running operators will add or take; see cluster.influence.
	pendingReplicas, pendingLeaders int
}

// fullReport is what has come of a node's full report, which has parts.
type fullReport struct {
	next  uint32 // the part that comes next; 0: none has come
	leads map[ids.RangeID]bool
}

// take adds a part and says whether the report is whole now. A part that does
// not follow the one before does not count: this driver has not heard it all,
// goes on wanting a full report, and the node begins a new one.
func (f *fullReport) take(r *metapb.NodeReport) (whole bool) {
	switch part := r.GetPart(); {
	case part == 0:
		f.leads = make(map[ids.RangeID]bool, len(r.GetFacts()))
	case f.next == 0 || part != f.next:
		*f = fullReport{}
		return false
	}
	f.next = r.GetPart() + 1
	for _, fact := range r.GetFacts() {
		f.leads[ids.RangeID(fact.GetDescriptor_().GetRangeId())] = true
	}
	return !r.GetMore()
}

func (n *node) replicas() int { return n.holds.Len() + n.pendingReplicas }
func (n *node) leaders() int  { return n.leads.Len() + n.pendingLeaders }

// mayHold says whether n may be given a replica.
func (n *node) mayHold() bool {
	return n.desc != nil && n.full && n.phase >= phaseLive &&
		!n.readOnly && !n.draining && !n.crowded
}

// mayLead says whether n takes part in the spread of leaders.
func (n *node) mayLead() bool {
	return n.desc != nil && n.full && n.phase == phaseSettled && !n.readOnly && !n.draining
}

// node returns the entry of a node, a new one if need be. A node that was just
// heard of gets the same patience as one that has just reported.
func (c *cluster) node(id ids.NodeID) *node {
	if n := c.nodes[id]; n != nil {
		return n
	}
	n := &node{
		id: id, phase: phaseLive, lastReport: c.now, liveSince: c.now, wantFull: true,
		agreed: c.now, lookupAt: never, sentAt: never,
	}
	c.nodes[id] = n
	i, _ := slices.BinarySearch(c.order, id)
	c.order = slices.Insert(c.order, i, id)
	c.nextPhase = min(c.nextPhase, c.now)
	return n
}

// register notes what the registry says of a node.
func (c *cluster) register(d *metapb.NodeDescriptor, version hlc.Timestamp) {
	n := c.node(ids.NodeID(d.GetNodeId()))
	if n.desc != nil && version < n.version {
		return
	}
	before := c.goal()
	if n.desc == nil {
		c.registered++
	}
	n.desc, n.version = d, version
	c.registryVersion = max(c.registryVersion, version)
	if c.goal() != before { // at most a few times in the life of a cluster
		for _, r := range c.dir.byID {
			c.review(r) // order-free: every range for itself
		}
	}
	c.usable()
}

// heard notes a report of n.
func (c *cluster) heard(n *node, r *metapb.NodeReport) {
	n.lastReport, n.reported = c.now, true
	if n.phase < phaseLive {
		n.liveSince = c.now
		n.wantFull = true // what it said while we did not hear it may be lost
	}
	crowded := r.GetDiskBytes() > 0 && r.GetDiskFreeBytes() < r.GetDiskBytes()/fullBelow
	if n.readOnly != r.GetReadOnly() || n.draining != r.GetDraining() || n.crowded != crowded {
		n.readOnly, n.draining, n.crowded = r.GetReadOnly(), r.GetDraining(), crowded
		c.usable()
	}
	n.disk, n.diskFree, n.program = r.GetDiskBytes(), r.GetDiskFreeBytes(), r.GetVersion()
	n.started = c.now - time.Duration(r.GetUptimeSeconds()*float64(time.Second))
	c.rephase(n)
	c.nextPhase = min(c.nextPhase, c.phaseEnds(n))
}

// usable has everything looked at again that waits for a node: what may be
// used changed.
func (c *cluster) usable() {
	c.unbalanced = true
	c.wake()
}

// advanceTo moves time on: nodes fall silent, rests end. Nodes are walked only
// when one of them can have changed, at most once in SuspectAfter.
func (c *cluster) advanceTo(now time.Duration) {
	c.now = max(c.now, now)
	if c.now >= c.nextPhase {
		c.nextPhase = c.now + c.deadAfter
		for _, id := range c.order {
			n := c.nodes[id]
			c.rephase(n)
			c.nextPhase = min(c.nextPhase, c.phaseEnds(n))
		}
	}
	c.rested()
}

func (c *cluster) silence(n *node) time.Duration { return c.now - n.lastReport }

func (c *cluster) phaseNow(n *node) phase {
	switch {
	case c.silence(n) > c.deadAfter:
		return phaseDead
	case c.silence(n) > c.suspectAfter:
		return phaseSuspect
	case n.reported && c.now-n.liveSince >= settleFactor*c.suspectAfter:
		return phaseSettled
	default:
		return phaseLive
	}
}

// phaseEnds returns the earliest time at which n's phase can change without a
// report.
func (c *cluster) phaseEnds(n *node) time.Duration {
	switch n.phase {
	case phaseDead:
		return c.now + c.deadAfter
	case phaseSuspect:
		return n.lastReport + c.deadAfter + 1
	case phaseLive:
		settles := n.liveSince + settleFactor*c.suspectAfter
		if settles <= c.now { // has not reported yet
			settles = c.now + c.suspectAfter
		}
		return min(n.lastReport+c.suspectAfter+1, settles)
	default:
		return n.lastReport + c.suspectAfter + 1
	}
}

// rephase brings the phase of n up to date, and whatever depends on it.
func (c *cluster) rephase(n *node) {
	was, is := n.phase, c.phaseNow(n)
	if was == is {
		return
	}
	n.phase = is
	c.usable()
	if was >= phaseLive && is >= phaseLive {
		return
	}
	touched := n.holds.Copy()
	n.leads.Scan(func(id ids.RangeID) bool { touched.Insert(id); return true })
	touched.Scan(func(id ids.RangeID) bool {
		c.review(c.dir.byID[id])
		return true
	})
}

// complete says whether every node that may be alive has told all: before that
// counts are too low somewhere, and what is planned by them is wrong.
func (c *cluster) complete() bool {
	for _, n := range c.nodes { // order-free: a conjunction
		if n.desc != nil && n.phase >= phaseLive && !n.full {
			return false
		}
	}
	return c.registered > 0
}
