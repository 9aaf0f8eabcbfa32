package multiraft

import (
	"slices"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/support"
)

// News about a node concerns all groups that have a replica there. A walk brings
// it to the groups of a shard, some in each pass, so that messages and syncs go
// on meanwhile. Nothing is walked unless there is news.

// A newsKind says what happened.
type newsKind uint8

const (
	newsUnreachable newsKind = iota // frames to the node were lost
	newsWithdrawn                   // this node's promise to it ended
	newsSupported                   // it supports this node under a new epoch, or again
	newsUnsupported                 // its support has lapsed
	newsMismatch                    // its digest and this node's differ
	newsVotes                       // the boot wait is over; no node
)

// news is a walk under way.
type news struct {
	kind newsKind
	node ids.NodeID
	next ids.RangeID // groups below are done
}

// Unreachable reports that frames to a node were lost (stream broke). Any
// goroutine. Raft hears of it group by group, some in each pass.
func (h *Host) Unreachable(n ids.NodeID) { h.tell(newsUnreachable, n) }

// Withdrawn says that the promise to a node ended: groups that followed a leader
// there may elect another. Any goroutine.
func (h *Host) Withdrawn(n ids.NodeID, _ support.Reason) { h.tell(newsWithdrawn, n) }

// Supported says that a node supports this one under a new epoch, or again:
// groups led here ask their replicas there to follow anew. Any goroutine.
func (h *Host) Supported(n ids.NodeID, _ support.Epoch) { h.tell(newsSupported, n) }

// Unsupported says that a node's support has lapsed. Any goroutine.
func (h *Host) Unsupported(n ids.NodeID) { h.tell(newsUnsupported, n) }

// Mismatch says that the digests of two nodes have differed for a while: groups
// here that follow a leader on n ask it whether it still leads. Any goroutine.
func (h *Host) Mismatch(n ids.NodeID) { h.tell(newsMismatch, n) }

// MayVote says that the boot wait is over. Any goroutine.
func (h *Host) MayVote() { h.tell(newsVotes, 0) }

func (h *Host) tell(k newsKind, n ids.NodeID) {
	for _, s := range h.shards {
		s.inbox.push(item{kind: itemControl, control: func(s *shard) { s.walk(k, n) }})
	}
}

// walk starts a walk, over again if the same one is under way.
func (s *shard) walk(k newsKind, n ids.NodeID) {
	for i := range s.walks {
		if s.walks[i].kind == k && s.walks[i].node == n {
			s.walks[i].next = 0
			return
		}
	}
	s.walks = append(s.walks, news{kind: k, node: n})
}

// spread carries every walk on by a bounded number of groups. They take turns,
// so that the news of a withdrawal never waits for that of a stream.
func (s *shard) spread() {
	for i := 0; i < len(s.walks); {
		if s.carryOn(&s.walks[i]) {
			s.walks = slices.Delete(s.walks, i, i+1)
			continue
		}
		i++
	}
}

// carryOn says whether the walk is over.
func (s *shard) carryOn(w *news) bool {
	i, _ := s.position(w.next)
	end := min(i+groupsPerPass, len(s.order))
	for _, g := range s.order[i:end] {
		if g.live() {
			g.hear(w.kind, w.node)
		}
	}
	if end == len(s.order) {
		return true
	}
	w.next = s.order[end].cfg.Range
	return false
}

// hear brings one piece of news to a group.
func (g *Group) hear(k newsKind, n ids.NodeID) {
	switch k {
	case newsUnreachable:
		if g.status.IsLeader && g.hasMemberOn(n) {
			g.reportUnreachable(n)
			g.wake() // until the followers there have answered, if they live
		}
	case newsWithdrawn:
		if g.record.leader != 0 && g.record.node == n && !g.held() {
			g.orphan()
		}
	case newsSupported:
		g.supportBegan(n)
	case newsUnsupported:
		if g.status.IsLeader && g.hasMemberOn(n) {
			// What was sent may be lost, and the lease may be. If all is well
			// without that node, the group sleeps again at the next tick.
			g.reportUnreachable(n)
			g.wake()
		}
	case newsMismatch:
		if g.record.leader != 0 && g.record.node == n && g.held() {
			g.askLeader()
		}
	case newsVotes:
		if !g.held() && !g.status.IsLeader {
			g.stepDeferred()
		}
	}
}

func (g *Group) hasMemberOn(n ids.NodeID) bool {
	for i := range g.peers {
		if g.peers[i].node == n && g.peers[i].member {
			return true
		}
	}
	return false
}

// supportBegan asks the followers on a node to acknowledge this leadership under
// the present epoch. Their answers also tell raft to go on where it had stopped.
func (g *Group) supportBegan(n ids.NodeID) {
	if !g.status.IsLeader {
		return
	}
	for i := range g.peers {
		p := &g.peers[i]
		if p.node != n || !p.member || p.replica == g.cfg.Replica || p.support == nil {
			continue
		}
		last, _ := g.log.LastIndex()
		if p.ack != p.support.View().Epoch || p.committed < last || g.probes(p) {
			g.greet(p)
			g.wake()
		}
	}
}

// reportUnreachable tells raft that what went to a node may be lost. Raft only
// turns to probing: nothing is sent before the peer answers a heartbeat.
func (g *Group) reportUnreachable(n ids.NodeID) {
	for i := range g.peers {
		if g.peers[i].node == n {
			g.rn.ReportUnreachable(uint64(g.peers[i].replica))
		}
	}
}
