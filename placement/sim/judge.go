package sim

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// maxViolations bounds those that are kept.
const maxViolations = 20

// tally counts what happened since the last mark.
type tally struct {
	orders, refused int
	executed        map[metapb.OrderKind]int

	moves       int   // copies begun
	bytes       int64 // of snapshots
	splits      int
	loadSplits  int
	merges      int
	receiving   int           // most snapshots on their way to one node at a time
	receiveRate int64         // most bytes that one node received in a second
	leaderless  time.Duration // longest time that a range was without a leader
	twice       int           // copies that moved on within an hour after they came
	came        map[copyOf]time.Duration
}

// copyOf names a copy of a range by its node.
type copyOf struct {
	r ids.RangeID
	n ids.NodeID
}

func (t *tally) reset() {
	came := t.came
	if came == nil {
		came = make(map[copyOf]time.Duration)
	}
	*t = tally{executed: make(map[metapb.OrderKind]int), came: came}
}

func (t *tally) transfers() int {
	return t.executed[metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER]
}

// comes notes that a node gets a copy of r, goes that it loses one.
func (w *World) comes(r *simRange, n ids.NodeID) {
	w.tally.moves++
	w.tally.came[copyOf{r.id, n}] = w.now
}

func (w *World) goes(r *simRange, n ids.NodeID) {
	if came, ok := w.tally.came[copyOf{r.id, n}]; ok && w.now-came < time.Hour {
		w.tally.twice++
	}
	delete(w.tally.came, copyOf{r.id, n})
}

// least is what an oracle would have to move.
type least struct {
	moves     int
	bytes     int64
	transfers int
}

// violate notes that something happened which must not, whatever the script.
func (w *World) violate(format string, args ...any) {
	if len(w.violations) < maxViolations {
		w.violations = append(w.violations,
			fmt.Sprintf("%s ", clock(w.now))+fmt.Sprintf(format, args...))
	}
}

// How long after a node went down, or came up, placement cannot know of it, and orders
// by what was: it reports once a second, counts as silent after three, and what was
// begun before is called off with the next step.
const (
	blindTo  = 3500 * time.Millisecond // a node that went down
	blindFor = time.Second             // one that came up
)

// seems says whether a node is up, or placement cannot know yet that it is not.
func (w *World) seems(id ids.NodeID) bool {
	n := w.node(id)
	return n.up || n.died > 0 && w.now-n.died < blindTo
}

// lost says whether a node is down for so long that its copies are replaced, or was so
// until a moment ago.
func (w *World) lost(id ids.NodeID) bool {
	n := w.node(id)
	until := w.now
	if n.up {
		until = n.began
	}
	return (!n.up || w.now-n.began < blindFor) && until-n.died >= w.cfg.DeadAfter-2*heartbeatEvery
}

// judge looks at a change of a range's copies. That a majority is up after it as before
// is demanded as things are: the leader sees to that. The rest is demanded of what
// placement can know.
func (w *World) judge(before, after *metapb.RangeDescriptor) {
	id := ids.RangeID(before.GetRangeId())
	if w.survives(before, w.up) >= 0 && w.survives(after, w.up) < 0 {
		w.violate("%v lost its majority by a change of its copies: %v", id, words(after))
		return
	}
	if w.rule(before).GetReplicas() < 3 {
		return
	}
	weaker := func(up func(ids.NodeID) bool) bool {
		return w.survives(before, up) >= 1 && w.survives(after, up) < 1
	}
	if weaker(w.up) && weaker(w.seems) { // whether placement knew or not
		w.violate("%v can lose no node any more by a change of its copies: %v", id, words(after))
	}
	if zone := w.zoneMajority(after); zone != "" && w.avoidable(before, after) {
		w.violate("zone %s got a majority of %v: %v, before %v", zone, id, words(after), words(before))
	}
}

// avoidable says whether a zone need not have got a majority of a range's voters. It
// is no fault
//   - if one had it before;
//   - while there were fewer than three voters: one of two zones stopped them, too;
//   - if a voter was lost: then that zone's loss could stop the range before, and copies
//     elsewhere, even there, are better than none;
//   - if the other zones have too few nodes that can take a copy, or, where voters were
//     only taken away, too few of those.
//
// Under a rule with isolation only the first and the last of these excuse anything, and
// the last only where voters were taken away.
func (w *World) avoidable(before, after *metapb.RangeDescriptor) bool {
	voters, _ := halves(before)
	_, then := halves(after)
	rule := w.rule(before)
	switch {
	case w.zoneMajority(before) != "":
		return false
	case rule.GetIsolation() != "" && len(then) >= len(voters):
		return true
	case rule.GetIsolation() != "":
	case len(voters) < 3 || slices.ContainsFunc(voters, w.lost):
		return false
	}
	room := make(map[string]int)
	for _, n := range w.nodes {
		holds, s := slices.Contains(voters, n.id), w.standing[n.id]
		switch {
		case n.spec.Zone == "" || !allowed(rule, n):
		case len(then) < len(voters) && !holds: // only the choice among them was free
		case holds && s <= metapb.NodeStanding_NODE_STANDING_DRAINING,
			n.up && s == metapb.NodeStanding_NODE_STANDING_ACTIVE && w.now-n.began >= blindFor:
			room[n.spec.Zone]++
		}
	}
	sum, most := 0, max(1, (len(then)-1)/2)
	for _, nodes := range room { // order-free: a sum
		sum += min(nodes, most)
	}
	return sum >= len(then)
}

// zoneMajority returns the zone that holds a majority of d's voters, before or
// after a joint configuration; "" if none does.
func (w *World) zoneMajority(d *metapb.RangeDescriptor) string {
	before, after := halves(d)
	for _, half := range [][]ids.NodeID{before, after} {
		if len(half) < 3 {
			continue
		}
		count := make(map[string]int)
		for _, n := range half {
			zone := w.node(n).spec.Zone
			if count[zone]++; zone != "" && count[zone] > len(half)/2 {
				return zone
			}
		}
	}
	return ""
}

// words shows the copies of a descriptor.
func words(d *metapb.RangeDescriptor) string {
	text := ""
	for _, p := range d.GetReplicas() {
		mark := map[metapb.ReplicaRole]string{
			roleLearner: " learns", roleIncoming: " comes", roleDemoting: " goes",
		}[p.GetRole()]
		text += fmt.Sprintf(" n%d%s", p.GetNodeId(), mark)
	}
	return text[min(1, len(text)):]
}

// usable says whether a node should hold copies, and leaders.
func (w *World) usable(n *node) (copies, leaders bool) {
	s := w.standing[n.id]
	copies = n.up && s <= metapb.NodeStanding_NODE_STANDING_DRAINING
	return copies, copies && s == metapb.NodeStanding_NODE_STANDING_ACTIVE
}

// rule returns the rule of a range: of the longest prefix that its first key has.
// Slow and obvious on purpose; placement has its own.
func (w *World) rule(d *metapb.RangeDescriptor) *metapb.Rule {
	best := &metapb.Rule{Replicas: uint32(w.cfg.Factor)}
	longest := -1
	for _, r := range w.rules {
		prefix := string(r.GetPrefix())
		start := string(d.GetStart())
		inside := len(start) > 0 && start[0] == w.keys.key(0)[0] &&
			len(start[1:]) >= len(prefix) && start[1:1+len(prefix)] == prefix
		if (prefix == "" || inside) && len(prefix) > longest {
			best, longest = r, len(prefix)
		}
	}
	return best
}

// allowed says whether a rule lets a node hold copies.
func allowed(rule *metapb.Rule, n *node) bool {
	for _, l := range rule.GetRequire() {
		if !n.has(l) {
			return false
		}
	}
	return !slices.ContainsFunc(rule.GetForbid(), n.has)
}

// crowding is how many voters of d one zone must have at least.
func (w *World) crowding(d *metapb.RangeDescriptor) int {
	rule, room := w.rule(d), make(map[string]int)
	for _, n := range w.nodes {
		if copies, _ := w.usable(n); copies && allowed(rule, n) {
			room[n.spec.Zone]++
		}
	}
	for most := 1; ; most++ {
		sum := 0
		for _, nodes := range room { // order-free
			sum += min(nodes, most)
		}
		if sum >= int(rule.GetReplicas()) || most > len(w.nodes) {
			return most
		}
	}
}

// unsettled says in words what is not yet as it should be with a range, "" if
// nothing.
func (w *World) unsettled(r *simRange) string {
	before, voters := halves(r.desc)
	rule := w.rule(r.desc)
	room, in := 0, make(map[string]int)
	for _, n := range w.nodes {
		copies, _ := w.usable(n)
		if !copies || !allowed(rule, n) {
			continue
		}
		if in[n.spec.Zone]++; rule.GetIsolation() == "" ||
			in[n.spec.Zone] <= max(1, (int(rule.GetReplicas())-1)/2) {
			room++
		}
	}
	want := min(int(rule.GetReplicas()), room)
	want -= 1 - want%2
	switch {
	case r.leader == 0:
		return "has no leader"
	case joint(r.desc) || len(before) != len(voters) || hasLearner(r.desc) || r.change != nil:
		return "is being changed: " + words(r.desc)
	case len(voters) != want:
		return fmt.Sprintf("has %d copies, not %d: %s", len(voters), want, words(r.desc))
	}
	zones := make(map[string]int)
	for _, id := range voters {
		n := w.node(id)
		if copies, _ := w.usable(n); !copies || !allowed(rule, n) {
			return fmt.Sprintf("has a copy on %v", id)
		}
		if zones[n.spec.Zone]++; n.spec.Zone != "" && zones[n.spec.Zone] > w.crowding(r.desc) {
			return fmt.Sprintf("has %d copies in zone %s", zones[n.spec.Zone], n.spec.Zone)
		}
	}
	if _, leads := w.usable(w.node(r.leader)); !leads {
		return fmt.Sprintf("is led by %v", r.leader)
	}
	return ""
}

// bounds is how even a world must be to be at rest; shares of the mean, 0: any.
type bounds struct{ leaders, bytes float64 }

// unrest says in words why the world is not at rest, "" if it is.
func (w *World) unrest(b bounds) string {
	if d := w.driving(); d == nil {
		return "nobody drives placement"
	}
	if n := w.watch.running(); n > 0 {
		return fmt.Sprintf("%d operators run", n)
	}
	if why := w.uneven(b); why != "" { // first, because it is cheap
		return why
	}
	for _, id := range slices.Sorted(maps.Keys(w.ranges)) {
		if why := w.unsettled(w.ranges[id]); why != "" {
			return fmt.Sprintf("%v %s", id, why)
		}
	}
	return ""
}

// uneven says which node has too much or too little. One leader, and one range's
// size, more or less than the bound are as even as can be.
func (w *World) uneven(b bounds) string {
	largest := leastSnapshot
	for _, r := range w.ranges { // order-free: a maximum
		largest = max(largest, r.bytes)
	}
	shares := w.shares()
	for _, n := range w.nodes {
		s, ok := shares[n.id]
		if !ok {
			continue
		}
		if off := math.Abs(float64(len(n.leads)) - s.leaders); b.leaders > 0 && s.leads &&
			off > max(1.5, b.leaders*s.leaders) {
			return fmt.Sprintf("%v leads %d, its share is %.1f", n.id, len(n.leads), s.leaders)
		}
		if off := math.Abs(float64(n.bytes) - s.bytes); b.bytes > 0 &&
			off > max(float64(largest), b.bytes*s.bytes) {
			return fmt.Sprintf("%v holds %s, its share is %s", n.id, size(n.bytes), size(int64(s.bytes)))
		}
	}
	return ""
}

// share is what a node should have.
type share struct {
	leads          bool
	leaders, bytes float64
}

// shares divides leaders evenly and bytes by the size of disks, among the nodes
// that may have them. Rules are not looked at: where they pin ranges, a script says
// which bounds hold.
func (w *World) shares() map[ids.NodeID]share {
	var leaders, bytes, disks, leading float64
	for _, n := range w.nodes {
		leaders += float64(len(n.leads))
		bytes += float64(n.bytes)
		copies, leads := w.usable(n)
		if copies {
			disks += float64(n.spec.Disk)
		}
		if leads {
			leading++
		}
	}
	shares := make(map[ids.NodeID]share)
	for _, n := range w.nodes {
		if copies, leads := w.usable(n); copies {
			s := share{leads: leads, bytes: bytes * float64(n.spec.Disk) / disks}
			if leads {
				s.leaders = leaders / leading
			}
			shares[n.id] = s
		}
	}
	return shares
}

// leastWork is what has to be moved from now on: for every node that lacks bytes
// as many as it lacks, in ranges of the mean size, and the same of leaders.
func (w *World) leastWork() least {
	var l least
	var missing, total float64
	var leaders float64
	shares := w.shares()
	for _, id := range slices.Sorted(maps.Keys(shares)) {
		n, s := w.node(id), shares[id]
		missing += max(0, s.bytes-float64(n.bytes))
		leaders += max(0, s.leaders-float64(len(n.leads)))
	}
	copies := 0
	for _, n := range w.nodes {
		total += float64(n.bytes)
		copies += len(n.holds)
	}
	l.bytes = int64(missing)
	l.moves = int(math.Ceil(missing / max(1, total/float64(copies))))
	l.transfers = int(math.Ceil(leaders))
	return l
}

// mark begins to count anew, and works out the least that has to be moved.
func (w *World) mark() {
	w.tally.reset()
	w.least = w.leastWork()
	w.watch.mark()
}

// compare says where the driver's directory differs from what is true, "" if
// nowhere.
func (w *World) compare() string {
	d := w.driving()
	if d == nil {
		return ""
	}
	known, from := 0, []byte(nil)
	for {
		page := d.List(&adminpb.ListRangesRequest{Start: from}).GetRanges()
		for _, info := range page {
			id := ids.RangeID(info.GetDescriptor_().GetRangeId())
			r := w.ranges[id]
			switch {
			case r == nil:
				return fmt.Sprintf("placement knows %v, which is gone", id)
			case r.desc.GetGeneration() != info.GetDescriptor_().GetGeneration():
				return fmt.Sprintf("placement knows generation %d of %v, it is %d", id,
					info.GetDescriptor_().GetGeneration(), r.desc.GetGeneration())
			case r.leader != ids.NodeID(info.GetLeaderNode()):
				return fmt.Sprintf("placement believes that n%d leads %v, %v does",
					info.GetLeaderNode(), id, r.leader)
			}
			known++
		}
		if len(page) == 0 {
			break
		}
		from = page[len(page)-1].GetDescriptor_().GetEnd()
	}
	if known != len(w.ranges) {
		return fmt.Sprintf("placement knows %d of %d ranges", known, len(w.ranges))
	}
	return ""
}
