package support

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Status is one pair of nodes for `flotilla status` and /metrics.
type Status struct {
	Node               ids.NodeID
	PromiseEpoch       Epoch         // 0: this node promises nothing to Node
	PromiseLeft        time.Duration // may be negative for a moment
	SupportEpoch       Epoch         // 0: never supported by Node
	SupportLeft        time.Duration // <= 0: lapsed
	Wanted             int           // led groups with a replica there
	Grants, Requests   uint64        // of Node for this one, sent by this one
	Granted            uint64        // requests of Node that this one granted
	Refused            uint64        // requests of Node that asked for too long a promise
	Outdated           uint64        // requests of Node's earlier lives
	WithdrawnExpired   uint64
	WithdrawnLaterLife uint64
	WithdrawnUnused    uint64 // expired with no group here resting on it: nothing is wrong
	Spared             uint64 // withdrawals put off because this node was starved
	Lapses             uint64
	Mismatches         uint64
	RoundTrip          time.Duration // of the last answered request
	WallOffset         time.Duration // the peer's wall clock minus this node's, estimated
	WallOffsetAt       time.Duration // lease clock of the estimate; 0: never
}

// counts are the counters of a pair, guarded by Table.mu.
type counts struct {
	requests, grants, granted  uint64
	refused, outdated, spared  uint64
	expired, laterLife, unused uint64
	lapses, mismatches         uint64
}

// Status returns all pairs in order of node id.
func (t *Table) Status() []Status {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now, peers := t.Now(), *t.peers.Load()
	all := make([]Status, 0, len(peers))
	for _, p := range peers {
		all = append(all, p.status(now))
	}
	return all
}

func (p *Peer) status(now time.Duration) Status {
	s := Status{
		Node: p.node, Wanted: int(p.wanted.Load()),
		Grants: p.counts.grants, Requests: p.counts.requests,
		Granted: p.counts.granted, Refused: p.counts.refused, Outdated: p.counts.outdated,
		WithdrawnExpired: p.counts.expired, WithdrawnLaterLife: p.counts.laterLife,
		WithdrawnUnused: p.counts.unused, Spared: p.counts.spared,
		Lapses: p.counts.lapses, Mismatches: p.counts.mismatches,
		RoundTrip: p.asking.roundTrip, WallOffset: p.offset.value, WallOffsetAt: p.offset.at,
	}
	if s.PromiseEpoch = p.Promise(); s.PromiseEpoch != 0 {
		s.PromiseLeft = p.promised.until - now
	}
	if v := p.View(); v.Epoch != 0 {
		s.SupportEpoch, s.SupportLeft = v.Epoch, v.Until-now
	}
	return s
}

// oldOffset is how old an estimate from an answered request must be before one
// from a request alone takes its place.
const oldOffset = time.Second

// offset estimates by how much a peer's wall clock differs from this node's.
type offset struct {
	value time.Duration
	at    time.Duration // lease clock; 0: never
	whole bool          // from a request and its answer
}

// answered notes an estimate from a round trip; it is wrong by at most half of it.
func (o *offset) answered(now time.Duration, ms int64) { o.note(now, ms, true) }

// heard notes one from a request alone: too low by the time that it travelled.
func (o *offset) heard(now time.Duration, ms int64) {
	if !o.whole || now-o.at > oldOffset {
		o.note(now, ms, false)
	}
}

func (o *offset) note(now time.Duration, ms int64, whole bool) {
	// A peer may say anything: keep within what a Duration holds.
	const most = int64(1<<63-1) / int64(time.Millisecond)
	ms = min(max(ms, -most), most)
	*o = offset{value: time.Duration(ms) * time.Millisecond, at: now, whole: whole}
}
