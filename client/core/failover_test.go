package core

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// notice is how much later than the servers a client may be after an election:
// the longest pause of a probe, and messages to and fro.
const notice = fastPause + 6*time.Millisecond

// many splits the keyspace into ranges, led in turn, and warms a user's cache.
func (w *world) many(ranges int) *user {
	for n := 1; n < ranges; n++ {
		w.cluster.Split(key(fmt.Sprintf("k%04d", n)))
	}
	for n, r := range w.cluster.Ranges {
		r.Leader = ids.NodeID(n%w.cluster.Nodes + 1)
	}
	u := w.newUser(1)
	for n := range ranges {
		u.wait(w.putTo(n), 0)
	}
	w.run(2*DefaultPingAfter, nil)
	u.to, u.pings = map[ids.NodeID]int{}, 0
	return u
}

// putTo is a write to the nth range.
func (w *world) putTo(n int) kv.Request { return put(fmt.Sprintf("k%04d/%d", n, w.rng.Uint32()), "v") }

// done is what became of a call.
type done struct {
	n  int // of its range
	at time.Duration
}

// load begins writes to every range at once.
func (u *user) load(ranges, each int) *[]done {
	all := &[]done{}
	for n := range ranges {
		for range each {
			u.call(u.w.putTo(n), 0, func(r *kv.Response) {
				if r.Code != kv.CodeOK {
					u.w.t.Errorf("a write to range %d: %+v", n, r)
				}
				*all = append(*all, done{n, u.w.now})
			})
		}
	}
	return all
}

// lead lets a range be led by nobody, or by a node, after a time.
func (w *world) lead(n int, by ids.NodeID, after time.Duration) {
	w.after(after, func() { w.cluster.Ranges[n].Leader = by })
}

// idle says that nothing is left of any call.
func (u *user) idle() {
	c := u.core
	if len(c.attempts) > 0 || c.legTimers() > 0 || c.gates.size > 0 || len(c.cache.orphans) > 0 {
		u.w.t.Errorf("left: %d attempts, %d timers, %d gates, %d orphans", len(c.attempts),
			c.legTimers(), c.gates.size, len(c.cache.orphans))
	}
	for n, k := range c.links {
		if k.owed != 0 {
			u.w.t.Errorf("node %v owes %d answers", n, k.owed)
		}
	}
}

func (u *user) total() (sum int) {
	for _, n := range u.to {
		sum += n
	}
	return sum
}

// failover lets node 1 vanish in one way or another, be named as leader for a
// while, and be replaced in an election that takes a while, staggered.
func failover(t *testing.T, seed uint64, vanish func(*world)) (*user, []done, []time.Duration) {
	const ranges, each = 60, 8
	w := newWorld(t, seed, 3)
	u := w.many(ranges)
	all := u.load(ranges, each)
	vanish(w)
	elected := make([]time.Duration, ranges)
	for n := range ranges {
		if w.cluster.Ranges[n].Leader != 1 {
			continue
		}
		w.lead(n, 0, 240*time.Millisecond)
		after := 260*time.Millisecond + time.Duration(w.rng.Int64N(int64(100*time.Millisecond)))
		w.lead(n, ids.NodeID(2+n/3%2), after)
		elected[n] = w.now + after
	}
	w.run(5*time.Second, func() bool { return len(*all) == ranges*each })
	if len(*all) != ranges*each {
		t.Fatalf("seed %d: %d of %d calls ended", seed, len(*all), ranges*each)
	}
	return u, *all, elected
}

func TestKilledNodeCostsTheElectionAndLittleMore(t *testing.T) {
	t.Parallel()
	for range 5 {
		seed := rand.Uint64()
		u, all, elected := failover(t, seed, func(w *world) { w.kill(1) })
		judgeFailover(t, seed, all, elected)
		// 480 requests, 160 of them twice. Before the promises end a scout asks,
		// then each of 20 ranges, for as long as its election takes.
		if n := u.total(); n > 480+160+20*30 {
			t.Errorf("seed %d: %d requests were sent", seed, n)
		}
		if u.pings > 3 {
			t.Errorf("seed %d: %d pings", seed, u.pings)
		}
		u.idle()
	}
}

func judgeFailover(t *testing.T, seed uint64, all []done, elected []time.Duration) {
	t.Helper()
	for _, d := range all {
		if late := d.at - elected[d.n]; elected[d.n] != 0 && late > notice {
			t.Errorf("seed %d: a write to range %d ended %v after the election", seed, d.n, late)
		}
		if elected[d.n] == 0 && d.at > 250*time.Millisecond+time.Second {
			t.Errorf("seed %d: a write to another node took until %v", seed, d.at)
		}
	}
}

func TestSilentNodeIsNoticedBeforeItsPromisesEnd(t *testing.T) {
	t.Parallel()
	for range 5 {
		seed := rand.Uint64()
		u, all, elected := failover(t, seed, func(w *world) { w.pause(1) })
		judgeFailover(t, seed, all, elected)
		if n := u.total(); n > 480+160+20*30 {
			t.Errorf("seed %d: %d requests were sent", seed, n)
		}
		// It goes on: what it answers now, to anybody, does no harm.
		u.w.resume(1)
		u.w.run(time.Second, nil)
		u.idle()
	}
}

func TestSilenceIsFoundOutInTwiceThePingTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 3)
	u := w.many(9)
	w.pause(1)
	for _, r := range w.cluster.Ranges {
		r.Leader = 2 // the others know already
	}
	began := w.now
	all := u.load(9, 50)
	w.run(time.Second, func() bool { return len(*all) == 450 })
	took := w.now - began
	if len(*all) != 450 || took > 2*DefaultPingAfter+notice || took < 2*DefaultPingAfter {
		t.Errorf("%d of 450 writes after %v", len(*all), took)
	}
	if u.pings != 1 {
		t.Errorf("%d pings", u.pings)
	}
}

// TestBusyNodeIsNotStormed: every answer of a node that leads everything comes
// late. It is suspected again and again, and that costs the others next to
// nothing.
func TestBusyNodeIsNotStormed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, rand.Uint64(), 3)
	const ranges = 100
	u := w.many(ranges)
	for _, r := range w.cluster.Ranges {
		r.Leader = 1
	}
	for n := range ranges {
		u.wait(w.putTo(n), 0)
	}
	u.to = map[ids.NodeID]int{}
	w.delay[1] = 450 * time.Millisecond
	served, end := 0, w.now+20*time.Second
	var again func(n int)
	again = func(n int) {
		u.call(w.putTo(n), 0, func(r *kv.Response) {
			if served++; w.now < end {
				w.after(0, func() { again(n) })
			}
		})
	}
	for n := range ranges {
		for range 3 {
			again(n)
		}
	}
	w.run(time.Minute, nil)
	// A request may be asked twice at its leader, when its stream fell silent
	// while it was sent, and the scout's rounds go to the others.
	if n := u.to[2] + u.to[3]; n > served/10 {
		t.Errorf("%d requests went to others, %d were served", n, served)
	}
	if served < 20*2*300 || u.to[1] > served*11/10 {
		t.Errorf("%d requests went to the leader, %d were served", u.to[1], served)
	}
	u.idle()
}

func TestLeaderlessRangeIsAskedByOneForAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t, rand.Uint64(), 3)
	u := w.many(3)
	w.cluster.Ranges[1].Leader = 0
	all := &[]done{}
	for range 500 {
		u.call(w.putTo(1), 0, func(*kv.Response) { *all = append(*all, done{1, w.now}) })
	}
	w.run(800*time.Millisecond, nil)
	// All went to the old leader once; since then one asks: two or three
	// replicas at a time, every 10 to 20 ms.
	if n := u.total(); n > 500+3*90 || n < 500+3*30 {
		t.Errorf("%d requests for 500 that wait", n)
	}
	w.cluster.Ranges[1].Leader = 2
	began := w.now
	w.run(time.Second, func() bool { return len(*all) == 500 })
	if late := w.now - began; len(*all) != 500 || late > notice {
		t.Errorf("%d of 500 writes went on, the last %v after the election", len(*all), late)
	}
	u.idle()
}

func TestRangeWithoutLeaderForLongIsAskedSeldom(t *testing.T) {
	t.Parallel()
	w := newWorld(t, rand.Uint64(), 3)
	u := w.many(3)
	w.cluster.Ranges[1].Leader = 0
	all := u.load(3, 20)
	w.run(2*time.Second, nil)
	u.to = map[ids.NodeID]int{}
	w.run(20*time.Second, nil)
	if n := u.total(); n > 3*20*4 {
		t.Errorf("%d requests in 20 s", n)
	}
	w.cluster.Ranges[1].Leader = 3
	w.run(2*DefaultBackoffMax, nil)
	if len(*all) != 60 {
		t.Errorf("%d of 60 writes ended", len(*all))
	}
	u.idle()
}

func TestMovedLeaderCostsEachRequestOneStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t, rand.Uint64(), 3)
	u := w.many(3)
	w.cluster.Ranges[1].Leader = 3
	began := w.now
	all := u.load(2, 200)
	w.run(time.Second, func() bool { return len(*all) == 400 })
	if took := w.now - began; took > 5*time.Millisecond || u.total() != 400+200 {
		t.Errorf("%d writes took %v and %d requests", len(*all), took, u.total())
	}
	if u.core.gates.size != 0 {
		t.Error("a hint closed a gate")
	}
}

// TestNodesThatNameEachOtherAreNotAskedInCircles: hints that lead nowhere.
func TestNodesThatNameEachOtherAreNotAskedInCircles(t *testing.T) {
	t.Parallel()
	w := newWorld(t, rand.Uint64(), 3)
	u := w.many(3)
	lost := true
	w.handle = func(n ids.NodeID, r *kv.Request) *kv.Response {
		if lost && w.cluster.Holder(r.Key) == w.cluster.Ranges[1] && r.Verb != verbPing {
			return &kv.Response{ID: r.ID, Code: kv.CodeNotLeader, Leader: n%3 + 1}
		}
		return w.cluster.Handle(n, r)
	}
	all := u.load(3, 100)
	w.run(time.Second, nil)
	if n := u.total(); n > 300+100*6+100*6 {
		t.Errorf("%d requests in a second", n)
	}
	lost = false
	w.run(DefaultBackoffMax, nil)
	if len(*all) != 300 {
		t.Errorf("%d of 300 writes ended", len(*all))
	}
	u.idle()
}

// TestNewLeaderThatDoesNotServeYetIsAskedByOne: it names itself.
func TestNewLeaderThatDoesNotServeYetIsAskedByOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, rand.Uint64(), 3)
	u := w.many(3)
	ready := w.now + 30*time.Millisecond
	w.handle = func(n ids.NodeID, r *kv.Request) *kv.Response {
		if w.now < ready && n == 2 && r.Verb != verbPing {
			return &kv.Response{ID: r.ID, Code: kv.CodeNotLeader, Leader: n, RetryAfterMillis: 10}
		}
		return w.cluster.Handle(n, r)
	}
	all := u.load(3, 100)
	w.run(time.Second, func() bool { return len(*all) == 300 })
	if late := w.now - ready; late > notice || u.total() > 300+100+10 {
		t.Errorf("the last ended %v after it was ready, %d requests", late, u.total())
	}
	u.idle()
}

// TestCallsThatEndAtAGateSendNothing: deadlines, cancels, and the probe itself.
func TestCallsThatEndAtAGateSendNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, rand.Uint64(), 3)
	u := w.many(3)
	w.cluster.Ranges[1].Leader = 0
	ended := 0
	count := func(r *kv.Response) {
		if ended++; r.Code != kv.CodeUnavailable {
			t.Errorf("%+v", r)
		}
	}
	var calls []*Call
	for n := range 1000 {
		call := &Call{Request: get("k0001/x"), Done: count}
		if n%2 == 0 {
			call.Deadline = w.now + 100*time.Millisecond
		} else {
			calls = append(calls, call)
		}
		u.do(func(now time.Duration) { u.core.Start(now, call) })
	}
	w.run(99*time.Millisecond, nil)
	u.to = map[ids.NodeID]int{}
	w.run(2*time.Millisecond, nil)
	for _, call := range calls {
		u.do(func(now time.Duration) { u.core.Cancel(now, call) })
	}
	if ended != 1000 || u.total() > 4 {
		t.Errorf("%d calls ended, and %d requests were sent meanwhile", ended, u.total())
	}
	w.run(time.Second, nil)
	u.idle()
}

func TestSplitOfALeaderlessRangeLosesNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, rand.Uint64(), 3)
	u := w.many(3)
	w.cluster.Ranges[1].Leader = 0
	all := u.load(3, 100)
	w.run(100*time.Millisecond, nil)
	w.cluster.Split(key("k0001/3"))
	w.cluster.Split(key("k0001/6"))
	for _, r := range w.cluster.Ranges {
		r.Leader = 3
	}
	began := w.now
	w.run(time.Second, func() bool { return len(*all) == 300 })
	if late := w.now - began; len(*all) != 300 || late > 2*notice {
		t.Errorf("%d of 300 writes ended, the last %v after the split", len(*all), late)
	}
	u.idle()
}

// TestRestartedNodeIsFoundWithinARedial: everybody names a node that refuses
// connections for a while, and then leads.
func TestRestartedNodeIsFoundWithinARedial(t *testing.T) {
	t.Parallel()
	w := newWorld(t, rand.Uint64(), 3)
	u := w.many(3)
	w.kill(1)
	all := u.load(3, 10)
	up := w.now + 400*time.Millisecond
	w.after(400*time.Millisecond, func() { delete(w.down, 1) })
	w.run(2*time.Second, func() bool { return len(*all) == 30 })
	if late := w.now - up; len(*all) != 30 || late > redialEvery+notice {
		t.Errorf("%d of 30 writes, the last %v after the restart", len(*all), late)
	}
	if n := u.total(); n > 300 {
		t.Errorf("%d requests", n)
	}
	u.idle()
}

// TestLateTimersAreNoSilence: this process did not run for a while.
func TestLateTimersAreNoSilence(t *testing.T) {
	t.Parallel()
	var sent []kv.Request
	rec := recorder{send: func(n ids.NodeID, r *kv.Request) { sent = append(sent, *r) }}
	c := New(Config{Client: 1, Random: func() uint64 { return 0 }}, rec)
	c.cache.merge(descriptor(2, 1, "\x20", "\x21", 1, 2, 3), 1)
	c.Stamp(1, 500)
	c.Start(1, &Call{Request: put("a", "1"), Done: func(*kv.Response) {}})
	c.Tick(1 + DefaultPingAfter + time.Second)
	if len(sent) != 1 {
		t.Fatalf("%d requests after a gap of this process", len(sent))
	}
	for c.Next() < 1+time.Second+2*DefaultPingAfter+2*lateWake {
		c.Tick(c.Next())
	}
	if len(sent) != 3 || sent[1].Verb != verbPing || sent[2].Verb != kv.VerbPut {
		t.Fatalf("a ping, and then another replica, were to be asked: %d requests", len(sent))
	}
}

// TestTimersThatAreAlwaysLateFindASilentNode: on a machine that is short of
// processors every timer is late, and a node that is silent must be found all the
// same (seen: writes that waited out seconds for a stopped node).
func TestTimersThatAreAlwaysLateFindASilentNode(t *testing.T) {
	t.Parallel()
	var to []ids.NodeID
	rec := recorder{send: func(n ids.NodeID, r *kv.Request) {
		if r.Verb == kv.VerbPut {
			to = append(to, n)
		}
	}}
	c := New(Config{Client: 1, Random: func() uint64 { return 0 }}, rec)
	c.cache.merge(descriptor(2, 1, "\x20", "\x21", 1, 2, 3), 1)
	c.Stamp(1, 500)
	c.Start(1, &Call{Request: put("a", "1"), Done: func(*kv.Response) {}})
	now := time.Duration(1)
	for len(to) < 2 && now < 10*time.Second {
		now = c.Next() + lateWake + 5*time.Millisecond
		c.Tick(now)
	}
	if len(to) < 2 || to[0] == to[1] || now > 6*DefaultPingAfter {
		t.Fatalf("asked %v until %v", to, now)
	}
}

// TestStoppingNodeGetsNothingMore: it said so, and answers what it has.
func TestStoppingNodeGetsNothingMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, rand.Uint64(), 3)
	u := w.many(3)
	before := u.load(3, 10)
	w.run(0, nil)
	had := u.to[1]
	for _, r := range w.cluster.Ranges {
		if r.Leader == 1 {
			r.Leader = 2
		}
	}
	u.do(func(now time.Duration) { u.core.Leaving(now, 1) })
	after := u.load(3, 10)
	w.run(time.Second, func() bool { return len(*before)+len(*after) == 60 })
	if len(*before)+len(*after) != 60 || u.to[1] != had {
		t.Errorf("%d of 60 writes, %d requests to the node after %d", len(*before)+len(*after),
			u.to[1], had)
	}
	u.do(func(now time.Duration) { u.core.Lost(now, 1) })
	u.idle()
}
