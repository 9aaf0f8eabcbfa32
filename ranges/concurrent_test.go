package ranges

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// stepping is a clock that many goroutines may read.
type stepping struct{ ms atomic.Int64 }

func (c *stepping) Wall() int64              { return 1_000_000 + c.ms.Load() }
func (c *stepping) Monotonic() time.Duration { return time.Duration(c.ms.Add(1)) }

type nowhere struct{}

func (nowhere) Send(ids.NodeID, []multiraft.Message) bool { return false }
func (nowhere) SendSnapshot(
	_ ids.NodeID, _ *metapb.SnapshotHeader, o *store.OutgoingSnapshot, done func(error),
) {
	o.Close()
	done(context.Canceled)
}

// Many goroutines against real workers, with splits, merges, maintenance and a
// destroyed replica among them: every request is answered once. For -race.
func TestEveryRequestOfManyGoroutinesIsAnsweredOnce(t *testing.T) {
	t.Parallel()
	s, err := store.Open(store.Options{
		Dir: "data", FS: vfs.NewMem(), Create: true, ReserveBytes: 1, CacheBytes: 1 << 20,
		MemTableBytes: 4 << 20, Logger: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	defer func() { must(t, s.Close()) }()
	clock := &stepping{}
	hybrid := hlc.NewHybrid(clock, hlc.New(clock.Wall(), 0), time.Hour)
	hybrid.SetBound(hlc.MaxTimestamp)
	var lastID atomic.Uint64
	var jobs sync.WaitGroup
	table, err := New(Config{
		Node: 1, Store: s, Clock: hybrid, Physical: clock, RangeSize: 8 << 10,
		Logger:      slog.New(slog.DiscardHandler),
		Execute:     func(job func()) { jobs.Go(job) },
		NextRangeID: func() (ids.RangeID, bool) { return ids.RangeID(100 + lastID.Add(1)), true },
	})
	must(t, err)
	host, err := multiraft.NewHost(multiraft.Config{
		Node: 1, Store: s, Clock: hybrid, Transport: nowhere{}, Shards: 2,
		Logger: slog.New(slog.DiscardHandler), Gone: table.Gone, OnGone: table.OnGone,
	})
	must(t, err)
	must(t, Bootstrap(s, 1))
	must(t, table.Start(host))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { must(t, host.Run(ctx)) })
	var clients sync.WaitGroup
	for c := range 8 {
		clients.Go(func() { hammer(t, table, hybrid, uint64(c+1)) })
	}
	clients.Go(func() { mergeNeighbours(t, table) })
	clients.Wait()
	table.OnGone(2, 99)
	cancel()
	running.Wait()
	jobs.Wait()
}

func hammer(t *testing.T, table *Table, clock *hlc.Hybrid, id uint64) {
	for i := range 60 {
		k := key(fmt.Sprintf("k%03d", (i*37)%100))
		reqs := []*kv.Request{
			{Verb: kv.VerbPut, Key: k, Value: make([]byte, 100)},
			{Verb: kv.VerbGet, Key: k},
			{Verb: kv.VerbCompareAndSwap, Key: k, Expect: kv.ExpectExists, Value: []byte("x")},
			{Verb: kv.VerbScan, Key: key("k"), End: key("l"), Limit: 10},
			{Verb: kv.VerbDeleteRange, Key: k, End: key("l"), Limit: 3, Timestamp: clock.Peek()},
		}
		var wait sync.WaitGroup
		for j, req := range reqs {
			req.Identity = kv.Identity{
				Client: id, Sequence: uint64(i*len(reqs) + j), Floor: clock.Peek(),
			}
			wait.Add(1)
			var once atomic.Int32
			table.Submit(req, func(r *kv.Response) {
				if once.Add(1) != 1 || r.Code == kv.CodeInternal || r.Code == kv.CodeInvalid {
					t.Errorf("verb %v: %d answers, code %v: %s",
						req.Verb, once.Load(), r.Code, r.Message)
				}
				wait.Done()
			})
		}
		wait.Wait()
		if i%30 == 0 {
			table.Maintain()
			table.Facts()
		}
	}
}
