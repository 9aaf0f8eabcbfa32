package placement

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

const (
	// MaxLookup bounds the ranges in the answer to a lookup.
	MaxLookup = 1000
	// MaxList bounds the ranges in the answer to a listing; the rest is had by
	// asking on from the end of the last one.
	MaxList = 20_000
	// maxListKeyBytes bounds the bounds of the ranges in one answer: they are the
	// part of it that may be large, and a message may have only so much.
	maxListKeyBytes = 8 << 20
	// maxNamed bounds the ranges that a problem names.
	maxNamed = 5
)

// Lookup answers from the directory: the ranges that cover [start, end), or
// only the one that holds start if end is empty; in reverse those below start,
// down to end, or only the one that holds the keys just below start. Ranges
// that are not known are left out. Empty while not active.
func (d *Driver) Lookup(r *adminpb.LookupRequest) *adminpb.LookupReply {
	reply := &adminpb.LookupReply{}
	limit := int(min(r.GetLimit(), MaxLookup))
	if limit == 0 {
		limit = MaxLookup
	}
	var holders []ids.NodeID
	add := func(s *rangeState) bool {
		reply.Ranges = append(reply.Ranges, s.info())
		for _, p := range s.desc.GetReplicas() {
			holders = append(holders, ids.NodeID(p.GetNodeId()))
		}
		return len(reply.Ranges) < limit
	}
	if r.GetReverse() {
		d.below(r.GetStart(), r.GetEnd(), add)
	} else {
		end := r.GetEnd()
		if len(end) == 0 { // the next key after start ends the span of start alone
			end = append(bytes.Clone(r.GetStart()), 0)
		}
		d.cluster.dir.overlapped(r.GetStart(), end, add)
	}
	slices.Sort(holders)
	for _, id := range slices.Compact(holders) {
		if n := d.cluster.nodes[id]; n != nil && n.desc != nil {
			reply.Nodes = append(reply.Nodes, n.desc)
		}
	}
	return reply
}

// below visits the ranges below start, from high to low, down to end; only the
// one that holds the keys just below start if end is empty.
func (d *Driver) below(start, end []byte, visit func(*rangeState) bool) {
	first := d.cluster.dir.before(start)
	if first == nil {
		return
	}
	if len(end) == 0 {
		if bytes.Compare(first.desc.GetEnd(), start) >= 0 {
			visit(first)
		}
		return
	}
	d.cluster.dir.byStart.Descend(string(first.desc.GetStart()),
		func(_ string, s *rangeState) bool {
			return bytes.Compare(s.desc.GetEnd(), end) > 0 && visit(s)
		})
}

// List answers with the known ranges that overlap [start, end), empty meaning
// from the first and to the last, in order, at most MaxList and fewer if their
// keys are very long. Empty while not active.
func (d *Driver) List(r *adminpb.ListRangesRequest) *adminpb.ListRangesReply {
	reply := &adminpb.ListRangesReply{}
	end := r.GetEnd()
	if len(end) == 0 {
		end = []byte{0xff}
	}
	bytes := 0
	d.cluster.dir.overlapped(r.GetStart(), end, func(s *rangeState) bool {
		reply.Ranges = append(reply.Ranges, s.info())
		bytes += len(s.desc.GetStart()) + len(s.desc.GetEnd())
		return len(reply.Ranges) < MaxList && bytes < maxListKeyBytes
	})
	return reply
}

// Range answers with one range, nil if it is not known.
func (d *Driver) Range(r ids.RangeID) *adminpb.RangeInfo {
	if s := d.cluster.dir.byID[r]; s != nil {
		return s.info()
	}
	return nil
}

// Status tells how the cluster is. Cost grows with the number of nodes and of
// problems, not of ranges. While not active it says so, and no more. Ready is
// left to the owner.
func (d *Driver) Status(now time.Duration) *adminpb.StatusReply {
	c := d.cluster
	reply := &adminpb.StatusReply{
		ClusterId:         d.cfg.ClusterID,
		AnsweredBy:        uint64(d.cfg.Self),
		ReplicationFactor: uint32(c.ruleSet.Rules()[0].Replicas),
	}
	switch {
	case !d.active:
		reply.Problems = []string{"this node does not drive placement"}
		return reply
	case !d.loaded:
		reply.Problems = []string{"placement is starting: it reads the registry of nodes"}
		if d.trouble != "" {
			reply.Problems = []string{d.trouble}
		}
		return reply
	}
	c.advanceTo(now)
	// What a new node, or a new rule, means for the ranges shows at once: else a cluster
	// that has just got its third node would look healthy with one copy of everything.
	c.sweepSome()
	for _, id := range c.order {
		if n := c.nodes[id]; n.desc != nil {
			reply.Nodes = append(reply.Nodes, c.nodeStatus(n))
		}
	}
	reply.Ranges = uint64(len(c.dir.byID))
	reply.UnderReplicated = uint64(c.under.Len())
	reply.Leaderless = uint64(c.leaderless.Len())
	reply.Tolerates = c.leastTolerance()
	reply.Operators = uint64(c.ops.Len())
	reply.Problems, reply.Collecting = c.problems(d.planning), !d.planning
	if c.settings.GetPaused() {
		reply.PausedBy = c.settings.GetPausedBy()
	}
	return reply
}

func (c *cluster) nodeStatus(n *node) *adminpb.NodeStatus {
	s := &adminpb.NodeStatus{
		Node:          n.desc,
		Live:          n.phase >= phaseLive,
		SilentSeconds: max(0, c.silence(n)).Seconds(),
		Replicas:      uint32(n.holds.Len()),
		Leaders:       uint32(n.leads.Len()),
		DiskBytes:     n.disk,
		DiskFreeBytes: n.diskFree,
		ReadOnly:      n.readOnly,
		Version:       n.program,

		Standing:            n.standing,
		ReplicaBytes:        uint64(max(0, n.load.bytes)),
		CpuMicrosPerSecond:  uint64(max(0, n.load.cpu)),
		WriteBytesPerSecond: uint64(max(0, n.load.writeBytes)),
		ReadBytesPerSecond:  uint64(max(0, n.load.readBytes)),
	}
	if s.Live && n.reported && n.started != never {
		s.UptimeSeconds = max(0, c.now-n.started).Seconds()
	}
	return s
}

// leastTolerance returns how many more nodes may fail, whichever they are, so
// that every range keeps a quorum; 0 if any range is unknown, or has not been looked at
// since one of its nodes changed.
func (c *cluster) leastTolerance() uint32 {
	if c.dir.gaps() > 0 || c.sweep.behind() {
		return 0
	}
	for failures, ranges := range c.tolerates {
		if ranges > 0 {
			return uint32(failures)
		}
	}
	return 0
}

// problems says in words what is not as it should be; none means healthy.
func (c *cluster) problems(planning bool) []string {
	var all []string
	for _, id := range c.order {
		n := c.nodes[id]
		switch {
		case n.desc == nil:
			if n.reported && c.silence(n) <= c.suspectAfter {
				all = append(all, fmt.Sprintf("%v reports but is not registered", id))
			}
		case n.gone():
		case n.phase < phaseLive:
			all = append(all, fmt.Sprintf("%v silent for %v", id, words(c.silence(n))))
		case n.readOnly:
			all = append(all, fmt.Sprintf("%v takes no writes: its disk is nearly full", id))
		case n.crowded:
			all = append(all, fmt.Sprintf("%v has less than %d %% of its disk free", id,
				100/fullBelow))
		case n.draining:
			all = append(all, fmt.Sprintf("%v is draining", id))
		}
	}
	if c.settings.GetPaused() && c.unwell.Len() > 0 {
		all = append(all, fmt.Sprintf("placement is paused by %s: nothing is repaired",
			c.settings.GetPausedBy()))
	}
	if c.sweep.going || c.sweep.behind() {
		all = append(all, "nodes or rules have changed: not all ranges have been looked at since")
	}
	if gaps := c.dir.gaps(); gaps > 0 {
		cause := "no node has reported to lead them"
		if !planning {
			cause = "not all nodes have reported yet"
		}
		what := "1 span of keys belongs"
		if gaps > 1 {
			what = fmt.Sprintf("%d spans of keys belong", gaps)
		}
		all = append(all, what+" to no known range: "+cause)
	}
	if c.under.Len() > 0 {
		all = append(all, fmt.Sprintf("%d of %d ranges under-replicated",
			c.under.Len(), len(c.dir.byID)))
	}
	named := 0
	c.leaderless.Scan(func(id ids.RangeID) bool {
		if named++; named > maxNamed {
			all = append(all, fmt.Sprintf("%d more ranges have no leader",
				c.leaderless.Len()-maxNamed))
			return false
		}
		all = append(all, fmt.Sprintf("%v has no leader", id))
		return true
	})
	return append(all, c.stuckChanges()...)
}

// stuckChanges tells the ranges whose leaders do not come to the end of what they are
// in the middle of.
func (c *cluster) stuckChanges() (all []string) {
	c.changing.Scan(func(id ids.RangeID) bool {
		r := c.dir.byID[id]
		if c.now-r.changedAt < stuckAfter || c.headless(r) {
			return true
		}
		what := "has been between two configurations"
		if r.desc.GetMerge() != nil {
			what = "has been in the middle of a merge"
		}
		all = append(all, fmt.Sprintf("%v %s for %s", id, what, words(c.now-r.changedAt)))
		return len(all) < maxNamed
	})
	return all
}

// words says how long something takes, as precisely as people want to know it.
func words(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
	default:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	}
}
