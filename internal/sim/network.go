package sim

import (
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/rpc"
	"github.com/flotilla-kv/flotilla/store"
)

var errLink = errors.New("simulated link is cut")

// profile is how bad the network of a seed is.
type profile struct {
	min, max  time.Duration // delay
	loss      float64       // a frame vanishes and the connection breaks
	duplicate float64       // a frame arrives twice (a datagram-like network)
	reorder   bool          // no FIFO per link
	// slowSnapshot is how likely a snapshot takes seconds.
	slowSnapshot float64
	// late is how likely a request for support, or its answer, takes seconds: it
	// may then come to a later process than that which it was sent to.
	late float64
}

// link is one direction between two nodes.
type link struct {
	cut  bool
	last time.Duration // arrival of the latest frame, for FIFO
	life int           // frames of an earlier life of the connection are lost
}

// network carries frames between nodes and requests between clients and nodes.
type network struct {
	sim     *Sim
	rand    *rand.Rand
	profile profile
	links   map[[2]ids.NodeID]*link
	// The links of node support, and what it draws from: a connection of its own.
	support     map[[2]ids.NodeID]*link
	supportRand *rand.Rand
	// block, if set, drops a frame of raft messages: for stories.
	block func(from, to ids.NodeID, m *multiraft.Message) bool
}

// newNetwork draws how bad the network of a run is.
func newNetwork(s *Sim, r *rand.Rand) *network {
	w := &network{
		sim: s, rand: r, links: map[[2]ids.NodeID]*link{},
		support: map[[2]ids.NodeID]*link{}, supportRand: stream(s.options.Seed, concernSupport),
		profile: profile{
			min: 200 * time.Microsecond, max: between(r, 1, 12) * time.Millisecond,
		},
	}
	w.profile.slowSnapshot = r.Float64() * 0.5
	switch r.IntN(3) {
	case 0:
		w.profile.loss = r.Float64() * 0.02
	case 1:
		w.profile.loss = r.Float64() * 0.02
		w.profile.duplicate, w.profile.reorder = r.Float64()*0.1, true
		w.profile.late = r.Float64() * 0.02
	}
	return w
}

func (w *network) link(from, to ids.NodeID) *link { return linkOf(w.links, from, to) }

func (w *network) supportLink(from, to ids.NodeID) *link { return linkOf(w.support, from, to) }

func linkOf(links map[[2]ids.NodeID]*link, from, to ids.NodeID) *link {
	k := [2]ids.NodeID{from, to}
	l := links[k]
	if l == nil {
		l = &link{}
		links[k] = l
	}
	return l
}

func (w *network) delay() time.Duration {
	if chance(w.rand, 0.02) {
		return between(w.rand, w.profile.max, 4*w.profile.max)
	}
	return between(w.rand, w.profile.min, w.profile.max)
}

// carry delivers run at the node after a delay, unless the link is cut or the
// frame is lost. lost (may be nil) is called at the sender when a connection
// breaks under it.
func (w *network) carry(from, to *node, run func(), lost func()) {
	l := w.link(from.id, to.id)
	if l.cut {
		return // silence: nothing tells the sender
	}
	d := w.delay()
	if chance(w.rand, w.profile.loss) {
		w.sim.count("frames_lost")
		l.life++ // the suffix in flight is lost with it
		if lost != nil {
			from.after(d, lost)
		}
		return
	}
	at := w.sim.loop.now + d
	if !w.profile.reorder {
		at = max(at, l.last)
		l.last = at
	}
	life := l.life
	deliver := func() {
		if w.link(from.id, to.id).cut || (life != l.life && !w.profile.reorder) {
			return
		}
		to.run(run)
	}
	w.sim.loop.after(at-w.sim.loop.now, deliver)
	if chance(w.rand, w.profile.duplicate) {
		w.sim.count("frames_duplicated")
		w.sim.loop.after(at-w.sim.loop.now+w.delay(), deliver)
	}
}

// stormMessages is more than one pass has to say to one node in any run that is
// well: two replicas that answer one another without end come to it, where the
// network doubles frames.
const stormMessages = 2000

// nodeTransport is one node's side of the network.
type nodeTransport struct {
	n *node
}

var _ multiraft.Transport = (*nodeTransport)(nil)

// Send encodes the frame now, so that nodes share no memory, and lets it travel.
func (t *nodeTransport) Send(to ids.NodeID, msgs []multiraft.Message) bool {
	s := t.n.sim
	peer := s.nodes[to]
	if peer == nil || !t.n.alive {
		return false
	}
	if len(msgs) > stormMessages {
		s.fail("%s sends %d messages to %s at once: replicas keep one another busy",
			t.n, len(msgs), to)
		return false
	}
	s.checker.sent(t.n, msgs)
	if msgs = s.net.filter(t.n.id, to, msgs); len(msgs) == 0 {
		return true
	}
	frame := multiraft.Frame{From: t.n.id, Stamp: t.n.clock.Peek(), Messages: msgs}
	if durable := t.n.store.Identity().Record().Bound; frame.Stamp > durable {
		s.fail("%s stamps a frame %d, above its durable bound %d", t.n, frame.Stamp, durable)
	}
	host := t.n.host
	incarnation := peer.incarnation
	for _, data := range rpc.EncodeFrames(&frame) {
		s.net.carry(t.n, peer, func() {
			if !s.net.profile.reorder && peer.incarnation != incarnation || peer.host == nil {
				return // a stream does not survive its process
			}
			f, err := rpc.DecodeFrame(data)
			if err != nil {
				s.fail("decode frame: %v", err)
				return
			}
			peer.host.Receive(f)
			if f.Stamp > peer.clock.Peek() { // it was refused
				peer.heard()
			}
		}, func() { host.Unreachable(to) })
	}
	return true
}

// filter leaves out what a story blocks.
func (w *network) filter(from, to ids.NodeID, msgs []multiraft.Message) []multiraft.Message {
	if w.block == nil {
		return msgs
	}
	var kept []multiraft.Message
	for i := range msgs {
		if !w.block(from, to, &msgs[i]) {
			kept = append(kept, msgs[i])
		}
	}
	return kept
}

// SendSnapshot reads the snapshot now and lets it travel; the receiver's answer
// comes back as done.
func (t *nodeTransport) SendSnapshot(
	to ids.NodeID, h *metapb.SnapshotHeader, o *store.OutgoingSnapshot, done func(error),
) {
	s, n := t.n.sim, t.n
	finish := func(err error) { done(err); n.wake() }
	var chunks [][]byte
	for {
		c, err := o.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			o.Close()
			n.after(0, func() { finish(err) })
			return
		}
		chunks = append(chunks, append([]byte(nil), c...))
	}
	o.Close()
	peer := s.nodes[to]
	if peer == nil {
		n.after(0, func() { finish(errLink) })
		return
	}
	s.count("snapshots_sent")
	n.sim.loop.tracef("%s snapshot of r%d to %s: %d chunks", n.id, h.RangeId, to, len(chunks))
	answered := false
	answer := func(err error) {
		if !answered {
			answered = true
			finish(err)
		}
	}
	n.after(10*time.Second, func() { answer(errLink) })
	arrive := func() {
		s.net.carry(n, peer, func() {
			peer.receiveSnapshot(h, chunks, func(err error) {
				s.net.carry(peer, n, func() { answer(err) }, nil)
			})
		}, func() { answer(errLink) })
	}
	if chance(s.net.rand, s.net.profile.slowSnapshot) {
		s.count("snapshots_slow") // much can happen before it arrives
		s.loop.after(between(s.net.rand, time.Second, 8*time.Second), arrive)
		return
	}
	arrive()
}

// call runs handle at another node and brings its reply back to the process
// that asked; a lost frame means that nothing comes (the caller has a timer).
func (w *network) call(from, to *node, handle func(reply func(func()))) {
	incarnation := from.incarnation
	w.carry(from, to, func() {
		handle(func(back func()) {
			w.carry(to, from, func() {
				if from.incarnation == incarnation {
					back()
				}
			}, nil)
		})
	}, nil)
}

// carrySupport delivers a frame of node support. Nobody is told of a loss, and
// a frame that is very late finds whatever process lives then.
func (w *network) carrySupport(from, to *node, run func()) {
	l, r := w.supportLink(from.id, to.id), w.supportRand
	if l.cut || chance(r, w.profile.loss) {
		return
	}
	d := between(r, w.profile.min, w.profile.max)
	incarnation := to.incarnation
	deliver := func() {
		if w.supportLink(from.id, to.id).cut {
			return
		}
		if !w.profile.reorder && w.profile.late == 0 && to.incarnation != incarnation {
			return // a stream does not survive its process
		}
		to.run(run)
	}
	if chance(r, w.profile.late) {
		w.sim.count("support_frames_late")
		w.sim.loop.after(between(r, 50*time.Millisecond, 5*time.Second), deliver)
		return
	}
	at := w.sim.loop.now + d
	if !w.profile.reorder {
		at = max(at, l.last)
		l.last = at
	}
	w.sim.loop.after(at-w.sim.loop.now, deliver)
	if chance(r, w.profile.duplicate) {
		w.sim.loop.after(at-w.sim.loop.now+between(r, w.profile.min, 4*w.profile.max), deliver)
	}
}
