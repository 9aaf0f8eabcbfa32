package placement

import (
	"fmt"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// kind says what an operator is for.
type kind uint8

const (
	kindRepair       kind = iota // copies that are missing, dead or left over
	kindDrain                    // leaders leave a node that is draining
	kindDecommission             // copies leave a node for good
	kindRule                     // copies and leaders go where the rule wants them
	kindLeaders                  // leaders are spread by count or by load
	kindBytes                    // copies are spread by bytes
	kindHot                      // load leaves a node that has too much of it
	kindMerge                    // small cold neighbours become one
	kindSplit                    // a range is cut where another rule begins
	kindRequest                  // a person asked for it
	kinds            = iota
)

// String names the kind as people read it in lists and metrics.
func (k kind) String() string {
	return [...]string{"repair", "drain", "decommission", "rule", "balance-leaders",
		"balance-bytes", "hot", "merge", "split", "request"}[k]
}

// resendAfter is how long an order is given to show an effect before it goes out
// again.
const resendAfter = time.Second

// operator is a plan for one range, or for two that become one: steps in order,
// and why.
type operator struct {
	id     uint64      // rises within a tenure; 0 until it begins
	rng    ids.RangeID // the range; of a merge the left half
	other  ids.RangeID // of a merge the right half; else 0. Both are busy.
	kind   kind
	from   ids.NodeID // of a mere leader transfer, which counts against MaxTransfers; else 0
	blame  ids.NodeID // the dead, silent or leaving node that it was begun for; 0: none
	reason string
	steps  []step

	scatter uint64 // the scattering that it belongs to; 0: none

	at       int           // the step that runs
	topology uint64        // what the nodes were like when it began; see outdated
	created  time.Duration // when it began
	begun    time.Duration // when the step that runs did
	sent     time.Duration // its last order
	sentFor  sentFor
	indexed  [2]ids.NodeID // the nodes whose reports may be answered with its orders
}

// sentFor is what an order was made for; if that changes it is sent at once.
type sentFor struct {
	at         int
	generation ids.Generation
	other      ids.Generation
	leader     ids.NodeID
	term       ids.Term
}

func newOperator(r *rangeState, k kind, reason string, steps ...step) *operator {
	return &operator{rng: r.id(), kind: k, reason: reason, steps: steps, sent: never}
}

// newTransfer is an operator that does nothing but move a leader. It fails as soon
// as another node than the present one leads.
func newTransfer(r *rangeState, k kind, to ids.NodeID, reason string) *operator {
	op := newOperator(r, k, reason, step{kind: transferLeader, node: to})
	op.from = r.leader
	return op
}

// holds says whether the operator keeps a range busy.
func (op *operator) holds(id ids.RangeID) bool { return id == op.rng || id == op.other }

// rangeOf returns the range that a step is about, nil if it is gone.
func (op *operator) rangeOf(c *cluster, s step) *rangeState {
	if s.of != 0 {
		return c.dir.byID[s.of]
	}
	return c.dir.byID[op.rng]
}

// String shows the operator with its steps, for people and logs.
func (op *operator) String() string {
	return fmt.Sprintf("%v: %s (%s)", op.rng, op.reason, strings.Join(op.stepWords(), ", "))
}

func (op *operator) stepWords() []string {
	steps := make([]string, len(op.steps))
	for i, s := range op.steps {
		steps[i] = s.String()
	}
	return steps
}

// outcome is what became of an operator.
type outcome uint8

const (
	running outcome = iota
	succeeded
	failed
	cancelled // nothing went wrong: it has become pointless
)

// String names the outcome as people read it.
func (o outcome) String() string {
	return [...]string{"running", "done", "failed", "cancelled"}[o]
}

// advance moves an operator over the steps that the facts show to be done.
func (op *operator) advance(c *cluster) (outcome, string) {
	for ; op.at < len(op.steps); op.at, op.begun = op.at+1, c.now {
		s := op.steps[op.at]
		r := op.rangeOf(c, s)
		if r == nil {
			return failed, "the range is gone"
		}
		if s.finished(r) {
			continue
		}
		if op.from != 0 && op.from != r.leader {
			return failed, fmt.Sprintf("%v does not lead the range any more", op.from)
		}
		if why := s.hindrance(c, r); why != "" {
			return failed, why
		}
		if op.topology != c.topology {
			if why := op.outdated(c, r); why != "" {
				return cancelled, why
			}
		}
		if c.now-op.begun > s.timeout() {
			why := fmt.Sprintf("could not %v within %s", s, words(s.timeout()))
			if held := s.held(c, r); held != "" {
				why += ": " + held
			}
			return failed, why
		}
		return running, ""
	}
	return succeeded, ""
}

// orderFor returns the order that node n should get now, if any.
func (op *operator) orderFor(c *cluster, n ids.NodeID) *metapb.Order {
	if op.at >= len(op.steps) {
		return nil
	}
	s := op.steps[op.at]
	r := op.rangeOf(c, s)
	if r == nil || r.leader != n {
		return nil
	}
	now := sentFor{at: op.at, generation: r.generation(), leader: n, term: r.term}
	if other := c.dir.byID[s.other]; other != nil {
		now.other = other.generation()
	}
	if now == op.sentFor && c.now-op.sent < resendAfter {
		return nil
	}
	order := s.order(c, r, op.reason)
	if order != nil {
		op.sent, op.sentFor = c.now, now
	}
	return order
}

// copying visits the copies that the operator's leaders send at present: learners
// that do not hold the log yet and are, or are about to be, sent a snapshot.
func (op *operator) copying(c *cluster, visit func(r *rangeState, to ids.NodeID)) {
	for _, s := range op.steps[op.at:] {
		if s.kind != addLearner && s.kind != catchUp {
			return
		}
		if r := op.rangeOf(c, s); r != nil && s.kind == catchUp && !s.finished(r) {
			visit(r, s.node)
		}
	}
}

// Operators that run: by id, by each range that they hold, and by the nodes that
// lead those ranges, so that the answer to a report costs what concerns its node.
func (c *cluster) addOperator(op *operator) {
	c.lastOperator++
	op.id, op.created, op.begun, op.topology = c.lastOperator, c.now, c.now, c.topology
	c.ops.Set(op.id, op)
	c.holder[op.rng] = op
	if op.other != 0 {
		c.holder[op.other] = op
	}
	c.index(op)
}

func (c *cluster) removeOperator(op *operator) {
	c.ops.Delete(op.id)
	for _, id := range [...]ids.RangeID{op.rng, op.other} {
		if c.holder[id] == op {
			delete(c.holder, id)
		}
	}
	for _, n := range op.indexed {
		if n != 0 {
			c.node(n).ops.Delete(op.id)
		}
	}
	op.indexed = [2]ids.NodeID{}
}

// index puts an operator to the nodes that lead its ranges now.
func (c *cluster) index(op *operator) {
	var now [2]ids.NodeID
	for i, id := range [...]ids.RangeID{op.rng, op.other} {
		if r := c.dir.byID[id]; r != nil {
			now[i] = r.leader
		}
	}
	for _, n := range op.indexed {
		if n != 0 {
			c.node(n).ops.Delete(op.id)
		}
	}
	for _, n := range now {
		if n != 0 {
			c.node(n).ops.Set(op.id, op)
		}
	}
	op.indexed = now
}

// busy says whether an operator holds the range.
func (c *cluster) busy(id ids.RangeID) bool { return c.holder[id] != nil }

// influence counts what running operators will change into the nodes' load.
func (c *cluster) influence() {
	for _, n := range c.nodes { // order-free
		n.pending = pending{}
	}
	c.ops.Scan(func(_ uint64, op *operator) bool {
		c.expect(op)
		return true
	})
}

// expect adds the effects of one operator, which need not have begun.
func (c *cluster) expect(op *operator) {
	for _, s := range op.steps[op.at:] {
		r := op.rangeOf(c, s)
		if r == nil {
			continue
		}
		s.effect(c, r, func(n ids.NodeID, replicas, leaders int, l load) {
			p := &c.node(n).pending
			p.replicas += replicas
			p.leaders += leaders
			p.load.add(l)
		})
	}
	op.copying(c, func(r *rangeState, to ids.NodeID) {
		p := &c.node(to).pending
		p.receiving++
		p.receivingBytes += r.load.bytes
		if r.leader != 0 {
			c.node(r.leader).pending.sending++
		}
	})
}

// pending is what running operators will add to a node, or take from it.
type pending struct {
	replicas, leaders int
	load              load
	// Snapshots that it receives and sends at present, by the operators.
	receiving, sending int
	receivingBytes     int64
}
