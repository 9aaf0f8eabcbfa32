package server

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// background runs a part until the test ends.
func background(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestEveryReadRunsOnceAlsoWhenThePoolEnds(t *testing.T) {
	t.Parallel()
	p := newReadPool(3)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx) }()
	var ran atomic.Int64
	var wg sync.WaitGroup
	const writers, each = 4, 5000
	for range writers {
		wg.Go(func() {
			for i := range each {
				p.execute(func() { ran.Add(1) })
				if i == each/2 {
					cancel()
				}
			}
		})
	}
	wg.Wait()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := ran.Load(); n != writers*each {
		t.Fatalf("%d of %d jobs ran", n, writers*each)
	}
}

func TestRangeIDsAreFetchedAheadAndNeverTwice(t *testing.T) {
	t.Parallel()
	var next atomic.Uint64
	next.Store(100)
	b := newIDBlocks(func(_ context.Context, n uint32) (uint64, uint32, error) {
		return next.Add(10) - 10, 10, nil // smaller blocks than asked for
	})
	background(t, b.run)
	seen := map[ids.RangeID]bool{}
	for len(seen) < 1000 {
		id, ok := b.next()
		if !ok {
			runtime.Gosched()
			continue
		}
		if seen[id] || id < 100 {
			t.Fatalf("%v given out twice or made up", id)
		}
		seen[id] = true
	}
}

func TestBoundIsDurableBeforeTheClockUsesIt(t *testing.T) {
	t.Parallel()
	clock := hlc.NewHybrid(stillClock{wall: 1000}, startOfClock(1000, hlc.New(1500, 7)), maxAhead)
	var durable hlc.Timestamp
	b := newBoundKeeper(clock, func(ts hlc.Timestamp) error {
		if ts <= durable {
			t.Fatalf("bound went from %d to %d", durable, ts)
		}
		durable = ts
		return nil
	})
	if _, err := clock.Now(); !errors.Is(err, hlc.ErrBound) {
		t.Fatalf("a clock without a durable bound issued a timestamp: %v", err)
	}
	if err := b.step(); err != nil {
		t.Fatal(err)
	}
	ts, err := clock.Now()
	if err != nil || ts <= hlc.New(1500, 7) || ts > durable {
		t.Fatalf("issued %d with %v; recorded %d, durable %d", ts, err, hlc.New(1500, 7), durable)
	}
	// A peer restarted and is ahead of the bound: its next frame is heard.
	ahead := durable + hlc.New(200, 0)
	if err := clock.Update(ahead); !errors.Is(err, hlc.ErrBound) {
		t.Fatalf("adopted %d above the bound %d: %v", ahead, durable, err)
	}
	b.heard(ahead)
	if len(b.kick) == 0 {
		t.Fatal("a stamp above the bound does not raise it at once")
	}
	if err := b.step(); err != nil {
		t.Fatal(err)
	}
	if err := clock.Update(ahead); err != nil {
		t.Fatalf("%d is still above the bound %d: %v", ahead, durable, err)
	}
	// A peer gone mad does not pull the bound along.
	before := durable
	if err := clock.Update(hlc.New(1<<40, 0)); !errors.Is(err, hlc.ErrTooFarAhead) {
		t.Fatal(err)
	}
	if err := b.step(); err != nil {
		t.Fatal(err)
	}
	if durable.Wall() > before.Wall()+2*boundWindow.Milliseconds() {
		t.Fatalf("bound followed a mad stamp from %d to %d", before.Wall(), durable.Wall())
	}
}

func TestRegistryKeepsTheNewestAndSavesOnlyNews(t *testing.T) {
	t.Parallel()
	var saved []*adminpb.JoinReply
	r := newRegistry(1, nil, nil, func(data []byte) error {
		rec := &adminpb.JoinReply{}
		if err := proto.Unmarshal(data, rec); err != nil {
			return err
		}
		saved = append(saved, rec)
		return nil
	})
	learn := func(generation uint64, addrs ...string) {
		t.Helper()
		var nodes []*metapb.NodeDescriptor
		for i, a := range addrs {
			nodes = append(nodes, &metapb.NodeDescriptor{NodeId: uint64(i + 1), Address: a})
		}
		err := r.learn(nodes, &metapb.RangeDescriptor{
			RangeId: 1, Generation: generation, Replicas: []*metapb.Replica{{NodeId: generation}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	learn(5, "a:1", "b:1")
	learn(5, "a:1", "b:1")
	learn(4)
	if len(saved) != 1 {
		t.Fatalf("saved %d times, one was news", len(saved))
	}
	if got := r.drivers(2); len(got) != 2 || got[0] != 2 || got[1] != 5 {
		t.Fatalf("drivers %v", got)
	}
	learn(6, "a:2", "b:1")
	if a, ok := r.resolve(1); !ok || a != "a:2" || len(saved) != 2 {
		t.Fatalf("n1 at %q, saved %d times", a, len(saved))
	}
	if saved[1].SystemRange.Generation != 6 || len(saved[1].Nodes) != 2 {
		t.Fatalf("saved %v", saved[1])
	}
}

func TestFactsThatDidNotArriveAreToldAgainUnlessNewerOnesCame(t *testing.T) {
	t.Parallel()
	r := newReporter(nil)
	fact := func(id, term uint64) *metapb.RangeFact {
		return &metapb.RangeFact{Descriptor_: &metapb.RangeDescriptor{RangeId: id}, Term: term}
	}
	r.fact(fact(2, 1))
	r.fact(fact(1, 1))
	r.fact(fact(2, 2))
	facts := r.take()
	if len(facts) != 2 || facts[0].Descriptor_.RangeId != 1 || facts[1].Term != 2 {
		t.Fatalf("took %v", facts)
	}
	r.fact(fact(1, 9))
	r.putBack(facts)
	again := r.take()
	if len(again) != 2 || again[0].Term != 9 || again[1].Term != 2 {
		t.Fatalf("after the loss took %v", again)
	}
}

func TestValidateNamesEveryFault(t *testing.T) {
	t.Parallel()
	good := Config{Data: "d"}.WithDefaults()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	bad := Config{
		Listen: "0.0.0.0:1", HTTP: "nowhere", Join: []string{":7"}, Locality: []string{"eu"},
		RangeSize: 1, MaxValueBytes: 1 << 30, CacheBytes: 1, ReplicationFactor: 2,
	}.WithDefaults()
	err := bad.Validate()
	for _, flag := range []string{
		"--data", "--listen", "--http", "--join", "--locality", "--range-size",
		"--max-value-size", "--cache-size", "--replication",
	} {
		if err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s is not named in: %v", flag, err)
		}
	}
}

func TestDriversAnswersComeBackThroughItsMailbox(t *testing.T) {
	t.Parallel()
	o := newDriverOwner(func() bool { return true }, func() time.Duration { return 0 })
	k := &driverKV{post: o.post, client: 5,
		clock:  hlc.NewHybrid(stillClock{wall: 1000}, hlc.New(1000, 0), time.Second),
		submit: func(r *kv.Request, done func(*kv.Response)) { answerSystem(r, done) },
	}
	var got []placement.KeyValue
	k.Scan([]byte("a"), []byte("z"), 5, func(rows []placement.KeyValue, err error) {
		if err != nil {
			t.Error(err)
		}
		got = rows
	})
	swaps := ""
	k.CompareAndSwap([]byte("absent"), nil, 0, func(ok bool, err error) {
		swaps += map[bool]string{true: "yes", false: "no"}[ok]
	})
	k.CompareAndSwap([]byte("taken"), nil, 7, func(ok bool, err error) {
		swaps += map[bool]string{true: "yes", false: "no"}[ok]
	})
	if got != nil || swaps != "" {
		t.Fatal("an answer came inside the call")
	}
	for len(o.mailbox) > 0 {
		mail := o.mailbox
		o.mailbox = nil
		for _, f := range mail {
			f()
		}
	}
	if len(got) != 3 || string(got[2].Key) != "c" || swaps != "yesno" {
		t.Fatalf("rows %v, swaps %q", got, swaps)
	}
}

// answerSystem answers scans in pages of two rows, and swaps by the key's name.
func answerSystem(r *kv.Request, done func(*kv.Response)) {
	switch {
	case r.Verb == kv.VerbScan && string(r.Key) == "a":
		done(&kv.Response{
			Rows: []kv.KeyValue{{Key: []byte("a")}, {Key: []byte("b")}},
			More: true, ResumeKey: []byte("c"), Timestamp: 9,
		})
	case r.Verb == kv.VerbScan && r.Timestamp == 9:
		done(&kv.Response{Rows: []kv.KeyValue{{Key: []byte("c")}}})
	case string(r.Key) == "absent" && r.Expect == kv.ExpectAbsent && r.Identity.Client == 5:
		done(&kv.Response{})
	case r.Expect == kv.ExpectVersion && r.ExpectedVersion == 7:
		done(&kv.Response{Code: kv.CodeConflict})
	default:
		done(&kv.Response{Code: kv.CodeInternal})
	}
}

func TestQuestionsAreRefusedWhenTheDriverIsBusyOrElsewhere(t *testing.T) {
	t.Parallel()
	o := newDriverOwner(func() bool { return false }, func() time.Duration { return 0 })
	o.driver = placement.NewDriver(placement.Config{Self: 1})
	for range maxAsked {
		o.offer(func() {})
	}
	ask := func(d *placement.Driver, _ time.Duration, reply func(int, error)) { reply(1, nil) }
	if _, err := askDriver(context.Background(), o, ask); !errors.Is(err, errDriverBusy) {
		t.Fatalf("a full mailbox: %v", err)
	}
	background(t, o.run)
	wake(o.wake)
	for {
		_, err := askDriver(context.Background(), o, ask)
		if errors.Is(err, errNotDriver) {
			return
		}
		if !errors.Is(err, errDriverBusy) {
			t.Fatalf("a node that does not lead the system range: %v", err)
		}
	}
}
