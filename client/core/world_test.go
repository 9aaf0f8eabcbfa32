package core

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/client/internal/model"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// world runs cores against the model in virtual time: every message is an
// event, and messages may be late, lost, or answered to nobody.
type world struct {
	t       *testing.T
	rng     *rand.Rand
	now     time.Duration
	events  eventHeap
	order   int
	cluster *model.Cluster
	faults  bool
	down    map[ids.NodeID]bool
	trace   []string
	users   []*user

	paused map[ids.NodeID][]func()      // what a stopped node will handle when it goes on
	delay  map[ids.NodeID]time.Duration // of a busy node's answers
	handle func(ids.NodeID, *kv.Request) *kv.Response
}

type event struct {
	at    time.Duration
	order int
	run   func()
}

type eventHeap []*event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].order < h[j].order
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(*event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}

func newWorld(t *testing.T, seed uint64, nodes int) *world {
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 7)), now: 1, cluster: model.New(nodes),
		down: make(map[ids.NodeID]bool), paused: make(map[ids.NodeID][]func()),
		delay: make(map[ids.NodeID]time.Duration),
	}
	w.handle = w.cluster.Handle
	return w
}

// kill ends a node: streams to it break.
func (w *world) kill(n ids.NodeID) {
	w.down[n] = true
	for _, u := range w.users {
		u.epoch[n]++
		w.after(w.latency(), func() {
			u.do(func(now time.Duration) { u.core.Lost(now, n) })
		})
	}
}

// pause stops a node: nothing breaks, nothing is answered.
func (w *world) pause(n ids.NodeID) { w.paused[n] = []func(){} }

// resume lets a paused node handle what came meanwhile.
func (w *world) resume(n ids.NodeID) {
	held := w.paused[n]
	delete(w.paused, n)
	for _, f := range held {
		f()
	}
}

// atNode runs what a node does with a message when it comes to it.
func (w *world) atNode(n ids.NodeID, f func()) {
	if held, stopped := w.paused[n]; stopped {
		w.paused[n] = append(held, f)
		return
	}
	f()
}

func (w *world) after(d time.Duration, f func()) {
	w.order++
	heap.Push(&w.events, &event{at: w.now + d, order: w.order, run: f})
}

// run runs events until a condition holds, or for a time.
func (w *world) run(limit time.Duration, until func() bool) {
	end := w.now + limit
	for len(w.events) > 0 && w.events[0].at <= end && (until == nil || !until()) {
		e := heap.Pop(&w.events).(*event)
		w.now = e.at
		e.run()
	}
	if until == nil {
		w.now = end
	}
}

// user is one core, its wake-ups, and its sight of the network.
type user struct {
	w     *world
	core  *Core
	sends int
	to    map[ids.NodeID]int // requests sent, without pings
	pings int
	epoch map[ids.NodeID]int // of streams: an answer on an older one is lost
}

func (w *world) newUser(id uint64) *user {
	u := &user{w: w, to: make(map[ids.NodeID]int), epoch: make(map[ids.NodeID]int)}
	w.users = append(w.users, u)
	u.core = New(Config{Client: id, Random: w.rng.Uint64}, u)
	return u
}

// do runs a step of the core and sees to its next wake-up.
func (u *user) do(f func(now time.Duration)) {
	f(u.w.now)
	if next := u.core.Next(); next != 0 {
		u.w.after(max(next-u.w.now, 0), func() {
			if n := u.core.Next(); n != 0 && n <= u.w.now {
				u.do(u.core.Tick)
			}
		})
	}
}

func (w *world) latency() time.Duration {
	d := time.Duration(w.rng.IntN(900)+100) * time.Microsecond
	if w.faults && w.rng.IntN(20) == 0 {
		d = time.Duration(w.rng.Int64N(int64(8 * time.Second))) // a very late message
	}
	return d
}

// Send delivers a request, and its answer, each with its own fate.
func (u *user) Send(n ids.NodeID, r *kv.Request) {
	w, request := u.w, *r
	u.sends++
	w.trace = append(w.trace, fmt.Sprintf("%v %v %v %d", w.now, n, r.Verb, r.ID))
	if r.Verb == verbPing {
		u.pings++
	} else {
		u.to[n]++
	}
	id, epoch := r.ID, u.epoch[n]
	if w.down[n] {
		w.after(time.Millisecond, func() {
			u.do(func(now time.Duration) { u.core.NotSent(now, n, id) })
		})
		return
	}
	if w.faults && w.rng.IntN(50) == 0 {
		w.after(w.latency(), func() {
			u.do(func(now time.Duration) { u.core.Lost(now, n) })
		})
	}
	if w.faults && w.rng.IntN(40) == 0 {
		return // lost without a trace
	}
	w.after(w.latency(), func() { w.atNode(n, func() { u.served(n, epoch, &request) }) })
}

// served has a node handle a request and answer it.
func (u *user) served(n ids.NodeID, epoch int, r *kv.Request) {
	w := u.w
	if u.epoch[n] != epoch {
		return // it died with the request
	}
	answer := w.handle(n, r)
	stamp := w.cluster.Ranges[0].Clock
	if w.faults && w.rng.IntN(15) == 0 {
		return
	}
	w.after(w.latency()+w.delay[n], func() {
		if u.epoch[n] != epoch {
			return
		}
		u.do(func(now time.Duration) {
			u.core.Stamp(now, stamp)
			u.core.Response(now, n, answer)
		})
	})
}

// Lookup answers, or fails.
func (u *user) Lookup(token uint64, r *adminpb.LookupRequest) {
	w := u.w
	w.after(w.latency(), func() {
		reply, err := w.cluster.Lookup(r), error(nil)
		if w.faults && w.rng.IntN(10) == 0 {
			reply, err = nil, errors.New("no endpoint answered")
		}
		w.after(w.latency(), func() {
			u.do(func(now time.Duration) { u.core.LookupDone(now, token, reply, err) })
		})
	})
}

// call starts a call and returns where its response will be.
func (u *user) call(r kv.Request, deadline time.Duration, then func(*kv.Response)) {
	if deadline != 0 {
		deadline += u.w.now
	}
	done := false
	u.do(func(now time.Duration) {
		u.core.Start(now, &Call{Request: r, Deadline: deadline, Done: func(r *kv.Response) {
			if done {
				u.w.t.Error("Done ran twice")
			}
			done = true
			then(r)
		}})
	})
}

// wait runs a call to its end.
func (u *user) wait(r kv.Request, deadline time.Duration) *kv.Response {
	var out *kv.Response
	u.call(r, deadline, func(r *kv.Response) { out = r })
	u.w.run(time.Hour, func() bool { return out != nil })
	if out == nil {
		u.w.t.Fatalf("%v: no verdict", r.Verb)
	}
	return out
}

func key(s string) []byte { return append([]byte{kv.UserPrefix}, s...) }

func put(k, v string) kv.Request {
	return kv.Request{Verb: kv.VerbPut, Key: key(k), Value: []byte(v)}
}

func get(k string) kv.Request { return kv.Request{Verb: kv.VerbGet, Key: key(k)} }

func scanAll() kv.Request {
	return kv.Request{Verb: kv.VerbScan, Key: []byte{kv.UserPrefix}, End: []byte{kv.EndPrefix}}
}

// shake moves leaders, splits and merges ranges and takes nodes down, for as long as
// faults are on.
func (w *world) shake(keys int) {
	if !w.faults {
		return
	}
	switch w.rng.IntN(5) {
	case 0:
		w.cluster.Split(key(fmt.Sprintf("k%03d", w.rng.IntN(keys))))
	case 1, 2:
		r := w.cluster.Ranges[w.rng.IntN(len(w.cluster.Ranges))]
		r.Leader = ids.NodeID(w.rng.IntN(w.cluster.Nodes) + 1)
	case 3:
		n := ids.NodeID(w.rng.IntN(w.cluster.Nodes) + 1)
		w.down[n] = true
		w.after(time.Duration(w.rng.Int64N(int64(3*time.Second))), func() { delete(w.down, n) })
	case 4:
		w.mergeAt(w.rng.IntN(len(w.cluster.Ranges)))
	}
	w.after(time.Duration(w.rng.Int64N(int64(300*time.Millisecond))), func() { w.shake(keys) })
}

// mergeAt begins to merge a range with its right neighbour, which is frozen for a
// while first. If something else became of the two meanwhile the neighbour thaws.
func (w *world) mergeAt(i int) {
	if i+1 >= len(w.cluster.Ranges) {
		return
	}
	left, right := w.cluster.Ranges[i], w.cluster.Ranges[i+1]
	freeze(right, w.rng.IntN(3))
	d, e := left.Desc, right.Desc
	w.after(time.Duration(w.rng.Int64N(int64(200*time.Millisecond))), func() {
		right.Frozen = nil
		if left.Desc == d && right.Desc == e {
			w.cluster.Merge(d.Start)
		}
	})
}

// freeze has a range refuse all it is asked, in one of the ways that a node has to say
// "a moment later": it leads and does not serve, it is not available, it is busy.
func freeze(r *model.Range, way int) {
	switch way {
	case 0:
		r.Frozen = &kv.Response{Code: kv.CodeNotLeader, RetryAfterMillis: 10}
	case 1:
		r.Frozen = &kv.Response{Code: kv.CodeUnavailable, RetryAfterMillis: 10}
	default:
		r.Frozen = &kv.Response{Code: kv.CodeOverloaded, RetryAfterMillis: 10}
	}
}

// write is what a user was told about one write.
type write struct {
	client, sequence uint64
	code             kv.Code
	at               hlc.Timestamp
	verb             kv.Verb
}

// recorder is effects that only note.
type recorder struct {
	send func(ids.NodeID, *kv.Request)
}

func (r recorder) Send(n ids.NodeID, q *kv.Request)    { r.send(n, q) }
func (recorder) Lookup(uint64, *adminpb.LookupRequest) {}

// legTimers counts the timers of legs.
func (c *Core) legTimers() (n int) {
	for _, a := range c.timers {
		if a.leg != nil {
			n++
		}
	}
	return n
}
