package server

import (
	"context"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/support"
)

// startServer runs a node in this process until the test ends, and returns it
// when it serves.
func startServer(t *testing.T, cfg Config) *node {
	t.Helper()
	ready := make(chan Info, 1)
	cfg.Ready = func(i Info) { ready <- i }
	cfg.DrainTimeout = time.Millisecond // nobody waits for these
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatalf("the node ended before it served: %v", err)
	}
	return s.node.Load()
}

// until calls ok until it is true.
func until(ok func() bool) {
	for !ok() {
		runtime.Gosched()
	}
}

// pairOf returns what n knows of support between it and a peer.
func pairOf(n *node, peer ids.NodeID) (found support.Status) {
	for _, p := range n.support.Status() {
		if p.Node == peer {
			found = p
		}
	}
	return found
}

func TestTwoNodesThatLeadRangesSupportOneAnother(t *testing.T) {
	t.Parallel()
	// A busy machine must not end a promise in this story.
	first := testConfig(t)
	first.SupportDuration, first.SupportInterval = maxSupport, 20*time.Millisecond
	n1 := startServer(t, first)
	joining := first
	joining.Init, joining.Join = false, []string{n1.s.Addr()}
	joining.Data = t.TempDir() + "/d"
	n2 := startServer(t, joining)
	joining.Data = t.TempDir() + "/d"
	startServer(t, joining) // two nodes do not make three copies

	supported := func(n *node, by ids.NodeID) bool {
		p := pairOf(n, by)
		return p.Wanted > 0 && p.SupportLeft > 0 && p.SupportEpoch.Life() == 1
	}
	// n1 leads all; a range that has a replica on n2 needs its support.
	until(func() bool { return supported(n1, 2) })
	if e := pairOf(n2, 1).PromiseEpoch; e != pairOf(n1, 2).SupportEpoch {
		t.Fatalf("n2 promises epoch %d, n1 counts on %d", e, pairOf(n1, 2).SupportEpoch)
	}
	// Then n2 leads one, and both need one another.
	admin := &adminService{n: n1}
	until(func() bool {
		// Again and again: a target that has not applied its promotion yet ignores
		// the order, and the leader then turns to another.
		_, _ = admin.TransferLeader(t.Context(),
			&adminpb.TransferLeaderRequest{RangeId: 2, ToNode: 2})
		return supported(n2, 1) && n2.supportStatus().LeasesHeld > 0
	})

	// What a node with peers counts can be scraped.
	page, err := http.Get("http://" + n1.s.HTTPAddr() + "/metrics")
	if err != nil || page.StatusCode != http.StatusOK {
		t.Fatalf("scrape: %v, %v", page, err)
	}
	_ = page.Body.Close()

	// Whoever is asked knows what both know.
	var reply *adminpb.StatusReply
	until(func() bool {
		var err error
		reply, err = admin.Status(t.Context(), &adminpb.StatusRequest{Support: true})
		return err == nil && len(reply.GetNodes()) == 3 &&
			reply.GetNodes()[1].GetSupport() != nil
	})
	for _, s := range reply.GetNodes()[:2] {
		told := s.GetSupport()
		if p := told.GetPairs(); len(p) != 2 || p[0].GetSupportEpoch() == 0 ||
			p[0].GetPromiseEpoch() == 0 || !told.GetMayVote() {
			t.Errorf("n%d tells %v", s.GetNode().GetNodeId(), told)
		}
		if s.GetNode().GetNodeId() == 1 && told.GetElections() == 0 {
			t.Errorf("the founder has won no election: %v", told)
		}
	}
	reply, err = admin.Status(t.Context(), &adminpb.StatusRequest{})
	if err != nil || reply.GetNodes()[0].GetSupport() != nil {
		t.Errorf("support was told without being asked for: %v, %v", reply, err)
	}
}

func TestTheLongestPromiseIsRememberedAndOnlyRises(t *testing.T) {
	t.Parallel()
	o := store.Options{Dir: t.TempDir() + "/d", Create: true, CacheBytes: 8 << 20}
	for i, c := range []struct{ d, earlier, most time.Duration }{
		{250, 0, 250},
		{250, 250, 250},
		{900, 250, 900},
		{100, 900, 900}, // promises of 900 may be in force, and peers may ask for them
		{250, 900, 900},
	} {
		st, err := store.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		earlier, most, err := raisePromise(st, c.d)
		if err != nil || earlier != c.earlier || most != c.most {
			t.Errorf("life %d: earlier lives promised %d, this one may %d, %v; want %d and %d",
				i+1, earlier, most, err, c.earlier, c.most)
		}
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSupportFlagsAreValidated(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		duration, interval time.Duration
		ok                 bool
	}{
		{0, 0, true}, // the defaults
		{50 * time.Millisecond, 16 * time.Millisecond, true},
		{50 * time.Millisecond, 17 * time.Millisecond, false}, // more than a third
		{49 * time.Millisecond, 10 * time.Millisecond, false},
		{3 * time.Second, time.Second, true},
		{3*time.Second + 1, time.Second, false},
		{10 * time.Second, time.Second, false},
		{time.Second, time.Millisecond, false},
		{time.Second, -time.Second, false},
	} {
		cfg := Config{
			Data: "d", SupportDuration: c.duration, SupportInterval: c.interval,
		}.WithDefaults()
		if err := cfg.Validate(); (err == nil) != c.ok {
			t.Errorf("%v and %v: %v", c.duration, c.interval, err)
		}
	}
}

// R9k: a node may have passed the ceiling of the longest promise, or have begun at a
// bound a window ahead. Its stamps are adopted, though this node's wall clock is
// behind its own by all that is tolerated.
func TestStampsOfWhoPassedACeilingOrStartedAgainAreAdopted(t *testing.T) {
	t.Parallel()
	const wall = 1_000_000
	for name, lead := range map[string]time.Duration{
		"ceiling of the longest promise": maxSupport,
		"bound's window":                 boundWindow,
	} {
		clock := hlc.NewHybrid(stillClock{wall: wall}, 1, maxAhead)
		clock.SetBound(hlc.MaxTimestamp)
		stamp := hlc.New(wall+(wallOffset+lead).Milliseconds(), 7)
		if err := clock.Update(stamp); err != nil {
			t.Errorf("%s: %v ahead of a clock that is %v behind: %v", name, lead, wallOffset, err)
		}
	}
}
