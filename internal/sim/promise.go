package sim

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/support"
)

// diskPatience is how long a disk may stall before its node asks for no more
// support.
const diskPatience = 1500 * time.Millisecond

// askedPart: rounds that reads ask for follow one another at this part of the
// interval at the soonest.
const askedPart = 10

// promises is what a process does around its support.Table: requests and grants
// on a link of their own, and expiry driven by its returned time.
type promises struct {
	n      *node
	table  *support.Table
	next   time.Duration // on the lease clock, when Expire wants to be called; 0: never
	number uint64        // of the timer that is armed
	asking bool          // AskNow is being followed
	woken  bool          // Changed is being followed
}

// promise makes the table of a process; the host does not exist yet.
func (n *node) promise() *promises {
	record := n.store.Identity().Record()
	p := &promises{n: n}
	p.table = support.New(support.Config{
		Self: n.id, Life: record.Life, Clock: n.clock, Physical: n.physical,
		Deviation: n.physical.deviation,
		Duration:  n.sim.options.Promise, Interval: n.sim.options.AskEvery,
		LongestPromised: n.longestPromised(record), MaxPromise: n.sim.options.Promise,
		Healthy:     n.healthy,
		OnWithdrawn: p.withdrawn,
		OnSupported: func(to ids.NodeID, e support.Epoch) {
			n.sim.loop.tracef("%s is supported by %s under %x", n.id, to, uint64(e))
			n.host.Supported(to, e)
		},
		OnUnsupported: func(to ids.NodeID) {
			n.sim.count("supports_lapsed")
			n.sim.loop.tracef("%s is not supported by %s any more", n.id, to)
			n.host.Unsupported(to)
		},
		OnMismatch: func(to ids.NodeID) {
			n.sim.count("digest_mismatches")
			n.host.Mismatch(to)
		},
		OnVotes: func() { n.host.MayVote() },
	})
	return p
}

func (p *promises) withdrawn(from ids.NodeID, why support.Reason) {
	s := p.n.sim
	name := "promises_expired"
	if why == support.LaterLife {
		name = "promises_outlived"
	}
	s.count(name)
	s.loop.tracef("%s withdraws from %s: %s", p.n.id, from, name)
	p.n.host.Withdrawn(from, why)
}

// healthy: the disk has made progress lately.
func (n *node) healthy() bool {
	return !n.stalled || n.sim.loop.now-n.stalledAt <= diskPatience
}

// start begins asking.
func (p *promises) start() {
	p.n.every(p.n.sim.options.AskEvery, p.ask)
	p.expire()
}

// ask sends a request to every node that is wanted.
func (p *promises) ask() {
	for _, to := range p.table.Wanted() {
		peer := p.n.sim.nodes[to]
		r, ok := p.table.Request(to)
		if !ok || peer == nil {
			continue
		}
		stamp := p.n.clock.Peek() // after the request was composed
		p.n.sim.net.carrySupport(p.n, peer, func() { peer.asked(p.n, stamp, r) })
	}
}

// asked is the receiving end of a request.
func (n *node) asked(from *node, stamp hlc.Timestamp, r support.Request) {
	if n.promises == nil || !n.adopts(stamp) {
		return
	}
	g, ok := n.promises.table.HandleRequest(from.id, r)
	n.leasesMoved = true
	if !ok {
		n.sim.count("requests_of_earlier_lives")
		return
	}
	mine := n.clock.Peek()
	n.sim.net.carrySupport(n, from, func() { from.granted(n.id, mine, g) })
}

// granted is the receiving end of a grant.
func (n *node) granted(by ids.NodeID, stamp hlc.Timestamp, g support.Grant) {
	if n.promises == nil || !n.adopts(stamp) {
		return
	}
	n.promises.table.HandleGrant(by, g)
	n.leasesMoved = true
}

// adopts moves the clock to a frame's stamp; false: the frame is dropped whole.
func (n *node) adopts(stamp hlc.Timestamp) bool {
	if canary.On(canary.StampsIgnored) {
		return true
	}
	if err := n.clock.Update(stamp); err != nil {
		n.sim.count("support_frames_refused")
		n.heard()
		return canary.On(canary.StampRefusedStepped)
	}
	return true
}

// follow looks, after each event of the process, whether the table asked for
// something.
func (p *promises) follow() {
	if !p.asking {
		select {
		case <-p.table.Asked():
			p.asking = true
			p.n.after(between(p.n.rand, 0, 200*time.Microsecond), p.ask)
			p.n.after(p.n.sim.options.AskEvery/askedPart, func() { p.asking = false })
		default:
		}
	}
	select {
	case <-p.table.Changed():
		if !p.woken {
			p.woken = true
			p.n.after(between(p.n.rand, 0, 200*time.Microsecond), func() {
				p.woken = false
				p.expire()
			})
		}
	default:
	}
}

// expire lets the table look at the time, and comes back when it says.
func (p *promises) expire() {
	late := time.Duration(0)
	if now := p.table.Now(); p.next != 0 && now > p.next {
		late = now - p.next
	}
	p.next = p.table.Expire(late)
	p.n.leasesMoved = true
	p.number++
	if p.next == 0 {
		return
	}
	number := p.number
	wait := float64(p.next-p.table.Now()) / p.n.physical.rate
	p.n.after(time.Duration(wait)+between(p.n.rand, 0, time.Millisecond), func() {
		if number == p.number {
			p.expire()
		}
	})
}

// longestPromised is the longest promise that an earlier life may have made.
func (n *node) longestPromised(r store.IdentityRecord) time.Duration {
	if r.Life <= 1 {
		return 0
	}
	return n.sim.options.Promise
}
