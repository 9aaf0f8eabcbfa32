package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Standings as people set them.
const (
	active          = metapb.NodeStanding_NODE_STANDING_ACTIVE
	draining        = metapb.NodeStanding_NODE_STANDING_DRAINING
	decommissioning = metapb.NodeStanding_NODE_STANDING_DECOMMISSIONING
	decommissioned  = metapb.NodeStanding_NODE_STANDING_DECOMMISSIONED
)

// insist is how often people ask again for what they want to be so in the end.
const insist = 400 * time.Millisecond

// people operate the cluster: they ask whoever drives placement for merges, moves
// and transfers, drain nodes, change rules, pause placement. What they ask for in
// passing may be refused or forgotten; a wish is repeated until it is granted.
type people struct {
	sim    *Sim
	rand   *rand.Rand
	wishes []*wish

	leaving   *node // is being decommissioned
	paused    bool  // placement, as the last answer said
	concluded bool
}

// wish is something that is asked for until it is granted.
type wish struct {
	what string
	ask  func(n *node, granted func())
	done bool
}

func newPeople(s *Sim) *people {
	return &people{sim: s, rand: stream(s.options.Seed, concernPerson)}
}

// begin is called once the cluster is assembled.
func (p *people) begin() {
	o := p.sim.options.Placement
	if o.Spread {
		p.wish("spread by zone", p.rules(func(s *metapb.RuleSet) { s.Rules[0].Spread = "zone" }))
	}
	if o.Replace {
		at := between(p.rand, 5*time.Second, p.sim.options.Duration/2)
		p.sim.loop.after(at, p.replaceOne)
	}
	if o.AskEvery > 0 {
		p.pass()
	}
	p.repeat()
}

// pass asks for something now and then, until the safety phase ends.
func (p *people) pass() {
	s := p.sim
	s.loop.after(between(p.rand, 0, 2*s.options.Placement.AskEvery), func() {
		if s.quiet {
			return
		}
		if n := p.driver(); n != nil {
			n.run(func() { p.ask(n) })
		}
		p.pass()
	})
}

// driver is the node that drives placement, nil if nobody can be asked.
func (p *people) driver() *node {
	for _, n := range p.sim.machines {
		if n.alive && !n.paused && n.driver != nil && n.driver.Active() {
			return n
		}
	}
	return nil
}

// ask asks the node that drives for one thing.
func (p *people) ask(n *node) {
	switch x := p.rand.IntN(100); {
	case x < 40:
		p.operate(n, "merges", &adminpb.OperateRequest{
			RangeId: p.someLeft(), What: &adminpb.OperateRequest_Merge{Merge: &adminpb.MergeWith{}},
		})
	case x < 58:
		p.relocate(n)
	case x < 66:
		p.operate(n, "transfers", &adminpb.OperateRequest{
			RangeId: p.someRange(), What: &adminpb.OperateRequest_Transfer{
				Transfer: &adminpb.TransferTo{NodeId: uint64(p.someone().id)},
			},
		})
	case x < 73:
		p.operate(n, "scatters", &adminpb.OperateRequest{
			What: &adminpb.OperateRequest_Scatter{Scatter: &adminpb.Scatter{
				Start: []byte{kv.UserPrefix}, End: userEnd(),
			}},
		})
	case x < 83:
		p.stand(n)
	case x < 90:
		p.pause(n, chance(p.rand, 0.5), func() {})
	default:
		p.someRule()(n, func() {})
	}
}

func (p *people) someone() *node {
	return p.sim.machines[p.rand.IntN(len(p.sim.machines))]
}

func (p *people) someRange() uint64 {
	list := p.sim.checker.tiles.list
	return list[p.rand.IntN(len(list))].RangeId
}

// someLeft draws a range that may have a right neighbour to merge with.
func (p *people) someLeft() uint64 {
	if list := p.sim.checker.tiles.list; len(list) > 2 && chance(p.rand, 0.9) {
		return list[1+p.rand.IntN(len(list)-2)].RangeId
	}
	return p.someRange()
}

// operate asks for an operator; name says of which kind, for counters.
func (p *people) operate(n *node, name string, r *adminpb.OperateRequest) {
	s := p.sim
	reply, err := n.driver.Operate(r)
	s.loop.tracef("%s is asked for %s of r%d: %v", n, name, r.RangeId, err)
	if err != nil {
		s.count("requests_refused")
	} else if len(reply.Operators) > 0 {
		s.count("requests_for_" + name)
	}
}

// relocate asks to move a range to exactly some nodes, as many as it has now.
func (p *people) relocate(n *node) {
	list := p.sim.checker.tiles.list
	d := list[p.rand.IntN(len(list))]
	to := p.rand.Perm(len(p.sim.machines))
	var nodes []uint64
	for _, i := range to[:min(len(to), len(d.Replicas))] {
		nodes = append(nodes, uint64(p.sim.machines[i].id))
	}
	p.operate(n, "relocations", &adminpb.OperateRequest{
		RangeId: d.RangeId,
		What:    &adminpb.OperateRequest_Relocate{Relocate: &adminpb.Relocate{Nodes: nodes}},
	})
}

// stand drains a node, or has one that drains serve again.
func (p *people) stand(n *node) {
	s := p.sim
	to := p.someone()
	if to == p.leaving || to.id >= provisional {
		return
	}
	want := draining
	if to.standing == draining || chance(p.rand, 0.3) {
		want = active
	}
	p.standing(n, to, want, func() {
		if want == draining {
			s.count("drains")
		}
	})
}

func (p *people) standing(n, of *node, want metapb.NodeStanding, granted func()) {
	n.driver.SetStanding(of.id, want, func(_ *adminpb.NodeProgress, err error) {
		p.sim.loop.tracef("%s is told that %s is to be %v: %v", n, of, want, err)
		if err != nil {
			p.sim.count("requests_refused")
			return
		}
		granted()
	})
}

func (p *people) pause(n *node, on bool, granted func()) {
	n.driver.Pause(on, "people", func(_ *metapb.PlacementSettings, err error) {
		p.sim.loop.tracef("%s is told to pause placement, %v: %v", n, on, err)
		if err == nil {
			p.paused = on
			p.sim.count("pauses_of_placement")
			granted()
		}
	})
}

// someRule draws a change of the rules.
func (p *people) someRule() func(n *node, granted func()) {
	o := p.sim.options.Placement
	zone := "zone=z" + string(rune('0'+p.rand.IntN(max(1, o.Zones))))
	replicas := [...]uint32{1, 3, 3, 5}[p.rand.IntN(4)]
	spread := chance(p.rand, 0.5)
	prefix := [...]string{"k/", "p/", "s/", "s/8"}[p.rand.IntN(4)]
	switch p.rand.IntN(4) {
	case 0:
		return p.rules(func(s *metapb.RuleSet) {
			s.Rules[0].Spread = ""
			if spread && o.Zones > 0 {
				s.Rules[0].Spread = "zone"
			}
		})
	case 1:
		return p.rules(func(s *metapb.RuleSet) { s.Rules[0].Replicas = max(3, replicas) })
	case 2:
		return p.rules(func(s *metapb.RuleSet) { s.Rules = s.Rules[:1] })
	}
	return p.rules(func(s *metapb.RuleSet) {
		r := &metapb.Rule{Name: "some", Prefix: []byte(prefix), Replicas: replicas}
		if spread && o.Zones > 0 {
			r.Leaders = []string{zone}
		}
		s.Rules = append(s.Rules[:1], r)
	})
}

// rules asks for a change of the rules. Those that every cluster begins with come
// first.
func (p *people) rules(change func(*metapb.RuleSet)) func(n *node, granted func()) {
	return func(n *node, granted func()) {
		next := proto.CloneOf(n.driver.Rules())
		i := slices.IndexFunc(next.Rules, func(r *metapb.Rule) bool { return len(r.Prefix) == 0 })
		next.Rules[0], next.Rules[i] = next.Rules[i], next.Rules[0]
		change(next)
		n.driver.SetRules(&adminpb.SetRulesRequest{Rules: next},
			func(r *adminpb.SetRulesReply, err error) {
				p.sim.loop.tracef("%s is given rules %v: %v %v", n, next, r.GetFaults(), err)
				switch {
				case err != nil:
				case len(r.Faults) > 0:
					p.sim.count("rules_refused")
				default:
					p.sim.count("rules_changed")
					granted()
				}
			})
	}
}

// wish begins to ask for something until it is granted.
func (p *people) wish(what string, ask func(n *node, granted func())) {
	p.wishes = append(p.wishes, &wish{what: what, ask: ask})
}

// repeat asks for the first wish that is open: the next ones may depend on it.
func (p *people) repeat() {
	for len(p.wishes) > 0 && p.wishes[0].done {
		p.wishes = p.wishes[1:]
	}
	if p.concluded && len(p.wishes) == 0 {
		p.insistOn()
	}
	if n := p.driver(); n != nil && len(p.wishes) > 0 {
		w := p.wishes[0]
		n.run(func() { w.ask(n, func() { w.done = true }) })
	}
	p.sim.loop.after(insist, p.repeat)
}

// replaceOne has a new machine join, and then one of the others decommissioned. It
// holds copies until they have moved, and stops when it is told that it may.
func (p *people) replaceOne() {
	s := p.sim
	leaving := p.someone()
	n := s.newMachine()
	s.loop.tracef("a new machine joins: %s", n)
	if err := n.boot(); err != nil {
		s.fail("boot: %v", err)
		return
	}
	s.count("machines_replaced")
	p.leaving = leaving
	p.wish("a node that was drained serves", p.serves(leaving))
	p.wish("decommission a node", func(d *node, granted func()) {
		if n.id >= provisional {
			return // it has not joined yet
		}
		p.standing(d, leaving, decommissioning, granted)
	})
}

// serves asks that a node is active, unless it is leaving for good by now.
func (p *people) serves(of *node) func(n *node, granted func()) {
	return func(n *node, granted func()) {
		if of.standing >= decommissioning {
			granted()
			return
		}
		p.standing(n, of, active, granted)
	}
}

// conclude says what is to be so in the end: placement goes on, most nodes serve.
func (p *people) conclude() {
	p.concluded = true
	first := []*wish{p.goesOn()}
	for _, m := range p.sim.machines {
		// What leaves may have nowhere to go but to nodes that serve.
		if m != p.leaving && m.id < provisional && (p.leaving != nil || chance(p.rand, 0.7)) {
			first = append(first, &wish{what: "a node serves", ask: p.serves(m)})
		}
	}
	p.wishes = append(first, p.wishes...)
}

func (p *people) goesOn() *wish {
	return &wish{what: "placement goes on", ask: func(n *node, granted func()) {
		p.pause(n, false, granted)
	}}
}

// insistOn wishes again what an earlier request has undone that was answered late.
func (p *people) insistOn() {
	if p.paused {
		p.wishes = append(p.wishes, p.goesOn())
	}
	for _, m := range p.sim.machines {
		if p.leaving != nil && p.leaving != m && m.standing == draining {
			p.wish("a node serves", p.serves(m))
		}
	}
}

// open says which wish is not granted, "" if all are.
func (p *people) open() string {
	for _, w := range p.wishes {
		if !w.done {
			return w.what
		}
	}
	return ""
}

// nodeOf returns the machine of a node.
func (s *Sim) nodeOf(id uint64) *node { return s.nodes[ids.NodeID(id)] }
