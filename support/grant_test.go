package support

import (
	"slices"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

// counted says whether a counts b under the epoch last granted.
func (n *node) counted(b *node) bool {
	p := n.table.Peer(b.id)
	ok, _ := p.Counts(p.View().Epoch, n.table.Now(), 0)
	return ok
}

func TestOnlyReadsBelowTheCeilingCount(t *testing.T) {
	_, a, b := pair(t)
	r := a.request(2)
	a.table.HandleGrant(2, b.grant(1, r))
	p := a.table.Peer(2)
	for _, c := range []struct {
		e         Epoch
		ts        hlc.Timestamp
		ok, short bool
	}{
		{p.View().Epoch, 0, true, false},
		{p.View().Epoch, r.Ceiling, true, false},
		{p.View().Epoch, r.Ceiling + 1, false, true},
		{p.View().Epoch + 1, r.Ceiling + 1, false, false},
		{0, 0, false, false},
	} {
		if ok, short := p.Counts(c.e, a.table.Now(), c.ts); ok != c.ok || short != c.short {
			t.Errorf("epoch %d, ts %d: %v, %v", c.e, c.ts, ok, short)
		}
	}
}

func TestACeilingHasRoomForAPromiseAboveTheWallClockOrLittleAboveAClockAhead(t *testing.T) {
	_, a, _ := pair(t)
	if c := a.request(2).Ceiling; c != hlc.New(a.Wall()+250, 0) {
		t.Fatalf("asked for %d ms above the wall clock", c.Wall()-a.Wall())
	}
	ahead := hlc.New(a.Wall()+400, 7)
	if err := a.clock.Advance(ahead); err != nil {
		t.Fatal(err)
	}
	if c := a.request(2).Ceiling; c != ahead+hlc.New(5, 0) {
		t.Fatalf("asked for %d ms above a clock that is ahead", c.Wall()-ahead.Wall())
	}
}

func TestGrantsInAnyOrderLeaveTheBestOfTheNewestPromise(t *testing.T) {
	w, a, b := pair(t)
	var grants []Grant
	for range 3 {
		grants = append(grants, b.grant(1, a.request(2)))
		w.now += 20 * ms
	}
	w.now += DefaultDuration
	b.table.Expire(0) // now a promise with a new epoch
	sent := a.table.Now()
	last := b.grant(1, a.request(2))
	grants = append(grants, last)
	rng := newRand(1)
	rng.Shuffle(len(grants), func(i, j int) { grants[i], grants[j] = grants[j], grants[i] })
	for _, g := range append(grants, grants...) {
		a.table.HandleGrant(2, g)
	}
	want := View{Epoch: last.Epoch, Until: sent + 225*ms, Ceiling: last.Ceiling}
	if got := a.table.Peer(2).View(); got != want {
		t.Fatalf("view %+v, want %+v", got, want)
	}
}

func TestGrantsThatAnswerNothingAreIgnored(t *testing.T) {
	w, a, b := pair(t)
	r := a.request(2)
	g := b.grant(1, r)
	for _, change := range []func(*Grant){
		func(g *Grant) { g.Life++ },
		func(g *Grant) { g.Sequence = 0 },
		func(g *Grant) { g.Sequence++ },
		func(g *Grant) { g.Sequence += outstanding },
		func(g *Grant) { g.Epoch = 0 },
	} {
		wrong := g
		change(&wrong)
		a.table.HandleGrant(2, wrong)
	}
	a.table.HandleGrant(1, g)
	a.table.HandleGrant(77, g)
	if v := a.table.Peer(2).View(); v != (View{}) {
		t.Fatalf("view %+v", v)
	}
	// The oldest of too many requests is forgotten.
	for range outstanding {
		a.request(2)
	}
	if a.table.HandleGrant(2, g); a.counted(b) {
		t.Fatal("counts a grant whose request was forgotten")
	}
	w.now += ms
	if a.table.HandleGrant(2, b.grant(1, a.request(2))); !a.counted(b) {
		t.Fatal("does not count the next one")
	}
}

func TestSupportLapsesAndResumesAndIsTold(t *testing.T) {
	w, a, b := pair(t)
	round := func() { a.table.HandleGrant(2, b.grant(1, a.request(2))) }
	round()
	round()
	w.now += 225 * ms
	if next := a.table.Expire(0); next != 0 || a.counted(b) {
		t.Fatalf("another event in %v", next-a.table.Now())
	}
	round() // the promise is not withdrawn yet: the same epoch counts again
	w.now += DefaultDuration
	a.table.Expire(0)
	a.table.Expire(0)
	b.table.Expire(0)
	late := a.request(2)
	g := b.grant(1, late)
	w.now += 225 * ms
	a.table.HandleGrant(2, g) // too late to count
	round()
	want := []string{
		"supported n2 1/1", "unsupported n2", "supported n2 1/1", "unsupported n2", "supported n2 1/2",
	}
	if !slices.Equal(a.told, want) {
		t.Fatalf("told %v", a.told)
	}
	if s := a.table.Status()[0]; s.Lapses != 2 || s.SupportLeft != 225*ms || s.SupportEpoch != 1<<32|2 {
		t.Fatalf("status %+v", s)
	}
}

func TestANodeWhoseDiskHangsAsksForNoSupport(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.lead()
	a := w.node(1)
	a.diskHangs = true
	w.run(310 * ms)
	if a.counted(w.node(2)) || !w.node(2).mayVote() || a.countTold("unsupported n2") != 1 {
		t.Fatalf("node 1 keeps its followers: told %v", a.told)
	}
	if g := w.node(2).table.Peer(1); w.node(3).table.Peer(2).Promise() == 0 || g.Promise() != 0 {
		t.Fatal("the others lost one another, or node 1 kept a promise")
	}
	a.diskHangs = false
	w.run(100 * ms)
	if !a.counted(w.node(2)) {
		t.Fatal("not supported again")
	}
}

func TestClocksThatMovedApartAreRepairedByTheNextRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	a, b := w.node(1), w.node(2)
	w.run(200 * ms)
	p := a.table.Peer(2)
	if !a.counted(b) {
		t.Fatal("not supported")
	}
	for _, d := range []time.Duration{3 * time.Second, -time.Second, 0} {
		a.deviation = d // the real wall clock moved and the lease clock did not notice
		if ok, short := p.Counts(p.View().Epoch, a.table.Now(), 0); ok || short {
			t.Fatalf("deviation %v: counts %v, short %v", d, ok, short)
		}
		w.run(DefaultInterval + 2*ms) // the next request repairs it
		if !a.counted(b) {
			t.Fatalf("deviation %v: not repaired", d)
		}
	}
}

func TestASlowGrantAfterAFreezeDoesNotCount(t *testing.T) {
	w, a, b := pair(t)
	g := b.grant(1, a.request(2))
	a.deviation = time.Second
	a.table.HandleGrant(2, g)
	if a.counted(b) {
		t.Fatal("counts from a moment before the freeze")
	}
	w.now += 10 * ms
	late := b.grant(1, a.request(2))
	a.table.HandleGrant(2, late)
	if !a.counted(b) {
		t.Fatal("does not count a request sent after the freeze")
	}
}

func TestWantedNodesAreAskedAndNoOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	table := w.node(1).table
	<-table.Asked() // the first group that wants a node asks at once
	table.Want(2, 1)
	table.Want(3, -1)
	if got := table.Wanted(); len(got) != 1 || got[0] != 2 {
		t.Fatalf("wanted %v", got)
	}
	if _, ok := table.Request(3); ok {
		t.Fatal("asks a node that is not wanted")
	}
	if _, ok := table.Request(9); ok {
		t.Fatal("asks a node that nobody knows")
	}
	if s := table.Status(); s[0].Wanted != 2 || s[1].Wanted != 0 {
		t.Fatalf("status %+v", s)
	}
	for range 3 {
		table.AskNow()
	}
	<-table.Asked()
	select {
	case <-table.Asked():
		t.Fatal("two tokens")
	default:
	}
}

func TestRoundTripAndWallClocksAreEstimated(t *testing.T) {
	w, a, b := pair(t)
	b.skew = 100
	r := a.request(2)
	w.now += 6 * ms
	g := b.grant(1, r)
	if s := b.table.Status()[0]; s.WallOffset != -106*ms || s.WallOffsetAt == 0 {
		t.Fatalf("from a request alone: %v", s.WallOffset)
	}
	w.now += 6 * ms
	a.table.HandleGrant(2, g)
	s := a.table.Status()[0]
	if s.RoundTrip != 12*ms || s.WallOffset != 100*ms || s.WallOffsetAt != a.table.Now() {
		t.Fatalf("round trip %v, offset %v", s.RoundTrip, s.WallOffset)
	}
	// A one-way estimate does not replace one from a round trip that is fresh.
	w.now += 20 * ms
	a.grant(2, b.request(1))
	if s := a.table.Status()[0]; s.WallOffset != 100*ms {
		t.Fatalf("replaced by %v", s.WallOffset)
	}
}

func TestAFrozenClockOfAStrangerIsKeptWithinADuration(t *testing.T) {
	_, a, b := pair(t)
	r := a.request(2)
	r.Wall = 1 << 62
	b.grant(1, r)
	if s := b.table.Status()[0]; s.WallOffset <= 0 {
		t.Fatalf("offset %v", s.WallOffset)
	}
}
