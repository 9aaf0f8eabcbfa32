package main

import (
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

func TestATransferIsAnOperatorLikeAnyOther(t *testing.T) {
	t.Parallel()
	f, s := newFake(t)
	var got *adminpb.OperateRequest
	f.operate = func(r *adminpb.OperateRequest) (*adminpb.OperateReply, error) {
		if got = r; r.GetRangeId() == 99 {
			return nil, status.Error(codes.NotFound, "no such range is known: r99")
		}
		return &adminpb.OperateReply{Tenure: 7, Operators: []*adminpb.Operator{{
			Id: 18, RangeId: 7, Kind: "request", Reason: "transfer to n2 was asked for",
			Steps: []string{"let n2 lead"}, Outcome: "running",
		}}}, nil
	}
	looks, tenure := 0, uint64(7)
	f.operators = func(r *adminpb.OperatorsRequest) *adminpb.OperatorsReply {
		reply := &adminpb.OperatorsReply{Tenure: tenure}
		done := operators()[1]
		if looks++; r.GetHistory() {
			done.Outcome, done.At = "done", 1
			reply.Operators = []*adminpb.Operator{done}
		} else if looks < 3 {
			reply.Operators = []*adminpb.Operator{done}
		}
		return reply
	}
	code, out, errOut := s.run("", "ranges", "transfer", "r7", "n2", "--interval", "1ms")
	if code != exitOK || out != "" || got.GetTransfer().GetNodeId() != 2 || got.GetRangeId() != 7 {
		t.Errorf("exit %d, asked for %v: %s", code, got, out)
	}
	golden(t, "transfer", errOut)
	if out = s.want(exitOK, "", "ranges", "transfer", "7", "2", "--no-wait", "-o", "json"); !strings.
		Contains(out, `"id":18,"range":7,"kind":"request"`) {
		t.Errorf("as JSON: %s", out)
	}
	s.want(exitNotFound, "", "ranges", "transfer", "r99", "n2")
	// Another node drives, whose operator 18 is of another range, for another reason.
	tenure, looks = 8, 0
	code, _, errOut = s.run("", "ranges", "transfer", "r7", "n2", "--interval", "1ms")
	if code != exitError || !strings.Contains(errOut, "the outcome of 1 operator is not known: "+
		"another node drives placement now") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestScatterWaitsUntilTheSpanIsEvenAndSaysWhatMoved(t *testing.T) {
	t.Parallel()
	f, s := newFake(t)
	f.operate = func(*adminpb.OperateRequest) (*adminpb.OperateReply, error) {
		return &adminpb.OperateReply{Tenure: 7, Operators: operators(), Note: "40 ranges are being " +
			"spread", Scatter: &adminpb.ScatterProgress{Id: 3, Ranges: 40, Waiting: 20, Running: 2}}, nil
	}
	looks, why := 0, ""
	f.operators = func(r *adminpb.OperatorsRequest) *adminpb.OperatorsReply {
		if r.GetScatterId() != 3 {
			t.Errorf("asked for %v", r)
		}
		p := &adminpb.ScatterProgress{Id: 3, Ranges: 40, Waiting: 4, Running: 1, LeadersMoved: 9,
			ReplicasMoved: 3, BytesMoved: 96 << 20}
		if looks++; looks >= 3 { // none runs for a moment at the second look: it goes on
			p.Ended, p.Running, p.Waiting, p.LeadersMoved, p.Why = true, 0, 0, 12, why
		} else if looks == 2 {
			p.Running = 0
		}
		return &adminpb.OperatorsReply{Tenure: 7, Scatter: p}
	}
	scatter := []string{"ranges", "scatter", "--prefix", "user/", "--interval", "1ms"}
	code, out, errOut := s.run("", scatter...)
	if code != exitOK || out != "" || looks != 3 {
		t.Errorf("exit %d after %d looks: %s", code, looks, out)
	}
	golden(t, "scatter", errOut)
	looks = 0
	golden(t, "scatter.json", s.want(exitOK, "", append(scatter, "-o", "json")...))
	looks, why = 0, "4 of 40 ranges could stand better, but nothing of them could be moved"
	if code, _, errOut = s.run("", scatter...); code != exitError || !strings.Contains(errOut,
		"the span is not even: 4 of 40 ranges could stand better") {
		t.Errorf("exit %d: %s", code, errOut)
	}
	f.operators = func(*adminpb.OperatorsRequest) *adminpb.OperatorsReply {
		return &adminpb.OperatorsReply{Tenure: 8}
	}
	if code, _, errOut = s.run("", scatter...); code != exitError || !strings.Contains(errOut,
		"another node drives placement now and does not go on with the scatter") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestASplitSaysForHowLongItStays(t *testing.T) {
	t.Parallel()
	f, s := newFake(t)
	for line, want := range map[string]*uint64{
		"--at m": nil, "--at m --until ever": nil, "--at m --until 0": new(uint64(0)),
		"--at m --until 48h": new(uint64(48 * 3600 * 1000)), "r2 --until 1500ms": new(uint64(1500)),
	} {
		var got *adminpb.SplitRangeRequest
		f.split = func(r *adminpb.SplitRangeRequest) *adminpb.SplitRangeReply {
			got = r
			return &adminpb.SplitRangeReply{Left: aRange(2, "", "m").Descriptor_,
				Right: aRange(3, "m", "z").Descriptor_}
		}
		s.want(exitOK, "", slices.Concat([]string{"ranges", "split"}, strings.Fields(line))...)
		if (got.StickyMillis == nil) != (want == nil) || got.GetStickyMillis() != orZero(want) {
			t.Errorf("%s asks for %v", line, got)
		}
	}
	f.ranges = map[uint64]*adminpb.RangeInfo{
		42: aRange(42, "m", "q"), 43: aRange(43, "q", "z"), 44: aRange(44, "z", "~"),
	}
	f.ranges[42].Descriptor_.StickyUntil = math.MaxInt64
	f.ranges[43].Descriptor_.StickyUntil = 1_800_000_000_000
	for id, want := range map[string]string{"r42": "for ever", "r43": "until 2027-01-15T08:00:00Z"} {
		if out := s.want(exitOK, "", "ranges", "show", id); !strings.Contains(out, "split off   by "+
			"request, kept apart from its left neighbour "+want+"\n") {
			t.Errorf("show: %s", out)
		}
	}
	if out := s.want(exitOK, "", "ranges", "show", "r44"); strings.Contains(out, "split off") {
		t.Errorf("show: %s", out)
	}
}

func orZero(n *uint64) uint64 {
	if n == nil {
		return 0
	}
	return *n
}
