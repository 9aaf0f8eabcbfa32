package placement

import (
	"errors"
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

// ErrUnknownRange says that the directory knows no such range.
var ErrUnknownRange = errors.New("no such range is known")

// Operate begins what a person asked for: merge, relocate, scatter, transfer; while
// placement is paused, too. Errors wrap ErrRefused (with the reason),
// ErrUnknownRange or ErrAskAgain; nothing changed then.
func (d *Driver) Operate(r *adminpb.OperateRequest) (*adminpb.OperateReply, error) {
	switch {
	case !d.Active():
		return nil, fmt.Errorf("%w: this node does not drive placement", ErrAskAgain)
	case !d.planning:
		return nil, fmt.Errorf("%w: not all nodes have told yet what they hold", ErrAskAgain)
	}
	c := d.cluster
	c.influence()
	if s := r.GetScatter(); s != nil {
		begun, ops, note, err := scatter(c, s.GetStart(), s.GetEnd())
		reply, err := d.operate(ops, note, err)
		if err == nil && begun != nil {
			reply.Scatter = begun.progress(c)
		}
		return reply, err
	}
	s := c.dir.byID[ids.RangeID(r.GetRangeId())]
	if s == nil {
		return nil, fmt.Errorf("%w: r%d", ErrUnknownRange, r.GetRangeId())
	}
	var op *operator
	var note string
	var err error
	switch what := r.GetWhat().(type) {
	case *adminpb.OperateRequest_Merge:
		op, err = c.requestMerge(s)
	case *adminpb.OperateRequest_Relocate:
		op, note, err = c.requestRelocate(s, what.Relocate.GetNodes())
	case *adminpb.OperateRequest_Transfer:
		op, note, err = c.requestTransfer(s, ids.NodeID(what.Transfer.GetNodeId()))
	default:
		err = fmt.Errorf("%w: nothing that is known here was asked for", ErrRefused)
	}
	if op == nil {
		return d.operate(nil, note, err)
	}
	return d.operate([]*operator{op}, note, err)
}

// operate begins operators that were asked for.
func (d *Driver) operate(
	ops []*operator, note string, err error,
) (*adminpb.OperateReply, error) {
	if err != nil {
		return nil, err
	}
	reply := &adminpb.OperateReply{Note: note, Tenure: d.tenure}
	for _, op := range ops {
		d.begin(op)
		reply.Operators = append(reply.Operators, op.describe(d.cluster))
	}
	return reply, nil
}

// idle refuses if r cannot be changed now. What a person asks for does not wait for
// the end of a rest.
func (c *cluster) idle(r *rangeState) error {
	switch op := c.holder[r.id()]; {
	case op != nil:
		return fmt.Errorf("%w: %v is busy, ask again when this is done: %v", ErrRefused, r.id(), op)
	case c.headless(r):
		return fmt.Errorf("%w: %v has no leader that could do it", ErrRefused, r.id())
	case r.desc.GetMerge() != nil:
		return fmt.Errorf("%w: %v: %s", ErrRefused, r.id(), mergeWords(r.desc))
	case r.changing():
		return fmt.Errorf("%w: %v is between two configurations; its leader ends that by itself",
			ErrRefused, r.id())
	}
	return nil
}

// requestMerge merges a range with its right neighbour: there is no other way to
// name two ranges, so nobody can ask for two that do not touch.
func (c *cluster) requestMerge(left *rangeState) (*operator, error) {
	right := c.dir.after(left)
	switch {
	case left.id() == systemRange:
		return nil, fmt.Errorf("%w: range 1, where placement keeps its state, is never merged",
			ErrRefused)
	case right == nil && c.dir.last() == left:
		return nil, fmt.Errorf("%w: %v is the last range, it has no right neighbour", ErrRefused,
			left.id())
	case right == nil:
		return nil, fmt.Errorf("%w: the right neighbour of %v is not known now", ErrRefused,
			left.id())
	}
	for _, r := range [...]*rangeState{left, right} {
		if err := c.idle(r); err != nil {
			return nil, err
		}
		r.restUntil = min(r.restUntil, c.now)
	}
	if why := c.unmergeable(left, right); why != "" {
		return nil, fmt.Errorf("%w: %s", ErrRefused, why)
	}
	total := left.load.bytes + right.load.bytes
	if total >= c.rangeSize {
		return nil, fmt.Errorf("%w: %v and %v hold %s together, and would be split again at %s",
			ErrRefused, left.id(), right.id(), size(total), size(c.rangeSize))
	}
	steps := c.mergeSteps(left, right)
	if steps == nil {
		return nil, fmt.Errorf("%w: the nodes of %v and %v cannot take each other's copies now",
			ErrRefused, left.id(), right.id())
	}
	return newMerge(left, right, kindRequest, fmt.Sprintf("merge with %v was asked for",
		right.id()), steps), nil
}

// requestRelocate moves the copies of a range to exactly the given nodes; the first
// one leads.
func (c *cluster) requestRelocate(
	r *rangeState, nodes []uint64,
) (op *operator, note string, err error) {
	if err := c.idle(r); err != nil {
		return nil, "", err
	}
	target, err := c.relocateTarget(r, nodes)
	if err != nil {
		return nil, "", err
	}
	steps := c.relocation(r, target, target[0])
	if len(steps) == 0 {
		return nil, fmt.Sprintf("%v is there already", r.id()), nil
	}
	return newOperator(r, kindRequest, fmt.Sprintf("relocation to %s was asked for",
		names(target)), steps...), "", nil
}

// relocateTarget checks the nodes that a relocation names.
func (c *cluster) relocateTarget(r *rangeState, nodes []uint64) ([]ids.NodeID, error) {
	if len(nodes) != r.rule.Replicas {
		return nil, fmt.Errorf("%w: rule %s keeps %d copies of %v on different nodes: name as "+
			"many, not %d", ErrRefused, r.rule.Name, r.rule.Replicas, r.id(), len(nodes))
	}
	var target []ids.NodeID
	for _, number := range nodes {
		id := ids.NodeID(number)
		n := c.nodes[id]
		switch {
		case slices.Contains(target, id):
			return nil, fmt.Errorf("%w: %v is named twice, but a node holds one copy of a range",
				ErrRefused, id)
		case n == nil || n.desc == nil || n.gone():
			return nil, fmt.Errorf("%w: %w: %v", ErrRefused, ErrUnknownNode, id)
		case n.phase < phaseLive:
			return nil, fmt.Errorf("%w: %v has been silent for %s", ErrRefused, id,
				words(c.silence(n)))
		case n.sheds():
			return nil, fmt.Errorf("%w: %v is %s", ErrRefused, id, n.shedWords())
		case r.rule.Why(n.labels) != "":
			return nil, fmt.Errorf("%w: %s (%v)", ErrRefused, r.rule.Why(n.labels), id)
		case replicaOn(r.desc, id) == nil && !n.mayHold():
			return nil, fmt.Errorf("%w: %v takes no copies now: %s", ErrRefused, id, n.fullWords())
		}
		target = append(target, id)
	}
	if c.crowds(r, target) {
		return nil, fmt.Errorf("%w: there the copies of %v would stand nearer to one another than "+
			"they do and need to: %s", ErrRefused, r.id(), c.nearWords(r, target))
	}
	if lead := c.nodes[target[0]]; !lead.mayLead() {
		return nil, fmt.Errorf("%w: the first node is to lead, but %v may not now: %s", ErrRefused,
			lead.id, c.leadWords(lead))
	}
	return target, nil
}

// requestTransfer moves the leader of a range.
func (c *cluster) requestTransfer(
	r *rangeState, to ids.NodeID,
) (op *operator, note string, err error) {
	if err := c.idle(r); err != nil {
		return nil, "", err
	}
	if r.leader == to {
		return nil, fmt.Sprintf("%v leads %v already", to, r.id()), nil
	}
	n, p := c.nodes[to], replicaOn(r.desc, to)
	switch {
	case p == nil:
		var holders []ids.NodeID
		for _, x := range r.desc.GetReplicas() {
			holders = append(holders, ids.NodeID(x.GetNodeId()))
		}
		return nil, "", fmt.Errorf("%w: %v has no copy of %v that could lead it: choose one of %s",
			ErrRefused, to, r.id(), names(holders))
	case p.GetRole() != roleVoter:
		return nil, "", fmt.Errorf("%w: the copy of %v on %v does not vote", ErrRefused, r.id(), to)
	case !n.mayLead():
		return nil, "", fmt.Errorf("%w: %v may not lead now: %s", ErrRefused, to, c.leadWords(n))
	case c.mute(r, p):
		return nil, "", fmt.Errorf("%w: the copy of %v on %v does not answer its leader",
			ErrRefused, r.id(), to)
	}
	return newTransfer(r, kindRequest, to, fmt.Sprintf("transfer to %v was asked for", to)), "", nil
}

// shedWords says why leaders leave n.
func (n *node) shedWords() string {
	if n.standing != standingActive {
		return standingWords(n.standing)
	}
	return "stopping"
}

// fullWords says why n takes no copies.
func (n *node) fullWords() string {
	switch {
	case n.desc == nil:
		return "it is not registered"
	case n.gone():
		return "it is decommissioned"
	case n.phase < phaseLive:
		return "it is silent"
	case n.sheds():
		return "it is " + n.shedWords()
	case n.readOnly:
		return "it takes no writes, its disk is nearly full"
	case n.crowded:
		return fmt.Sprintf("it has less than %d %% of its disk free", 100/fullBelow)
	case !n.full:
		return "it has not told yet what it leads"
	}
	return ""
}

// leadWords says why n may not lead.
func (c *cluster) leadWords(n *node) string {
	if why := c.settleWords(n); why != "" && n.full && !n.sheds() && !n.readOnly {
		return why
	}
	return n.fullWords()
}

// last returns the range with the highest keys, nil if none is known.
func (dir *directory) last() *rangeState {
	_, r, _ := dir.byStart.Max()
	return r
}
