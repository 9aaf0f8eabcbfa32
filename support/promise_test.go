package support

import (
	"slices"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// pair is two nodes that have not spoken yet; the test moves time and messages.
func pair(t *testing.T) (w *world, a, b *node) {
	t.Helper()
	t.Parallel()
	w = newWorld(t, 2)
	return w, w.node(1), w.node(2)
}

// request composes a request of a to b.
func (n *node) request(to ids.NodeID) Request {
	n.w.tb.Helper()
	r, ok := n.table.Request(to)
	if !ok {
		n.w.tb.Fatalf("%v asks for no support", n.id)
	}
	return r
}

// grant lets n answer a request.
func (n *node) grant(from ids.NodeID, r Request) Grant {
	n.w.tb.Helper()
	g, ok := n.table.HandleRequest(from, r)
	if !ok {
		n.w.tb.Fatalf("%v does not answer", n.id)
	}
	return g
}

func TestAnOverduePromiseThatWasNotWithdrawnIsExtended(t *testing.T) {
	w, a, b := pair(t)
	g := b.grant(1, a.request(2))
	w.now += 2 * DefaultDuration
	if again := b.grant(1, a.request(2)); again.Epoch != g.Epoch {
		t.Fatalf("epoch %d became %d without a withdrawal", g.Epoch, again.Epoch)
	}
	if b.table.Expire(0); b.table.Peer(1).Promise() != g.Epoch {
		t.Fatal("withdrawn right after a request")
	}
}

func TestAWithdrawnPromiseNeverComesBack(t *testing.T) {
	w, a, b := pair(t)
	seen := map[Epoch]bool{}
	for range 5 {
		g := b.grant(1, a.request(2))
		if seen[g.Epoch] || g.Epoch.Life() != b.life {
			t.Fatalf("epoch %d again, or of another life than %d", g.Epoch, b.life)
		}
		seen[g.Epoch] = true
		w.now += DefaultDuration
		b.table.Expire(0)
		if b.table.Peer(1).Promise() != 0 {
			t.Fatal("not withdrawn after D")
		}
	}
	if want := slices.Repeat([]string{"withdrawn n1 expired"}, 5); !slices.Equal(b.told, want) {
		t.Fatalf("told %v", b.told)
	}
}

func TestThePromiseCountsFromReceiptAndTheSupportFromTheSend(t *testing.T) {
	w, a, b := pair(t)
	r := a.request(2)
	w.now += 30 * ms
	g := b.grant(1, r)
	w.now += 30 * ms
	a.table.HandleGrant(2, g)
	sent := a.table.Now() - 60*ms
	if until := a.table.Peer(2).View().Until; until != sent+225*ms {
		t.Fatalf("counts until %v after the send, want D less a tenth", until-sent)
	}
	if next := b.table.Expire(0); next != b.table.Now()-30*ms+DefaultDuration {
		t.Fatalf("the promise ends %v from now, want D after the receipt", next-b.table.Now())
	}
}

func TestALongerPromiseThanIsDurableIsRefused(t *testing.T) {
	_, a, b := pair(t)
	r := a.request(2)
	for _, d := range []time.Duration{DefaultDuration + 1, 0, -time.Second, 1<<63 - 1} {
		r.Duration = d
		if g, ok := b.table.HandleRequest(1, r); ok {
			t.Fatalf("granted %v: %+v", d, g)
		}
	}
	s := b.table.Status()[0]
	if b.table.Peer(1).Promise() != 0 || s.Refused != 4 || s.Granted != 0 {
		t.Fatalf("promise %d, status %+v", b.table.Peer(1).Promise(), s)
	}
}

func TestACeilingIsGrantedUpToTheDurableBoundAndToWhatIsTolerated(t *testing.T) {
	_, a, b := pair(t)
	r := a.request(2)
	if g := b.grant(1, r); g.Ceiling != r.Ceiling {
		t.Fatalf("granted %v of %v", g.Ceiling.Wall()-noon, r.Ceiling.Wall()-noon)
	}
	r.Ceiling = hlc.MaxTimestamp
	if g := b.grant(1, r); g.Ceiling != b.clock.Bound() {
		t.Fatalf("granted %d, the bound is %d", g.Ceiling, b.clock.Bound())
	}
	b.clock.SetBound(hlc.MaxTimestamp)
	if g := b.grant(1, r); g.Ceiling != b.clock.Tolerated() {
		t.Fatalf("granted %d, tolerated is %d", g.Ceiling, b.clock.Tolerated())
	}
}

func TestTheClockHasPassedTheCeilingWhenTheWithdrawalIsTold(t *testing.T) {
	w, a, b := pair(t)
	g := b.grant(1, a.request(2))
	told := false
	b.table.cfg.OnWithdrawn = func(ids.NodeID, Reason) {
		told = true
		if p := b.table.Peer(1).Promise(); p != 0 || b.clock.Peek() < g.Ceiling {
			t.Errorf("promise %d, clock %d, ceiling %d", p, b.clock.Peek(), g.Ceiling)
		}
	}
	w.now += DefaultDuration
	if b.table.Expire(0); !told {
		t.Fatal("not told")
	}
}

func TestALaterLifeMovesTheClockByNoCeiling(t *testing.T) {
	w, a, b := pair(t)
	w.now += ms
	first := b.grant(1, a.request(2))
	before := b.clock.Peek()
	w.restart(1)
	second := b.grant(1, w.node(1).request(2))
	if b.clock.Peek() != before || first.Epoch == second.Epoch {
		t.Fatalf("clock moved by %d; epochs %d, %d",
			b.clock.Peek()-before, first.Epoch, second.Epoch)
	}
	if want := []string{"withdrawn n1 later_life"}; !slices.Equal(b.told, want) {
		t.Fatalf("told %v", b.told)
	}
}

func TestAStarvedNodeWaitsBeforeItWithdraws(t *testing.T) {
	w, a, b := pair(t)
	g := b.grant(1, a.request(2))
	due := b.table.Expire(0)
	w.now += 2 * time.Second // node 2 gets no processor
	next := b.table.Expire(b.table.Now() - due)
	if next != b.table.Now()+DefaultDuration || b.table.Peer(1).Promise() != g.Epoch {
		t.Fatalf("looks again in %v, promise %d", next-b.table.Now(), b.table.Peer(1).Promise())
	}
	// A request had waited unread.
	if again := b.grant(1, a.request(2)); again.Epoch != g.Epoch {
		t.Fatalf("epoch %d became %d", g.Epoch, again.Epoch)
	}
	if s := b.table.Status()[0]; s.Spared != 1 || s.WithdrawnExpired+s.WithdrawnUnused != 0 {
		t.Fatalf("status %+v", s)
	}
}

func TestATimerThatIsALittleLateSparesNobody(t *testing.T) {
	w, a, b := pair(t)
	b.grant(1, a.request(2))
	w.now += DefaultDuration + 10*ms
	if b.table.Expire(10 * ms); b.table.Peer(1).Promise() != 0 {
		t.Fatal("not withdrawn")
	}
}

func TestStarvationThatGoesOnKeepsNoDeadNodesPromise(t *testing.T) {
	w, a, b := pair(t)
	b.grant(1, a.request(2))
	looks := 0
	for next := b.table.Expire(0); next != 0; looks++ {
		w.now += next - b.table.Now() + time.Second
		next = b.table.Expire(time.Second)
	}
	if looks > 8 || b.table.Peer(1).Promise() != 0 {
		t.Fatalf("promise %d after %d looks", b.table.Peer(1).Promise(), looks)
	}
}

func TestAPauseOfTheSupporterAloneWithdrawsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.lead()
	for range 5 {
		b := w.node(2)
		b.paused = w.now + 700*ms
		w.run(800 * ms)
		if n := b.countTold("withdrawn n1 expired"); n != 0 {
			t.Fatalf("withdrawn %d times", n)
		}
	}
	if w.violation != "" {
		t.Fatal(w.violation)
	}
}

func TestAPromiseThatNoGroupRestsOnIsCountedApart(t *testing.T) {
	w, a, b := pair(t)
	for i, mark := range []uint64{0, Mark(1, 2, 3)} {
		b.table.Peer(1).NoteRecord(mark, 1)
		b.grant(1, a.request(2))
		w.now += DefaultDuration
		b.table.Expire(0)
		s := b.table.Status()[0]
		if s.WithdrawnUnused != 1 || s.WithdrawnExpired != uint64(i) {
			t.Fatalf("status %+v", s)
		}
	}
}

func TestTheBootWaitEndsOnceAndIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.node(1)
	if !n.table.MayVote() || n.table.Expire(0) != 0 {
		t.Fatal("a first life waits")
	}
	w.restart(1)
	end := n.table.Expire(0)
	if want := n.table.Now() + DefaultDuration*105/100; end != want {
		t.Fatalf("the wait ends %v late", end-want)
	}
	w.now += end - n.table.Now() - 1
	if n.table.Expire(0); n.table.MayVote() || len(n.told) != 0 {
		t.Fatalf("votes before the end; told %v", n.told)
	}
	w.now++
	if !n.table.MayVote() {
		t.Fatal("does not vote at the end")
	}
	for range 3 {
		if next := n.table.Expire(0); next != 0 {
			t.Fatalf("another event in %v", next-n.table.Now())
		}
	}
	if !slices.Equal(n.told, []string{"votes"}) {
		t.Fatalf("told %v", n.told)
	}
}

// A clean stop seals the clock and records, as where the next life begins, what
// the clock or a promise has reached. Nobody gets free of a promise after that.
func TestASealedClockEndsNoPromiseButThoseItHasPassed(t *testing.T) {
	w, a, b := pair(t)
	g := b.grant(1, a.request(2))
	end := b.clock.Seal()
	if g.Ceiling <= end || b.table.Ceiling() != g.Ceiling {
		t.Fatalf("sealed at %d; ceiling %d, granted %d", end, b.table.Ceiling(), g.Ceiling)
	}
	if again := b.grant(1, a.request(2)); again.Ceiling > end {
		t.Fatalf("granted %d after the clock was sealed at %d", again.Ceiling, end)
	}
	w.now += time.Second
	next := b.table.Expire(0)
	if b.table.Peer(1).Promise() != g.Epoch || len(b.told) != 0 || next <= b.table.Now() {
		t.Fatalf("promise %d, told %v", b.table.Peer(1).Promise(), b.told)
	}
}
