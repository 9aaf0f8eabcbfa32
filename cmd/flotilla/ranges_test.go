package main

import (
	"fmt"
	"testing"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func TestAllRangesAreListedHoweverFewAnAnswerHolds(t *testing.T) {
	t.Parallel()
	const ranges, page = 5, 2
	bound := func(i int) []byte {
		if i == ranges {
			return []byte{kv.EndPrefix}
		}
		return []byte{kv.UserPrefix, byte(i)}
	}
	for _, c := range []struct {
		end   []byte
		want  int
		asked int
	}{{nil, ranges, 3}, {[]byte{kv.EndPrefix}, ranges, 3}, {bound(4), 4, 2}, {bound(1), 1, 1}} {
		request := &adminpb.ListRangesRequest{End: c.end}
		asked := 0
		all, err := everyPage(request, func() (*adminpb.ListRangesReply, error) {
			asked++
			r := &adminpb.ListRangesReply{}
			for i := range ranges {
				begins := string(bound(i)) < string(c.end) || len(c.end) == 0
				if string(bound(i+1)) > string(request.Start) && begins && len(r.Ranges) < page {
					r.Ranges = append(r.Ranges, &adminpb.RangeInfo{Descriptor_: &metapb.RangeDescriptor{
						RangeId: uint64(i + 2), Start: bound(i), End: bound(i + 1)}})
				}
			}
			return r, nil
		})
		if err != nil || len(all) != c.want || asked != c.asked {
			t.Errorf("up to %x: %d ranges by %d questions, want %d by %d, %v", c.end, len(all), asked,
				c.want, c.asked, err)
		}
		for i, r := range all {
			if got := fmt.Sprint(r.GetDescriptor_().GetRangeId()); got != fmt.Sprint(i+2) {
				t.Errorf("range %s at %d", got, i)
			}
		}
	}
}
