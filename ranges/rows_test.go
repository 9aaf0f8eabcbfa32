package ranges

import (
	"context"
	"encoding/binary"
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
	"github.com/flotilla-kv/flotilla/store"
)

// busyNode is one node with real workers and a lease, for -race.
type busyNode struct {
	table *Table
	clock *hlc.Hybrid
	stop  func()
}

func newBusyNode(t *testing.T, rangeSize, rowCache int64) *busyNode {
	t.Helper()
	return newTunedBusyNode(t, func(c *Config) {
		c.RangeSize, c.RowCacheBytes = rangeSize, rowCache
	})
}

func newTunedBusyNode(t *testing.T, tune func(*Config)) *busyNode {
	t.Helper()
	s, err := store.Open(store.Options{
		Dir: "data", FS: vfs.NewMem(), Create: true, ReserveBytes: 1, CacheBytes: 8 << 20,
		MemTableBytes: 4 << 20, Logger: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	clock := &stepping{}
	hybrid := hlc.NewHybrid(clock, hlc.New(clock.Wall(), 0), time.Hour)
	hybrid.SetBound(hlc.MaxTimestamp)
	var lastID atomic.Uint64
	var jobs sync.WaitGroup
	cfg := Config{
		Node: 1, Store: s, Clock: hybrid, Physical: clock,
		Logger:      slog.New(slog.DiscardHandler),
		Execute:     func(job func()) { jobs.Go(job) },
		NextRangeID: func() (ids.RangeID, bool) { return ids.RangeID(100 + lastID.Add(1)), true },
	}
	tune(&cfg)
	table, err := New(cfg)
	must(t, err)
	table.lease = func(*Replica, ids.Term, hlc.Timestamp) multiraft.LeaseState {
		return multiraft.LeaseHeld // nobody else could lead
	}
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
	n := &busyNode{table: table, clock: hybrid}
	n.stop = func() {
		cancel()
		running.Wait()
		jobs.Wait()
		table.Close()
		must(t, s.Close())
	}
	return n
}

// do submits a request and waits, also for a leader that is being born.
func (n *busyNode) do(req *kv.Request) *kv.Response {
	for {
		answer := make(chan *kv.Response, 1)
		n.table.SubmitBatch([]Call{{req, func(r *kv.Response) { answer <- r }}})
		r := <-answer
		switch r.Code {
		case kv.CodeNotLeader, kv.CodeOverloaded, kv.CodeWrongRange:
			continue
		}
		return r
	}
}

// counter is a key that one writer raises, and what it knows to be there.
type counter struct {
	key   []byte
	acked atomic.Uint64
	tried atomic.Uint64
}

// raise writes the next numbers; now and then it deletes in between.
func (n *busyNode) raise(c *counter, client uint64, times int, stop func() bool) {
	for i := range times {
		if stop() {
			return
		}
		v := c.tried.Add(1)
		verb := kv.VerbPut
		if i%16 == 7 {
			verb = kv.VerbDeleteRange // what is below the clock now: all that was there
		}
		req := &kv.Request{
			Verb: verb, Key: c.key, Value: binary.BigEndian.AppendUint64(nil, v),
			Identity: kv.Identity{Client: client, Sequence: v, Floor: n.clock.Peek()},
		}
		if verb == kv.VerbDeleteRange {
			req.End, req.Timestamp = append(c.key, 0), n.clock.Peek()
			n.do(req)
			req = &kv.Request{
				Verb: kv.VerbPut, Key: c.key, Value: req.Value, Identity: req.Identity,
			}
			req.Identity.Sequence = uint64(times) + v
		}
		n.do(req)
		c.acked.Store(v)
	}
}

// look reads once: nothing older than what was acknowledged before, nothing
// newer than what was tried, and the same again at the timestamp of an answer.
func (n *busyNode) look(c *counter) string {
	before := c.acked.Load()
	r := n.do(&kv.Request{Verb: kv.VerbGet, Key: c.key})
	after := c.tried.Load()
	if r.Code == kv.CodeNotFound && r.Timestamp != 0 {
		if after == before || before == 0 {
			if before != 0 {
				return fmt.Sprintf("nothing, %d was acknowledged", before)
			}
		}
	} else if v := binary.BigEndian.Uint64(r.Value); v < before || v > after {
		return fmt.Sprintf("read %d, %d was acknowledged and %d tried", v, before, after)
	}
	again := n.do(&kv.Request{Verb: kv.VerbGet, Key: c.key, Timestamp: r.Timestamp})
	if again.Code != r.Code || string(again.Value) != string(r.Value) {
		return fmt.Sprintf("at %d first %v %x, then %v %x",
			r.Timestamp, r.Code, r.Value, again.Code, again.Value)
	}
	return ""
}

// watch lets writers and readers loose on a few keys and returns the first
// thing that should not have been read.
func (n *busyNode) watch(writes int) string {
	counters := make([]counter, 4)
	var wrong atomic.Pointer[string]
	var writers, readers sync.WaitGroup
	var stopped atomic.Bool
	for i := range counters {
		c := &counters[i]
		c.key = key(fmt.Sprint("counter", i))
		writers.Go(func() {
			n.raise(c, uint64(i+1), writes, func() bool { return wrong.Load() != nil })
		})
		readers.Go(func() {
			for !stopped.Load() && wrong.Load() == nil {
				if s := n.look(c); s != "" {
					wrong.Store(&s)
				}
			}
		})
	}
	writers.Go(func() { // makes splits
		for i := 0; i < writes && wrong.Load() == nil; i++ {
			n.do(&kv.Request{
				Verb: kv.VerbPut, Key: key(fmt.Sprint("filler", i)), Value: make([]byte, 500),
				Identity: kv.Identity{Client: 99, Sequence: uint64(i + 1), Floor: n.clock.Peek()},
			})
			if i%20 == 0 {
				n.table.Maintain()
			}
		}
	})
	writers.Wait()
	stopped.Store(true)
	readers.Wait()
	if s := wrong.Load(); s != nil {
		return *s
	}
	return ""
}

// Reads on their callers' goroutines beside writes, range deletions and splits.
func TestLeaseReadsSeeEveryAcknowledgedWrite(t *testing.T) {
	t.Parallel()
	for _, rowCache := range []int64{0, 1 << 20} {
		n := newBusyNode(t, 16<<10, rowCache)
		if wrong := n.watch(100); wrong != "" {
			t.Errorf("cache of %d bytes: %s", rowCache, wrong)
		}
		if s := n.table.RowCache(); rowCache > 0 && s.Hits == 0 {
			t.Error("nothing was read from the cache")
		}
		n.stop()
	}
}

// readersSawStaleRows is for the canary: with stamps not checked, a row of the
// cache outlives the next write of its key.
func readersSawStaleRows(t *testing.T) bool {
	n := newBusyNode(t, 16<<10, 1<<20)
	defer n.stop()
	return n.watch(1000) != ""
}

// rowsWorld is a node with a cache and a lease.
func rowsWorld(t *testing.T) (*world, *node) {
	w := oneNode(t, func(c *Config) { c.RowCacheBytes = 1 << 20 })
	w.lease = leased
	n := w.nodes[1]
	t.Cleanup(n.table.Close)
	return w, n
}

// read gets a key on the caller's goroutine.
func (n *node) read(k string, at hlc.Timestamp) *kv.Response {
	n.w.t.Helper()
	c := n.start(&kv.Request{Verb: kv.VerbGet, Key: key(k), Timestamp: at})
	if c.count != 1 {
		n.w.t.Fatal("not answered at once")
	}
	return c.resp
}

// warm reads until the key comes from the cache, which drops what it likes.
func (n *node) warm(k string) {
	n.w.t.Helper()
	for range 10_000 {
		n.table.SettleRowCache() // or the cache's own goroutine may never have run
		before := n.table.RowCache().Hits
		if n.read(k, 0); n.table.RowCache().Hits > before {
			return
		}
	}
	n.w.t.Fatal("never in the cache")
}

func TestRowFromTheCacheEndsWithAnyWriteOfItsKey(t *testing.T) {
	t.Parallel()
	w, n := rowsWorld(t)
	first := n.put("k", "1")
	n.warm("k")
	at := n.put("k", "2")
	if r := n.read("k", 0); string(r.Value) != "2" || r.Timestamp != at {
		t.Fatalf("after a put got %+v", r)
	}
	n.warm("k")
	if r := n.read("k", first); string(r.Value) != "1" || r.Timestamp != first {
		t.Fatalf("at an older timestamp got %+v", r)
	}
	del := &kv.Request{Verb: kv.VerbDelete, Key: key("k"), Identity: n.identity()}
	wantCode(t, n.do(del), kv.CodeOK)
	wantCode(t, n.read("k", 0), kv.CodeNotFound)
	n.put("k", "3")
	n.warm("k")
	wantCode(t, n.do(&kv.Request{
		Verb: kv.VerbDeleteRange, Key: key("a"), End: key("z"), Identity: n.identity(),
		Timestamp: n.clock.Peek(),
	}), kv.CodeOK)
	wantCode(t, n.read("k", 0), kv.CodeNotFound)
	w.check()
}

// The read that fills the cache fixes its timestamp; then a write comes and
// goes; then it reads, below that write. What it has read is not the newest.
func TestRowReadBelowAWriteIsNotTakenForTheNewest(t *testing.T) {
	t.Parallel()
	for _, step := range readSteps[1:] {
		w, n := rowsWorld(t)
		n.put("k", "old")
		resume := n.pauseBefore(step)
		c := n.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")})
		n.put("k", "new")
		resume()
		w.settle()
		if string(c.resp.Value) != "old" {
			t.Fatalf("%s: read %+v", step, c.resp)
		}
		for range 100 {
			if r := n.read("k", 0); string(r.Value) != "new" {
				t.Fatalf("%s: then %+v", step, r)
			}
		}
	}
}

// A row of an earlier term, and of the range before a split, is not served.
func TestRowOfAnotherTermOrGenerationIsNotServed(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, func(c *Config) { c.RowCacheBytes = 1 << 20 })
	w.lease = trueLease
	l := w.leader(2)
	l.put("k", "mine")
	l.put("z", "right")
	l.warm("k")
	next := w.nodes[l.id%3+1]
	w.transfer(2, next.id)
	next.put("k", "theirs")
	w.tick(3)
	w.transfer(2, l.id)
	if r := l.read("k", 0); string(r.Value) != "theirs" {
		t.Fatalf("back in office it reads %+v", r)
	}
	l.warm("k")
	l.warm("z")
	w.split(2, "m")
	stale := l.table.RowCache().Stale
	if r := l.read("k", 0); string(r.Value) != "theirs" || l.table.RowCache().Stale == stale {
		t.Fatalf("after a split %+v, not taken for stale", r)
	}
	w.leader(101)
	if r := l.do(&kv.Request{Verb: kv.VerbGet, Key: key("z")}); string(r.Value) != "right" &&
		r.Code != kv.CodeNotLeader {
		t.Fatalf("of the right half %+v", r)
	}
	for _, n := range w.nodes[1:] {
		n.table.Close()
	}
	w.check()
}
