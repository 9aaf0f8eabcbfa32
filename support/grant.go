package support

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// asking is what this node, as A, keeps for a peer B; what B's last grants come
// to is published in Peer.view.
type asking struct {
	told      Epoch // the last one that OnSupported was told
	sequence  uint64
	sent      [outstanding]sent // by sequence modulo its length
	counted   bool              // OnSupported was told, OnUnsupported not yet
	roundTrip time.Duration
}

// sent is a request that is not answered yet.
type sent struct {
	sequence  uint64        // 0: answered, or never used
	at        time.Duration // lease clock
	deviation time.Duration // of the real wall clock
	wall      int64         // milliseconds
}

// Request composes the next request to a node; false: none now (not wanted, or
// the disk makes no progress). To be called right before it is sent, and before
// the frame is stamped. Any goroutine.
//
// A node whose disk hangs must lose its leaders, though its network answers:
// it cannot commit, and nobody may take over while it is supported.
func (t *Table) Request(to ids.NodeID) (Request, bool) {
	if t == nil {
		return Request{}, false
	}
	p := t.known(to)
	if p == nil || p.wanted.Load() <= 0 || !t.cfg.Healthy() {
		return Request{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	a := &p.asking
	a.sequence++
	now := sent{
		sequence: a.sequence, at: t.Now(),
		deviation: t.cfg.Deviation(), wall: t.cfg.Physical.Wall(),
	}
	a.sent[a.sequence%outstanding] = now
	p.counts.requests++
	return Request{
		Life: t.cfg.Life, Sequence: a.sequence, Duration: t.cfg.Duration,
		Ceiling: t.wantedCeiling(now.wall), Digest: p.acks.Load(), Wall: now.wall,
	}, true
}

// wantedCeiling is R9a: room for the reads of a whole promise. It is measured
// from the wall clock: D after the request the granter's wall clock has passed it
// anyhow, so a failover leaves the clocks alone. Only a clock that is further
// ahead already asks for a little more than where it stands. Measured from the
// hybrid clock, each passed ceiling would raise the next one by D.
func (t *Table) wantedCeiling(wall int64) hlc.Timestamp {
	at := func(ms int64, d time.Duration) hlc.Timestamp {
		return hlc.New(max(ms, 0)+d.Milliseconds(), 0)
	}
	clock := t.cfg.Clock.Peek()
	if canary.On(canary.CeilingFromHybrid) {
		return clock + at(0, t.cfg.Duration)
	}
	return max(at(wall, t.cfg.Duration), clock+at(0, sliver))
}

// HandleGrant is the asking side. Grants for an earlier life, and for requests
// that were answered or forgotten, are ignored. Any goroutine.
func (t *Table) HandleGrant(from ids.NodeID, g Grant) {
	if t == nil {
		return
	}
	p := t.known(from)
	if p == nil || g.Life != t.cfg.Life || g.Epoch == 0 {
		return
	}
	t.mu.Lock()
	slot := &p.asking.sent[g.Sequence%outstanding]
	if g.Sequence != 0 && slot.sequence == g.Sequence {
		request := *slot
		*slot = sent{}
		t.noteSupport(p, g, request)
	}
	t.tell() // unlocks
}

func (t *Table) noteSupport(p *Peer, g Grant, r sent) {
	now := t.Now()
	p.asking.roundTrip = now - r.at
	p.offset.answered(now, g.Wall-(r.wall+t.cfg.Physical.Wall())/2)
	p.counts.grants++

	next := supported{
		View:      View{Epoch: g.Epoch, Until: t.countsUntil(r.at, now), Ceiling: g.Ceiling},
		deviation: r.deviation,
	}
	if last := p.view.Load(); last != nil {
		if g.Epoch < last.Epoch {
			return // of a promise that has ended
		}
		if p.asking.counted && now >= last.Until {
			// It had lapsed and Expire has not looked yet. Whoever asked in between
			// took the peer for dead and must be told that it is back.
			p.asking.counted = false
			p.counts.lapses++
		}
		// The same promise: what was granted under it stays granted, in whatever
		// order the grants arrive.
		if g.Epoch == last.Epoch {
			next.Ceiling = max(next.Ceiling, last.Ceiling)
			if last.Until >= next.Until {
				next.Until, next.deviation = last.Until, last.deviation
			}
		}
	}
	p.view.Store(&next)
	if now >= next.Until {
		return // too late to count; Expire notices if it did before
	}
	t.expect(next.Until)
	if p.asking.told != g.Epoch || !p.asking.counted {
		p.asking.told, p.asking.counted = g.Epoch, true
		t.mu.news.supported(p, g.Epoch)
	}
}

// countsUntil is R4: D less a margin, counted from the moment the request was
// sent. The answering side counts D from the receipt, which is later, on a clock
// that may run apart by twice rho; the margin is more than that. So this side
// stops before the other one can.
func (t *Table) countsUntil(sentAt, now time.Duration) time.Duration {
	d := t.cfg.Duration
	if !canary.On(canary.LeaseNoMargin) {
		d -= d / marginPart
	}
	if canary.On(canary.LeaseFromReceipt) {
		return now + d
	}
	return sentAt + d
}
