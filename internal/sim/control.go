package sim

import (
	"errors"
	"sort"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// idBlock is how many range ids a node asks for at once.
const idBlock = 16

// control is what package server does around placement: joining, reports up,
// orders down, id blocks.
type control struct {
	n        *node
	facts    map[ids.RangeID]*metapb.RangeFact
	full     bool
	target   ids.NodeID // believed driver
	good     ids.NodeID // who drove when it was last heard of
	version  uint64
	lastSent time.Duration
	waiting  bool // a report is under way
	nextID   uint64
	endID    uint64
	asking   bool
}

func (c *control) started() {
	c.facts = map[ids.RangeID]*metapb.RangeFact{}
	c.full = true
	c.lastSent = -time.Minute
}

// join asks every other machine in turn until the registry answers.
func (c *control) join() {
	n := c.n
	target := n.sim.nodes[c.target]
	if target == nil {
		target = n.sim.machines[n.rand.IntN(len(n.sim.machines))]
	}
	c.target = 0
	joined := false
	n.sim.net.call(n, target, func(reply func(func())) {
		target.join(n, reply)
	})
	n.after(500*time.Millisecond, func() {
		if !joined && n.store.Identity().Record().Node == 0 {
			c.join()
		}
		joined = true
	})
}

// join is the registry's side.
func (n *node) join(from *node, reply func(func())) {
	if n.driver == nil {
		return
	}
	if !n.driver.Active() {
		_, leader, _ := n.table.Route([]byte{kv.SystemPrefix})
		if leader != 0 && leader != n.id {
			reply(func() { from.control.target = leader })
		}
		return
	}
	d := from.descriptor()
	d.NodeId = 0
	request := &adminpb.JoinRequest{Node: d}
	n.driver.Join(request, func(r *adminpb.JoinReply, err error) {
		if err != nil || r.NodeId == 0 {
			return
		}
		reply(func() {
			from.control.good = n.id
			from.joined(r)
		})
	})
}

func (n *node) joined(r *adminpb.JoinReply) {
	if n.store.Identity().Record().Node != 0 {
		return // an earlier reply won
	}
	delete(n.sim.nodes, n.id)
	n.id = ids.NodeID(r.NodeId)
	n.sim.nodes[n.id] = n
	if err := n.store.Identity().Join(r.ClusterId, n.id); err != nil {
		n.sim.fail("join %s: %v", n.id, err)
		return
	}
	if err := n.serve(); err != nil {
		n.sim.fail("serve %s: %v", n.id, err)
	}
}

func (c *control) fact(f *metapb.RangeFact) { c.facts[ids.RangeID(f.Descriptor_.RangeId)] = f }

func (c *control) nextRangeID() (ids.RangeID, bool) {
	if c.nextID >= c.endID {
		return 0, false
	}
	c.nextID++
	return ids.RangeID(c.nextID - 1), true
}

// driverNode guesses who drives placement.
func (c *control) driverNode() *node {
	if c.n.table.Leads(1) {
		return c.n
	}
	if target := c.n.sim.nodes[c.target]; target != nil && c.target != c.n.id {
		return target
	}
	_, leader, _ := c.n.table.Route([]byte{kv.SystemPrefix})
	if target := c.n.sim.nodes[leader]; target != nil {
		return target
	}
	if target := c.n.sim.nodes[c.good]; target != nil && chance(c.n.rand, 0.5) {
		return target
	}
	return c.n.sim.machines[c.n.rand.IntN(len(c.n.sim.machines))]
}

// report sends what changed, or a sign of life each second.
func (c *control) report() {
	n := c.n
	c.refillIDs()
	if c.waiting || len(c.facts) == 0 && !c.full && n.sim.loop.now-c.lastSent < time.Second {
		return
	}
	r := &metapb.NodeReport{
		Node: n.descriptor(), Full: c.full,
		UptimeSeconds: (n.physical.Monotonic() - n.booted).Seconds(),
	}
	if c.full {
		r.Facts = n.table.Facts()
	} else {
		for _, f := range c.facts {
			r.Facts = append(r.Facts, f)
		}
		sort.Slice(r.Facts, func(i, j int) bool {
			return r.Facts[i].Descriptor_.RangeId < r.Facts[j].Descriptor_.RangeId
		})
	}
	replicas, leaders := n.table.Counts()
	r.Replicas, r.Leaders = uint32(replicas), uint32(leaders)
	c.facts, c.lastSent, c.waiting = map[ids.RangeID]*metapb.RangeFact{}, n.sim.loop.now, true
	answered := false
	target := c.driverNode()
	n.sim.net.call(n, target, func(reply func(func())) {
		if out := target.takeReport(r); out != nil {
			reply(func() {
				if !answered {
					answered = true
					c.replied(target.id, out)
				}
			})
		}
	})
	n.after(400*time.Millisecond, func() {
		if !answered {
			answered, c.waiting, c.full = true, false, true
			c.target = 0
		}
	})
}

// descriptor is what a node says of itself.
func (n *node) descriptor() *metapb.NodeDescriptor {
	r := n.store.Identity().Record()
	return &metapb.NodeDescriptor{
		NodeId: uint64(n.id), StoreId: r.StoreID, Address: n.id.String(), Life: uint64(r.Life),
		Locality: n.locality,
	}
}

func (n *node) takeReport(r *metapb.NodeReport) *metapb.NodeReportReply {
	switch {
	case n.driver == nil:
		return nil
	case !n.driver.Active():
		_, leader, _ := n.table.Route([]byte{kv.SystemPrefix})
		if leader == 0 {
			return nil
		}
		return &metapb.NodeReportReply{RedirectNode: uint64(leader)}
	}
	return n.driver.Report(n.physical.Monotonic(), r)
}

func (c *control) replied(from ids.NodeID, r *metapb.NodeReportReply) {
	c.waiting = false
	if r.RedirectNode != 0 {
		c.target, c.full = ids.NodeID(r.RedirectNode), true
		return
	}
	c.good, c.full = from, r.WantFull
	if r.Standing != nil {
		c.n.standing = *r.Standing
	}
	if c.n.standing == metapb.NodeStanding_NODE_STANDING_DECOMMISSIONED {
		return
	}
	for _, o := range r.Orders {
		c.n.sim.order(c.n, o)
	}
}

// order carries out a step of placement and traces its fate.
func (s *Sim) order(n *node, o *metapb.Order) {
	n.table.Order(o, func(err error) {
		name := o.Kind.String()
		s.loop.tracef("%s order %s r%d: %v", n.id, name, o.RangeId, err)
		if err == nil {
			s.count("orders_" + name)
			if o.DemoteReplicaId != 0 {
				s.count("swaps")
			}
		} else {
			s.count("orders_refused")
		}
	})
}

// refillIDs keeps some range ids in stock, so that splits go on without placement.
func (c *control) refillIDs() {
	n := c.n
	if c.asking || c.endID-c.nextID >= idBlock/2 {
		return
	}
	c.asking = true
	target := c.driverNode()
	n.sim.net.call(n, target, func(reply func(func())) {
		if target.driver == nil || !target.driver.Active() {
			return
		}
		target.driver.AllocateIDs(n.id, idBlock, func(first uint64, count uint32, err error) {
			if err == nil {
				reply(func() { c.nextID, c.endID, c.asking = first, first+uint64(count), false })
			}
		})
	})
	n.after(600*time.Millisecond, func() { c.asking = false })
}

// systemKV is placement's key-value seam over the local replica of range 1.
type systemKV struct {
	n        *node
	sequence uint64
}

var _ placement.KV = (*systemKV)(nil)

var errSystem = errors.New("system range: request failed")

// Get reads a key of range 1.
func (k *systemKV) Get(key []byte, done func([]byte, hlc.Timestamp, error)) {
	k.n.table.Submit(&kv.Request{Verb: kv.VerbGet, Key: key}, func(r *kv.Response) {
		switch r.Code {
		case kv.CodeOK:
			done(r.Value, r.Timestamp, nil)
		case kv.CodeNotFound:
			done(nil, 0, nil)
		default:
			done(nil, 0, errSystem)
		}
	})
}

// Scan reads a page of range 1.
func (k *systemKV) Scan(start, end []byte, limit int, done func([]placement.KeyValue, error)) {
	r := &kv.Request{Verb: kv.VerbScan, Key: start, End: end, Limit: uint32(limit)}
	k.n.table.Submit(r, func(r *kv.Response) {
		if r.Code != kv.CodeOK {
			done(nil, errSystem)
			return
		}
		rows := make([]placement.KeyValue, 0, len(r.Rows))
		for _, row := range r.Rows {
			rows = append(rows, placement.KeyValue{
				Key: row.Key, Value: row.Value, Version: row.Version,
			})
		}
		done(rows, nil)
	})
}

// CompareAndSwap writes a key of range 1.
func (k *systemKV) CompareAndSwap(
	key, value []byte, expect hlc.Timestamp, done func(bool, error),
) {
	k.sequence++
	r := &kv.Request{
		Verb: kv.VerbCompareAndSwap, Key: key, Value: value,
		Expect: kv.ExpectVersion, ExpectedVersion: expect,
		Identity: kv.Identity{
			Client: k.n.store.Identity().Record().Mark, Sequence: k.sequence,
			Floor: k.n.clock.Peek(),
		},
	}
	if expect == 0 {
		r.Expect = kv.ExpectAbsent
	}
	k.n.table.Submit(r, func(r *kv.Response) {
		switch r.Code {
		case kv.CodeOK:
			done(true, nil)
		case kv.CodeConflict:
			done(false, nil)
		default:
			done(false, errSystem)
		}
	})
}
