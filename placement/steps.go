package placement

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// stepKind says what a step does.
type stepKind uint8

const (
	addLearner stepKind = iota
	catchUp             // no order: waits until the learner holds the log
	promote
	demote
	removeLearner
	transferLeader
	swap  // node's learner gets the vote of from's voter, in one joint change
	split // at key
	merge // with its right neighbour, other
)

// Time that steps are given. A learner may wait for other snapshots to its
// node and then receives up to a range's size; a merge waits for the slowest
// replica; everything else is one entry.
const (
	catchUpTimeout  = 5 * time.Minute
	changeTimeout   = 30 * time.Second
	transferTimeout = 10 * time.Second
	mergeTimeout    = time.Minute
	// graceFactor times SuspectAfter is how long the node of a learner may be
	// silent before its operator gives up.
	graceFactor = 4
)

// step is one change of one range.
type step struct {
	kind  stepKind
	node  ids.NodeID  // whose replica; 0 for split and merge
	from  ids.NodeID  // of a swap: whose vote ends
	of    ids.RangeID // 0: the operator's range; else the other one of a merge
	other ids.RangeID // of a merge: the right half
	key   []byte      // of a split: where; of a merge: the end of the right half
}

// finished says whether the facts show the step's effect.
func (s step) finished(r *rangeState) bool {
	replica := replicaOn(r.desc, s.node)
	switch s.kind {
	case addLearner:
		return replica != nil
	case catchUp:
		return replica != nil && (replica.GetRole() == roleVoter ||
			slices.Contains(r.caughtUp, replica.GetReplicaId()))
	case promote:
		return replica != nil && replica.GetRole() == roleVoter
	case demote:
		return voteless(replica)
	case swap:
		return replica != nil && replica.GetRole() == roleVoter &&
			voteless(replicaOn(r.desc, s.from))
	case removeLearner:
		return replica == nil
	case split:
		return bytes.Compare(r.desc.GetEnd(), s.key) <= 0
	case merge:
		return bytes.Compare(r.desc.GetEnd(), s.key) >= 0
	default:
		return r.leader == s.node
	}
}

// voteless says whether a replica, nil for none, has no vote in either half.
func voteless(p *metapb.Replica) bool { return p == nil || p.GetRole() == roleLearner }

// hindrance says in words why the step can never be finished as things stand,
// "" if it can.
func (s step) hindrance(c *cluster, r *rangeState) string {
	if joint(r.desc) && s.kind != addLearner && s.kind != catchUp {
		return "" // between two configurations; what it comes to is seen then
	}
	replica := replicaOn(r.desc, s.node)
	n := c.nodes[s.node]
	switch s.kind {
	case addLearner, catchUp:
		if s.kind == catchUp && replica == nil {
			return fmt.Sprintf("the learner on %v is gone", s.node)
		}
		if n == nil || c.silence(n) > graceFactor*c.suspectAfter {
			return fmt.Sprintf("%v is silent", s.node)
		}
	case promote, swap:
		if replica == nil {
			return fmt.Sprintf("the learner on %v is gone", s.node)
		}
		if s.kind == swap && r.leader == s.from {
			return fmt.Sprintf("%v leads the range now", s.from)
		}
		if replica.GetRole() == roleLearner && n != nil &&
			c.silence(n) > graceFactor*c.suspectAfter {
			return fmt.Sprintf("%v is silent", s.node)
		}
	case demote:
		// Never through a removed leader: it would count itself out.
		if r.leader == s.node {
			return fmt.Sprintf("%v leads the range now", s.node)
		}
	case removeLearner:
		if replica != nil && replica.GetRole() == roleVoter {
			return fmt.Sprintf("the replica on %v votes", s.node)
		}
	case transferLeader:
		if replica == nil || replica.GetRole() != roleVoter {
			return fmt.Sprintf("%v has no voter of the range", s.node)
		}
		if n == nil || !n.mayLead() || c.mute(r, replica) {
			return fmt.Sprintf("%v cannot lead now", s.node)
		}
	case split:
		if bytes.Compare(r.desc.GetStart(), s.key) >= 0 {
			return "the key does not lie in the range"
		}
	case merge:
		return s.mergeHindrance(c, r)
	}
	return ""
}

// mergeHindrance says what keeps two neighbours from being merged at once.
func (s step) mergeHindrance(c *cluster, left *rangeState) string {
	right := c.dir.byID[s.other]
	switch {
	case left.desc.GetMerge() != nil || right != nil && right.desc.GetMerge() != nil:
		return "" // under way: the left half's log decides, its next facts tell
	case right == nil || !bytes.Equal(left.desc.GetEnd(), right.desc.GetStart()):
		return fmt.Sprintf("%v is not the right neighbour any more", s.other)
	case right.leader != left.leader:
		return fmt.Sprintf("%v and %v are led by different nodes", left.id(), s.other)
	case !aligned(left.desc, right.desc):
		return fmt.Sprintf("the copies of %v and %v stand on different nodes", left.id(), s.other)
	}
	return ""
}

// aligned says whether the voters of two ranges stand on the same nodes, and
// nothing else is there: what a merge needs.
func aligned(a, b *metapb.RangeDescriptor) bool {
	if len(a.GetReplicas()) != len(b.GetReplicas()) {
		return false
	}
	for _, p := range a.GetReplicas() {
		q := replicaOn(b, ids.NodeID(p.GetNodeId()))
		if q == nil || q.GetRole() != roleVoter || p.GetRole() != roleVoter {
			return false
		}
	}
	return true
}

// timeout is how long the step may take.
func (s step) timeout() time.Duration {
	switch s.kind {
	case catchUp:
		return catchUpTimeout
	case transferLeader:
		return transferTimeout
	case merge:
		return mergeTimeout
	default:
		return changeTimeout
	}
}

// effect returns by how much replicas, leaders and load of nodes will change once
// the step is done, as far as the range does not show it yet.
func (s step) effect(
	c *cluster, r *rangeState, add func(n ids.NodeID, replicas, leaders int, l load),
) {
	if s.finished(r) {
		return
	}
	held, led, none := r.load.held(), r.load.led(), load{}
	switch s.kind {
	case addLearner:
		add(s.node, +1, 0, held)
	case removeLearner:
		add(s.node, -1, 0, held.negative())
	case transferLeader:
		add(s.node, 0, +1, led)
		if r.leader != 0 {
			add(r.leader, 0, -1, led.negative())
		}
	case merge: // bytes and load stay where they are
		if right := c.dir.byID[s.other]; right != nil && right.leader != 0 {
			add(right.leader, 0, -1, none)
			for _, p := range right.desc.GetReplicas() {
				add(ids.NodeID(p.GetNodeId()), -1, 0, none)
			}
		}
	}
}

// order returns the order that brings the step about, nil if there is nothing
// to say (now).
func (s step) order(c *cluster, r *rangeState, reason string) *metapb.Order {
	if r.changing() { // a change is under way; the next fact tells how it ended
		return nil
	}
	if s.held(c, r) != "" {
		return nil
	}
	o := &metapb.Order{
		RangeId: r.desc.GetRangeId(), Generation: r.desc.GetGeneration(),
		NodeId: uint64(s.node), Reason: reason,
	}
	replica := replicaOn(r.desc, s.node)
	o.ReplicaId = replica.GetReplicaId()
	switch s.kind {
	case addLearner:
		o.Kind = metapb.OrderKind_ORDER_KIND_ADD_LEARNER
	case promote:
		o.Kind = metapb.OrderKind_ORDER_KIND_PROMOTE
	case swap:
		s.orderSwap(o, r, replica)
	case demote:
		o.Kind = metapb.OrderKind_ORDER_KIND_DEMOTE
	case removeLearner:
		o.Kind = metapb.OrderKind_ORDER_KIND_REMOVE_LEARNER
	case transferLeader:
		o.Kind = metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER
	case split:
		o.Kind, o.SplitKey = metapb.OrderKind_ORDER_KIND_SPLIT, s.key
	case merge:
		right := c.dir.byID[s.other]
		if right == nil || right.changing() {
			return nil
		}
		o.Kind = metapb.OrderKind_ORDER_KIND_MERGE
		o.OtherRangeId, o.OtherGeneration = uint64(s.other), uint64(right.generation())
	default:
		return nil
	}
	return o
}

// orderSwap fills in the order of a swap: both changes at once, or the one of them
// that is still to be made.
func (s step) orderSwap(o *metapb.Order, r *rangeState, learner *metapb.Replica) {
	old := replicaOn(r.desc, s.from)
	switch {
	case learner.GetRole() == roleVoter:
		o.Kind = metapb.OrderKind_ORDER_KIND_DEMOTE
		o.NodeId, o.ReplicaId = uint64(s.from), old.GetReplicaId()
	case voteless(old):
		o.Kind = metapb.OrderKind_ORDER_KIND_PROMOTE
	default:
		o.Kind = metapb.OrderKind_ORDER_KIND_PROMOTE
		o.DemoteReplicaId = old.GetReplicaId()
	}
}

// String says what the step does, for people.
func (s step) String() string {
	words := ""
	switch s.kind {
	case addLearner:
		words = fmt.Sprintf("add a learner on %v", s.node)
	case catchUp:
		words = fmt.Sprintf("wait for the learner on %v", s.node)
	case promote:
		words = fmt.Sprintf("let %v vote", s.node)
	case swap:
		words = fmt.Sprintf("let %v vote instead of %v", s.node, s.from)
	case demote:
		words = fmt.Sprintf("take the vote of %v", s.node)
	case removeLearner:
		words = fmt.Sprintf("remove the learner on %v", s.node)
	case split:
		words = fmt.Sprintf("split at %s", keyWords(s.key))
	case merge:
		words = fmt.Sprintf("merge with %v", s.other)
	default:
		words = fmt.Sprintf("let %v lead", s.node)
	}
	if s.of != 0 {
		words = fmt.Sprintf("%v: %s", s.of, words)
	}
	return words
}

// wordsOfKey bounds the bytes of a key that words show.
const wordsOfKey = 32

// keyWords shows where an internal key lies: the users' key, quoted.
func keyWords(key []byte) string {
	if len(key) > 0 {
		key = key[1:]
	}
	if len(key) > wordsOfKey {
		return fmt.Sprintf("%q...", key[:wordsOfKey])
	}
	return fmt.Sprintf("%q", key)
}
