package placement

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Explain says why a range is where it is, and why it does or does not move, in
// lines of words. Nothing is decided by it. Errors wrap ErrUnknownRange or
// ErrAskAgain.
func (d *Driver) Explain(r *adminpb.ExplainRequest) (*adminpb.ExplainReply, error) {
	if !d.Active() {
		return nil, fmt.Errorf("%w: this node does not drive placement", ErrAskAgain)
	}
	c := d.cluster
	s := c.dir.byID[ids.RangeID(r.GetRangeId())]
	if r.GetRangeId() == 0 {
		c.dir.overlapped(r.GetKey(), append(bytes.Clone(r.GetKey()), 0), func(o *rangeState) bool {
			s = o
			return false
		})
	}
	switch {
	case s == nil && !d.planning:
		return nil, fmt.Errorf("%w: not all nodes have told yet what they lead", ErrAskAgain)
	case s == nil && r.GetRangeId() == 0:
		return nil, fmt.Errorf("%w that holds the key %s", ErrUnknownRange, keyWords(r.GetKey()))
	case s == nil:
		return nil, fmt.Errorf("%w: r%d", ErrUnknownRange, r.GetRangeId())
	}
	c.influence()
	e := &explainer{c: c, r: s}
	e.what()
	e.copies()
	e.leader()
	e.missing()
	e.shape()
	e.moves(d.planning)
	e.past()
	return &adminpb.ExplainReply{Range: s.info(), Lines: e.lines}, nil
}

// explainer collects the lines about one range.
type explainer struct {
	c     *cluster
	r     *rangeState
	lines []string
}

func (e *explainer) say(format string, args ...any) {
	e.lines = append(e.lines, fmt.Sprintf(format, args...))
}

// what says what the range is and what its rule wants.
func (e *explainer) what() {
	r := e.r
	e.say("%v holds %s: %s", r.id(), spanWords(r.desc), size(r.load.bytes))
	e.say("rule %s: %v", r.rule.Name, r.rule.Rule)
	if goal := e.c.current(r.rule).goal(); goal < r.rule.Replicas {
		e.say("the cluster has %s for this rule, so %s", count(r.rule.fit, "node"),
			count(goal, "copy"))
	}
	if e.r.straddles {
		e.say("another rule begins inside it: it is to be split there")
	}
}

// spanWords says which keys a range holds.
func spanWords(d *metapb.RangeDescriptor) string {
	if ids.RangeID(d.GetRangeId()) == systemRange {
		return "what the cluster keeps of itself"
	}
	end := keyWords(d.GetEnd())
	if e := d.GetEnd(); len(e) == 1 && e[0] == kv.EndPrefix {
		end = "the end of the keyspace"
	}
	return fmt.Sprintf("keys from %s to %s", keyWords(d.GetStart()), end)
}

// copies says where each copy is and why.
func (e *explainer) copies() {
	for _, p := range e.r.desc.GetReplicas() {
		n := e.c.nodes[ids.NodeID(p.GetNodeId())]
		e.say("%s on %v (%v): %s", roleWords(p.GetRole()), n.id, n.labels, e.whyThere(n))
		if why := e.c.settleWords(n); why != "" && n.falls > 1 {
			e.say("%v%s", n.id, strings.TrimPrefix(why, "it"))
		}
	}
	labels, key := e.c.labelsOf(e.r, 0), e.isolation()
	if key == "" || len(labels) < 2 {
		return
	}
	if place := rules.Majority(labels, key); place != "" {
		e.say("%s holds a majority of the copies: its loss stops the range", place)
		if e.c.collisions(e.r) <= e.c.current(e.r.rule).ideal {
			e.say("the nodes that are here allow no better: a copy goes elsewhere when one there " +
				"can take it (under a rule with isolation it would be missing until then)")
		}
	} else {
		e.say("no %s holds a majority of the copies", key)
	}
}

func roleWords(role metapb.ReplicaRole) string {
	switch role {
	case roleVoter:
		return "copy"
	case roleLearner:
		return "learner"
	default:
		return "copy whose vote is being changed"
	}
}

// whyThere says what is to be said for or against a copy on n.
func (e *explainer) whyThere(n *node) string {
	r := e.r
	switch why := r.rule.Why(n.labels); {
	case n.gone():
		return "the node is decommissioned, the copy counts as lost"
	case n.phase == phaseDead:
		return fmt.Sprintf("the node has been silent for %s and counts as dead",
			words(e.c.silence(n)))
	case n.standing == standingDecommissioning:
		return "the node is being decommissioned, the copy is to leave"
	case n.desc != nil && why != "":
		return "it must not be there: " + why
	case n.phase < phaseLive:
		return fmt.Sprintf("the node has been silent for %s; after %s the copy is replaced",
			words(e.c.silence(n)), words(e.c.deadAfter))
	case e.isolation() == "":
		return "allowed by the rule" + e.filled(n)
	default:
		return e.shares(n) + e.filled(n)
	}
}

// isolation returns the key of the label by which the copies are to stand apart.
func (e *explainer) isolation() string { return e.r.rule.Isolation(e.c.localities()) }

// shares says with what other copies a copy stands together.
func (e *explainer) shares(n *node) string {
	var near []string
	key := e.isolation()
	place := n.labels.Place(key)
	for _, p := range e.r.desc.GetReplicas() {
		o := e.c.nodes[ids.NodeID(p.GetNodeId())]
		if o != n && o.labels.Place(key) == place {
			near = append(near, o.id.String())
		}
	}
	switch {
	case place == "":
		return fmt.Sprintf("allowed by the rule, but the node has no %s", key)
	case len(near) == 0:
		return fmt.Sprintf("no other copy is in this %s", key)
	}
	return fmt.Sprintf("its %s is that of the copy on %s, too", key, strings.Join(near, ", "))
}

func (e *explainer) filled(n *node) string {
	return fmt.Sprintf("; the node holds %s in %s", size(n.load.bytes),
		count(n.holds.Len(), "copy"))
}

// leader says who leads and why there.
func (e *explainer) leader() {
	r := e.r
	if e.c.headless(r) {
		e.say("nobody is known to lead it")
		return
	}
	n := e.c.nodes[r.leader]
	switch rank := r.rule.Preference(n.labels); {
	case n.sheds():
		e.say("%v leads it, but is %s: the leader is to move", n.id, n.shedWords())
	case rank < len(r.rule.Leaders):
		e.say("%v leads it: the rule prefers leaders on %v", n.id, r.rule.Leaders[rank])
	case len(r.rule.Leaders) > 0:
		e.say("%v leads it, although the rule prefers leaders on %v", n.id, r.rule.Leaders[0])
	default:
		least, most := e.leaders()
		e.say("%v leads it, and %s in all; nodes lead between %d and %d", n.id,
			count(n.leads.Len(), "range"), least, most)
	}
}

// leaders returns the fewest and the most ranges that a node leads which may lead.
func (e *explainer) leaders() (least, most int) {
	least = -1
	for _, id := range e.c.order {
		if n := e.c.nodes[id]; n.mayLead() {
			if led := n.leads.Len(); least < 0 || led < least {
				least = led
			}
			most = max(most, n.leads.Len())
		}
	}
	return max(0, least), most
}

// missing says what the range lacks.
func (e *explainer) missing() {
	r, h := e.r, e.c.condition(e.r)
	voters, live := 0, 0
	for _, p := range r.desc.GetReplicas() {
		n := e.c.nodes[ids.NodeID(p.GetNodeId())]
		if _, votes := votes(p.GetRole()); votes {
			voters++
			if n.phase >= phaseLive {
				live++
			}
		}
		if p.GetRole() == roleLearner && !slices.Contains(r.caughtUp, p.GetReplicaId()) {
			e.say("the learner on %v does not hold the log yet", n.id)
		}
		if e.c.mute(r, p) {
			e.say("the copy on %v does not answer its leader", n.id)
		}
	}
	switch {
	case live < voters/2+1:
		e.say("%d of %d voters are on live nodes: no majority, it serves nothing", live, voters)
	case h.tolerates == 0 && voters > 1:
		e.say("%d of %d voters are on live nodes: the next failure stops it", live, voters)
	case voters == 1:
		e.say("its only voter is on a live node: the next failure stops it")
	default:
		e.say("%d of %d voters are on live nodes: it survives %s", live, voters,
			count(int(h.tolerates), "failure"))
	}
	if r.changing() {
		what := "it is between two configurations"
		if r.desc.GetMerge() != nil {
			what = mergeWords(r.desc)
		}
		e.say("%s, for %s; its leader ends that by itself", what, words(e.c.now-r.changedAt))
	}
}

// shape says why the range has the bounds that it has.
func (e *explainer) shape() {
	r, told := e.r, 0
	e.c.history.shapes.newest(func(s *reshape) bool {
		ago := words(e.c.now - s.at)
		switch {
		case s.merged && s.left == r.id():
			e.say("%s ago it absorbed %v: %s", ago, s.right, s.why)
		case !s.merged && s.left == r.id():
			e.say("%s ago it was split at %s: %s", ago, keyWords(s.key), e.c.shapeCause(s))
		case !s.merged && bytes.Equal(s.key, r.desc.GetStart()):
			e.say("%s ago it was split off %v: %s", ago, s.left, e.c.shapeCause(s))
		default:
			return true
		}
		told++
		return told < maxNamed
	})
	if r.hotBecause != "" {
		e.say("it is hot but not split by load: %s", r.hotBecause)
	}
	if left := e.c.dir.previous(r); left != nil && e.c.sticky(r) > 0 {
		e.say("it was split off %v because somebody asked for it, and is kept apart %s", left.id(),
			e.c.stickyWords(r))
	}
	e.mergeable()
}

// mergeable says why a small range is not merged.
func (e *explainer) mergeable() {
	c, r := e.c, e.r
	if !c.tiny(r) {
		return
	}
	right := c.dir.after(r)
	switch {
	case right == nil || right.id() == systemRange:
		return
	case right.rule.Rule != r.rule.Rule:
		e.say("it is small and cold, but %v, its right neighbour, is under rule %s: ranges of two "+
			"rules are never merged", right.id(), right.rule.Name)
	case c.sticky(right) > 0:
		e.say("it is small and cold, but %v, its right neighbour, was split off because somebody "+
			"asked for it: it is kept apart %s", right.id(), c.stickyWords(right))
	case !c.smallTogether(r, right):
		e.say("it is small and cold; with %v, its right neighbour, it would be too large or "+
			"too hot to be merged", right.id())
	case !c.settledFor(r) || !c.settledFor(right) || r.mergeAt > c.now:
		e.say("it is small and cold, and is merged with %v when both have been so for %s",
			right.id(), words(c.mergeAfter))
	case c.unmergeable(r, right) != "":
		e.say("it is small and cold, but cannot be merged with %v: %s", right.id(),
			c.unmergeable(r, right))
	}
}

// moves says what is being done with the range, or what keeps it where it is.
func (e *explainer) moves(planning bool) {
	c, r := e.c, e.r
	if op := c.holder[r.id()]; op != nil {
		at := "the last step is done"
		if op.at < len(op.steps) {
			s := op.steps[op.at]
			at = s.String()
			if of := op.rangeOf(c, s); of != nil && s.held(c, of) != "" {
				at += ", which is held back: " + s.held(c, of)
			}
		}
		e.say("operator %d (%v) runs since %s: %s; now: %s", op.id, op.kind,
			words(c.now-op.created), op.reason, at)
		return
	}
	if why := c.holdup(r, planning); why != "" {
		e.say("it does not move: %s", why)
		return
	}
	e.say("it does not move: nothing is wrong with it, and nodes hold between %s and %s",
		size(e.bytes(false)), size(e.bytes(true)))
}

// bytes returns the most, or the least, that a node holds which takes copies.
func (e *explainer) bytes(most bool) (bytes int64) {
	bytes = -1
	for _, id := range e.c.order {
		n := e.c.nodes[id]
		if n.mayHold() && (bytes < 0 || most == (n.load.bytes > bytes)) {
			bytes = n.load.bytes
		}
	}
	return max(0, bytes)
}

// past tells the last operators of the range.
func (e *explainer) past() {
	told := 0
	e.c.history.ended.newest(func(o *ended) bool {
		if !o.op.holds(e.r.id()) {
			return true
		}
		line := fmt.Sprintf("%s ago: %v, %v: %s", words(e.c.now-o.at), o.op.kind, o.outcome,
			o.op.reason)
		if o.err != "" {
			line += " (" + o.err + ")"
		}
		e.say("%s", line)
		told++
		return told < maxNamed
	})
}

// holdup says what keeps r from being changed although something should be, or
// would be if it could; "" if nothing does, or nothing should be.
func (c *cluster) holdup(r *rangeState, planning bool) string {
	h := c.condition(r)
	switch {
	case !planning:
		return "a new driver of placement waits until all nodes have told what they hold"
	case c.settings.GetPaused():
		return "placement is paused by " + c.settings.GetPausedBy()
	case h.leaderless:
		return "it has no leader that could do it"
	case r.changing():
		return "its leader is changing it"
	case c.recovers(r):
		return c.recovery(r)
	case h.need == needNothing && r.restUntil > c.now:
		return fmt.Sprintf("it was moved a moment ago and rests for another %s",
			words(r.restUntil-c.now))
	case h.need == needNothing && h.under:
		return fmt.Sprintf("a node that is silent is given %s to come back", words(c.deadAfter))
	case h.need == needNothing:
		return ""
	}
	s := c.survey(r)
	switch p := check(c, r); {
	case p.op != nil:
		return "it is next in line: " + p.op.reason
	case p.why != "":
		return p.why
	case p.paced:
		return "the nodes that it needs are busy with other copies"
	case s.candidates == 0 && h.need != needCleanup:
		return "no other node may take a copy: " + c.whyNobody(r)
	case len(s.voters) < r.rule.Replicas && s.waiting == 0:
		return "an even number of copies would survive no more than an odd one"
	case h.need == needRule:
		return "there is no better place for any copy now"
	}
	return "it waits for nodes that are silent or starting"
}

// recovery says why r rests since an operator failed.
func (c *cluster) recovery(r *rangeState) string {
	why := fmt.Sprintf("it rests for another %s after %s", words(r.restUntil-c.now),
		count(int(r.failures), "failure"))
	if last := c.lastFailure(r.id()); last != nil {
		why += ", the last one: " + last.err
	}
	return why
}

// whyNobody says for each node why it takes no copy of r.
func (c *cluster) whyNobody(r *rangeState) string {
	var all []string
	for _, id := range c.order {
		n := c.nodes[id]
		if n.desc == nil || n.gone() || replicaOn(r.desc, id) != nil {
			continue
		}
		why := cmp.Or(r.rule.Why(n.labels), n.fullWords(), c.whyBarred(r, n))
		if len(all) == maxNamed {
			return strings.Join(all, "; ") + "; and so on"
		}
		all = append(all, fmt.Sprintf("%v: %s", id, why))
	}
	if len(all) == 0 {
		return "every node has one"
	}
	return strings.Join(all, "; ")
}

func (c *cluster) lastFailure(id ids.RangeID) (last *ended) {
	c.history.ended.newest(func(e *ended) bool {
		if e.op.holds(id) && e.outcome == failed {
			last = e
		}
		return last == nil
	})
	return last
}

// count says how many of something there are: 1 copy, 2 copies.
func count(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "y"):
		return fmt.Sprintf("%d %sies", n, strings.TrimSuffix(noun, "y"))
	default:
		return fmt.Sprintf("%d %ss", n, noun)
	}
}
