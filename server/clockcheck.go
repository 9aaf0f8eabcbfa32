package server

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/hlc/osclock"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Agreement on the time.
//
// Nothing that the cluster promises rests on a wall clock. But a node whose clock
// is far ahead stamps its frames with times that all others refuse, and one whose
// clock is far behind refuses theirs: it takes no part until the clocks have come
// together. Worse, a node makes its bound durable a window ahead of its clock, and
// a bound cannot be taken back: it vouches for timestamps that may have been
// issued. A node that did so with a clock ten minutes ahead is shut out for ten
// minutes, repaired or not. So a node asks the others for the time BEFORE it has a
// hybrid clock and before it extends its bound, and nodes that are still asking
// answer one another.
//
// The cluster's time is what most of its nodes say. A node that runs says its
// smoothed clock (package osclock), which no jump moves. A node that starts says
// its wall clock; or, if that is behind its recorded bound by more than peers
// tolerate, the time at which the bound was written: so a cluster whose clocks
// were all put back goes on with the time that it had, instead of refusing every
// frame until the clocks have caught up.
//
// The four cases of one node whose wall clock is wrong by ten minutes:
//
//   - Jump while it runs, either way: the smoothed clock keeps pace and offset, so
//     no timestamp, bound or lease notices. (Leases check Clock.Deviation: support
//     asked for before the jump does not count, for one interval.) The jump is
//     reported, and adopted only if most of the others have that time.
//   - Restart with it, ahead: most say the cluster's time and not this node's. It
//     adopts theirs, and its bound never learns of the jump.
//   - Restart with it, behind: the record is ahead of the wall clock, and so are the
//     peers; the same adoption. Timestamps begin above the record as always.
//   - Repaired later: a jump while it runs, as in the first case. What was adopted
//     and the real clock then agree again. Repaired while it is down: nothing.
//
// When fewer than most of the nodes can be asked within bootPatience, the node
// goes on, for a part of the cluster may still be able to serve:
//
//   - Some nodes run already: they decide, since whoever disagrees with them cannot
//     talk to them.
//   - Only others that start: the largest group that agrees; of equals the earliest,
//     since a clock can go forward later but not back.
//   - Nobody: the node has its own clock, but no further than its record reaches.
//     It cannot tell a long stop from a wall clock that is ahead, and believing the
//     latter would write it down for good. It asks on, once a second, and moves
//     forward as soon as somebody has answered.
//
// A node that knows no others believes its own clock.
//
// What remains: a record that is ahead of the cluster's time already, because it
// was written by a node that was alone with a wrong clock. That node hears the
// others and is heard by nobody until the time has come. Nothing safe shortens it:
// what it may have issued, nobody else knows. It says so, with the remedy: wait,
// or remove its data and let it join anew. A running cluster is not brought to
// another time either, though all its wall clocks may be corrected at once: its
// time then stays apart from the time of day, which harms nothing else, and it
// stays so for as long as most of the nodes run.
const (
	// agreeWithin is how close clocks must be to agree: what osclock follows
	// without asking.
	agreeWithin = osclock.MaxSlew
	// bootPatience is how long a node that starts waits for most of the others.
	bootPatience = 3 * time.Second
	// timeTimeout bounds one question; half of it is the error of an answer.
	timeTimeout  = 500 * time.Millisecond
	askTimeEvery = 100 * time.Millisecond // of one that did not answer
	// maxTimePeers bounds the nodes that are asked.
	maxTimePeers = 16
	// lookEvery is how often a running node looks at its wall clock, and asks the
	// others if it has jumped or nobody has agreed yet; agreeEvery is how often it
	// asks in any case.
	lookEvery  = time.Second
	agreeEvery = 15 * time.Second
)

// timeVote is what one node takes for the time: its distance from this node's
// smoothed clock. settled: it runs, and others have agreed to it.
type timeVote struct {
	offset  time.Duration
	settled bool
}

// largestGroup returns the size of the largest set of votes that agree, and their
// (lower) median; of several the earliest.
func largestGroup(votes []timeVote) (median time.Duration, size int) {
	sorted := slices.Clone(votes)
	slices.SortFunc(sorted, func(a, b timeVote) int { return cmp.Compare(a.offset, b.offset) })
	for first, last := 0, 0; first < len(sorted); first++ {
		for last < len(sorted) && sorted[last].offset-sorted[first].offset <= agreeWithin {
			last++
		}
		if last-first > size {
			size = last - first
			median = sorted[first+(size-1)/2].offset
		}
	}
	return median, size
}

func settledOf(votes []timeVote) []timeVote {
	return slices.DeleteFunc(slices.Clone(votes), func(v timeVote) bool { return !v.settled })
}

// startingTime is what a node takes for the time that has agreed with nobody yet,
// in milliseconds.
func startingTime(wall int64, recorded hlc.Timestamp) int64 {
	if recorded.Wall()-wall > maxAhead.Milliseconds() {
		return recorded.Wall() - boundWindow.Milliseconds()
	}
	return wall
}

// judge decides for a node that has agreed with nobody yet. nodes is the number of
// nodes known, this one included. late: nothing more is waited for. The answer is
// final if done; settled says whether anybody agreed.
func judge(own timeVote, answers []timeVote, nodes int, late bool) (
	offset time.Duration, settled, done bool,
) {
	all := append([]timeVote{own}, answers...)
	median, size := largestGroup(all)
	switch running := settledOf(answers); {
	case size*2 > nodes:
		return median, true, true
	case !late && len(answers) < nodes-1:
		return 0, false, false
	case len(running) > 0:
		median, _ = largestGroup(running)
		return median, true, true
	case len(answers) > 0:
		return median, true, true
	}
	return 0, false, true
}

// judgeRunning decides for a node that runs with a time agreed to before: it is
// left only for one that most of the nodes have.
func judgeRunning(answers []timeVote, nodes int) (offset time.Duration, leave bool) {
	median, size := largestGroup(settledOf(answers))
	return median, size*2 > nodes && median.Abs() > agreeWithin
}

// clockKeeper agrees on the time with the other nodes.
type clockKeeper struct {
	s        *Server
	clock    *osclock.Clock
	patience time.Duration // immutable; bootPatience but for tests
	cluster  uint64        // set once, before anybody can ask
	self     ids.NodeID
	recorded hlc.Timestamp // the bound of the former life

	settled  atomic.Bool
	adopted  atomic.Uint64 // steps taken over from the others
	shutOut  atomic.Int64  // nanoseconds until the others hear this node; 0: they do
	kick     chan struct{} // somebody is there who could agree
	reported time.Duration // step that was logged last; of the one goroutine of run
	asked    time.Time
}

func newClockKeeper(s *Server, clock *osclock.Clock) *clockKeeper {
	return &clockKeeper{
		s: s, clock: clock, patience: bootPatience, kick: make(chan struct{}, wakeSlots),
	}
}

// begin tells who this node is. Before it answers or asks.
func (k *clockKeeper) begin(cluster uint64, self ids.NodeID, recorded hlc.Timestamp) {
	k.cluster, k.self, k.recorded = cluster, self, recorded
}

// vote is what this node says when it is asked, in milliseconds. Any goroutine.
func (k *clockKeeper) vote() int64 {
	if k.settled.Load() {
		return k.clock.Wall()
	}
	return startingTime(k.clock.Real(), k.recorded)
}

// own is this node's vote beside those of the others.
func (k *clockKeeper) own() timeVote {
	return timeVote{offset: time.Duration(k.vote()-k.clock.Wall()) * time.Millisecond}
}

// others returns the addresses to ask, those that follow this node in a circle
// first, so that a few nodes are not asked by all; and the number of nodes that
// the answers are part of.
func (k *clockKeeper) others(nodes []*metapb.NodeDescriptor) (addrs []string, known int) {
	start := 0
	for i, n := range nodes {
		if ids.NodeID(n.GetNodeId()) == k.self {
			start = i
		}
	}
	for i := range nodes {
		n := nodes[(start+i)%len(nodes)]
		if ids.NodeID(n.GetNodeId()) != k.self && n.GetAddress() != "" &&
			len(addrs) < maxTimePeers {
			addrs = append(addrs, n.GetAddress())
		}
	}
	return addrs, len(addrs) + 1
}

// settle finds the time before the node has a hybrid clock. It returns when most
// of the nodes agree, or after the patience; an error only when ctx ends.
func (k *clockKeeper) settle(ctx context.Context, nodes []*metapb.NodeDescriptor) error {
	addrs, known := k.others(nodes)
	if known == 1 {
		k.settled.Store(true)
		return nil
	}
	began := time.Now()
	offset, settled := k.wait(ctx, addrs, known)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	log := k.s.cfg.Logger
	if !settled {
		// Nobody answered: no further than the record reaches.
		now := k.vote()
		if k.recorded != 0 {
			now = min(now, k.recorded.Wall())
		}
		offset = time.Duration(now-k.clock.Wall()) * time.Millisecond
		k.s.notice.say("no other node has answered what time it is; going on with this node's own clock")
		log.Warn("no other node has answered what time it is", "node", k.self, "count", len(addrs),
			"offset", offset)
	}
	k.adopt(offset, "at the start")
	k.settled.Store(settled)
	if settled {
		log.Info("agreed with the others on the time", "node", k.self, "offset", offset,
			"took", time.Since(began))
		k.noteRecord(k.recorded)
	}
	return nil
}

// wait asks every address until it has answered, and judges after each answer.
func (k *clockKeeper) wait(
	ctx context.Context, addrs []string, known int,
) (offset time.Duration, settled bool) {
	ctx, cancel := context.WithTimeout(ctx, k.patience)
	answers := make(chan timeVote)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, addr := range addrs {
		wg.Go(func() {
			for ctx.Err() == nil {
				if v, err := k.ask(ctx, addr); err == nil {
					select {
					case answers <- v:
					case <-ctx.Done():
					}
					return
				}
				pause(ctx, askTimeEvery)
			}
		})
	}
	var votes []timeVote
	for done := false; !done; {
		select {
		case v := <-answers:
			votes = append(votes, v)
			offset, settled, done = judge(k.own(), votes, known, false)
		case <-ctx.Done():
			offset, settled, done = judge(k.own(), votes, known, true)
		}
	}
	return offset, settled
}

// adopt moves the clock if that is worth it.
func (k *clockKeeper) adopt(offset time.Duration, when string) {
	if offset.Abs() <= agreeWithin {
		return
	}
	k.clock.Adopt(offset)
	k.adopted.Add(1)
	k.s.cfg.Logger.Warn("this node's clock was apart from the cluster's time and was moved",
		"node", k.self, "offset", offset, "reason", when)
}

// noteRecord looks whether a timestamp of this node is so far ahead of the
// cluster's time that its peers refuse its frames, and says so when that begins.
func (k *clockKeeper) noteRecord(own hlc.Timestamp) {
	lead := time.Duration(own.Wall()-k.clock.Wall())*time.Millisecond - maxAhead
	before := k.shutOut.Swap(int64(max(0, lead)))
	switch {
	case lead > 0 && before == 0:
		const remedy = "wait; or, if every range has a majority of its replicas elsewhere, " +
			"remove this node's data directory and let it join anew"
		k.s.cfg.Logger.Error("this node's recorded clock is ahead of the cluster's time: "+
			"the others refuse its messages until then", "node", k.self, "wait", lead,
			"remedy", remedy)
	case lead <= 0 && before > 0:
		k.s.cfg.Logger.Info("the cluster's time has reached this node's clock", "node", k.self)
	}
}

// run watches the wall clock of a node that runs, until ctx ends.
func (k *clockKeeper) run(
	ctx context.Context, h *hlc.Hybrid, nodes func() []*metapb.NodeDescriptor,
) error {
	k.asked = time.Now()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-k.kick:
		}
		k.clock.Wall() // the clock looks at itself when it is read
		known := nodes()
		k.look(ctx, known)
		if len(known) > 1 {
			k.noteRecord(h.Peek())
		}
	}
}

// look asks the others if there is a reason to, and follows most of them.
func (k *clockKeeper) look(ctx context.Context, nodes []*metapb.NodeDescriptor) {
	step := k.clock.Step()
	jumped := (step - k.reported).Abs() > agreeWithin
	if k.settled.Load() && !jumped && time.Since(k.asked) < agreeEvery {
		return
	}
	k.asked = time.Now()
	addrs, known := k.others(nodes)
	votes := k.askAll(ctx, addrs)
	if ctx.Err() != nil {
		return
	}
	if !k.settled.Load() {
		offset, settled, _ := judge(k.own(), votes, known, true)
		if settled {
			k.adopt(offset, "the others have answered")
			k.settled.Store(true)
		}
	} else if offset, leave := judgeRunning(votes, known); leave {
		k.adopt(offset, "most of the others agree")
	}
	k.report(known, len(votes))
}

// report logs a step of the wall clock once, and its end.
func (k *clockKeeper) report(known, answered int) {
	k.clock.Wall()
	step := k.clock.Step()
	if (step - k.reported).Abs() <= agreeWithin {
		return
	}
	log := k.s.cfg.Logger
	if k.reported = step; step == 0 {
		log.Info("the wall clock agrees with the cluster's time again", "node", k.self)
		return
	}
	log.Warn("the wall clock differs from the cluster's time and is not followed: set it right",
		"node", k.self, "step", step, "nodes", known, "answered", answered)
}

// askAll asks every address once, all at the same time.
func (k *clockKeeper) askAll(ctx context.Context, addrs []string) []timeVote {
	var mu sync.Mutex
	var votes []timeVote
	var wg sync.WaitGroup
	for _, addr := range addrs {
		wg.Go(func() {
			if v, err := k.ask(ctx, addr); err == nil {
				mu.Lock()
				defer mu.Unlock()
				votes = append(votes, v)
			}
		})
	}
	wg.Wait()
	return votes
}

// emitClock sends the figures of agreement.
func (k *clockKeeper) emitClock(e emitter) {
	e.gauge("clock_settled", "Whether other nodes have agreed to this node's time.",
		truth(k.settled.Load()))
	e.total("clock_adoptions", "Times that this node moved its clock to the others'.",
		k.adopted.Load())
	e.gauge("clock_shut_out_seconds", "How long the others will refuse this node's messages, "+
		"because its recorded clock is ahead.", time.Duration(k.shutOut.Load()).Seconds())
}

// problems says in words what is wrong with this node's clock.
func (k *clockKeeper) problems() (all []string) {
	if wait := time.Duration(k.shutOut.Load()); wait > 0 {
		all = append(all, "its recorded clock is ahead of the cluster's time: the others refuse "+
			"its messages for another "+wait.Round(time.Second).String())
	}
	if step := k.clock.Step(); step != 0 {
		all = append(all, "its wall clock differs from the cluster's time by "+
			step.Round(time.Second).String()+" and is not followed")
	}
	if !k.settled.Load() {
		all = append(all, "no other node has agreed to its time yet")
	}
	return all
}

// timeReply answers who asks for the time.
func (k *clockKeeper) timeReply(r *adminpb.TimeRequest) (*adminpb.TimeReply, error) {
	if r.GetClusterId() != k.cluster {
		return nil, otherCluster(k.cluster)
	}
	settled := k.settled.Load()
	if !settled {
		wake(k.kick) // who asks can answer
	}
	return &adminpb.TimeReply{
		ClusterId: k.cluster, NodeId: uint64(k.self), WallMillis: k.vote(), Settled: settled,
	}, nil
}
