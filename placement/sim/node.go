package sim

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const (
	// maxFacts bounds the facts of one report, as server does.
	maxFacts = 8192
	// idsBlock is how many range ids a node fetches when it has fewer than idsLow.
	idsBlock = 1024
	idsLow   = 64
	// readOnlyBelow is the share of free disk, as a divisor, below which a node
	// takes no writes: 1/50 = 2 %.
	readOnlyBelow = 50
	microsPerCore = 1e6
)

// node is one simulated node.
type node struct {
	id     ids.NodeID
	spec   NodeSpec
	labels []string // locality
	driver *placement.Driver

	up    bool
	life  uint64
	began time.Duration // of its process
	died  time.Duration // when it went down last
	holds map[ids.RangeID]bool
	leads map[ids.RangeID]bool
	bytes int64 // of all copies here

	ids, idsEnd ids.RangeID // block for splits

	full       bool // the next report tells everything
	part       uint32
	rest       []*metapb.RangeFact // of a full report under way
	dirty      map[ids.RangeID]bool
	nextReport time.Duration
	lastReport time.Duration

	cpu      float64 // microseconds per second that its ranges ask for
	demand   float64 // the same, being summed up
	sends    int     // snapshots under way, of this tick
	receives int
	received int64 // in the running second
}

func newNode(id ids.NodeID, spec NodeSpec, now time.Duration) *node {
	n := &node{
		id: id, spec: spec, up: true, life: 1, began: now, full: true,
		holds: make(map[ids.RangeID]bool), leads: make(map[ids.RangeID]bool),
		dirty: make(map[ids.RangeID]bool), lastReport: now - heartbeatEvery,
		// nodes do not report in step
		nextReport: now + time.Duration(id)*3*tick%reportEvery,
	}
	if spec.Region != "" {
		n.labels = append(n.labels, "region="+spec.Region)
	}
	if spec.Zone != "" {
		n.labels = append(n.labels, "zone="+spec.Zone)
	}
	return n
}

// describe is the registry's entry for the node.
func (n *node) describe() *metapb.NodeDescriptor {
	return &metapb.NodeDescriptor{
		NodeId: uint64(n.id), StoreId: 1000 + uint64(n.id), Life: n.life,
		Address: fmt.Sprintf("%v:7000", n.id), Locality: n.labels,
	}
}

func (n *node) has(label string) bool { return slices.Contains(n.labels, label) }

// served is which share of what its ranges are asked for the node can serve.
func (n *node) served() float64 {
	if can := n.spec.Cores * microsPerCore; n.cpu > can {
		return can / n.cpu
	}
	return 1
}

// report sends what changed, or a heartbeat, and obeys the orders in the reply.
func (w *World) report(n *node) {
	if len(n.dirty) == 0 && !n.full && w.now-n.lastReport < heartbeatEvery {
		return
	}
	n.lastReport = w.now
	d := w.driving()
	if d == nil {
		n.part, n.rest = 0, nil // whether parts of a full report arrived is not known
		return
	}
	msg := w.compose(n)
	reply := d.Report(w.now, msg)
	n.full = msg.More || reply.GetWantFull()
	if msg.More {
		n.part, n.rest = n.part+1, n.rest[len(msg.Facts):]
	} else {
		n.part, n.rest = 0, nil
	}
	for _, o := range reply.GetOrders() {
		w.obey(n, o)
	}
}

func (w *World) compose(n *node) *metapb.NodeReport {
	free := max(0, n.spec.Disk-n.bytes)
	msg := &metapb.NodeReport{
		Node: n.describe(), Full: n.full, Part: n.part,
		DiskBytes: uint64(n.spec.Disk), DiskFreeBytes: uint64(free), UsedBytes: uint64(n.bytes),
		Replicas: uint32(len(n.holds)), Leaders: uint32(len(n.leads)),
		ReadOnly: free < n.spec.Disk/readOnlyBelow, Version: "sim",
		UptimeSeconds: (w.now - n.began).Seconds(),
		CpuLoad:       min(n.cpu/microsPerCore, n.spec.Cores),
	}
	switch {
	case n.full && n.part == 0:
		clear(n.dirty) // a fact that is older than the full report must not follow it
		n.rest = w.facts(n.leads)
		fallthrough
	case n.full:
		msg.Facts = n.rest[:min(maxFacts, len(n.rest))]
		msg.More = len(msg.Facts) < len(n.rest)
	default:
		msg.Facts = w.facts(n.dirty)
		clear(n.dirty)
	}
	return msg
}

func (w *World) facts(set map[ids.RangeID]bool) []*metapb.RangeFact {
	facts := make([]*metapb.RangeFact, 0, len(set))
	for _, id := range slices.Sorted(maps.Keys(set)) {
		if r := w.ranges[id]; r != nil && r.leader != 0 {
			facts = append(facts, w.fact(r))
		}
	}
	return facts
}

// fact is what r's leader tells of it now.
func (w *World) fact(r *simRange) *metapb.RangeFact {
	f := &metapb.RangeFact{
		Descriptor_: r.desc, LeaderNode: uint64(r.leader), Term: r.term,
		Stats:           &metapb.RangeStats{Keys: r.bytes / kib, ValueBytes: r.bytes},
		WritesPerSecond: r.meter.writes, ReadsPerSecond: r.meter.reads,
		CpuMicrosPerSecond:  uint64(r.meter.cpu),
		WriteBytesPerSecond: uint64(r.meter.writeBytes),
		ReadBytesPerSecond:  uint64(r.meter.readBytes),
		HotBecause:          r.hotBecause,
	}
	r.told, r.toldBytes, r.toldCaught = r.meter, r.bytes, r.learnersCaught()
	for _, p := range r.desc.GetReplicas() {
		switch {
		case !w.up(ids.NodeID(p.GetNodeId())):
			f.Silent = append(f.Silent, p.GetReplicaId())
		case p.GetRole() == roleLearner && r.caught[p.GetReplicaId()]:
			f.CaughtUp = append(f.CaughtUp, p.GetReplicaId())
		}
	}
	return f
}

// tell has r's leader report it.
func (w *World) tell(r *simRange) {
	if n := w.node(r.leader); n != nil {
		n.dirty[r.id] = true
	}
}

// kill stops a node at once. Its disk stays.
func (w *World) kill(n *node) {
	if !n.up {
		return
	}
	n.up, n.full, n.part, n.rest = false, true, 0, nil
	n.died, n.cpu = w.now, 0
	clear(n.dirty)
	for _, id := range slices.Sorted(maps.Keys(n.holds)) {
		// Its own ranges, and those that lost their majority: a leader serves
		// nothing without one.
		if r := w.ranges[id]; r.leader == n.id || r.leader != 0 && w.survives(r.desc, w.up) < 0 {
			w.vacate(r)
		}
	}
	n.driver.SetActive(false, w.now)
}

// start brings a node back with what is on its disk.
func (w *World) start(n *node) {
	if n.up {
		return
	}
	n.up, n.began, n.full = true, w.now, true
	n.life++
	n.driver = w.newDriver(n.id)
	n.nextReport, n.lastReport = w.now, w.now-heartbeatEvery
}

// flap is a node that goes down and comes up again and again.
type flap struct {
	n        *node
	up, down time.Duration
	next     time.Duration
	until    time.Duration
}

// step says whether the node is left alone from now on, up.
func (f *flap) step(w *World) (done bool) {
	switch {
	case w.now >= f.until:
		w.start(f.n)
		return true
	case w.now < f.next:
	case f.n.up:
		w.kill(f.n)
		f.next = w.now + f.down
	default:
		w.start(f.n)
		f.next = w.now + f.up
	}
	return false
}
