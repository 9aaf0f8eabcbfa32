package support

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

const (
	ms           = time.Millisecond
	noon         = int64(1_780_000_000_000) // a wall clock in milliseconds
	testWindow   = 800 * ms                 // of the durable bound
	testMaxAhead = 2 * time.Second
)

// world is a few nodes with their tables, clocks that are scripted, and a wire in
// memory. Each node has one replica of one group, reduced to what a promise is
// about: whom it follows, under which epoch, and who has its ack. One step is a
// millisecond of real time; after each the invariants are checked.
type world struct {
	tb        testing.TB
	now       time.Duration // real
	nodes     []*node
	wire      []packet
	block     func(packet) bool // packets that do not arrive...
	held      []packet          // ...are kept here
	travel    func() time.Duration
	served    map[service]hlc.Timestamp
	violation string
}

// service names the reads that A served counting B under an epoch.
type service struct {
	a, b ids.NodeID
	e    Epoch
}

type packet struct {
	from, to ids.NodeID
	at       time.Duration // of arrival
	stamp    hlc.Timestamp
	request  *Request
	grant    *Grant
}

// node is a process and what survives it.
type node struct {
	w    *world
	id   ids.NodeID
	life ids.Life

	rate      float64       // of the lease clock
	origin    time.Duration // of the lease clock
	skew      int64         // of the wall clock, milliseconds
	deviation time.Duration
	diskHangs bool // the bound is not raised, and Healthy is false
	bound     hlc.Timestamp
	duration  time.Duration // that is asked for; 0: the default
	longest   time.Duration // that it may promise, durable; 0: the default
	stopped   bool          // the bound is recorded for the last time

	table    *Table
	clock    *hlc.Hybrid
	expireAt time.Duration
	paused   time.Duration // until, real
	askAt    time.Duration // real
	told     []string

	follows ids.NodeID           // the record: whom...
	epoch   Epoch                // ...and under which promise
	acks    map[ids.NodeID]Epoch // as a leader: under which epoch each node follows
}

// Wall and Monotonic make a node the clock of its table.
func (n *node) Wall() int64 { return noon + n.skew + n.w.now.Milliseconds() }

func (n *node) Monotonic() time.Duration {
	return n.origin + time.Duration(n.rate*float64(n.w.now))
}

// setRate changes the pace of the lease clock from now on.
func (n *node) setRate(rate float64) {
	n.origin += time.Duration((n.rate - rate) * float64(n.w.now))
	n.rate = rate
}

// newWorld starts n nodes. Each wants the support of each other.
func newWorld(tb testing.TB, n int) *world {
	w := &world{tb: tb, now: time.Hour, served: map[service]hlc.Timestamp{}}
	w.block = func(packet) bool { return false }
	w.travel = func() time.Duration { return ms }
	for id := ids.NodeID(1); id <= ids.NodeID(n); id++ {
		w.nodes = append(w.nodes, &node{w: w, id: id, rate: 1})
		w.restart(id)
	}
	return w
}

func (w *world) node(id ids.NodeID) *node { return w.nodes[id-1] }

// restart begins a new life of a node's process. What was only in memory is gone.
func (w *world) restart(id ids.NodeID) {
	n := w.node(id)
	var promised time.Duration
	if n.life > 0 {
		promised = max(DefaultDuration, n.longest)
	}
	n.life++
	n.clock = hlc.NewHybrid(n, max(hlc.New(n.Wall(), 0), n.bound), testMaxAhead)
	n.table = New(Config{
		Self: id, Life: n.life, Clock: n.clock, Physical: n,
		Duration: n.duration, LongestPromised: promised, MaxPromise: n.longest,
		Deviation: func() time.Duration { return n.deviation },
		Healthy:   func() bool { return !n.diskHangs },
		OnWithdrawn: func(m ids.NodeID, why Reason) {
			n.told = append(n.told, fmt.Sprintf("withdrawn %v %v", m, why))
		},
		OnSupported: func(m ids.NodeID, e Epoch) {
			n.told = append(n.told, fmt.Sprintf("supported %v %d/%d", m, e.Life(), uint32(e)))
		},
		OnUnsupported: func(m ids.NodeID) { n.told = append(n.told, fmt.Sprintf("unsupported %v", m)) },
		OnMismatch:    func(m ids.NodeID) { n.told = append(n.told, fmt.Sprintf("mismatch %v", m)) },
		OnVotes:       func() { n.told = append(n.told, "votes") },
	})
	n.expireAt, n.paused, n.askAt, n.stopped = 0, 0, w.now, false
	n.follows, n.epoch, n.acks = 0, 0, map[ids.NodeID]Epoch{}
	for _, m := range w.nodes {
		if m != n {
			n.table.Want(m.id, 1)
			if n.life == 1 {
				m.table.Want(id, 1)
			}
		}
	}
	n.extendBound()
}

// extendBound does what the server does: it makes the next bound durable.
func (n *node) extendBound() {
	if next, due := n.clock.NextBound(testWindow); due && !n.diskHangs && !n.stopped {
		n.bound = max(n.bound, next)
		n.clock.SetBound(n.bound)
	}
}

// stop records where the next life begins (R9g): the clock is sealed first, then
// the ceilings are asked for. The goroutines are still running.
func (n *node) stop() {
	end := n.clock.Seal()
	n.bound, n.stopped = max(end, n.table.Ceiling()), true
}

// freeze lets the machine of a node stand still: nothing runs on it and its lease
// clock counts nothing. Only the real wall clock knows afterwards.
func (w *world) freeze(id ids.NodeID, d time.Duration) {
	w.tb.Helper()
	n, rate := w.node(id), w.node(id).rate
	n.setRate(0)
	n.paused = w.now + d + 1
	w.run(d)
	n.setRate(rate)
	n.paused = 0
	n.deviation += d
	n.skew -= d.Milliseconds() // it follows the lease clock and is slewed later
}

// run lets time pass, a millisecond at a time.
func (w *world) run(d time.Duration) {
	w.tb.Helper()
	for end := w.now + d; w.now < end; {
		w.now += ms
		w.deliver()
		for _, n := range w.nodes {
			if w.now >= n.paused {
				n.work()
			}
		}
		w.check()
	}
}

// work is what the node's goroutines do in a millisecond.
func (n *node) work() {
	n.extendBound()
	n.expireIfDue()
	if n.w.now >= n.askAt {
		n.askAt = n.w.now + DefaultInterval
		n.ask()
	}
}

func (n *node) expireIfDue() {
	now, late := n.table.Now(), time.Duration(0)
	select {
	case <-n.table.Changed():
	default:
		if n.expireAt == 0 || now < n.expireAt {
			return
		}
	}
	if n.expireAt != 0 && now > n.expireAt {
		late = now - n.expireAt
	}
	n.expireAt = n.table.Expire(late)
}

func (n *node) ask() {
	for _, to := range n.table.Wanted() {
		if r, ok := n.table.Request(to); ok {
			n.w.send(packet{from: n.id, to: to, request: &r})
		}
	}
}

// send stamps a packet after it was composed (R9f) and puts it on the wire.
func (w *world) send(p packet) {
	p.stamp, p.at = w.node(p.from).clock.Peek(), w.now+w.travel()
	if w.block(p) {
		w.held = append(w.held, p)
		return
	}
	w.wire = append(w.wire, p)
}

func (w *world) deliver() {
	var due []packet
	w.wire = slices.DeleteFunc(w.wire, func(p packet) bool {
		arrives := p.at <= w.now && w.now >= w.node(p.to).paused
		if arrives {
			due = append(due, p)
		}
		return arrives
	})
	w.arrive(due...)
}

// arrive hands packets over; a stamp that is refused drops its packet.
func (w *world) arrive(packets ...packet) {
	for _, p := range packets {
		n := w.node(p.to)
		err := n.clock.Update(p.stamp)
		switch {
		case errors.Is(err, hlc.ErrBound):
			n.extendBound()
		case err != nil:
		case p.request != nil:
			if g, ok := n.table.HandleRequest(p.from, *p.request); ok {
				w.send(packet{from: p.to, to: p.from, grant: &g})
			}
		default:
			n.table.HandleGrant(p.from, *p.grant)
		}
	}
}

// bindsItself says whether the replica on n is bound to the leader that it follows
// (R2).
func (n *node) bindsItself() bool {
	return n.follows != 0 && n.table.Peer(n.follows).Promise() == n.epoch && n.epoch != 0
}

func (n *node) mayVote() bool { return !n.bindsItself() && n.table.MayVote() }

// follow lets the replica on b follow the leader on a, and a hear its ack. False:
// it is bound to another.
func (w *world) follow(b, a ids.NodeID) bool {
	n := w.node(b)
	if n.follows != a && !n.mayVote() {
		return false
	}
	n.follows, n.epoch = a, n.table.Peer(a).Promise()
	if leader := w.node(a); n.epoch >= leader.acks[b] {
		leader.acks[b] = n.epoch
	}
	return true
}

// counts says whether the leader on a counts the replica on b, for reads at ts.
func (w *world) counts(a, b ids.NodeID, ts hlc.Timestamp) bool {
	n := w.node(a)
	ok, _ := n.table.Peer(b).Counts(n.acks[b], n.table.Now(), ts)
	return ok
}

// read serves a read at ts on a if it counts b: the clock first (R9c).
func (w *world) read(a, b ids.NodeID, ts hlc.Timestamp) bool {
	n := w.node(a)
	if n.clock.Advance(ts) != nil || !w.counts(a, b, ts) {
		return false
	}
	s := service{a, b, n.acks[b]}
	w.served[s] = max(w.served[s], ts)
	return true
}

// check looks for what must never be.
func (w *world) check() {
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if a == b || w.now < a.paused || !w.counts(a.id, b.id, 0) {
				continue
			}
			switch e := a.acks[b.id]; {
			case b.follows != a.id && b.follows != 0:
				w.fail("%v counts %v, which follows %v", a.id, b.id, b.follows)
			case b.table.Peer(a.id).Promise() != e && b.table.MayVote():
				w.fail("%v counts %v, which is free of promise %d/%d",
					a.id, b.id, e.Life(), uint32(e))
			}
		}
	}
	for s, ts := range w.served {
		b := w.node(s.b)
		free := b.table.Peer(s.a).Promise() != s.e && b.table.MayVote()
		if free && b.clock.Peek() < ts {
			w.fail("%v is free, its clock %v ms below a read that %v served",
				s.b, ts.Wall()-b.clock.Peek().Wall(), s.a)
		}
	}
}

func (w *world) fail(format string, args ...any) {
	if w.violation == "" {
		w.violation = fmt.Sprintf("after %v: ", w.now-time.Hour) + fmt.Sprintf(format, args...)
	}
}

// lead makes node 1 a leader that nodes 2 and 3 follow, with everybody in touch.
func (w *world) lead() {
	w.tb.Helper()
	w.run(20 * ms)
	for _, b := range w.nodes[1:] {
		if !w.follow(b.id, 1) || !w.counts(1, b.id, 0) {
			w.tb.Fatalf("the story did not begin: node 1 does not count %v", b.id)
		}
	}
}

// on blocks everything from and to a node.
func on(id ids.NodeID) func(packet) bool {
	return func(p packet) bool { return p.from == id || p.to == id }
}

func nothing(packet) bool { return false }

// countTold returns how often a callback told something.
func (n *node) countTold(what string) int {
	count := 0
	for _, s := range n.told {
		if s == what {
			count++
		}
	}
	return count
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }
