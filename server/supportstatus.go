package server

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/support"
)

// supportPatience is how long Status waits for what other nodes know of the
// support between them; of those that do not answer it is left out.
const supportPatience = 500 * time.Millisecond

// addSupport asks every live node of a status what it knows of support.
func (n *node) addSupport(ctx context.Context, reply *adminpb.StatusReply) {
	ctx, cancel := context.WithTimeout(hop(ctx), supportPatience)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range reply.GetNodes() {
		at := ids.NodeID(s.GetNode().GetNodeId())
		switch {
		case at == n.self:
			s.Support = n.supportStatus()
		case s.GetLive():
			wg.Go(func() { s.Support = n.supportOf(ctx, at) })
		}
	}
	wg.Wait()
}

// supportOf asks one node; nil if it does not answer.
func (n *node) supportOf(ctx context.Context, at ids.NodeID) *adminpb.NodeSupport {
	_, admin, err := n.transport.Control(at)
	if err != nil {
		return nil
	}
	reply, err := admin.Status(ctx, &adminpb.StatusRequest{LocalOnly: true, Support: true})
	if err != nil {
		return nil
	}
	for _, s := range reply.GetNodes() {
		if ids.NodeID(s.GetNode().GetNodeId()) == at {
			return s.GetSupport()
		}
	}
	return nil
}

// supportStatus is what this node knows.
func (n *node) supportStatus() *adminpb.NodeSupport {
	m := n.host.Metrics()
	held, led := n.table.Leases(n.supportedBy)
	s := &adminpb.NodeSupport{
		DurationSeconds: n.cfg.SupportDuration.Seconds(),
		LeasesHeld:      uint64(held), LeasesLed: uint64(led),
		Campaigns: m.Campaigns, Elections: m.Elections,
		ClockAheadSeconds: n.clockAhead().Seconds(),
		CeilingsShort:     n.ceilingsShort(),
		MayVote:           n.support.MayVote(),
		DiskStalled:       n.store.SyncStalled(diskStall),
		Clock:             n.s.clocks.problems(),
	}
	for _, p := range n.support.Status() {
		s.Pairs = append(s.Pairs, &adminpb.SupportPair{
			Peer:         uint64(p.Node),
			PromiseEpoch: uint64(p.PromiseEpoch), PromiseLeftSeconds: left(p.PromiseLeft),
			SupportEpoch: uint64(p.SupportEpoch), SupportLeftSeconds: left(p.SupportLeft),
			Wanted: uint64(max(p.Wanted, 0)), Requests: p.Requests, Grants: p.Grants,
			WithdrawnExpired: p.WithdrawnExpired, WithdrawnLaterLife: p.WithdrawnLaterLife,
			WithdrawnUnused: p.WithdrawnUnused, Refused: p.Refused, Spared: p.Spared,
			Lapses: p.Lapses, Mismatches: p.Mismatches,
			RoundTripSeconds:  p.RoundTrip.Seconds(),
			WallOffsetSeconds: p.WallOffset.Seconds(),
		})
	}
	return s
}

// supportedBy says whether another node supports this one now. Lock-free.
func (n *node) supportedBy(other ids.NodeID) bool {
	p := n.support.Peer(other)
	ok, _ := p.Counts(p.View().Epoch, n.support.Now(), 0)
	return ok
}

// left is the time left of support or of a promise, in seconds; 0 once it has run
// out, however long ago.
func left(d time.Duration) float64 { return max(0, d).Seconds() }

// clockAhead is the lead of the hybrid clock over the wall clock.
func (n *node) clockAhead() time.Duration {
	return time.Duration(n.clock.Peek().Wall()-n.s.clock.Wall()) * time.Millisecond
}

// ceilingsShort says that a node that supports this one grants reads only below
// where the clock stands: the wall clock is behind the others'. Leases are held
// then and serve nothing; reads ask a quorum.
func (n *node) ceilingsShort() bool {
	now := n.clock.Peek()
	for _, p := range n.support.Status() {
		if p.Wanted > 0 && p.SupportLeft > 0 && n.support.Peer(p.Node).View().Ceiling < now {
			return true
		}
	}
	return false
}

// support sends what is known of the promises between this node and its peers.
func (e emitter) support(n *node) {
	held, led := n.table.Leases(n.supportedBy)
	e.gauge("leases_held", "Ranges led here that a majority of the voters' nodes supports "+
		"this node in now: its leases, and any that is being handed over or was just won.",
		float64(held))
	e.gauge("leases_led", "Ranges led here that have applied an entry of this leadership: "+
		"the leases that this node may hold.", float64(led))
	e.gauge("lease_ceilings_short", "Whether reads are above what peers grant: the wall clock "+
		"is behind, and reads ask a quorum.", truth(n.ceilingsShort()))
	e.gauge("support_may_vote", "Whether the wait after the start is over.",
		truth(n.support.MayVote()))
	e.gauge("store_sync_stalled", "Whether the disk makes no progress.",
		truth(n.store.SyncStalled(diskStall)))
	for _, s := range n.support.Status() {
		e.pair(s)
	}
}

func (e emitter) pair(s support.Status) {
	peer := s.Node.String()
	gauge := func(name, help string, v float64) {
		e.labelled("support_"+name, help, prometheus.GaugeValue, v, []string{"peer"}, peer)
	}
	total := func(name, help string, v uint64) {
		e.labelled("support_"+name+"_total", help, prometheus.CounterValue, float64(v),
			[]string{"peer"}, peer)
	}
	gauge("promised", "Whether this node promises support to the peer.",
		truth(s.PromiseEpoch != 0))
	gauge("promise_left_seconds", "Time until that promise may be withdrawn; 0: it may be.",
		left(s.PromiseLeft))
	gauge("held", "Whether the peer supports this node.",
		truth(s.SupportEpoch != 0 && s.SupportLeft > 0))
	gauge("left_seconds", "Time until that support lapses; 0: it has.", left(s.SupportLeft))
	gauge("ranges", "Ranges with replicas here and on the peer.", float64(s.Wanted))
	gauge("round_trip_seconds", "Round trip of the last answered request.",
		s.RoundTrip.Seconds())
	gauge("wall_offset_seconds", "Wall clock of the peer minus this node's, estimated.",
		s.WallOffset.Seconds())
	total("requests", "Requests for support composed.", s.Requests)
	total("grants", "Requests that the peer granted.", s.Grants)
	total("granted", "Requests of the peer that this node granted.", s.Granted)
	total("refused", "Requests of the peer for a longer promise than may be given.", s.Refused)
	total("outdated", "Requests of earlier lives of the peer.", s.Outdated)
	total("spared", "Withdrawals put off because this node was starved.", s.Spared)
	total("lapses", "Lapses of the peer's support.", s.Lapses)
	total("mismatches", "Times that the two nodes disagreed on who follows.", s.Mismatches)
	for _, w := range []struct {
		reason string
		count  uint64
	}{
		{support.Expired.String(), s.WithdrawnExpired},
		{support.LaterLife.String(), s.WithdrawnLaterLife},
		{"unused", s.WithdrawnUnused},
	} {
		e.labelled("support_withdrawn_total", "Promises to the peer that ended: it was "+
			"silent (expired), it was restarted (later life), or it was silent and no replica "+
			"here followed a leader there (unused), which is no sign of trouble.",
			prometheus.CounterValue, float64(w.count), []string{"peer", "reason"}, peer, w.reason)
	}
}
