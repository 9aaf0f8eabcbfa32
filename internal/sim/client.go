package sim

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/flotilla-kv/flotilla/client/core"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

var errNoAnswer = errors.New("no answer to the lookup")

// client is one process of a user: the real retry core, one call at a time.
type client struct {
	sim  *Sim
	id   int
	core *core.Core
	rand *rand.Rand
	// life of the connection to each node: a break loses what is in flight.
	life map[ids.NodeID]int
	sent map[[2]uint64]bool // writes sent before, by sequence and operation
	due  time.Duration      // of the scheduled tick, 0: none
}

var _ core.Effects = (*client)(nil)

func newClient(s *Sim, id int) *client {
	c := &client{sim: s, id: id, rand: s.clientRand, life: map[ids.NodeID]int{},
		sent: map[[2]uint64]bool{}}
	c.core = core.New(core.Config{
		Client: s.clientRand.Uint64() | 1, Random: s.clientRand.Uint64,
		AttemptTimeout: 700 * time.Millisecond,
	}, c)
	return c
}

// start begins a call; done is told the response.
func (c *client) start(call *core.Call) {
	c.core.Start(c.sim.loop.now, call)
	c.arm()
}

// arm schedules the core's next tick.
func (c *client) arm() {
	next := c.core.Next()
	if next == 0 || (c.due != 0 && c.due <= next) {
		return
	}
	c.due = next
	c.sim.loop.after(next-c.sim.loop.now, func() {
		if c.due != next {
			return
		}
		c.due = 0
		c.core.Tick(c.sim.loop.now)
		c.arm()
	})
}

// Send carries a request to a node over a stream.
func (c *client) Send(to ids.NodeID, r *kv.Request) {
	s := c.sim
	if to == 0 {
		to = s.machines[c.rand.IntN(len(s.machines))].id
	}
	if r.Identity.Client != 0 {
		k := [2]uint64{r.Identity.Sequence, uint64(r.Identity.Operation)}
		if c.sent[k] {
			s.count("retries_of_writes")
		}
		c.sent[k] = true
	}
	n := s.nodes[to]
	life := c.life[to]
	data := encodeRequest(r)
	if n == nil || !n.alive || n.table == nil || chance(s.net.rand, s.clientLoss) {
		s.loop.after(s.net.delay(), func() { c.lost(to) })
		return
	}
	incarnation := n.incarnation
	s.loop.after(s.net.delay(), func() {
		if n.incarnation != incarnation || c.life[to] != life {
			return
		}
		n.run(func() { c.serve(n, life, data) })
	})
}

// serve is the node's side of the stream.
func (c *client) serve(n *node, life int, data []byte) {
	s := c.sim
	request, err := decodeRequest(data)
	if err != nil {
		s.fail("decode request: %v", err)
		return
	}
	if n.table == nil {
		return
	}
	answered := false
	n.submit(request, func(r *kv.Response) {
		if answered {
			s.fail("request %d of client %d was answered twice", request.ID, c.id)
			return
		}
		answered = true
		out := *r
		out.ID = request.ID
		reply := encodeResponse(&out, n.clock.Peek())
		s.loop.after(s.net.delay(), func() {
			if c.life[n.id] != life || !n.alive {
				return
			}
			if chance(s.net.rand, s.clientLoss) {
				s.count("replies_lost")
				c.lost(n.id)
				return
			}
			response, stamp, err := decodeResponse(reply)
			if err != nil {
				s.fail("decode response: %v", err)
				return
			}
			c.core.Stamp(s.loop.now, stamp)
			c.core.Response(s.loop.now, n.id, response)
			c.arm()
		})
	})
}

// lost breaks the connection to a node.
func (c *client) lost(n ids.NodeID) {
	c.life[n]++
	c.sim.count("streams_broken")
	c.core.Lost(c.sim.loop.now, n)
	c.arm()
}

// Lookup asks a random node, which asks the driver's node if it must.
func (c *client) Lookup(token uint64, r *adminpb.LookupRequest) {
	s := c.sim
	n := s.machines[c.rand.IntN(len(s.machines))]
	done := false
	finish := func(reply *adminpb.LookupReply, err error) {
		if !done {
			done = true
			c.core.LookupDone(s.loop.now, token, reply, err)
			c.arm()
		}
	}
	s.loop.after(time.Second, func() { finish(nil, errNoAnswer) })
	s.loop.after(s.net.delay(), func() {
		n.run(func() {
			n.lookup(r, func(reply *adminpb.LookupReply) {
				stamp := n.clock.Peek()
				s.loop.after(s.net.delay(), func() {
					c.core.Stamp(s.loop.now, stamp)
					finish(reply, nil)
				})
			})
		})
	})
}

// lookup answers from the directory, or asks the node that drives it.
func (n *node) lookup(r *adminpb.LookupRequest, done func(*adminpb.LookupReply)) {
	if n.driver == nil {
		return
	}
	if n.driver.Active() {
		done(n.driver.Lookup(r))
		return
	}
	if reply := n.localLookup(r); reply != nil {
		done(reply)
		return
	}
	target := n.control.driverNode()
	n.sim.net.call(n, target, func(reply func(func())) {
		if target.driver != nil && target.driver.Active() {
			out := target.driver.Lookup(r)
			reply(func() { done(out) })
		}
	})
}

// localLookup answers for one key from the node's own replicas.
func (n *node) localLookup(r *adminpb.LookupRequest) *adminpb.LookupReply {
	if len(r.End) != 0 || r.Reverse {
		return nil
	}
	d, leader, ok := n.table.Route(r.Start)
	if !ok {
		return nil
	}
	return &adminpb.LookupReply{Ranges: []*adminpb.RangeInfo{{
		Descriptor_: d, LeaderNode: uint64(leader),
	}}, Nodes: nodesOf(d)}
}

func nodesOf(d *metapb.RangeDescriptor) []*metapb.NodeDescriptor {
	var out []*metapb.NodeDescriptor
	for _, r := range d.Replicas {
		id := ids.NodeID(r.NodeId)
		out = append(out, &metapb.NodeDescriptor{NodeId: r.NodeId, Address: id.String()})
	}
	return out
}

// lostNode breaks every client's connection to a node whose process died.
func (s *Sim) lostNode(n ids.NodeID) {
	for _, c := range s.clients {
		c := c
		s.loop.after(s.net.delay(), func() { c.lost(n) })
	}
}
