package support

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

func TestANilTableSupportsNobodyAndHoldsNobody(t *testing.T) {
	t.Parallel()
	var table *Table
	p := table.Peer(3)
	p.NoteAck(1, 1)
	p.NoteRecord(1, 1)
	table.Want(3, 1)
	table.AskNow()
	table.PassCeiling(3)
	table.HandleGrant(3, Grant{Epoch: 1})
	ok, short := p.Counts(1, table.Now(), 0)
	_, asks := table.Request(3)
	_, answers := table.HandleRequest(3, Request{Duration: 1})
	if ok || short || asks || answers || p.Promise() != 0 || p.View() != (View{}) {
		t.Fatal("a nil table made or got a promise")
	}
	if !table.MayVote() || table.Wanted() != nil || table.Expire(0) != 0 ||
		table.Asked() != nil || table.Changed() != nil || table.Status() != nil {
		t.Fatal("a nil table has something to say")
	}
}

func TestATableHoldsABoundedNumberOfPeers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	table := w.node(1).table
	for n := ids.NodeID(2); n < maxPeers+2; n++ {
		if p := table.Peer(n); p.table == nil || p != table.Peer(n) {
			t.Fatalf("no stable entry for %v", n)
		}
	}
	for _, n := range []ids.NodeID{maxPeers + 2, 1, 0} {
		if _, ok := table.HandleRequest(n, Request{Life: 1, Duration: 1}); ok {
			t.Fatalf("%v got a promise", n)
		}
	}
	status := table.Status()
	sorted := slices.IsSortedFunc(status, func(a, b Status) int { return int(a.Node) - int(b.Node) })
	if len(status) != maxPeers || !sorted {
		t.Fatalf("%d pairs, sorted %v", len(status), sorted)
	}
}

func TestDigestsThatDifferAreToldAfterAWhileAndAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	a, b := w.node(1).table.Peer(2), w.node(2).table.Peer(1)
	told := func() int { return w.node(2).countTold("mismatch n1") }
	step := func(d int, want int) {
		t.Helper()
		if w.run(time.Duration(d) * 100 * ms); told() != want {
			t.Fatalf("told %d times, want %d", told(), want)
		}
	}
	step(20, 0)
	b.NoteRecord(Mark(5, 2, 7), 1) // node 1 has not heard the ack yet
	step(9, 0)
	a.NoteAck(Mark(5, 2, 7), 1) // equal again
	step(15, 0)
	b.NoteRecord(Mark(6, 2, 7), 1)
	step(8, 0)
	b.NoteRecord(Mark(7, 2, 7), 1) // another group moves: the first may be lost for good
	step(4, 1)
	a.NoteAck(Mark(5, 2, 7), -1) // the other side's sum moves
	step(17, 1)                  // twice as long, for asking did not help
	step(4, 2)
	step(37, 2)
	step(5, 3)
	b.NoteRecord(Mark(5, 2, 7), -1)
	b.NoteRecord(Mark(6, 2, 7), -1)
	b.NoteRecord(Mark(7, 2, 7), -1)
	step(200, 3)
	b.NoteRecord(Mark(8, 2, 7), 1) // news: told as soon as at first
	step(12, 4)
	b.NoteRecord(Mark(8, 2, 7), -1)
	step(5, 4)
	if s := w.node(2).table.Status()[0]; s.Mismatches != 4 {
		t.Fatalf("status %+v", s)
	}
}

func TestTheDigestOfAStragglerSaysNothing(t *testing.T) {
	w, a, b := pair(t)
	old := a.request(2)
	b.table.Peer(1).NoteRecord(9, 1)
	a.table.Peer(2).NoteAck(9, 1)
	for range 40 {
		b.grant(1, a.request(2))
		b.grant(1, old)
		w.now += 50 * ms
	}
	if len(b.told) != 0 {
		t.Fatalf("told %v", b.told)
	}
}

func TestMarksOfLikeGroupsAreApart(t *testing.T) {
	t.Parallel()
	seen := map[uint64]bool{}
	for r := range ids.RangeID(40) {
		for f := range ids.ReplicaID(40) {
			for term := range ids.Term(40) {
				seen[Mark(r, f, term)] = true
			}
		}
	}
	if len(seen) != 40*40*40 {
		t.Fatalf("%d marks for %d groups", len(seen), 40*40*40)
	}
	// Nodes of different versions must agree.
	if got := Mark(42, 7, 9); got != 0x13902cf6eb7a2d87 {
		t.Fatalf("Mark(42, 7, 9) is %#x now", got)
	}
}

func TestACallbackMayCallTheTableAndNoTwoRunAtOnce(t *testing.T) {
	w, a, b := pair(t)
	running, calls := false, 0
	b.table.cfg.OnWithdrawn = func(n ids.NodeID, _ Reason) {
		if running {
			t.Error("called while a call runs")
		}
		running = true
		if calls++; calls < 3 {
			b.grant(1, a.request(2))
			w.now += DefaultDuration
			b.table.Expire(0)
		}
		running = false
	}
	b.grant(1, a.request(2))
	w.now += DefaultDuration
	if b.table.Expire(0); calls != 3 {
		t.Fatalf("%d calls for three withdrawals", calls)
	}
}

func TestChangedIsToldOfEventsThatComeEarlier(t *testing.T) {
	w, a, b := pair(t)
	changed := func() bool {
		select {
		case <-b.table.Changed():
			return true
		default:
			return false
		}
	}
	if next := b.table.Expire(0); next != 0 || changed() {
		t.Fatalf("an event in %v, though nothing is promised", next)
	}
	if b.grant(1, a.request(2)); !changed() {
		t.Fatal("not told of the first promise")
	}
	next := b.table.Expire(0)
	w.now += 50 * ms
	if b.grant(1, a.request(2)); changed() {
		t.Fatal("told of an event that moved away")
	}
	w.now += next - b.table.Now()
	if again := b.table.Expire(0); again != next+50*ms {
		t.Fatalf("next event %v after the first, want 50 ms", again-next)
	}
}

func TestLookingAtSupportDoesNotAllocate(t *testing.T) {
	w := newWorld(t, 2)
	w.run(100 * ms)
	p, now := w.node(1).table.Peer(2), w.node(1).table.Now()
	e := p.View().Epoch
	if n := testing.AllocsPerRun(100, func() {
		_, _ = p.Counts(e, now, 1)
		_, _ = p.Promise(), p.View()
		_ = w.node(1).table.Peer(2)
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// Many goroutines at once: whoever sees a promise gone sees the clock above its
// ceiling, and nobody ever sees it back.
func TestConcurrentGrantsAndWithdrawals(t *testing.T) {
	t.Parallel()
	clock := &sharedClock{}
	h := hlc.NewHybrid(clock, hlc.New(noon, 0), testMaxAhead)
	h.SetBound(hlc.New(noon+1000*1000, 0))
	b := New(Config{Self: 2, Life: 1, Clock: h, Physical: clock})
	a := New(Config{Self: 1, Life: 1, Clock: h, Physical: clock})
	a.Want(2, 1)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 2000 {
				if r, ok := a.Request(2); ok {
					if g, ok := b.HandleRequest(1, r); ok {
						a.HandleGrant(2, g)
					}
				}
				clock.now.Add(int64(20 * ms))
			}
		})
	}
	wg.Go(func() {
		for range 6000 {
			b.Expire(0)
			a.Expire(0)
			clock.now.Add(int64(60 * ms))
			_ = b.Status()
		}
	})
	for range 2 {
		wg.Go(func() {
			var gone Epoch
			for range 20000 {
				view := a.Peer(2).View()
				promise := b.Peer(1).Promise()
				if promise != 0 && promise <= gone {
					t.Errorf("promise %d after %d was seen gone", promise, gone)
					return
				}
				if view.Epoch == 0 || promise == view.Epoch {
					continue
				}
				if promise == 0 || promise > view.Epoch {
					gone = max(gone, view.Epoch)
					if now := h.Peek(); now < view.Ceiling {
						t.Errorf("clock %d below the ceiling %d", now, view.Ceiling)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkCounts(b *testing.B) {
	w := newWorld(b, 2)
	w.run(100 * ms)
	p, now := w.node(1).table.Peer(2), w.node(1).table.Now()
	e := p.View().Epoch
	for b.Loop() {
		if ok, _ := p.Counts(e, now, 1); !ok {
			b.Fatal("does not count")
		}
	}
}

func BenchmarkRound(b *testing.B) {
	w := newWorld(b, 2)
	w.run(100 * ms)
	for b.Loop() {
		r, _ := w.node(1).table.Request(2)
		g, _ := w.node(2).table.HandleRequest(1, r)
		w.node(1).table.HandleGrant(2, g)
	}
}
