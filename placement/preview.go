package placement

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

// A preview compares all ranges with rules to come. That is a walk over everything,
// which only a person's question makes placement do. It goes in slices, and other work
// of the driver comes between them; what changes meanwhile is seen or not, as with any
// forecast.
const (
	// maxExamples bounds the moves that a preview names, maxNamedCuts the places where
	// it says that a range is split.
	maxExamples  = 5
	maxNamedCuts = 3
	// previewSlice bounds the work of one slice, counted in ranges: a few milliseconds.
	previewSlice = 4096
	// maxPreviews bounds the previews that are under way: who asks for another one is
	// told to ask again. The same question joins the walk that is under way.
	maxPreviews = 4
	// maxMemo bounds what a preview remembers of placements that it has judged.
	maxMemo = 1 << 16
)

// preview is one walk.
type preview struct {
	c     *cluster
	asked string // the rules, as bytes
	set   *rules.Set
	reply *adminpb.SetRulesReply
	done  []func(*adminpb.SetRulesReply, error)

	nodes    []*node // that may hold copies, by id
	byPlace  []*node
	places   map[ids.NodeID]place
	outlooks map[*rules.Rule]*outlook
	from     string // where it goes on
	work     int    // of this slice
}

// preview says what rules would move, compared with the present places of all ranges,
// in reply, which belongs to it. done is called once, possibly before preview returns.
func (d *Driver) preview(
	set *rules.Set, reply *adminpb.SetRulesReply, done func(*adminpb.SetRulesReply, error),
) {
	asked, err := marshal(reply.GetRules())
	if err != nil {
		done(nil, err)
		return
	}
	for _, p := range d.previews {
		if p.asked == string(asked) {
			p.done = append(p.done, done)
			return
		}
	}
	if len(d.previews) >= maxPreviews {
		done(nil, fmt.Errorf("%w: %d other sets of rules are being tried", ErrAskAgain,
			len(d.previews)))
		return
	}
	p := newPreview(d.cluster, set, proto.CloneOf(reply))
	p.asked, p.done = string(asked), append(p.done, done)
	d.previews = append(d.previews, p)
	d.walkOn(p)
}

// walkOn does one slice of a preview, and has the next one done later.
func (d *Driver) walkOn(p *preview) {
	i := slices.Index(d.previews, p)
	switch {
	case i < 0: // the tenure has ended
	case p.slice():
		d.cfg.Later(func() { d.walkOn(p) })
	default:
		d.previews = slices.Delete(d.previews, i, i+1)
		for _, done := range p.done {
			done(p.reply, nil)
		}
	}
}

// endPreviews gives up what is under way, when the tenure ends.
func (d *Driver) endPreviews() {
	open := d.previews
	d.previews = nil
	for _, p := range open {
		for _, done := range p.done {
			done(nil, fmt.Errorf("%w: this node stopped driving", ErrAskAgain))
		}
	}
}

func newPreview(c *cluster, set *rules.Set, reply *adminpb.SetRulesReply) *preview {
	p := &preview{c: c, set: set, reply: reply, places: make(map[ids.NodeID]place),
		outlooks: make(map[*rules.Rule]*outlook)}
	known := make(map[string]uint32)
	number := func(name string) uint32 {
		if _, ok := known[name]; !ok {
			known[name] = uint32(len(known))
		}
		return known[name]
	}
	inner := make(map[string]bool)
	for _, n := range c.nodes { // order-free: a set
		for i := range n.labels {
			inner[n.labels[:i].String()] = true
		}
	}
	for _, id := range c.order {
		n := c.nodes[id]
		parent, leaf := lineage(n.labels, inner)
		p.places[id] = place{number(parent), number(leaf)}
		if n.desc != nil && n.phase > phaseDead && n.standing == standingActive {
			p.nodes = append(p.nodes, n)
		}
	}
	p.byPlace = slices.Clone(p.nodes)
	p.sort(p.byPlace)
	return p
}

// sort brings nodes into the order of their places.
func (p *preview) sort(nodes []*node) {
	slices.SortStableFunc(nodes, func(a, b *node) int {
		x, y := p.places[a.id], p.places[b.id]
		return cmp.Or(cmp.Compare(x.parent, y.parent), cmp.Compare(x.leaf, y.leaf))
	})
}

// slice looks at some ranges and says whether there are more.
func (p *preview) slice() (more bool) {
	p.work = 0
	p.c.dir.byStart.Ascend(p.from, func(start string, r *rangeState) bool {
		if p.work >= previewSlice {
			p.from, more = start, true
			return false
		}
		p.see(r)
		return true
	})
	return more
}

// part is what a set of rules makes of a range, or of the piece of one.
type part struct {
	rule   *rules.Rule
	start  []byte
	moves  int  // copies to be made: wrong ones, missing ones, too near ones
	spare  int  // copies too many
	wrong  int  // copies where the rule allows none
	leader bool // another node is to lead
}

func (a part) idle() bool { return a.moves == 0 && a.spare == 0 && a.wrong == 0 && !a.leader }

// see counts what the rules would do to one range. One in which another rule begins is
// split there, and each piece goes by its own rule; how the bytes lie in it nobody
// knows, so that pieces count as equally large.
func (p *preview) see(r *rangeState) {
	start := r.desc.GetStart()
	bounds := p.set.Bounds(start, r.desc.GetEnd())
	p.work += 1 + len(bounds)
	bytes := uint64(max(0, r.load.bytes)) / uint64(len(bounds)+1)
	var room [1]part
	busy := room[:0]
	for i := -1; i < len(bounds); i++ {
		if i >= 0 {
			start = bounds[i]
		}
		a := p.judge(r, p.set.Of(start))
		if a.idle() {
			continue
		}
		a.start = start
		busy = append(busy, a)
		p.reply.ReplicasToMove += uint64(a.moves)
		p.reply.BytesToMove += uint64(a.moves) * bytes
		if a.leader {
			p.reply.LeadersToMove++
		}
	}
	if len(busy) == 0 && len(bounds) == 0 {
		return
	}
	p.reply.RangesAffected++
	if len(bounds) > 0 {
		p.reply.RangesToSplit++
	}
	if len(p.reply.Examples) < maxExamples {
		p.reply.Examples = append(p.reply.Examples, p.example(r, bounds, busy))
	}
}

// judge compares the copies of a range with a rule.
func (p *preview) judge(r *rangeState, rule *rules.Rule) part {
	a := part{rule: rule}
	o := p.outlook(rule)
	var room [maxCopies]*node
	held, best := room[:0], len(rule.Leaders)
	for _, x := range r.desc.GetReplicas() {
		n := p.c.nodes[ids.NodeID(x.GetNodeId())]
		if _, votes := votes(x.GetRole()); !votes {
			continue
		}
		if !rule.Allows(n.labels) {
			a.wrong++
			continue
		}
		held, best = append(held, n), min(best, rule.Preference(n.labels))
	}
	a.spare = max(0, len(held)-rule.Replicas)
	a.moves = max(0, rule.Replicas-len(held))
	if a.moves == 0 && a.spare == 0 {
		a.moves = p.tooNear(rule, o, held)
	}
	if a.moves > 0 { // a new copy may stand where leaders are wanted
		best = min(best, o.best)
	}
	if lead := p.c.nodes[r.leader]; lead != nil {
		a.leader = !rule.Allows(lead.labels) || best < rule.Preference(lead.labels)
	}
	return a
}

// example describes in words what would happen to one range.
func (p *preview) example(r *rangeState, bounds [][]byte, parts []part) string {
	if len(bounds) == 0 {
		return fmt.Sprintf("%v under rule %s: %s", r.id(), parts[0].rule.Name, p.words(r, parts[0]))
	}
	var cuts []string
	for _, at := range bounds[:min(len(bounds), maxNamedCuts)] {
		cuts = append(cuts, fmt.Sprintf("%s (rule %s)", keyWords(at), p.set.Of(at).Name))
	}
	if more := len(bounds) - len(cuts); more > 0 {
		cuts = append(cuts, fmt.Sprintf("%d more keys", more))
	}
	text := fmt.Sprintf("%v is split at %s", r.id(), strings.Join(cuts, ", "))
	for _, a := range parts[:min(len(parts), maxNamedCuts)] {
		text += fmt.Sprintf("; its part from %s under rule %s: %s", keyWords(a.start),
			a.rule.Name, p.words(r, a))
	}
	return text
}

// words says what a part of a range has to do.
func (p *preview) words(r *rangeState, a part) string {
	var all []string
	for _, x := range r.desc.GetReplicas() {
		n := p.c.nodes[ids.NodeID(x.GetNodeId())]
		if _, votes := votes(x.GetRole()); votes && !a.rule.Allows(n.labels) {
			all = append(all, fmt.Sprintf("leaves %v: %s", n.id, a.rule.Why(n.labels)))
		}
	}
	if n := a.moves - a.wrong; n > 0 {
		all = append(all, count(n, "copy")+" more to be made or moved apart")
	}
	if a.spare > 0 {
		all = append(all, count(a.spare, "copy")+" fewer")
	}
	if a.leader {
		all = append(all, "another leader")
	}
	return strings.Join(all, ", ")
}

// place numbers where a node stands: parent is the same for nodes that differ in the
// value of their smallest tier only, leaf for nodes that do not differ.
type place struct{ parent, leaf uint32 }

// lineage names the family of a node and its place. One that stands in an inner place,
// in which others have places of their own, is in a family of its own: its smallest tier
// does make a difference to those.
func lineage(l rules.Labels, inner map[string]bool) (parent, leaf string) {
	leaf = l.String()
	if inner[leaf] || len(l) == 0 {
		return leaf + " itself", leaf
	}
	last := len(l) - 1
	return l[:last].String() + " by " + l[last].Key, leaf
}

// outlook is what a rule finds among the nodes.
type outlook struct {
	ideal int            // Collisions of copies that stand as far apart as can be
	best  int            // preference of the node that the rule likes best as a leader
	reps  []rules.Labels // nodes of which each stands for others; see tooNear
	memo  map[string]int // answers of tooNear
}

func (p *preview) outlook(rule *rules.Rule) *outlook {
	if o := p.outlooks[rule]; o != nil {
		return o
	}
	o := &outlook{best: len(rule.Leaders), memo: make(map[string]int)}
	var usable []rules.Labels
	seen, in := map[uint32]bool{}, map[uint32]int{}
	for _, n := range p.nodes {
		if rule.Allows(n.labels) {
			usable = append(usable, n.labels)
			o.best = min(o.best, rule.Preference(n.labels))
		}
	}
	for _, n := range p.byPlace {
		if !rule.Allows(n.labels) {
			continue
		}
		if at := p.places[n.id]; !seen[at.leaf] && in[at.parent] <= rule.Replicas {
			seen[at.leaf] = true
			in[at.parent]++
			o.reps = append(o.reps, n.labels)
		}
	}
	o.ideal = idealOf(rule, usable)
	p.outlooks[rule] = o
	return o
}

// tooNear returns how many copies must move until they stand as far apart as the nodes
// allow, trying the best single move again and again.
//
// Nodes that differ in their smallest tier alone are alike to copies that stand on none
// of them. So of each such family one more node than there are copies is enough to try,
// and the answer depends on the families of the nodes alone, and on which of them are in
// the same place altogether: that is what answers are kept by. It orders nodes.
func (p *preview) tooNear(rule *rules.Rule, o *outlook, nodes []*node) (moves int) {
	if o.ideal == math.MaxInt {
		return 0
	}
	var room [maxCopies]rules.Labels
	held := room[:0]
	for _, n := range nodes {
		held = append(held, n.labels)
	}
	if rule.Collisions(held) <= o.ideal {
		return 0
	}
	p.sort(nodes) // of equally good moves the first is taken, whichever copies it is about
	for i, n := range nodes {
		held[i] = n.labels
	}
	key := p.family(nodes)
	if moves, known := o.memo[key]; known {
		return moves
	}
	for rule.Collisions(held) > o.ideal && moves < len(held) {
		at, to := o.farther(rule, held)
		p.work += len(held)*len(o.reps)/16 + 1
		if at < 0 {
			break
		}
		held[at] = to
		moves++
	}
	if len(o.memo) < maxMemo {
		o.memo[key] = moves
	}
	return moves
}

// farther finds the single move that brings copies farthest apart; at is -1 if none
// does.
func (o *outlook) farther(rule *rules.Rule, held []rules.Labels) (at int, to rules.Labels) {
	at = -1
	best := 0
	for i := range held {
		rest := slices.Delete(slices.Clone(held), i, i+1)
		now := rule.Adds(rest, held[i])
		for _, n := range o.reps {
			if gain := now - rule.Adds(rest, n); gain > best {
				at, to, best = i, n, gain
			}
		}
	}
	return at, to
}

// family names the places of nodes in order, up to what makes no difference to tooNear.
func (p *preview) family(nodes []*node) string {
	var key []byte
	var last place
	for i, n := range nodes {
		x, same := p.places[n.id], byte(0)
		if i > 0 && x == last {
			same = 1
		}
		last = x
		key = append(binary.BigEndian.AppendUint32(key, x.parent), same)
	}
	return string(key)
}
