package placement

import (
	"fmt"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

// paceAfter is for how long a node must have been leaving before its pace says
// anything, and minPace the least part of what it had that must be gone by then.
const (
	paceAfter = 2 * time.Second
	minPace   = 0.01
)

// Nodes returns every registered node with what it still has to give. Cost grows with
// the nodes, and with what is left on those that leave if nothing moves there. Empty
// while not active.
func (d *Driver) Nodes(now time.Duration) *adminpb.NodesReply {
	reply := &adminpb.NodesReply{}
	if !d.Active() {
		return reply
	}
	c := d.cluster
	c.advanceTo(now)
	c.influence()
	for _, id := range c.order {
		if n := c.nodes[id]; n.desc != nil {
			reply.Nodes = append(reply.Nodes, d.progress(n))
		}
	}
	return reply
}

// progress says how far a node has come in giving away what it has.
func (d *Driver) progress(n *node) *adminpb.NodeProgress {
	c := d.cluster
	p := &adminpb.NodeProgress{Status: c.nodeStatus(n)}
	if n.standing != standingDraining && n.standing != standingDecommissioning {
		return p
	}
	c.observeLeaving(n)
	l := n.leaving
	// Ranges that nobody has told of may be led, and held, by this very node.
	p.Unknown = !d.planning || c.dir.gaps() > 0
	p.LeadersLeft, p.LeadersMost = uint32(n.leads.Len()), uint32(l.leaders)
	left, most := float64(n.leads.Len()), float64(l.leaders)
	if n.standing == standingDecommissioning {
		p.ReplicasLeft, p.ReplicasMost = uint32(n.holds.Len()), uint32(l.replicas)
		p.BytesLeft, p.BytesMost = uint64(max(0, n.load.bytes)), uint64(max(0, l.bytes))
		// Empty ranges take their time, too.
		left = float64(n.load.bytes) + emptyCopy*float64(n.holds.Len())
		most = float64(l.bytes) + emptyCopy*float64(l.replicas)
	}
	gone, took := most-left, c.now-l.since
	if !p.Unknown && left > 0 && took >= paceAfter && gone > minPace*most {
		p.SecondsLeft = took.Seconds() * left / gone
	}
	switch {
	case left > 0:
		p.Stuck = c.stuck(n, d.planning)
	case p.Unknown:
		p.Stuck = []string{c.unheardWords(d.planning)}
	}
	return p
}

// unheardWords says why it is not known what a node leads and holds.
func (c *cluster) unheardWords(planning bool) string {
	if !planning {
		return "not all nodes have told the new driver of placement what they lead"
	}
	return "some keys belong to no range that anybody has told of: it may be there"
}

// stuck says why nothing moves off a node that is to give away what it has: nothing
// if an operator is at it, or may be at once.
func (c *cluster) stuck(n *node, planning bool) []string {
	at := false
	c.ops.Scan(func(_ uint64, op *operator) bool {
		at = op.from == n.id || op.blame == n.id
		return !at
	})
	if at {
		return nil
	}
	reasons, found := map[string]int{}, []string{}
	examples := map[string]ids.RangeID{}
	note := func(id ids.RangeID, why string) bool {
		if reasons[why]++; reasons[why] == 1 {
			found = append(found, why)
			examples[why] = id
		}
		return len(found) < maxNamed
	}
	looks := 0
	visit := func(why func(r *rangeState) string) func(ids.RangeID) bool {
		return func(id ids.RangeID) bool {
			looks++
			w := why(c.dir.byID[id])
			return looks < maxChecks && (w == "" || note(id, w))
		}
	}
	if n.standing == standingDecommissioning {
		n.holds.Scan(visit(func(r *rangeState) string { return c.whyHeld(r, planning) }))
	} else {
		n.leads.Scan(visit(func(r *rangeState) string { return c.whyLed(r, planning) }))
	}
	var all []string
	for _, why := range found {
		all = append(all, fmt.Sprintf("%s: %s", plural(reasons[why], "range", examples[why]), why))
	}
	return all
}

// whyHeld says why the copy of r stays on a node that is decommissioned, "" if it
// need not for long.
func (c *cluster) whyHeld(r *rangeState, planning bool) string {
	if c.busy(r.id()) {
		return ""
	}
	why := c.holdup(r, planning)
	if c.recovers(r) || c.settings.GetPaused() {
		return why
	}
	if p := check(c, r); p.op != nil || p.paced {
		return ""
	}
	return why
}

// whyLed says why r is still led by a node that is to lead nothing, "" if it need not
// be for long.
func (c *cluster) whyLed(r *rangeState, planning bool) string {
	switch {
	case c.busy(r.id()):
		return ""
	case !planning || c.settings.GetPaused():
		return c.holdup(r, planning)
	case c.clinging(r) != "":
		return c.clinging(r)
	case voters(r) == 1:
		return "there is no other copy that could lead"
	case c.heir(r, r.leader) == nil:
		return "no other copy may lead now" + c.whyNoHeir(r)
	}
	return ""
}

// whyNoHeir says for the other voters of r why each may not lead.
func (c *cluster) whyNoHeir(r *rangeState) string {
	var all []string
	for _, p := range r.desc.GetReplicas() {
		n := c.nodes[ids.NodeID(p.GetNodeId())]
		if p.GetRole() != roleVoter || n.id == r.leader {
			continue
		}
		if why := c.leadWords(n); why != "" {
			all = append(all, fmt.Sprintf("%v: %s", n.id, why))
		} else if c.mute(r, p) {
			all = append(all, fmt.Sprintf("%v: it does not answer the leader", n.id))
		}
	}
	if len(all) == 0 {
		return ""
	}
	return " (" + strings.Join(all, "; ") + ")"
}
