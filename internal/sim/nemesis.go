package sim

import (
	"fmt"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// nemesis breaks things, now and then, until the safety phase ends.
func (s *Sim) nemesis() {
	if s.quiet {
		return
	}
	s.loop.after(between(s.nemesisRand, 0, 2*s.options.FaultEvery), func() {
		if !s.quiet {
			s.fault()
		}
		s.nemesis()
	})
}

func (s *Sim) machine() *node { return s.machines[s.nemesisRand.IntN(len(s.machines))] }

func (s *Sim) fault() {
	if p := s.options.Placement.Merges; p > 0 && chance(s.nemesisRand, p) {
		s.splitOne()
		s.mergeOne()
		return
	}
	switch p := s.nemesisRand.IntN(100); {
	case p < 16:
		s.crashOne()
	case p < 23:
		s.isolateOne()
	case p < 31:
		s.cutOneWay()
	case p < 43:
		s.pauseOne()
	case p < 49:
		s.slowDisk()
	case p < 54:
		s.stepClock()
	case p < 66:
		s.splitOne()
	case p < 76:
		s.orderOne(metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER)
	case p < 81:
		s.orderOne(metapb.OrderKind_ORDER_KIND_ADD_LEARNER)
	case p < 92:
		s.mergeOne()
	default:
		s.changeOne()
	}
}

// down counts machines whose process is gone or cut off, so that faults leave a
// majority most of the time; now and then they do not, and all may be dead.
func (s *Sim) down() int {
	down := 0
	for _, n := range s.machines {
		if !n.alive || n.paused || n.isolated {
			down++
		}
	}
	return down
}

func (s *Sim) mayBreakOneMore() bool {
	return s.down() < (len(s.machines)-1)/2 || chance(s.nemesisRand, 0.15)
}

func (s *Sim) crashOne() {
	n := s.machine()
	if !n.alive || !s.mayBreakOneMore() {
		return
	}
	if chance(s.nemesisRand, 0.6) {
		n.doom = 1 + s.nemesisRand.IntN(30)
		return
	}
	s.count("crashes")
	s.loop.tracef("crash %s", n.id)
	n.crash()
	s.comeBack(n)
}

// comeBack restarts a dead machine after a while.
func (s *Sim) comeBack(n *node) {
	down := between(s.nemesisRand, 50*time.Millisecond, 5*time.Second)
	if p := s.options.Placement; p.LongOutages && chance(s.nemesisRand, 0.15) {
		s.count("outages")
		down = p.DeadAfter/2 + between(s.nemesisRand, 0, 2*p.DeadAfter)
	}
	if chance(s.nemesisRand, 0.35) {
		down = between(s.nemesisRand, time.Millisecond, s.options.Promise) // promises outlive it
	}
	s.loop.after(down, func() { s.restart(n) })
}

func (s *Sim) restart(n *node) {
	if n.alive {
		return
	}
	s.loop.tracef("restart %s", n.id)
	s.checker.forget(n.id)
	if err := n.boot(); err != nil {
		s.fail("restart %s: %v", n.id, err)
	}
}

func (s *Sim) isolateOne() {
	n := s.machine()
	if n.isolated || !s.mayBreakOneMore() {
		return
	}
	s.count("partitions")
	s.loop.tracef("isolate %s", n.id)
	n.isolated = true
	s.cut(n, true)
	s.loop.after(between(s.nemesisRand, 200*time.Millisecond, 6*time.Second), func() {
		n.isolated = false
		s.cut(n, false)
		s.loop.tracef("rejoin %s", n.id)
	})
}

func (s *Sim) cut(n *node, on bool) {
	for _, m := range s.machines {
		if m != n {
			for _, links := range []func(a, b ids.NodeID) *link{s.net.link, s.net.supportLink} {
				links(n.id, m.id).cut, links(m.id, n.id).cut = on, on
			}
		}
	}
}

func (s *Sim) cutOneWay() {
	a, b := s.machine(), s.machine()
	if a == b {
		return
	}
	s.count("one_way_cuts")
	raft, support := s.net.link(a.id, b.id), s.net.supportLink(a.id, b.id)
	what := "all"
	length := between(s.nemesisRand, 200*time.Millisecond, 5*time.Second)
	switch p := s.nemesisRand.IntN(10); {
	case p < 4:
		raft.cut, support.cut = true, true
	case p < 7:
		what, support.cut = "support", true
		s.count("support_cuts")
	default:
		what, raft.cut = "raft", true
	}
	s.loop.tracef("cut %s to %s: %s", a.id, b.id, what)
	s.loop.after(length, func() { raft.cut, support.cut = false, false })
}

func (s *Sim) pauseOne() {
	n := s.machine()
	if !n.alive || n.paused || !s.mayBreakOneMore() {
		return
	}
	s.count("pauses")
	length := between(s.nemesisRand, 100*time.Millisecond, 5*time.Second)
	if chance(s.nemesisRand, 0.6) {
		length = between(s.nemesisRand, time.Millisecond, 2*s.options.Promise)
	}
	s.loop.tracef("pause %s for %s", n.id, length)
	n.pause()
	if s.options.Freezes && chance(s.nemesisRand, 0.5) {
		s.count("freezes")
		n.physical.freeze()
		s.loop.after(length, n.physical.thaw)
	}
	incarnation := n.incarnation
	s.loop.after(length, func() {
		if n.incarnation == incarnation {
			s.loop.tracef("resume %s", n.id)
			n.resume()
		}
	})
}

func (s *Sim) slowDisk() {
	n := s.machine()
	usual := n.disk
	if n.stalled || usual > s.options.Disk {
		return
	}
	if chance(s.nemesisRand, 0.5) {
		s.count("disk_stalls")
		n.stalled, n.stalledAt = true, s.loop.now
	} else {
		s.count("slow_disks")
		n.disk *= 50
	}
	s.loop.tracef("disk of %s: stalled %v, sync takes %s", n.id, n.stalled, n.disk)
	s.loop.after(between(s.nemesisRand, 100*time.Millisecond, 4*time.Second), func() {
		n.stalled, n.disk = false, usual
		n.wake()
	})
}

func (s *Sim) stepClock() {
	n := s.machine()
	s.count("clock_steps")
	by := 600 * time.Millisecond
	switch p := s.clockRand.IntN(20); {
	case p < 8:
		by = 30 * time.Millisecond
	case p == 19 && n == s.machines[s.options.Nodes-1]: // one, so that most are right
		by = 10 * time.Minute
		s.count("clock_jumps")
	}
	n.physical.step(time.Duration((2*s.clockRand.Float64() - 1) * float64(by)))
	s.loop.tracef("clock of %s is off by %s", n.id, n.physical.set)
}

// leaderOf finds a live node that leads a range drawn at random.
func (s *Sim) leaderOf() (*node, *metapb.RangeFact) {
	var nodes []*node
	var facts []*metapb.RangeFact
	for _, n := range s.machines {
		if n.alive && !n.paused && n.table != nil {
			for _, f := range n.table.Facts() {
				nodes, facts = append(nodes, n), append(facts, f)
			}
		}
	}
	if len(facts) == 0 {
		return nil, nil
	}
	i := s.nemesisRand.IntN(len(facts))
	return nodes[i], facts[i]
}

// stickyShare: of so many splits one leaves a boundary that somebody asked for, which
// placement does not merge away. That all replicas agree on it, tiles checks.
const stickyShare = 4

func (s *Sim) splitOne() {
	n, f := s.leaderOf()
	if n == nil || f.Descriptor_.RangeId == 1 ||
		s.splits-s.counters["merges"] >= s.options.MaxSplits {
		return
	}
	prefix := [...]string{"k/", "p/", "s/", "n/"}[s.nemesisRand.IntN(4)]
	key := userKey("%s%x", prefix, s.nemesisRand.IntN(16))
	if m := s.machine(); m.alive && s.mayBreakOneMore() && chance(s.nemesisRand, 0.3) {
		m.doom = 1 + s.nemesisRand.IntN(8) // between the writes of this split, perhaps
	}
	sticky := int64(0)
	if f.Descriptor_.Generation%stickyShare == 0 {
		sticky = math.MaxInt64
	}
	n.run(func() {
		n.table.SplitSticky(ids.RangeID(f.Descriptor_.RangeId), key, sticky,
			func(left, right *metapb.RangeDescriptor, err error) {
				s.loop.tracef("%s split r%d at %q: %v", n.id, f.Descriptor_.RangeId, key, err)
				if err == nil {
					s.splits++
					s.count("splits")
				}
			})
	})
}

// splitSome makes some ranges before anything breaks, so that there is something to
// merge and to move.
func (s *Sim) splitSome() {
	for i := range 2 + s.nemesisRand.IntN(5) {
		s.loop.after(time.Duration(i)*splitPace, s.splitOne)
	}
}

// splitPace lets one range be born before the next one is cut off.
const splitPace = 300 * time.Millisecond

// orderOne gives a random order of one kind, as placement would.
func (s *Sim) orderOne(kind metapb.OrderKind) {
	n, f := s.leaderOf()
	if n == nil {
		return
	}
	target := s.machine().id
	if kind == metapb.OrderKind_ORDER_KIND_ADD_LEARNER && chance(s.nemesisRand, 0.5) {
		return // otherwise most ranges have copies everywhere
	}
	o := &metapb.Order{
		RangeId: f.Descriptor_.RangeId, Generation: f.Descriptor_.Generation,
		Kind: kind, NodeId: uint64(target), Reason: "nemesis",
	}
	for _, r := range f.Descriptor_.Replicas {
		if ids.NodeID(r.NodeId) == target {
			o.ReplicaId = r.ReplicaId
		}
	}
	n.run(func() { s.order(n, o) })
	if m := s.nodes[target]; kind == metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER && m != n &&
		chance(s.nemesisRand, 0.3) {
		s.loop.after(between(s.nemesisRand, 0, 30*time.Millisecond), func() { s.strand(m) })
	}
}

// strand cuts off the target of a transfer, so that it is aborted or its old
// leader does not hear how it ended.
func (s *Sim) strand(n *node) {
	if n.isolated || !s.mayBreakOneMore() {
		return
	}
	s.count("transfers_stranded")
	s.loop.tracef("strand %s", n.id)
	n.isolated = true
	s.cut(n, true)
	s.loop.after(between(s.nemesisRand, 50*time.Millisecond, 3*time.Second), func() {
		n.isolated = false
		s.cut(n, false)
	})
}

// changeOne promotes, demotes or removes a replica at random.
func (s *Sim) changeOne() {
	n, f := s.leaderOf()
	if n == nil {
		return
	}
	r := f.Descriptor_.Replicas[s.nemesisRand.IntN(len(f.Descriptor_.Replicas))]
	for _, other := range f.Descriptor_.Replicas {
		if other.Role == metapb.ReplicaRole_REPLICA_ROLE_LEARNER {
			r = other // often the one that the last change left behind
		}
	}
	o := &metapb.Order{
		RangeId: f.Descriptor_.RangeId, Generation: f.Descriptor_.Generation,
		NodeId: r.NodeId, ReplicaId: r.ReplicaId, Reason: "nemesis",
		Kind: metapb.OrderKind_ORDER_KIND_DEMOTE,
	}
	if r.Role == metapb.ReplicaRole_REPLICA_ROLE_LEARNER {
		o.Kind = metapb.OrderKind_ORDER_KIND_REMOVE_LEARNER
		if chance(s.nemesisRand, 0.5) {
			o.Kind = metapb.OrderKind_ORDER_KIND_PROMOTE
		}
	}
	n.run(func() { s.order(n, o) })
}

// heal ends every fault.
func (s *Sim) heal() {
	s.loop.tracef("heal")
	s.people.conclude()
	for _, l := range s.net.links {
		l.cut = false
	}
	for _, l := range s.net.support {
		l.cut = false
	}
	p := &s.net.profile
	p.loss, p.duplicate, p.reorder, p.late = 0, 0, false, 0
	s.clientLoss = 0
	for _, n := range s.machines {
		n.stalled, n.disk, n.isolated, n.doom = false, s.options.Disk, false, 0
		n.physical.thaw()
		n.physical.right()
		switch {
		case !n.alive:
			s.restart(n)
		case n.paused:
			n.resume()
		default:
			n.wake()
		}
	}
}

func newDisk() *vfs.MemFS { return vfs.NewCrashableMem() }

// name is how a node appears in messages.
func (n *node) String() string { return fmt.Sprint(n.id) }
