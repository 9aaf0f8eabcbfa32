package placement

import (
	"context"
	"log/slog"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// farAway is a time that never comes.
const farAway = -never

// advanceAll looks after the running operators.
func (d *Driver) advanceAll() {
	var all []*operator
	d.cluster.ops.Scan(func(_ uint64, op *operator) bool {
		all = append(all, op)
		return true
	})
	for _, op := range all {
		d.advance(op)
	}
}

// advance moves one operator on and ends it if it is done or hopeless.
func (d *Driver) advance(op *operator) {
	before := op.at
	result, why := op.advance(d.cluster)
	if result != running {
		d.end(op, result, why)
		return
	}
	if op.at != before {
		d.log.Debug("operator goes on", "range", uint64(op.rng), "op", op.steps[op.at].String())
	}
}

// end takes an operator out, and has its ranges looked at again.
func (d *Driver) end(op *operator, result outcome, why string) {
	c := d.cluster
	c.removeOperator(op)
	c.unbalanced = true
	c.history.ended.push(ended{op: op, at: c.now, outcome: result, err: why})
	d.counts.end(op.kind, result)
	ctx, level := context.Background(), level(op)
	switch result {
	case failed:
		d.log.Warn("operator failed", "range", uint64(op.rng), "op", op.String(), "error", why)
	case cancelled:
		d.log.Log(ctx, level, "operator cancelled",
			"range", uint64(op.rng), "op", op.String(), "reason", why)
	default:
		d.log.Log(ctx, level, "operator done", "range", uint64(op.rng), "op", op.String())
	}
	c.judge(op, result)
	c.scattering(op.scatter).tell(c, op, result)
	for _, id := range [...]ids.RangeID{op.rng, op.other} {
		r := c.dir.byID[id]
		if r == nil {
			continue
		}
		switch result {
		case failed:
			c.giveRest(r, restAfter<<min(r.failures, maxRestDoublings))
			r.failures++
			r.avoid = 0
			switch s := op.steps[op.at]; s.kind {
			case addLearner, catchUp, promote, swap:
				r.avoid = s.node
			}
		case succeeded:
			r.failures, r.avoid = 0, 0
			if op.from != 0 || op.kind == kindBytes || op.kind == kindHot {
				// The next move of this range has time. What it needs does not wait.
				c.giveRest(r, restAfter)
			}
		}
		c.review(r)
		c.consider(r)
	}
}

// judge keeps in mind which nodes copies do not get to: balancing must not try one
// range there after the other.
func (c *cluster) judge(op *operator, result outcome) {
	for i, s := range op.steps {
		if s.kind != catchUp {
			continue
		}
		n := c.node(s.node)
		switch {
		case i < op.at:
			c.trust(n)
		case result == failed && i == op.at:
			c.shun(n)
		}
	}
}

// giveRest forbids operators on r for a while: those that make its placement better,
// and after a failure all that nobody asked for.
func (c *cluster) giveRest(r *rangeState, pause time.Duration) {
	r.restUntil = c.now + pause
	c.resting.Set(rest{until: r.restUntil, id: r.id()})
}

// plan begins operators within the limits: first what ranges need, then what makes
// the placement better, the cheaper first.
func (d *Driver) plan() {
	c := d.cluster
	c.sweepSome()
	paused := c.settings.GetPaused()
	if paused && len(c.sched.scatters) == 0 {
		return
	}
	left := d.left()
	if !paused { // else only what people have asked for by hand goes on
		d.mend(&left)
		d.merge(&left)
	}
	ops, _ := c.schedule(left)
	for _, op := range ops {
		d.begin(op)
	}
}

// left returns how many more operators may begin.
func (d *Driver) left() budget {
	c := d.cluster
	b := budget{
		transfers: max(d.cfg.MaxTransfers, len(c.dir.byID)/rangesPerTransfer),
		limit:     c.moveLimit(d.cfg.MaxMoves),
	}
	b.moves = b.limit
	c.ops.Scan(func(_ uint64, op *operator) bool {
		switch {
		case op.from != 0:
			b.transfers--
		case op.kind != kindMerge: // merges have a limit of their own
			b.moves--
		}
		return true
	})
	return b
}

// mend begins what ranges need, the most endangered first. What it does not come to,
// since that would take too long, follows with the next Steps.
func (d *Driver) mend(left *budget) {
	c := d.cluster
	var paced []wanting
	counted := false
	most := min(left.moves, maxBegun)
	for looks := 0; looks < maxChecks && most > 0 && len(paced) < maxPaced; looks++ {
		r := c.nextNeedy()
		if r == nil {
			break
		}
		if !counted {
			c.influence()
			counted = true
		}
		switch p := check(c, r); {
		case p.op != nil:
			d.begin(p.op)
			c.expect(p.op)
			left.moves--
			most--
		case p.why != "":
			c.resting.Set(rest{until: c.now + lookAgain, id: r.id()})
		case p.paced:
			paced = append(paced, r.wanting())
		}
	}
	for _, w := range paced {
		c.attention.Set(w)
	}
}

// nextNeedy takes the next range to be checked, the most endangered first. One that
// is busy is reviewed when its operator has ended. While reviews are behind the less
// endangered ones wait: see sweep.
func (c *cluster) nextNeedy() *rangeState {
	for {
		w, ok := c.attention.Min()
		if !ok || w.need > needUrgent && c.sweep.behind() {
			return nil
		}
		c.attention.Delete(w)
		if !c.busy(w.id) {
			return c.dir.byID[w.id]
		}
	}
}

// merge begins merges whose time has come. Copies move for a merge only while
// nothing waits to be mended.
func (d *Driver) merge(left *budget) {
	c := d.cluster
	running := 0
	c.ops.Scan(func(_ uint64, op *operator) bool {
		if op.other != 0 {
			running++
		}
		return true
	})
	limit := max(minMerges, c.registered/nodesPerMerge)
	for looks := 0; looks < maxMergeLooks && running < limit && left.moves > 0; looks++ {
		op, more := c.nextMerge()
		if op != nil {
			d.begin(op)
			c.expect(op)
			running++
		}
		if !more {
			return
		}
	}
}

// level is what an operator's begin and end are logged at. Leaders alone move by
// the ten thousand after the restart of a dense node, and no data with them.
func level(op *operator) slog.Level {
	if op.from != 0 {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func (d *Driver) begin(op *operator) {
	d.cluster.addOperator(op)
	d.counts.begun[op.kind]++
	d.log.Log(context.Background(), level(op), "operator begins",
		"range", uint64(op.rng), "op", op.String())
}

// counts are how many operators there were, since the process began.
type counts struct {
	begun, done, failed, cancelled [kinds]uint64
}

func (n *counts) end(k kind, o outcome) {
	switch o {
	case failed:
		n.failed[k]++
	case cancelled:
		n.cancelled[k]++
	default:
		n.done[k]++
	}
}

// Count is how many operators of one kind there were since the process began.
type Count struct {
	Kind                           string
	Begun, Done, Failed, Cancelled uint64
}

// Counts returns the operators that this driver began, by kind, in all its tenures.
func (d *Driver) Counts() []Count {
	all := make([]Count, kinds)
	for k := range kinds {
		all[k] = Count{kind(k).String(), d.counts.begun[k], d.counts.done[k], d.counts.failed[k],
			d.counts.cancelled[k]}
	}
	return all
}

// Tokens is how many copies are under way to and from a node, by the operators that
// run.
type Tokens struct {
	Node               ids.NodeID
	Receiving, Sending int
}

// Tokens returns what registered nodes receive and send, by id.
func (d *Driver) Tokens() []Tokens {
	c := d.cluster
	c.influence()
	var all []Tokens
	for _, id := range c.order {
		if n := c.nodes[id]; n.desc != nil && !n.gone() {
			all = append(all, Tokens{id, n.pending.receiving, n.pending.sending})
		}
	}
	return all
}
