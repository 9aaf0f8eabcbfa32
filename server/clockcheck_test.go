package server

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/hlc/osclock"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/rpc"
)

const tenMinutes = 10 * time.Minute

// A judgement by every rule of clockcheck.go. Offsets are from this node's clock.
func TestMostOfTheNodesSayWhatTimeItIs(t *testing.T) {
	t.Parallel()
	starts := func(d time.Duration) timeVote { return timeVote{offset: d} }
	runs := func(d time.Duration) timeVote { return timeVote{offset: d, settled: true} }
	near := 300 * time.Millisecond
	for name, c := range map[string]struct {
		own           time.Duration
		answers       []timeVote
		nodes         int
		late          bool
		offset        time.Duration
		settled, done bool
	}{
		"one of two others agrees": {
			answers: []timeVote{runs(near)}, nodes: 3, settled: true, done: true},
		"the first disagrees: the second is waited for": {
			answers: []timeVote{runs(tenMinutes)}, nodes: 3},
		"both others agree, and not with this node": {
			answers: []timeVote{runs(-tenMinutes), runs(near - tenMinutes)}, nodes: 3,
			offset: -tenMinutes, settled: true, done: true},
		"both others are starting, too": {
			answers: []timeVote{starts(tenMinutes), starts(tenMinutes + near)}, nodes: 3,
			offset: tenMinutes, settled: true, done: true},
		"a wrong one answers first": {
			answers: []timeVote{runs(tenMinutes), starts(near)}, nodes: 3,
			settled: true, done: true},
		"the only one that answers runs: who disagrees cannot talk to it": {
			answers: []timeVote{runs(tenMinutes)}, nodes: 3, late: true,
			offset: tenMinutes, settled: true, done: true},
		"a running one outweighs one that starts": {
			answers: []timeVote{starts(tenMinutes), runs(-tenMinutes)}, nodes: 3,
			offset: -tenMinutes, settled: true, done: true},
		"two start and disagree: the earlier": {
			answers: []timeVote{starts(-tenMinutes)}, nodes: 3, late: true,
			offset: -tenMinutes, settled: true, done: true},
		"two start and disagree, this one being earlier": {
			answers: []timeVote{starts(tenMinutes)}, nodes: 3, late: true,
			settled: true, done: true},
		"nobody answers": {nodes: 3, late: true, done: true},
		"two of five agree, three are down": {
			answers: []timeVote{starts(near)}, nodes: 5, late: true, settled: true, done: true},
		"two of five are not most": {answers: []timeVote{starts(near)}, nodes: 5},
		"a record ahead of the clock is this node's vote": {
			own: tenMinutes, answers: []timeVote{starts(tenMinutes + near)}, nodes: 3,
			offset: tenMinutes, settled: true, done: true},
	} {
		offset, settled, done := judge(timeVote{offset: c.own}, c.answers, c.nodes, c.late)
		close := (offset - c.offset).Abs() <= near
		if done != c.done || done && (settled != c.settled || settled && !close) {
			t.Errorf("%s: offset %v, settled %v, done %v", name, offset, settled, done)
		}
	}
}

func TestARunningNodeLeavesItsTimeOnlyForThatOfMostNodes(t *testing.T) {
	t.Parallel()
	runs := func(d time.Duration) timeVote { return timeVote{offset: d, settled: true} }
	for name, c := range map[string]struct {
		answers []timeVote
		nodes   int
		leave   bool
	}{
		"most have another":      {[]timeVote{runs(tenMinutes), runs(tenMinutes)}, 3, true},
		"most have this":         {[]timeVote{runs(0), runs(5 * time.Millisecond)}, 3, false},
		"one of two has another": {[]timeVote{runs(tenMinutes)}, 3, false},
		"others only start":      {[]timeVote{{offset: tenMinutes}, {offset: tenMinutes}}, 3, false},
		"others disagree":        {[]timeVote{runs(tenMinutes), runs(-tenMinutes)}, 3, false},
		"nobody answers":         {nil, 3, false},
		"three of five":          {[]timeVote{runs(-5e9), runs(-5e9), runs(-5e9), runs(0)}, 5, true},
	} {
		if _, leave := judgeRunning(c.answers, c.nodes); leave != c.leave {
			t.Errorf("%s: leave %v", name, leave)
		}
	}
}

// The largest group against all subsets.
func TestTheLargestGroupIsWhatASearchOfAllSubsetsFinds(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		votes := make([]timeVote, 1+random.IntN(7))
		for i := range votes {
			votes[i].offset = time.Duration(random.IntN(6)) * agreeWithin / 2
		}
		size, earliest := 0, time.Duration(0)
		for set := 1; set < 1<<len(votes); set++ {
			n, lo, hi := 0, time.Duration(1<<62), time.Duration(-1)
			for i, v := range votes {
				if set>>i&1 == 1 {
					n, lo, hi = n+1, min(lo, v.offset), max(hi, v.offset)
				}
			}
			if hi-lo <= agreeWithin && (n > size || n == size && lo < earliest) {
				size, earliest = n, lo
			}
		}
		median, n := largestGroup(votes)
		if n != size || median < earliest || median > earliest+agreeWithin {
			t.Fatalf("%v: %d around %v, want %d from %v", votes, n, median, size, earliest)
		}
	}
}

// timePeer is another node as seen by one that asks for the time.
type timePeer struct {
	adminpb.UnimplementedControlServer
	id     uint64
	offset time.Duration // of its clock from true time
	starts bool
	silent *atomic.Bool // nil: it answers
}

const timeCluster = 77

func (p timePeer) Time(
	_ context.Context, r *adminpb.TimeRequest,
) (*adminpb.TimeReply, error) {
	switch {
	case p.silent != nil && p.silent.Load():
		return nil, status.Error(codes.Unavailable, "silent")
	case r.GetClusterId() != timeCluster:
		return nil, otherCluster(timeCluster)
	}
	return &adminpb.TimeReply{
		ClusterId: timeCluster, NodeId: p.id, Settled: !p.starts,
		WallMillis: time.Now().Add(p.offset).UnixMilli(),
	}, nil
}

// clockStory is one node with a clock that a test bends, and its fake peers.
type clockStory struct {
	t     *testing.T
	shift atomic.Int64 // of the real wall clock
	keep  *clockKeeper
	nodes []*metapb.NodeDescriptor
	log   *logLines
}

type logLines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// newClockStory makes node 1; its wall clock is off by wrong when it starts.
func newClockStory(t *testing.T, wrong time.Duration, peers ...timePeer) *clockStory {
	t.Helper()
	s := &clockStory{t: t, log: &logLines{}}
	s.nodes = []*metapb.NodeDescriptor{{NodeId: 1, Address: "nobody:1"}}
	for i, p := range peers {
		p.id = uint64(i + 2)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := rpc.NewServer()
		adminpb.RegisterControlServer(srv, p)
		go func() { _ = srv.Serve(ln) }()
		t.Cleanup(srv.Stop)
		s.nodes = append(s.nodes, &metapb.NodeDescriptor{NodeId: p.id, Address: ln.Addr().String()})
	}
	s.shift.Store(int64(wrong))
	s.restart(0)
	return s
}

// restart makes a new process with the wall clock as it is bent now.
func (s *clockStory) restart(recorded hlc.Timestamp) {
	server := &Server{cfg: Config{Logger: slog.New(slog.NewTextHandler(s.log, nil))}.WithDefaults()}
	server.notice = &notices{out: server.cfg.Notice}
	clock := osclock.NewShifted(func() time.Duration { return time.Duration(s.shift.Load()) })
	server.clock = clock
	s.keep = newClockKeeper(server, clock)
	s.keep.patience = 700 * time.Millisecond
	s.keep.begin(timeCluster, 1, recorded)
}

func (s *clockStory) settle() {
	s.t.Helper()
	if err := s.keep.settle(s.t.Context(), s.nodes); err != nil {
		s.t.Fatal(err)
	}
}

// off is how far the node's clock is from true time.
func (s *clockStory) off() time.Duration {
	return time.Duration(s.keep.clock.Wall()-time.Now().UnixMilli()) * time.Millisecond
}

func (s *clockStory) wantOff(want time.Duration, when string) {
	s.t.Helper()
	if off := s.off(); (off - want).Abs() > agreeWithin {
		s.t.Fatalf("%s: the clock is off by %v, want %v", when, off, want)
	}
}

// look lets the clock see its wall clock, and then asks the others if it should.
func (s *clockStory) look() {
	s.t.Helper()
	for begun := time.Now(); time.Since(begun) < 20*time.Millisecond; {
		s.keep.clock.Wall() // it takes notice once in ten milliseconds
	}
	s.keep.look(s.t.Context(), s.nodes)
}

// recordOf is the bound that a node with a right clock had written.
func recordOf(ago time.Duration) hlc.Timestamp {
	return hlc.New(time.Now().Add(-ago).Add(boundWindow).UnixMilli(), 0)
}

// Must show 6, on one node with fake peers: the clock jumps while it runs, the
// process restarts with the jump, the clock is repaired, the process restarts.
func TestAWallClockThatJumpsByTenMinutesMovesNoTimestamp(t *testing.T) {
	t.Parallel()
	for _, jump := range []time.Duration{tenMinutes, -tenMinutes} {
		t.Run(jump.String(), func(t *testing.T) {
			t.Parallel()
			s := newClockStory(t, 0, timePeer{}, timePeer{})
			s.settle()
			s.shift.Store(int64(jump))
			s.look()
			s.look()
			s.wantOff(0, "after the jump")
			if n := s.log.count("is not followed"); n != 1 {
				t.Fatalf("the jump was logged %d times", n)
			}
			if p := s.keep.problems(); len(p) != 1 || !strings.Contains(p[0], "wall clock differs") {
				t.Fatalf("problems %q", p)
			}
			s.restart(recordOf(time.Second))
			s.settle()
			s.wantOff(0, "restarted with the jump")
			bound := hlc.NewHybrid(s.keep.clock, startOfClock(s.keep.clock.Wall(), s.keep.recorded),
				maxAhead)
			if next, _ := bound.NextBound(boundWindow); next > recordOf(-4*time.Second) {
				t.Fatalf("the bound follows the jump: %d s ahead of true time",
					(next.Wall()-time.Now().UnixMilli())/1000)
			}
			s.look()
			s.shift.Store(0)
			s.look()
			s.wantOff(0, "after the repair")
			if s.log.count("agrees with the cluster's time again") != 1 || s.keep.problems() != nil {
				t.Fatalf("after the repair: problems %q", s.keep.problems())
			}
			s.restart(recordOf(time.Second))
			s.settle()
			s.wantOff(0, "restarted after the repair")
		})
	}
}

func TestACorrectionThatMostOthersHaveIsFollowed(t *testing.T) {
	t.Parallel()
	for _, wrong := range []time.Duration{tenMinutes, -tenMinutes} {
		var silent atomic.Bool
		silent.Store(true)
		s := newClockStory(t, wrong, timePeer{silent: &silent}, timePeer{silent: &silent})
		s.settle()
		s.wantOff(wrong, "alone, with no record")
		if s.keep.settled.Load() {
			t.Fatal("settled with nobody")
		}
		silent.Store(false)
		s.look()
		s.wantOff(0, "after the others came")
		if !s.keep.settled.Load() || s.keep.adopted.Load() != 1 {
			t.Fatalf("settled %v, adopted %d", s.keep.settled.Load(), s.keep.adopted.Load())
		}
	}
}

// A node that cannot ask anybody goes no further than its record, so that a clock
// that is ahead is not written down for good; it follows the others when they come.
func TestANodeThatCanAskNobodyStaysWithinItsRecord(t *testing.T) {
	t.Parallel()
	var silent atomic.Bool
	silent.Store(true)
	s := newClockStory(t, tenMinutes, timePeer{silent: &silent}, timePeer{silent: &silent})
	s.restart(recordOf(time.Second))
	s.settle()
	if off := s.off(); off > boundWindow {
		t.Fatalf("ahead by %v although nobody agreed", off)
	}
	if len(s.keep.problems()) == 0 || s.log.count("no other node has answered") != 1 {
		t.Fatal("does not say that nobody answered")
	}
	silent.Store(false)
	s.look()
	s.wantOff(0, "after the others came")
}

func TestAClusterWhoseClocksWereAllPutBackGoesOnWithItsTime(t *testing.T) {
	t.Parallel()
	// All three restart with right clocks; their records are ten minutes ahead.
	ahead := tenMinutes - boundWindow
	s := newClockStory(t, 0, timePeer{offset: ahead, starts: true}, timePeer{offset: ahead, starts: true})
	s.restart(recordOf(-ahead))
	s.settle()
	s.wantOff(ahead, "restarted")
	if s.keep.shutOut.Load() != 0 {
		t.Fatal("shut out of a cluster that has the same time")
	}
}

// What cannot be solved is said: for how long, and what to do.
func TestARecordAheadOfTheClustersTimeIsReportedWithARemedy(t *testing.T) {
	t.Parallel()
	s := newClockStory(t, 0, timePeer{}, timePeer{})
	s.restart(recordOf(-tenMinutes))
	s.settle()
	s.wantOff(0, "restarted")
	wait := time.Duration(s.keep.shutOut.Load())
	if wait < 9*time.Minute || wait > tenMinutes || s.log.count("remove this node's data") != 1 {
		t.Fatalf("shut out for %v", wait)
	}
	s.keep.noteRecord(recordOf(0))
	if s.keep.shutOut.Load() != 0 || s.log.count("has reached this node's clock") != 1 {
		t.Fatal("the end of it was not noticed")
	}
}

func TestANodeThatKnowsNoOthersBelievesItsOwnClock(t *testing.T) {
	t.Parallel()
	s := newClockStory(t, -tenMinutes)
	s.restart(recordOf(time.Second))
	s.settle()
	s.wantOff(-tenMinutes, "alone")
	if !s.keep.settled.Load() {
		t.Fatal("not settled")
	}
}

func TestOnlyNodesOfTheClusterAreBelieved(t *testing.T) {
	t.Parallel()
	s := newClockStory(t, 0, timePeer{offset: tenMinutes}, timePeer{offset: tenMinutes})
	s.keep.begin(timeCluster+1, 1, 0)
	s.settle()
	s.wantOff(0, "among strangers")
	if s.keep.settled.Load() {
		t.Fatal("settled with strangers")
	}
}

func TestNodesAskThoseThatFollowThemAndNotAll(t *testing.T) {
	t.Parallel()
	k := &clockKeeper{self: 30}
	var nodes []*metapb.NodeDescriptor
	for i := range uint64(40) {
		nodes = append(nodes, &metapb.NodeDescriptor{NodeId: i + 1, Address: fmt.Sprint("n", i+1)})
	}
	addrs, known := k.others(nodes)
	if len(addrs) != maxTimePeers || known != maxTimePeers+1 || addrs[0] != "n31" ||
		addrs[10] != "n1" {
		t.Fatalf("asks %v, known %d", addrs, known)
	}
	k.self = ids.NodeID(99) // not in the list yet
	if addrs, known := k.others(nodes[:2]); len(addrs) != 2 || known != 3 {
		t.Fatalf("asks %v, known %d", addrs, known)
	}
}
