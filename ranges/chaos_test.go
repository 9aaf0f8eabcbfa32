package ranges

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// client increments counters, one step at a time, and repeats a swap under the
// same identity until it knows how it ended.
type client struct {
	w       *world
	rng     *rand.Rand
	id      uint64
	seq     uint64
	counter string
	value   int // read
	swap    *kv.Request
	stop    bool // begins nothing new
	call    *call
	node    *node
	table   *Table
	last    *kv.Response
	wins    map[string]int
}

const counters = 5

// step looks at the answer that it waits for and sends the next request.
func (c *client) step() {
	if c.call != nil {
		// The process that had the request is dead: nobody will answer.
		dead := c.node.down || c.node.table != c.table
		if c.call.count == 0 && !dead {
			return
		}
		if c.call.count > 0 {
			c.take(c.call.resp)
		}
		c.call = nil
	}
	n := c.w.nodes[1+c.rng.IntN(len(c.w.nodes)-1)]
	if n.down || c.stop && c.swap == nil {
		return
	}
	c.node, c.table = n, n.table
	if c.swap != nil {
		c.call = n.start(c.swap)
		return
	}
	c.counter = fmt.Sprintf("c%d", c.rng.IntN(counters))
	c.call = n.start(&kv.Request{Verb: kv.VerbGet, Key: key(c.counter)})
}

func (c *client) take(resp *kv.Response) {
	if c.call.count != 1 {
		c.w.t.Fatalf("client %d: answered %d times", c.id, c.call.count)
	}
	wasSwap := c.swap != nil
	c.last = resp
	switch resp.Code {
	case kv.CodeOK, kv.CodeNotFound:
		if wasSwap {
			c.wins[c.counter]++
			c.swap = nil
			return
		}
		c.value, _ = strconv.Atoi(string(resp.Value))
		c.prepare(resp)
	case kv.CodeConflict:
		c.swap = nil // this attempt and all before it did not apply
	case kv.CodeNotLeader, kv.CodeWrongRange, kv.CodeOverloaded, kv.CodeUnavailable:
	default:
		c.w.t.Fatalf("client %d: code %d: %s", c.id, resp.Code, resp.Message)
	}
}

func (c *client) prepare(resp *kv.Response) {
	c.seq++
	c.swap = &kv.Request{
		Verb: kv.VerbCompareAndSwap, Key: key(c.counter), Expect: kv.ExpectAbsent,
		Value:    []byte(strconv.Itoa(c.value + 1)),
		Identity: kv.Identity{Client: c.id, Sequence: c.seq, Floor: resp.Timestamp},
	}
	if resp.Code == kv.CodeOK {
		c.swap.Expect, c.swap.Expected = kv.ExpectValue, []byte(strconv.Itoa(c.value))
	}
}

// chaos runs clients while messages are lost, leaders move, nodes crash,
// ranges split and replicas come and go. Every step is drawn from the seed.
func chaos(t *testing.T, seed uint64, steps int) {
	w := threeNodes(t, nil)
	rng := rand.New(rand.NewPCG(seed, 3))
	var clients []*client
	for i := range 4 {
		clients = append(clients, &client{
			w: w, rng: rng, id: uint64(i + 1), wins: map[string]int{},
		})
	}
	loss := 0.0
	w.drop = func(_, _ ids.NodeID, m *multiraft.Message) bool { return rng.Float64() < loss }
	for step := range steps {
		for _, c := range clients {
			c.step()
		}
		for range 1 + rng.IntN(4) { // not to the end: requests overlap with what follows
			w.once()
		}
		if step%3 == 0 {
			w.tickOnly()
		}
		w.upset(rng, step, &loss)
	}
	loss = 0
	for _, n := range w.nodes[1:] {
		if n.down {
			n.restart()
		}
	}
	for range 400 { // heal, then everybody ends what he began
		w.tick(1)
		open := 0
		for _, c := range clients {
			if c.swap != nil || c.call != nil {
				open++
				c.stop = true
				c.step()
			}
		}
		if open == 0 {
			break
		}
	}
	w.verify(t, seed, clients)
}

func (w *world) verify(t *testing.T, seed uint64, clients []*client) {
	t.Helper()
	total := 0
	for i := range counters {
		name := fmt.Sprintf("c%d", i)
		want := 0
		for _, c := range clients {
			if c.swap != nil || c.call != nil {
				w.dump()
				t.Fatalf("seed %d: client %d never heard how %+v ended, last %+v",
					seed, c.id, c.swap, c.last)
			}
			want += c.wins[name]
		}
		total += want
		got := ""
		for range 100 {
			if n := w.leader(w.rangeOf(name)); true {
				got = n.get(name)
				break
			}
		}
		if got == "" {
			got = "0"
		}
		if got != strconv.Itoa(want) {
			t.Errorf("seed %d: %s is %s, but %d increments succeeded", seed, name, got, want)
		}
	}
	if total < 5 {
		t.Errorf("seed %d: only %d increments", seed, total)
	}
	w.tick(10)
	w.check()
}

// rangeOf asks all nodes for the newest descriptor that holds a key.
func (w *world) rangeOf(k string) (r ids.RangeID) {
	best := uint64(0)
	for _, n := range w.nodes[1:] {
		if d, _, ok := n.table.Route(key(k)); ok && d.GetGeneration() > best {
			best, r = d.GetGeneration(), ids.RangeID(d.GetRangeId())
		}
	}
	return r
}

// once lets each node and the wire move one step.
func (w *world) once() {
	for _, n := range w.nodes[1:] {
		n.step()
	}
	wire := w.wire
	w.wire = nil
	for _, p := range wire {
		if n := w.nodes[p.to]; p.run != nil {
			p.run()
		} else if !n.down {
			n.host.Receive(p.frame)
		}
	}
}

func (w *world) tickOnly() {
	w.wall += 100
	for _, n := range w.nodes[1:] {
		if !n.down {
			n.host.Tick()
		}
	}
}

// upset does something unpleasant now and then.
func (w *world) upset(rng *rand.Rand, step int, loss *float64) {
	leaderOf := func(r ids.RangeID) *node {
		for _, n := range w.nodes[1:] {
			if !n.down && n.table.Leads(r) {
				return n
			}
		}
		return nil
	}
	r := w.rangeOf(fmt.Sprintf("c%d", rng.IntN(counters)))
	switch rng.IntN(60) {
	case 0:
		*loss = []float64{0, 0.05, 0.3}[rng.IntN(3)]
	case 1:
		if l := leaderOf(r); l != nil {
			l.table.Order(&metapb.Order{
				RangeId: uint64(r), Kind: metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER,
				NodeId: uint64(1 + rng.IntN(3)),
			}, func(error) {})
		}
	case 2:
		if l := leaderOf(r); l != nil {
			k := key(fmt.Sprintf("c%d", rng.IntN(counters)))
			l.table.Split(r, k, func(_, _ *metapb.RangeDescriptor, _ error) {})
		}
	case 3:
		n := w.nodes[1+rng.IntN(3)]
		if n.down {
			n.restart()
			return
		}
		for _, o := range w.nodes[1:] {
			if o.down {
				return // one at a time
			}
		}
		n.crash()
	case 4:
		if l := leaderOf(r); l != nil {
			w.changeReplicas(rng, l, r)
		}
	case 5, 6:
		for _, n := range w.nodes[1:] {
			if !n.down {
				n.table.Maintain()
			}
		}
	}
}

// changeReplicas takes the next step of moving some replica.
func (w *world) changeReplicas(rng *rand.Rand, l *node, r ids.RangeID) {
	d := l.table.replica(r).descriptor()
	o := &metapb.Order{RangeId: uint64(r), Kind: metapb.OrderKind_ORDER_KIND_ADD_LEARNER}
	voters := 0
	for _, x := range d.GetReplicas() {
		if x.GetRole() == roleVoter {
			voters++
		}
	}
	for _, x := range d.GetReplicas() {
		o.ReplicaId = x.GetReplicaId()
		if x.GetRole() == roleLearner {
			o.Kind = metapb.OrderKind_ORDER_KIND_PROMOTE
			if rng.IntN(2) == 0 {
				o.Kind = metapb.OrderKind_ORDER_KIND_REMOVE_LEARNER
			}
			break
		}
		if voters == 3 && x.GetNodeId() != uint64(l.id) {
			o.Kind = metapb.OrderKind_ORDER_KIND_DEMOTE
			break
		}
	}
	if o.Kind == metapb.OrderKind_ORDER_KIND_ADD_LEARNER {
		for id := uint64(1); id <= 3; id++ {
			if replicaOn(d, ids.NodeID(id)) == nil {
				o.NodeId = id
			}
		}
	}
	l.table.Order(o, func(error) {})
}

// Bug classes 10, 24, 32 and 39: each increment counts once, whatever happens
// between its attempts.
func TestCountersCountOnceThroughCrashesSplitsMovesAndLoss(t *testing.T) {
	t.Parallel()
	for seed := range uint64(chaosSeeds()) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { chaos(t, seed, 1200) })
	}
}

// dump shows every replica.
func (w *world) dump() {
	for _, n := range w.nodes[1:] {
		for _, r := range n.table.all() {
			s := r.state.Load()
			w.t.Logf("%v %v replica %d applied %d lead %+v change %+v %v",
				n.id, r.id, r.self, s.applied, s.lead, r.change, s.desc)
		}
	}
}

// chaosSeeds is how many seeds a run tries; FLOTILLA_SEEDS asks for more.
func chaosSeeds() int {
	if n, err := strconv.Atoi(os.Getenv("FLOTILLA_SEEDS")); err == nil {
		return n
	}
	return 4
}
