//go:build canary

package ranges

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Each planted bug shows in a small scenario. Not parallel: the plant is global.
// Run with: go test -tags canary -run TestPlanted ./ranges
func TestPlantedBugsShow(t *testing.T) {
	all := append(append(plantedWrites(), plantedReads()...), plantedLeases()...)
	all = append(all, plantedMerges()...)
	for _, c := range all {
		canary.Plant(c.bug)
		if !c.shows(t) {
			t.Errorf("%s does not show", c.bug)
		}
		canary.Plant("")
	}
}

type plantedCase struct {
	bug   canary.Bug
	shows func(t *testing.T) bool
}

func plantedWrites() []plantedCase {
	return []plantedCase{
		{canary.RetryTwice, func(t *testing.T) bool {
			n := oneNode(t, nil).nodes[1]
			req := n.putRequest("k", "v")
			return n.do(req).Timestamp != n.do(req).Timestamp
		}},
		{canary.NoLatchWait, func(t *testing.T) bool {
			w := oneNode(t, nil)
			n := w.nodes[1]
			won := 0
			for i := range 2 {
				n.table.Submit(&kv.Request{
					Verb: kv.VerbCompareAndSwap, Key: key("k"), Value: []byte{byte(i)},
					Expect: kv.ExpectAbsent, Identity: n.identity(),
				}, func(r *kv.Response) {
					if r.Code == kv.CodeOK {
						won++
					}
				})
			}
			w.settle()
			return won == 2
		}},
	}
}

func plantedReads() []plantedCase {
	return []plantedCase{
		{canary.SkipBoundsRecheck, func(t *testing.T) bool {
			w := oneNode(t, nil)
			n := w.nodes[1]
			n.put("m", "v")
			n.holdJobs = true
			get := n.start(&kv.Request{Verb: kv.VerbGet, Key: key("m")})
			w.settle()
			held := n.jobs
			n.jobs, n.holdJobs = nil, false
			w.split(2, "k")
			for _, job := range held {
				job()
			}
			return get.resp.Code == kv.CodeOK
		}},
		{canary.NoTombstone, func(t *testing.T) bool {
			w := oneNode(t, nil)
			n := w.nodes[1]
			n.table.OnGone(2, 5)
			w.settle()
			next, err := n.store.Log().Tombstone(2)
			must(t, err)
			return next == 0
		}},
		{canary.ForeignTerm, func(t *testing.T) bool {
			d := &state{}
			h := header{kind: kindWrite, term: 1}
			return h.accepts(d, 2, canary.On(canary.ForeignTerm))
		}},
		{canary.StaleReadIndex, func(t *testing.T) bool {
			w := threeNodes(t, nil)
			l := w.leader(2)
			l.put("k", "old")
			cut := l.id
			w.drop = func(from, to ids.NodeID, _ *multiraft.Message) bool {
				return from == cut || to == cut
			}
			for range 60 { // the cut-off leader is not ticked: it believes still
				for _, n := range w.nodes[1:] {
					if n != l {
						n.host.Tick()
					}
				}
				w.settle()
			}
			for _, n := range w.nodes[1:] {
				if n != l && n.table.Leads(2) {
					n.put("k", "new")
					return l.get("k") == "old"
				}
			}
			return false
		}},
	}
}

// The rules of lease reads, each switched off in the story of its test.
func plantedLeases() []plantedCase {
	return []plantedCase{
		{canary.LeaseBeforeOwnTerm, func(t *testing.T) bool {
			w := threeNodes(t, nil)
			n := w.newLeaderThatLacksAWrite()
			w.lease = leased
			get := n.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")})
			return get.count == 1 && string(get.resp.Value) == "old"
		}},
		{canary.ReadClockStays, func(t *testing.T) bool {
			read, written := threeNodes(t, nil).readInTheFutureThenTransfer()
			return written <= read
		}},
		{canary.ReadIndexLate, func(t *testing.T) bool {
			get, fixed, written := threeNodes(t, nil).readIndexOfAFastClock()
			return string(get.resp.Value) == "old" && written <= fixed
		}},
		{canary.WriteBelowClock, func(t *testing.T) bool {
			n := oneNode(t, nil).nodes[1]
			n.put("k", "old")
			n.get("k")
			read := n.clock.Peek()
			return n.put("k", "new") <= read
		}},
		{canary.ReadSkipsLatches, func(t *testing.T) bool {
			w := threeNodes(t, nil)
			w.lease = leased
			l := w.leader(2)
			l.put("k", "old")
			put := l.start(l.putRequest("k", "new"))
			l.step()
			get := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")})
			at := l.clock.Peek()
			w.settle()
			return string(get.resp.Value) == "old" && put.resp.Timestamp <= at
		}},
		{canary.StaleRow, func(t *testing.T) bool { return readersSawStaleRows(t) }},
	}
}
