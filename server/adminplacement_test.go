package server

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

func TestASplitThatWasAskedForStaysForEverUnlessSomebodySaysForHowLong(t *testing.T) {
	t.Parallel()
	const now = 1_800_000_000_000
	for _, c := range []struct {
		millis *uint64
		want   int64
	}{
		{nil, math.MaxInt64},
		{new(uint64(0)), 0},
		{new(uint64(1)), now + 1},
		{new(uint64(48 * 3600 * 1000)), now + 48*3600*1000},
		{new(uint64(math.MaxInt64 - now - 1)), math.MaxInt64 - 1},
		{new(uint64(math.MaxInt64 - now)), math.MaxInt64},
		{new(uint64(math.MaxUint64)), math.MaxInt64},
	} {
		if got := stickyUntil(&adminpb.SplitRangeRequest{StickyMillis: c.millis}, now); got != c.want {
			t.Errorf("%v: until %d, want %d", c.millis, got, c.want)
		}
	}
}

// Whichever node is asked, the right half says that somebody asked for it, a transfer is
// an operator of placement, and a scatter is known until its end.
func TestWhatPeopleAskForIsSeenThroughEveryNode(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3)
	asked := nodes[2]
	asked.split(t, 4)
	asked.healthy(t, 3, 0)
	list, err := asked.ListRanges(t.Context(), &adminpb.ListRangesRequest{Start: inUsers("k01")})
	if err != nil || len(list.GetRanges()) != 3 {
		t.Fatalf("%v %v", list, err)
	}
	for _, r := range list.GetRanges() {
		if r.GetDescriptor_().GetStickyUntil() != math.MaxInt64 {
			t.Errorf("%v", r)
		}
	}
	id := list.GetRanges()[1].GetDescriptor_().GetRangeId()
	var led, operator uint64
	eventually(t, "a transfer", func(ctx context.Context) error {
		r, err := asked.ShowRange(ctx, &adminpb.ShowRangeRequest{RangeId: id})
		if err != nil {
			return err
		}
		led = r.GetRange().GetLeaderNode()
		reply, err := asked.Operate(ctx, &adminpb.OperateRequest{
			RangeId: id, What: &adminpb.OperateRequest_Transfer{
				Transfer: &adminpb.TransferTo{NodeId: led%3 + 1},
			},
		})
		if err == nil && len(reply.GetOperators()) != 1 {
			err = errors.New("no operator: " + reply.GetNote())
		}
		if err == nil {
			operator = reply.GetOperators()[0].GetId()
		}
		return err
	})
	eventually(t, "the transfer is in the history", func(ctx context.Context) error {
		h, err := nodes[0].Operators(ctx, &adminpb.OperatorsRequest{History: true, RangeId: id})
		if err != nil {
			return err
		}
		for _, o := range h.GetOperators() {
			if o.GetId() == operator && o.GetOutcome() == "done" && o.GetKind() == "request" {
				return nil
			}
		}
		return errors.New("it is not")
	})
	eventually(t, "a scatter ends", func(ctx context.Context) error {
		reply, err := asked.Operate(ctx, &adminpb.OperateRequest{
			What: &adminpb.OperateRequest_Scatter{Scatter: &adminpb.Scatter{Start: inUsers("")}},
		})
		if err != nil || reply.GetScatter() == nil { // nothing to do: it is even
			return err
		}
		for ctx.Err() == nil {
			r, err := nodes[1].Operators(ctx,
				&adminpb.OperatorsRequest{ScatterId: reply.GetScatter().GetId()})
			if err != nil || r.GetTenure() != reply.GetTenure() {
				return errors.New("placement has moved")
			}
			if r.GetScatter().GetEnded() {
				return nil
			}
			pause(ctx, statusPause)
		}
		return ctx.Err()
	})
}
