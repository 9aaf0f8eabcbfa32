package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func TestStatusSaysWhoSupportsWhom(t *testing.T) {
	t.Parallel()
	node := func(id uint64, support *adminpb.NodeSupport) *adminpb.NodeStatus {
		return &adminpb.NodeStatus{
			Node: &metapb.NodeDescriptor{NodeId: id}, Live: support != nil, Support: support,
		}
	}
	s := &statusReport{Health: "healthy", Ranges: 1, Problems: []string{}}
	s.addSupport([]*adminpb.NodeStatus{
		node(1, &adminpb.NodeSupport{
			LeasesHeld: 334, LeasesLed: 334, Campaigns: 12, Elections: 11, MayVote: true,
			ClockAheadSeconds: 0.6, CeilingsShort: true,
			Pairs: []*adminpb.SupportPair{
				{
					Peer: 2, Wanted: 334, SupportEpoch: 3<<32 | 17, SupportLeftSeconds: 0.2125,
					RoundTripSeconds: 0.0004567, Lapses: 4,
				},
				// n3 is silent: what n1 promises to it is all that is known.
				{Peer: 3, PromiseEpoch: 1<<32 | 2, PromiseLeftSeconds: 0.1, WithdrawnExpired: 1},
			},
		}),
		node(2, &adminpb.NodeSupport{
			LeasesLed: 2, DiskStalled: true,
			Pairs: []*adminpb.SupportPair{{
				Peer: 1, PromiseEpoch: 3<<32 | 17, PromiseLeftSeconds: 0.22,
				WithdrawnLaterLife: 2, WithdrawnUnused: 1, Refused: 1,
			}, {
				// n3 is long dead: what is left does not count below 0 for ever.
				Peer: 3, Wanted: 1, SupportEpoch: 2<<32 | 5, SupportLeftSeconds: -4711,
			}},
		}),
		node(3, nil),
	})
	var out bytes.Buffer
	if err := (&app{stdout: &out}).printStatus(s); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"note n1 reads without leases: its clock is 600ms behind the cluster's",
		"note n2 asks for no support: its disk makes no progress",
		"note n2 does not vote yet",
		"n1 334 of 334 11 12 1 silent, 0 restarted",
		"n2 0 of 2 0 0 0 silent, 2 restarted, 1 unused",
		"SUPPORT BY EPOCH LEFT ROUND TRIP RANGES LAPSES WITHDRAWN",
		"n1 n2 3.17 213ms 457µs 334 4 3",
		"n2 n3 2.5 none",
		"n3 n1 1.2 100ms - - - 1",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("status lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(text, "does not support") {
		t.Errorf("a request that was refused once is shown though the promise holds:\n%s", text)
	}
	out.Reset()
	if err := (&app{stdout: &out}).json(s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"node":2,"supports":1,"epoch":"3.17","left_seconds":0.2125,"round_trip_seconds":0.0004567`,
		`"node":3,"supports":2,"epoch":"2.5","left_seconds":0,`,
		`"leases_held":334`, `"ceilings_short":true`,
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("json lacks %s:\n%s", want, out.String())
		}
	}
}

func TestANodeThatJustFellSilentIsSilentForLessThanASecond(t *testing.T) {
	t.Parallel()
	s := &statusReport{Ranges: 12, Tolerates: 0, Nodes: []nodeReport{
		{ID: 1, Live: true}, {ID: 2, Live: true}, {ID: 3, SilentSeconds: 0.4},
	}, LiveNodes: 2, Problems: []string{"n3 does not answer n1: support between them has lapsed"}}
	s.judge(true)
	const want = "degraded  2 of 3 nodes live (n3 silent for <1s) · tolerates 0 more node failures"
	if got := s.headline(); !strings.HasPrefix(got, want) {
		t.Errorf("headline: %s", got)
	}
	// Placement says "n3 silent for 3 s" of the same time, in the next line.
	s.Nodes[2].SilentSeconds = 3.9
	if got := s.headline(); !strings.Contains(got, "n3 silent for 3s") {
		t.Errorf("headline: %s", got)
	}
}
