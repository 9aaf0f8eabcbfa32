package server

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// What the cluster wants of this node. Placement keeps it and tells it with every
// answer to a report; nothing of it is kept here, so that there is one truth.
//
// A node that drains or is being decommissioned serves on as it always does: placement
// takes leaders and replicas away from it. Once it is decommissioned it holds nothing
// and nobody sends it anything, so it says so and stops. It does not ask whether it
// really holds nothing: one that was dead when it was decommissioned comes back with
// replicas that have been replaced long ago, and its votes count nowhere.
//
// A node that was away long enough may not find the driver: those who could drive have
// moved meanwhile, and it is no member any more, to whom the others would send
// anything. So it asks everybody whose address it knows (search.go). A member passes it
// on to whom it believes to drive, and the driver refuses it with its standing.
//
// Only a driver says that, having read it in range 1, where it stands for ever: nothing
// follows on DECOMMISSIONED. So it cannot be out of date, however old the one is that
// says it. A member that only misses this node in its list of nodes says nothing: its
// list may be from before this node came.
//
// Rejected: a record in the node's own directory. The registry refuses the node
// whatever it remembers, and a record that is wrong could not be taken back.

// ErrDecommissioned says that the cluster has decommissioned this node, for good,
// before it was started.
var ErrDecommissioned = errors.New("the cluster has decommissioned this node")

// standing is what the cluster wants of this node, as far as it was told; any
// goroutine.
func (n *node) standing() metapb.NodeStanding {
	return metapb.NodeStanding(n.standingNow.Load())
}

// heardStanding takes what an answer to a report says; nil: the driver does not know
// yet. On the reporter's goroutine.
func (n *node) heardStanding(told *metapb.NodeStanding) {
	if told == nil {
		return
	}
	first := !n.stood
	n.stood = true
	was := metapb.NodeStanding(n.standingNow.Swap(int32(*told)))
	if was == *told || n.retiring() {
		return
	}
	log := n.cfg.Logger.With("node", uint64(n.self))
	switch *told {
	case metapb.NodeStanding_NODE_STANDING_ACTIVE:
		log.Info("this node is active again")
	case metapb.NodeStanding_NODE_STANDING_DRAINING:
		log.Info("this node is drained: it serves on, its leaders move away")
	case metapb.NodeStanding_NODE_STANDING_DECOMMISSIONING:
		log.Info("this node is decommissioned: it serves on, its replicas move away")
	case metapb.NodeStanding_NODE_STANDING_DECOMMISSIONED:
		log.Error("this node has been decommissioned: it stops")
		if n.late = first; !first {
			n.s.notice.say(fmt.Sprintf("%v has been decommissioned: it holds nothing any more, "+
				"and stops", n.self))
		}
		close(n.retired)
	}
}

// standingIn returns the standing that a refusal of the driver brings; ACTIVE, which is
// none, if it brings none. See verdict.
func standingIn(refusal error) metapb.NodeStanding {
	for _, d := range status.Convert(refusal).Details() {
		if reply, ok := d.(*metapb.NodeReportReply); ok {
			return reply.GetStanding()
		}
	}
	return metapb.NodeStanding_NODE_STANDING_ACTIVE
}

// retiring says whether the node was told that it is decommissioned.
func (n *node) retiring() bool {
	select {
	case <-n.retired:
		return true
	default:
		return false
	}
}

// farewell is how a node ends that has stopped: with an error if it was started
// although it had been decommissioned. Only after run.
func (n *node) farewell() error {
	if !n.late {
		return nil
	}
	return fmt.Errorf("%w: %v will not be taken back, its replicas have been replaced; to use "+
		"this machine again start a new node: --data with an empty directory, and --join",
		ErrDecommissioned, n.self)
}
