package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

// leaseReport is what a node tells of its leases and elections, as JSON.
type leaseReport struct {
	Node               uint64  `json:"node"`
	LeasesHeld         uint64  `json:"leases_held"`
	RangesLed          uint64  `json:"ranges_led"`
	ElectionsStarted   uint64  `json:"elections_started"`
	ElectionsWon       uint64  `json:"elections_won"`
	WithdrawnExpired   uint64  `json:"withdrawn_expired"`
	WithdrawnLaterLife uint64  `json:"withdrawn_later_life"`
	WithdrawnUnused    uint64  `json:"withdrawn_unused"`
	SupportSeconds     float64 `json:"support_duration_seconds"`
	ClockAheadSeconds  float64 `json:"clock_ahead_seconds"`
	CeilingsShort      bool    `json:"ceilings_short"`
	MayVote            bool    `json:"may_vote"`
	DiskStalled        bool    `json:"disk_stalled"`
}

// supportReport says that one node supports another, as JSON. What only the
// supported node knows is missing if that one does not answer. LeftSeconds is 0 once
// the support has lapsed.
type supportReport struct {
	Node             uint64   `json:"node"` // who supports
	Supports         uint64   `json:"supports"`
	Epoch            string   `json:"epoch"` // life of the promise, and its number in that life
	LeftSeconds      float64  `json:"left_seconds"`
	RoundTripSeconds *float64 `json:"round_trip_seconds,omitempty"`
	Ranges           *uint64  `json:"ranges,omitempty"`
	Lapses           *uint64  `json:"lapses,omitempty"`
	Withdrawals      *uint64  `json:"withdrawals,omitempty"`
}

// addSupport takes over what the nodes told of support.
func (s *statusReport) addSupport(nodes []*adminpb.NodeStatus) {
	seen := map[[2]uint64]*supportReport{} // by who supports, and whom
	pair := func(by, of uint64) *supportReport {
		p := seen[[2]uint64{by, of}]
		if p == nil {
			p = &supportReport{Node: by, Supports: of}
			seen[[2]uint64{by, of}] = p
		}
		return p
	}
	for _, n := range nodes {
		id, told := n.GetNode().GetNodeId(), n.GetSupport()
		if told == nil {
			continue
		}
		s.Leases = append(s.Leases, leaseReportOf(id, told))
		s.Notes = append(s.Notes, notes(id, told)...)
		for _, p := range told.GetPairs() {
			if p.GetPromiseEpoch() != 0 || p.GetWithdrawnExpired()+p.GetWithdrawnLaterLife() > 0 {
				out := pair(id, p.GetPeer())
				out.Withdrawals = new(p.GetWithdrawnExpired() + p.GetWithdrawnLaterLife() +
					p.GetWithdrawnUnused())
				if out.RoundTripSeconds == nil && p.GetPromiseEpoch() != 0 {
					out.Epoch = epochText(p.GetPromiseEpoch())
					out.LeftSeconds = max(0, p.GetPromiseLeftSeconds())
				}
			}
			// What the supported node knows is what its leases rest on.
			if p.GetSupportEpoch() != 0 && (p.GetWanted() > 0 || p.GetSupportLeftSeconds() > 0) {
				in := pair(p.GetPeer(), id)
				in.Epoch = epochText(p.GetSupportEpoch())
				in.LeftSeconds = max(0, p.GetSupportLeftSeconds())
				in.RoundTripSeconds = new(p.GetRoundTripSeconds())
				in.Ranges, in.Lapses = new(p.GetWanted()), new(p.GetLapses())
			}
		}
	}
	for _, p := range seen {
		s.Support = append(s.Support, *p)
	}
	slices.SortFunc(s.Support, func(a, b supportReport) int {
		return cmp.Or(cmp.Compare(a.Supports, b.Supports), cmp.Compare(a.Node, b.Node))
	})
}

func leaseReportOf(id uint64, told *adminpb.NodeSupport) leaseReport {
	r := leaseReport{
		Node: id, LeasesHeld: told.GetLeasesHeld(), RangesLed: told.GetLeasesLed(),
		ElectionsStarted: told.GetCampaigns(), ElectionsWon: told.GetElections(),
		SupportSeconds:    told.GetDurationSeconds(),
		ClockAheadSeconds: told.GetClockAheadSeconds(), CeilingsShort: told.GetCeilingsShort(),
		MayVote: told.GetMayVote(), DiskStalled: told.GetDiskStalled(),
	}
	for _, p := range told.GetPairs() {
		r.WithdrawnExpired += p.GetWithdrawnExpired()
		r.WithdrawnLaterLife += p.GetWithdrawnLaterLife()
		r.WithdrawnUnused += p.GetWithdrawnUnused()
	}
	return r
}

// unanswered is from how many requests for support on their silence is worth a
// note; a node that starts sends a few before it is known.
const unanswered = 100

// notes says in words why a node has no leases, or fewer than it should.
func notes(id uint64, told *adminpb.NodeSupport) (all []string) {
	if told.GetCeilingsShort() {
		all = append(all, fmt.Sprintf("n%d reads without leases: its clock is %s behind the "+
			"cluster's, reads ask a quorum", id, durationText(told.GetClockAheadSeconds())))
	}
	if told.GetDiskStalled() {
		all = append(all, fmt.Sprintf(
			"n%d asks for no support: its disk makes no progress", id))
	}
	if !told.GetMayVote() {
		all = append(all, fmt.Sprintf(
			"n%d does not vote yet: promises of its former life may be in force", id))
	}
	for _, wrong := range told.GetClock() {
		all = append(all, fmt.Sprintf("n%d: %s", id, wrong))
	}
	for _, p := range told.GetPairs() {
		if p.GetGrants() == 0 && p.GetRequests() >= unanswered {
			all = append(all, fmt.Sprintf("n%d asks n%d for support and has never heard an answer: "+
				"if n%d is live, is UDP let through between them, on the port of its address?",
				id, p.GetPeer(), p.GetPeer()))
		}
		// Only what is refused now: counts of the past are in /metrics.
		if p.GetRefused() > 0 && p.GetPromiseEpoch() == 0 {
			all = append(all, fmt.Sprintf("n%d does not support n%d, which asks for longer "+
				"promises: start all nodes with the same --support-duration", id, p.GetPeer()))
		}
	}
	return all
}

// epochText is an epoch as life and number.
func epochText(e uint64) string { return fmt.Sprintf("%d.%d", e>>32, e&(1<<32-1)) }

// durationText is a short time for people: three digits.
func durationText(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	unit := time.Nanosecond
	for d.Abs() >= 1000*unit {
		unit *= 10
	}
	return d.Round(unit).String()
}

// printSupport prints the tables of leases and of who supports whom.
func (a *app) printSupport(s *statusReport) error {
	if len(s.Leases) == 0 {
		return nil
	}
	fmt.Fprintln(a.stdout)
	err := a.table("NODE\tLEASES\tELECTIONS WON\tSTARTED\tPROMISES WITHDRAWN",
		func(add func(string, ...any)) {
			for _, l := range s.Leases {
				add("n%d\t%d of %d\t%d\t%d\t%s", l.Node, l.LeasesHeld, l.RangesLed,
					l.ElectionsWon, l.ElectionsStarted, withdrawnText(l))
			}
		})
	if err != nil || len(s.Support) == 0 {
		return err
	}
	fmt.Fprintln(a.stdout)
	return a.table("SUPPORT\tBY\tEPOCH\tLEFT\tROUND TRIP\tRANGES\tLAPSES\tWITHDRAWN",
		func(add func(string, ...any)) {
			for _, p := range s.Support {
				left, trip := "none", "-"
				if p.LeftSeconds > 0 {
					left = durationText(p.LeftSeconds)
				}
				if p.RoundTripSeconds != nil {
					trip = durationText(*p.RoundTripSeconds)
				}
				add("n%d\tn%d\t%s\t%s\t%s\t%s\t%s\t%s", p.Supports, p.Node, orDash(p.Epoch), left,
					trip, countText(p.Ranges), countText(p.Lapses), countText(p.Withdrawals))
			}
		})
}

// withdrawnText says why a node ended its promises.
func withdrawnText(l leaseReport) string {
	if l.WithdrawnExpired+l.WithdrawnLaterLife+l.WithdrawnUnused == 0 {
		return "none"
	}
	text := fmt.Sprintf("%d silent, %d restarted", l.WithdrawnExpired, l.WithdrawnLaterLife)
	if l.WithdrawnUnused > 0 {
		text += fmt.Sprintf(", %d unused", l.WithdrawnUnused)
	}
	return text
}

func countText(n *uint64) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}
