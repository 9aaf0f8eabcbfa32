package server

import (
	"context"
	"fmt"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/support"
)

// Placement takes a node for live until its reports have been missing for seconds:
// it decides what is worth copying. Whoever asks for the health of the cluster wants to
// know whether the next node may be stopped, and what nodes know of one another through
// support says that a node is gone within the time of one promise. So the node that
// answers, and the one that drives placement, correct what placement says.

const (
	// hearPatience bounds how long Status waits to hear from the nodes that it is to
	// call live, if promises last longer. They answer within a round trip.
	hearPatience = time.Second
	hearPause    = 5 * time.Millisecond
)

// hear asks for support at once and waits until every node that the reply calls live,
// and that this node shares ranges with, was heard of after that, or support between
// the two is over. So a node that died before the question is not called live because
// a promise to it has not run out yet.
func (n *node) hear(ctx context.Context, reply *adminpb.StatusReply) {
	before := n.supportByNode()
	n.support.AskNow()
	for end := time.Now().Add(hearPatience); ; {
		now, waits := n.supportByNode(), false
		for _, s := range reply.GetNodes() {
			p := now[ids.NodeID(s.GetNode().GetNodeId())]
			if s.GetLive() && p.Wanted > 0 && met(p) && !severed(p) &&
				heardOf(p) == heardOf(before[p.Node]) {
				waits = true
			}
		}
		if !waits || ctx.Err() != nil || !time.Now().Before(end) {
			return
		}
		pause(ctx, hearPause)
	}
}

func (n *node) supportByNode() map[ids.NodeID]support.Status {
	all := make(map[ids.NodeID]support.Status)
	for _, p := range n.support.Status() {
		all[p.Node] = p
	}
	return all
}

// heardOf is how often a node was heard of.
func heardOf(p support.Status) uint64 { return p.Grants + p.Granted }

// met says that the two nodes have exchanged support in this life of this one. If they
// never have, datagrams may be blocked between them, which says nothing of the node.
func met(p support.Status) bool { return heardOf(p) > 0 }

// severed says that the two nodes share ranges, and neither supports the other any
// more: no replica here waits for the node any longer.
func severed(p support.Status) bool {
	return p.Wanted > 0 && met(p) && p.PromiseEpoch == 0 && p.SupportLeft <= 0
}

// correctLive takes nodes off the live ones that this node's support says are not.
// The reply then says so in words, and counts on as many failures less.
func correctLive(reply *adminpb.StatusReply, self ids.NodeID, all []support.Status) {
	for _, s := range reply.GetNodes() {
		id := ids.NodeID(s.GetNode().GetNodeId())
		for _, p := range all {
			if p.Node != id || id == self || !s.GetLive() || !severed(p) {
				continue
			}
			s.Live, s.UptimeSeconds = false, 0
			if reply.Tolerates > 0 {
				reply.Tolerates--
			}
			reply.Problems = append(reply.Problems, fmt.Sprintf(
				"%v does not answer %v: support between them has lapsed", id, self))
		}
	}
}
