package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// restWithin is how long after healing the cluster may take until placement has
// nothing to do any more. A range whose operators have failed again and again in the
// storm rests for minutes.
const restWithin = 8 * time.Minute

// agreeWithin is for how long replicas may differ then, whatever moves.
const agreeWithin = 2 * time.Minute

func rangeOf(d *metapb.RangeDescriptor) ids.RangeID { return ids.RangeID(d.RangeId) }

// unplaced says what placement has still to do at rest, nil if nothing: people's
// wishes are granted, no operator runs, every range has its copies where its rule
// wants them, and nodes that leave have left.
func (s *Sim) unplaced() error {
	if what := s.people.open(); what != "" {
		return fmt.Errorf("a wish is not granted: %s", what)
	}
	n := s.people.driver()
	if n == nil {
		return fmt.Errorf("nobody drives placement")
	}
	if lines := n.operators(); len(lines) > 0 {
		return fmt.Errorf("%d operators run: %s", len(lines), lines[0])
	}
	set, faults := rules.New(n.driver.Rules())
	if set == nil {
		return fmt.Errorf("the rules in force are none: %v", faults)
	}
	for _, d := range s.checker.tiles.list {
		if err := s.misplaced(set, d); err != nil {
			return err
		}
	}
	for _, m := range s.machines {
		if err := m.lingers(); err != nil {
			return err
		}
	}
	return nil
}

// operators lists those that run, if the node drives placement.
func (n *node) operators() (lines []string) {
	if n.driver == nil || !n.driver.Active() {
		return nil
	}
	for _, o := range n.driver.Operators(&adminpb.OperatorsRequest{}).Operators {
		lines = append(lines, fmt.Sprintf("operator %d of r%d, %s, at step %d of %v: %s",
			o.Id, o.RangeId, o.Kind, o.At, o.Steps, o.Reason))
	}
	return lines
}

// misplaced says in what a range differs from what its rule wants.
func (s *Sim) misplaced(set *rules.Set, d *metapb.RangeDescriptor) error {
	rule := set.Of(d.Start)
	if d.Merge != nil {
		return fmt.Errorf("r%d %s is marked", d.RangeId, describe(d))
	}
	all, certain := s.usable(rule)
	if len(certain) < min(rule.Replicas, len(all)) {
		return nil // what drains takes nothing in: some of it waits until that serves again
	}
	if d.RangeId != 1 && len(set.Bounds(d.Start, d.End)) > 0 {
		return fmt.Errorf("r%d %s lies under two rules", d.RangeId, describe(d))
	}
	var copies []rules.Labels
	for _, r := range d.Replicas {
		m := s.nodeOf(r.NodeId)
		if r.Role != 0 || m.standing >= decommissioning || !rule.Allows(m.labels()) {
			return fmt.Errorf("r%d %s has no voter of rule %s on %s", d.RangeId, describe(d),
				rule.Name, m)
		}
		copies = append(copies, m.labels())
	}
	if goal := oddFloor(min(rule.Replicas, len(certain))); len(copies) < goal {
		return fmt.Errorf("r%d %s has %d copies, rule %s wants %d", d.RangeId, describe(d),
			len(copies), rule.Name, goal)
	}
	if goal := oddFloor(min(rule.Replicas, len(all))); len(copies) > goal {
		return fmt.Errorf("r%d %s has %d copies, rule %s wants %d", d.RangeId, describe(d),
			len(copies), rule.Name, goal)
	}
	if place := rules.Majority(copies, "zone"); place != "" && rule.Spread == "zone" &&
		mayAvoid(certain, len(copies)) {
		return fmt.Errorf("r%d %s has a majority in %s", d.RangeId, describe(d), place)
	}
	return nil
}

func (n *node) labels() rules.Labels { return rules.ParseLabels(n.locality) }

func oddFloor(n int) int { return n - 1 + n%2 }

// usable returns the labels of the nodes that a rule allows: of all that do not leave
// for good, and of those that may be given copies.
func (s *Sim) usable(rule *rules.Rule) (all, certain []rules.Labels) {
	for _, m := range s.machines {
		if m.id >= provisional || m.standing >= decommissioning || !rule.Allows(m.labels()) {
			continue
		}
		all = append(all, m.labels())
		if m.standing == active {
			certain = append(certain, m.labels())
		}
	}
	return all, certain
}

// mayAvoid says whether so many copies can stand on nodes such that no zone holds a
// majority of them.
func mayAvoid(nodes []rules.Labels, copies int) bool {
	room, most := map[string]int{}, (copies-1)/2
	sum := 0
	for _, n := range nodes {
		if zone := n.Place("zone"); room[zone] < most {
			room[zone]++
			sum++
		}
	}
	return sum >= copies
}

// lingers says what a node has still that leaves.
func (n *node) lingers() error {
	replicas := n.replicas()
	switch {
	case n == n.sim.people.leaving && n.standing != decommissioned:
		return fmt.Errorf("%s is %v, with %d replicas", n, n.standing, len(replicas))
	case n.standing == decommissioned && len(replicas) > 0:
		return fmt.Errorf("%s is decommissioned and holds r%d", n, replicas[0].Descriptor.RangeId)
	case n.standing >= draining:
		if _, leaders := n.table.Counts(); leaders > 0 && !n.alone() {
			return fmt.Errorf("%s drains and leads %d ranges", n, leaders)
		}
	}
	list := n.sim.checker.tiles.list
	for _, r := range replicas {
		i := slices.IndexFunc(list, func(d *metapb.RangeDescriptor) bool {
			return d.RangeId == r.Descriptor.RangeId
		})
		if i < 0 || !holds(list[i], n) {
			return fmt.Errorf("%s holds replica %d of r%d, which is none of it", n, r.Replica,
				r.Descriptor.RangeId)
		}
	}
	return nil
}

func holds(d *metapb.RangeDescriptor, n *node) bool {
	return slices.ContainsFunc(d.Replicas, func(r *metapb.Replica) bool {
		return ids.NodeID(r.NodeId) == n.id
	})
}

// alone says whether a node leads ranges only that have no other copy.
func (n *node) alone() bool {
	for _, f := range n.table.Facts() {
		if len(f.Descriptor_.Replicas) > 1 {
			return false
		}
	}
	return true
}

// explain has placement say why ranges are as they are that it should have mended.
func (s *Sim) explain() string {
	n := s.people.driver()
	if n == nil {
		return ""
	}
	set, _ := rules.New(n.driver.Rules())
	var b strings.Builder
	for _, d := range s.checker.tiles.list {
		if set == nil || s.misplaced(set, d) == nil {
			continue
		}
		reply, err := n.driver.Explain(&adminpb.ExplainRequest{RangeId: d.RangeId})
		fmt.Fprintf(&b, "r%d: %v\n  %s\n", d.RangeId, err, strings.Join(reply.GetLines(), "\n  "))
	}
	for _, p := range n.driver.Nodes(n.physical.Monotonic()).Nodes {
		fmt.Fprintf(&b, "n%d is %v, stuck: %v\n", p.Status.Node.GetNodeId(), p.Status.Standing, p.Stuck)
	}
	return b.String()
}
