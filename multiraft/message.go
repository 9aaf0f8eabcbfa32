package multiraft

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/support"
)

// Message is one raft message between replicas of a group, or a notice.
type Message struct {
	Range     ids.RangeID
	Raft      *raftpb.Message // immutable once sent or stepped; From and To are replica ids
	ToLearner bool            // the sender's configuration has the receiver as a learner
	Truncate  ids.Index       // from a leader: entries at or below may be cut
	// Gone makes the message a notice (Raft is nil): what the receiving node has
	// of Range with an id below this one is removed for ever.
	Gone ids.ReplicaID
	// Epoch, on a MsgAppResp or MsgHeartbeatResp, acknowledges the receiver as
	// leader of the message's term: the sender's replica has a record of it under
	// this epoch of the promise between the two nodes (docs/LEASES.md, R1).
	Epoch support.Epoch
	// Left makes the message a notice (Raft is nil): this replica has left a term
	// in which it led (R7); or, if it names no term, it has halted.
	Left Departure
	// Ask, on a MsgHeartbeatResp of an outdated term, asks the receiver whether it
	// still leads in this term (R7, ask.go).
	Ask ids.Term
}

// Departure says that a replica leads no more in a term, nor in earlier ones; or,
// without a term, that it has halted, which says nothing about terms.
type Departure struct {
	Replica ids.ReplicaID // 0: no departure
	Term    ids.Term      // 0: it has halted
}

// Frame is what one node sends another: all that was queued, one stamp.
type Frame struct {
	From     ids.NodeID
	Stamp    hlc.Timestamp
	Messages []Message
}

// Transport is the seam of the network. Implementations stamp each frame with
// the clock's Peek after its last message was put in.
type Transport interface {
	// Send queues messages for a node and never blocks. It owns msgs' elements
	// (not the slice) afterwards. False: dropped, queue full or node unknown;
	// the host then reports the peer unreachable to raft. Any goroutine.
	Send(to ids.NodeID, msgs []Message) bool
	// SendSnapshot streams a snapshot, closes it, and calls done exactly once,
	// on any goroutine. nil means that the receiver took it into its log. It
	// does not block. Any goroutine.
	SendSnapshot(to ids.NodeID, h *metapb.SnapshotHeader, s *store.OutgoingSnapshot,
		done func(error))
}

// acceptable says whether a message may come from the network. Everything else
// is local to a replica, and the library does not filter all of it:
// MsgForgetLeader from a peer would make a follower vote too early.
// MsgSnap comes through DeliverSnapshot with its data, never in a frame.
func acceptable(m *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgAppResp,
		raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp,
		raftpb.MsgVote, raftpb.MsgVoteResp,
		raftpb.MsgPreVote, raftpb.MsgPreVoteResp,
		raftpb.MsgTimeoutNow:
	default:
		return false
	}
	// The library takes a message of term 0 for a local one, and one from a
	// storage thread for a storage response.
	from, to := m.GetFrom(), m.GetTo()
	return m.GetTerm() != 0 && from != 0 && to != 0 && from != to &&
		!raft.IsLocalMsgTarget(from) && !raft.IsLocalMsgTarget(to)
}

// isRequest says whether a message asks for an answer, so that it is worth
// keeping or answering for a replica that this node does not have (yet).
func isRequest(t raftpb.MessageType) bool {
	switch t {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgVote, raftpb.MsgPreVote:
		return true
	}
	return false
}
