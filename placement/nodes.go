package placement

import (
	"fmt"
	"slices"
	"time"

	"github.com/tidwall/btree"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
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
	// leaders go there, so that one which comes and goes does not draw them. It
	// doubles with each further fall, up to maxSettleDoublings times, until the node
	// has not fallen for fallsKept.
	settleFactor       = 2
	maxSettleDoublings = 5
	fallsKept          = 10 * time.Minute
	// fullBelow is the least share of free disk space, as a divisor, that a
	// node needs to be given a replica: 1/20 = 5 %.
	fullBelow = 20
	// restartSlack is by how much a process must be younger than the one known
	// before to count as another: reports are late by different amounts.
	restartSlack = 2 * time.Second
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
	falls      uint          // of late: it fell silent, or its process began anew
	fellAt     time.Duration // the last time
	reported   bool          // to this driver
	full       bool          // has told this driver all that it leads
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
	// shifted: it waits in the sweep for the review of these.
	shifted bool

	load  load // of what it holds and leads; see cluster.weigh
	sched nodeSched

	ops     btree.Map[uint64, *operator] // whose orders may go to it; see cluster.index
	pending pending                      // by running operators; see cluster.influence

	standing metapb.NodeStanding // what people want of it
	labels   rules.Labels        // of desc
	leaving  leaving             // how far it has come since its standing changed
	stood    hlc.Timestamp       // version of standing in range 1
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

func (n *node) replicas() int { return n.holds.Len() + n.pending.replicas }
func (n *node) leaders() int  { return n.leads.Len() + n.pending.leaders }

// mayHold says whether n may be given a replica.
func (n *node) mayHold() bool {
	return n.desc != nil && n.full && n.phase >= phaseLive && n.standing == standingActive &&
		!n.readOnly && !n.draining && !n.crowded
}

// mayLead says whether n takes part in the spread of leaders.
func (n *node) mayLead() bool {
	return n.desc != nil && n.full && n.phase == phaseSettled && n.standing == standingActive &&
		!n.readOnly && !n.draining
}

// sheds says whether n is to give away its leaders: a person wants it, or its
// process is about to stop.
func (n *node) sheds() bool { return n.standing != standingActive || n.draining }

// gone says whether n was decommissioned: nothing is expected of it any more.
func (n *node) gone() bool { return n.standing == standingDecommissioned }

// node returns the entry of a node, a new one if need be. A node that was just
// heard of gets the same patience as one that has just reported.
func (c *cluster) node(id ids.NodeID) *node {
	if n := c.nodes[id]; n != nil {
		return n
	}
	n := &node{
		id: id, phase: phaseLive, lastReport: c.now, liveSince: c.now, wantFull: true,
		agreed: c.now, lookupAt: never, sentAt: never, started: never, fellAt: c.now,
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
	if n.desc == nil && !n.gone() {
		c.registered++
	}
	n.desc, n.version = d, version
	if labels := rules.ParseLabels(d.GetLocality()); !slices.Equal(labels, n.labels) {
		n.labels = labels
		c.reviewOf(n)
	}
	c.registryVersion = max(c.registryVersion, version)
	c.topology++
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
	c.restarted(n, r.GetUptimeSeconds())
	c.rephase(n)
	c.nextPhase = min(c.nextPhase, c.phaseEnds(n))
}

// restarted has a node settle anew whose process is another one than before, as
// if it had been silent: it just came up, and may go again as fast.
func (c *cluster) restarted(n *node, uptime float64) {
	if uptime <= 0 {
		return
	}
	started := c.now - time.Duration(uptime*float64(time.Second))
	if n.started == never || started > n.started+restartSlack {
		n.liveSince = max(n.liveSince, started)
		if n.started != never && n.phase >= phaseLive { // else its silence has been counted
			c.fell(n)
		}
	}
	n.started = started
}

// fell counts a fall of n.
func (c *cluster) fell(n *node) {
	if c.now-n.fellAt >= fallsKept {
		n.falls = 0
	}
	n.falls, n.fellAt = n.falls+1, c.now
}

// settleTime is for how long n must have been live without a break before leaders go
// there.
func (c *cluster) settleTime(n *node) time.Duration {
	settle := settleFactor * c.suspectAfter
	if n.falls < 2 || c.now-n.fellAt >= fallsKept {
		return settle
	}
	return settle << min(n.falls-1, maxSettleDoublings)
}

// settleWords says why n is not given leaders yet although it is live, "" if it is, or
// for another reason.
func (c *cluster) settleWords(n *node) string {
	if n.phase != phaseLive || !n.reported {
		return ""
	}
	left := max(time.Second, c.settleTime(n)-(c.now-n.liveSince))
	if c.settleTime(n) > settleFactor*c.suspectAfter {
		return fmt.Sprintf("it has failed %d times in the last minutes, and is given leaders only "+
			"when it has been up for %s: in %s", n.falls, words(c.settleTime(n)), words(left))
	}
	return fmt.Sprintf("it came up a moment ago, and is given leaders in %s", words(left))
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
	if now-c.now > c.suspectAfter {
		c.overslept(now)
	}
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

// sleptPart is the part of SuspectAfter that counts as silence, of a time in which nobody
// was here to listen, against a node that was heard until then, however long that time was.
const sleptPart = 4

// overslept notes that nobody was here to listen until now: what nodes might have
// said in the meantime is not held against them, nor the time against operators.
// Otherwise a driver that was stopped for minutes would bury them all at once.
//
// A little of it counts all the same. Whoever is alive is heard soon after: what it sent
// waits, or it sends again. One such gap makes nobody a suspect who reports once in
// SuspectAfter/3: one interval may have passed before the gap and one may pass after it.
// But were all of it forgiven, a driver that has such a gap between every two calls (its
// steps take long, its process gets hardly any time) would never find out that a node is
// gone, although it hears all others again and again. This way it does, only later. Of
// each gap more counts against a suspect, who has not been heard for several of them; no
// single one makes it count as dead who was not about to.
func (c *cluster) overslept(now time.Duration) {
	gap := now - c.now
	for _, n := range c.nodes { // order-free
		counts := c.suspectAfter / sleptPart
		if n.phase < phaseLive {
			counts = c.suspectAfter
		}
		n.lastReport += gap - counts
		n.agreed += gap
	}
	c.ops.Scan(func(_ uint64, op *operator) bool {
		op.begun += gap
		return true
	})
	c.nextPhase = now
}

func (c *cluster) silence(n *node) time.Duration { return c.now - n.lastReport }

func (c *cluster) phaseNow(n *node) phase {
	switch {
	case n.gone() || c.silence(n) > c.deadAfter:
		return phaseDead
	case c.silence(n) > c.suspectAfter:
		return phaseSuspect
	case n.reported && n.lastReport-n.liveSince >= c.settleTime(n):
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
		settles := n.liveSince + c.settleTime(n)
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
	if was >= phaseLive && is < phaseLive && !n.gone() {
		c.fell(n)
	}
	if was == phaseDead || is == phaseDead {
		c.topology++ // what rules see as the best placement may be another now
	}
	c.usable()
	if was < phaseLive || is < phaseLive {
		c.reviewOf(n)
	}
}

// complete says whether every node that may be alive has told all: before that
// counts are too low somewhere, and what is planned by them is wrong.
func (c *cluster) complete() bool {
	for _, n := range c.nodes { // order-free: a conjunction
		if n.desc != nil && n.phase >= phaseLive && !n.full && !n.gone() {
			return false
		}
	}
	return c.registered > 0
}
