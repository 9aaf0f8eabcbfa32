package placement

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// stepKind says what a step does to its node's replica.
type stepKind uint8

const (
	addLearner stepKind = iota
	catchUp             // no order: waits until the learner holds the log
	promote
	demote
	removeLearner
	transferLeader
)

// Time that steps are given. A learner may wait for other snapshots to its
// node and then receives up to a range's size; everything else is one entry.
const (
	catchUpTimeout  = 5 * time.Minute
	changeTimeout   = 30 * time.Second
	transferTimeout = 10 * time.Second
	// resendAfter is how long an order is given to show an effect before it
	// goes out again.
	resendAfter = time.Second
	// graceFactor times SuspectAfter is how long the node of a learner may be
	// silent before its operator gives up.
	graceFactor = 4
)

// step is one change of one range, on one node.
type step struct {
	kind stepKind
	node ids.NodeID
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
		return replica == nil || replica.GetRole() == roleLearner
	case removeLearner:
		return replica == nil
	default:
		return r.leader == s.node
	}
}

// hindrance says in words why the step can never be finished as things stand,
// "" if it can.
func (s step) hindrance(c *cluster, r *rangeState) string {
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
	case promote:
		if replica == nil {
			return fmt.Sprintf("the learner on %v is gone", s.node)
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
		if n == nil || !n.mayLead() || slices.Contains(r.silent, replica.GetReplicaId()) {
			return fmt.Sprintf("%v cannot lead now", s.node)
		}
	}
	return ""
}

// timeout is how long the step may take.
func (s step) timeout() time.Duration {
	switch s.kind {
	case catchUp:
		return catchUpTimeout
	case transferLeader:
		return transferTimeout
	default:
		return changeTimeout
	}
}

// effect returns by how much replicas and leaders of a node will change once
// the step is done, as far as the range does not show it yet.
func (s step) effect(r *rangeState, add func(n ids.NodeID, replicas, leaders int)) {
	switch {
	case s.finished(r):
	case s.kind == addLearner:
		add(s.node, +1, 0)
	case s.kind == removeLearner:
		add(s.node, -1, 0)
	case s.kind == transferLeader:
		add(s.node, 0, +1)
		if r.leader != 0 {
			add(r.leader, 0, -1)
		}
	}
}

// order returns the order that brings the step about, nil if there is nothing
// to say (now).
func (s step) order(r *rangeState, reason string) *metapb.Order {
	o := &metapb.Order{
		RangeId: r.desc.GetRangeId(), Generation: r.desc.GetGeneration(),
		NodeId: uint64(s.node), Reason: reason,
	}
	replica := replicaOn(r.desc, s.node)
	if replica != nil {
		o.ReplicaId = replica.GetReplicaId()
	}
	switch s.kind {
	case addLearner:
		o.Kind = metapb.OrderKind_ORDER_KIND_ADD_LEARNER
	case promote:
		o.Kind = metapb.OrderKind_ORDER_KIND_PROMOTE
	case demote:
		o.Kind = metapb.OrderKind_ORDER_KIND_DEMOTE
	case removeLearner:
		o.Kind = metapb.OrderKind_ORDER_KIND_REMOVE_LEARNER
	case transferLeader:
		o.Kind = metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER
	default:
		return nil
	}
	if joint(r.desc) { // a change is under way; the next fact tells how it ended
		return nil
	}
	return o
}

// String says what the step does, for people.
func (s step) String() string {
	switch s.kind {
	case addLearner:
		return fmt.Sprintf("add a learner on %v", s.node)
	case catchUp:
		return fmt.Sprintf("wait for the learner on %v", s.node)
	case promote:
		return fmt.Sprintf("let %v vote", s.node)
	case demote:
		return fmt.Sprintf("take the vote of %v", s.node)
	case removeLearner:
		return fmt.Sprintf("remove the learner on %v", s.node)
	default:
		return fmt.Sprintf("let %v lead", s.node)
	}
}

// operator is a plan for one range: steps in order, and why.
type operator struct {
	id     ids.RangeID
	from   ids.NodeID // of a leader transfer, which counts against MaxTransfers; else 0
	reason string
	steps  []step

	at      int           // the step that runs
	begun   time.Duration // of that step
	sent    time.Duration // its last order
	sentFor sentFor
}

// sentFor is what an order was made for; if that changes it is sent at once.
type sentFor struct {
	at         int
	generation ids.Generation
	leader     ids.NodeID
	term       ids.Term
}

func newOperator(r *rangeState, reason string, steps ...step) *operator {
	return &operator{id: r.id(), reason: reason, steps: steps, sent: never}
}

// String shows the operator with its steps, for people and logs.
func (op *operator) String() string {
	steps := make([]string, len(op.steps))
	for i, s := range op.steps {
		steps[i] = s.String()
	}
	return fmt.Sprintf("%v: %s (%s)", op.id, op.reason, strings.Join(steps, ", "))
}

// outcome is what became of an operator.
type outcome uint8

const (
	running outcome = iota
	succeeded
	failed
)

// advance moves an operator over the steps that the facts show to be done.
// r is nil if the range is gone.
func (op *operator) advance(c *cluster, r *rangeState) (outcome, string) {
	if r == nil {
		return failed, "the range is gone"
	}
	for ; op.at < len(op.steps); op.at, op.begun = op.at+1, c.now {
		s := op.steps[op.at]
		if s.finished(r) {
			continue
		}
		if op.from != 0 && op.from != r.leader {
			return failed, fmt.Sprintf("%v does not lead the range any more", op.from)
		}
		if why := s.hindrance(c, r); why != "" {
			return failed, why
		}
		if c.now-op.begun > s.timeout() {
			return failed, fmt.Sprintf("could not %v within %s", s, words(s.timeout()))
		}
		return running, ""
	}
	return succeeded, ""
}

// orderFor returns the order that node n should get now, if any.
func (op *operator) orderFor(c *cluster, r *rangeState, n ids.NodeID) *metapb.Order {
	if r == nil || r.leader != n || op.at >= len(op.steps) {
		return nil
	}
	now := sentFor{at: op.at, generation: r.generation(), leader: n, term: r.term}
	if now == op.sentFor && c.now-op.sent < resendAfter {
		return nil
	}
	order := op.steps[op.at].order(r, op.reason)
	if order != nil {
		op.sent, op.sentFor = c.now, now
	}
	return order
}

// influence counts what running operators will change into the nodes' load.
func (c *cluster) influence() {
	for _, n := range c.nodes { // order-free
		n.pendingReplicas, n.pendingLeaders = 0, 0
	}
	c.ops.Scan(func(_ ids.RangeID, op *operator) bool {
		c.expect(op)
		return true
	})
}

// expect adds the effects of one operator.
func (c *cluster) expect(op *operator) {
	r := c.dir.byID[op.id]
	if r == nil {
		return
	}
	for _, s := range op.steps[op.at:] {
		s.effect(r, func(n ids.NodeID, replicas, leaders int) {
			c.node(n).pendingReplicas += replicas
			c.node(n).pendingLeaders += leaders
		})
	}
}
