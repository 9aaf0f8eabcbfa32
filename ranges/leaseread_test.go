package ranges

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// The steps of a read on its caller's goroutine.
var readSteps = []string{"fix", "stripes", "lease", "iterator", "check"}

// pauseBefore holds the next read that comes to a step; resume lets it go on.
// Other reads do not pause.
func (n *node) pauseBefore(step string) (resume func()) {
	var held func()
	n.table.cfg.Pause = func(at string, resume func()) {
		if at == step && held == nil {
			held = resume
			return
		}
		resume()
	}
	return func() {
		n.w.t.Helper()
		if held == nil {
			n.w.t.Fatalf("no read came to %s", step)
		}
		held()
	}
}

// leased gives every leader a lease for whatever it asks: a lease that is lost
// too late. What the steps of a read must notice by themselves, they notice with
// this one.
func leased(*node, *Replica, ids.Term, hlc.Timestamp) multiraft.LeaseState {
	return multiraft.LeaseHeld
}

// trueLease gives a lease to who leads as long as nobody leads in a later term.
func trueLease(n *node, r *Replica, term ids.Term, _ hlc.Timestamp) multiraft.LeaseState {
	for _, o := range n.w.nodes[1:] {
		if x := o.table.replica(r.id); x != nil && !o.down {
			if s := x.state.Load(); s.lead.mine && s.lead.term > term {
				return multiraft.LeaseNone
			}
		}
	}
	return multiraft.LeaseHeld
}

// seen is what a Witness saw.
type seen struct{ leaseReads, otherReads, writes []hlc.Timestamp }

func (s *seen) Read(_ ids.RangeID, _ ids.Term, ts hlc.Timestamp, lease bool) {
	if lease {
		s.leaseReads = append(s.leaseReads, ts)
	} else {
		s.otherReads = append(s.otherReads, ts)
	}
}

func (s *seen) Write(_ ids.RangeID, _ ids.Term, ts hlc.Timestamp) {
	s.writes = append(s.writes, ts)
}

func (w *world) silent() {
	w.drop = func(_, _ ids.NodeID, _ *multiraft.Message) bool { return true }
}

func TestLeaseReadNeedsNoShardAndNoMessage(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	w.lease = leased
	l := w.leader(2)
	at := l.put("k", "v")
	w.silent()
	watch := &seen{}
	l.table.cfg.Witness = watch
	get := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("k"), ID: 7})
	if get.count != 1 || string(get.resp.Value) != "v" || get.resp.Timestamp != at ||
		get.resp.ID != 7 {
		t.Fatalf("answered %d times, with %+v", get.count, get.resp)
	}
	absent := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("nothing")})
	if absent.count != 1 || absent.resp.Code != kv.CodeNotFound || absent.resp.Timestamp <= at {
		t.Fatalf("answered %d times, with %+v", absent.count, absent.resp)
	}
	past := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("k"), Timestamp: at - 1})
	if past.count != 1 || past.resp.Code != kv.CodeNotFound {
		t.Fatalf("answered %d times, with %+v", past.count, past.resp)
	}
	ask := l.start(&kv.Request{Verb: kv.VerbReadTimestamp, Key: key("a"), End: key("z")})
	if ask.count != 1 || ask.resp.Timestamp <= at {
		t.Fatalf("answered %d times, with %+v", ask.count, ask.resp)
	}
	scan := l.start(&kv.Request{Verb: kv.VerbScan, Key: key("a"), End: key("z")})
	if scan.count != 0 || len(l.jobs) != 1 {
		t.Fatal("a scan runs in Execute")
	}
	l.jobs[0]()
	if l.jobs = nil; scan.count != 1 || len(scan.resp.Rows) != 1 {
		t.Fatalf("answered %d times, with %+v", scan.count, scan.resp)
	}
	if len(watch.leaseReads) != 5 || len(watch.otherReads) != 0 {
		t.Fatalf("witnessed %d and %d reads", len(watch.leaseReads), len(watch.otherReads))
	}
}

// A write is evaluated and not applied. Reads that could miss it wait, those
// that cannot do not; and who waits for nothing but the write asks no quorum.
func TestLeaseReadWaitsForWritesInFlightOnly(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	w.lease = leased
	l := w.leader(2)
	l.put("k", "old")
	l.put("other", "v")
	past := l.clock.Peek()
	put := l.start(l.putRequest("k", "new"))
	l.step() // evaluated, proposed, on the wire
	if put.count != 0 {
		t.Fatal("it is applied already")
	}
	watch := &seen{}
	l.table.cfg.Witness = watch
	get := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")})
	before := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("k"), Timestamp: past})
	other := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("other")})
	scan := l.start(&kv.Request{Verb: kv.VerbScan, Key: key("a"), End: key("z")})
	if get.count+before.count+scan.count != 0 || other.count != 1 {
		t.Fatalf("answered %d %d %d, %d", get.count, before.count, scan.count, other.count)
	}
	for range 3 {
		l.step()
	}
	if get.count+scan.count != 0 || before.count != 1 || string(before.resp.Value) != "old" {
		t.Fatalf("answered %d %d, %+v", get.count, scan.count, before.resp)
	}
	w.settle()
	if get.count != 1 || string(get.resp.Value) != "new" || get.resp.Timestamp != put.resp.Timestamp {
		t.Fatalf("answered %d times, with %+v", get.count, get.resp)
	}
	if scan.count != 1 || len(scan.resp.Rows) != 2 || string(scan.resp.Rows[0].Value) != "new" {
		t.Fatalf("answered %d times, with %+v", scan.count, scan.resp)
	}
	if len(watch.otherReads) != 0 || len(watch.leaseReads) != 4 {
		t.Fatalf("witnessed %d and %d", len(watch.leaseReads), len(watch.otherReads))
	}
	w.check()
}

// A page of a range deletion announces the keys that it takes, and only those.
func TestLeaseReadWaitsForARangeDeletionOfItsKey(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	w.lease = leased
	l := w.leader(2)
	l.put("a", "1")
	l.put("x", "1")
	del := l.start(&kv.Request{
		Verb: kv.VerbDeleteRange, Key: key("a"), End: key("m"), Identity: l.identity(),
		Timestamp: l.clock.Peek(),
	})
	for range 3 {
		l.step()
	}
	get := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("a")})
	beside := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("b")})
	if del.count+get.count != 0 || beside.count != 1 {
		t.Fatalf("answered %d %d %d", del.count, get.count, beside.count)
	}
	w.settle()
	if get.count != 1 || get.resp.Code != kv.CodeNotFound || del.resp.Count != 1 {
		t.Fatalf("deleted %+v, then read %+v", del.resp, get.resp)
	}
	w.check()
}

// Between any two steps of a read the range is split, and the right half is
// elected elsewhere and written.
func TestLeaseReadPausedOverASplit(t *testing.T) {
	t.Parallel()
	for _, step := range readSteps {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			w := threeNodes(t, nil)
			w.lease = trueLease
			l := w.leader(2)
			l.put("z", "old")
			ts := l.clock.Peek()
			resume := l.pauseBefore(step)
			c := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("z")})
			_, right := w.split(2, "k")
			id := ids.RangeID(right.GetRangeId())
			w.tick(5)
			w.transfer(id, l.id%3+1)
			at := w.leader(id).put("z", "new")
			resume()
			w.settle()
			wantCode(t, c.resp, kv.CodeWrongRange)
			if at <= ts {
				t.Fatalf("written at %d, read at %d or later", at, ts)
			}
			w.check()
		})
	}
}

// Between any two steps of a read leadership is lost, with a write in flight
// that the next leader commits, and another one is acknowledged. A read that
// fixed its timestamp before may still answer, with what was there before both,
// if it had passed the lease: it began before.
func TestLeaseReadPausedOverAChangeOfLeader(t *testing.T) {
	t.Parallel()
	for _, step := range readSteps {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			w := threeNodes(t, nil)
			w.lease = trueLease
			l := w.leader(2)
			l.put("k", "old")
			resume := l.pauseBefore(step)
			c := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")})
			fixed := l.clock.Peek()
			flying := l.start(l.putRequest("k", "flying"))
			l.step()
			w.settleWithout(func() { w.isolate(l.id) })
			next := w.electAnother(l)
			at := next.put("k", "new")
			w.drop = nil
			w.tick(5)
			resume()
			w.settle()
			if c.count != 1 || flying.count != 1 {
				t.Fatalf("answered %d and %d times", c.count, flying.count)
			}
			passed := step == "iterator" || step == "check"
			if !passed {
				wantCode(t, c.resp, kv.CodeNotLeader)
			} else if string(c.resp.Value) != "old" || at <= fixed {
				t.Fatalf("read %+v at %d, written at %d", c.resp, fixed, at)
			}
			w.check()
		})
	}
}

// settleWithout lets what is on the wire arrive before f.
func (w *world) settleWithout(f func()) {
	w.t.Helper()
	wire := w.wire
	w.wire = nil
	for _, p := range wire {
		if p.run == nil {
			w.nodes[p.to].host.Receive(p.frame)
		}
	}
	f()
	w.settle()
}

// electAnother ticks the others until one of them leads range 2.
func (w *world) electAnother(stale *node) *node {
	w.t.Helper()
	for range 200 {
		for _, n := range w.nodes[1:] {
			if n != stale && !n.down {
				n.host.Tick()
			}
		}
		w.settle()
		for _, n := range w.nodes[1:] {
			if n != stale && !n.down && n.table.Leads(2) {
				return n
			}
		}
	}
	w.t.Fatal("no other leader")
	return nil
}

// A write is given up when leadership is lost. Its key looks quiet then, and a
// lease that is lost too late is held still; the state says what happened.
func TestLeaseReadAfterAWriteWasGivenUpIsRefused(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	w.lease = leased
	l := w.leader(2)
	l.put("k", "old")
	put := l.start(l.putRequest("k", "open"))
	l.step()
	resume := l.pauseBefore("stripes")
	get := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")})
	w.settleWithout(func() { w.isolate(l.id) })
	w.electAnother(l)
	for range 100 {
		l.host.Tick()
		w.settle()
	}
	if put.count != 1 || put.resp.Code != kv.CodeNotLeader || !put.resp.MaybeApplied {
		t.Fatalf("the write ended with %+v", put.resp)
	}
	l.checkQuiet()
	resume()
	wantCode(t, get.resp, kv.CodeNotLeader)
}

// newLeaderThatLacksAWrite returns a leader that has not applied an entry of its
// term, nor a write that the one before acknowledged (R8).
func (w *world) newLeaderThatLacksAWrite() *node {
	w.t.Helper()
	l := w.leader(2)
	l.put("k", "old")
	w.tick(5)
	deaf := false
	w.drop = func(from, to ids.NodeID, m *multiraft.Message) bool {
		if m.Range != 2 {
			return false
		}
		// No news of commits before the election, no acknowledgement after it.
		held := from == l.id && len(m.Raft.GetEntries()) == 0
		return !deaf && held || deaf && (from == l.id || to == l.id ||
			len(m.Raft.GetEntries()) > 0)
	}
	l.put("k", "acknowledged")
	deaf = true
	for range 200 {
		for _, n := range w.nodes[1:] {
			if n == l {
				continue
			}
			n.host.Tick()
			w.settle()
			if s := n.table.replica(2).state.Load(); s.lead.mine && !s.lead.ready {
				return n
			}
		}
	}
	w.t.Fatal("nobody is elected")
	return nil
}

func TestLeaseReadWaitsForAnEntryOfTheOwnTerm(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	n := w.newLeaderThatLacksAWrite()
	w.lease = leased
	get := n.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")})
	w.settle()
	if get.count != 0 {
		t.Fatalf("answered %+v", get.resp)
	}
	w.drop = nil
	w.tick(5)
	if get.count != 1 || string(get.resp.Value) != "acknowledged" {
		t.Fatalf("answered %d times, %+v", get.count, get.resp)
	}
}

// readThenWriteElsewhere reads at the leader at a timestamp in the future, hands
// leadership over and writes there.
func (w *world) readInTheFutureThenTransfer() (read, written hlc.Timestamp) {
	w.t.Helper()
	w.lease = leased
	l := w.leader(2)
	l.put("k", "old")
	read = hlc.New(w.wall+20_000, 0)
	get := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("k"), Timestamp: read})
	wantCode(w.t, get.resp, kv.CodeOK)
	next := l.id%3 + 1
	w.transfer(2, next)
	return read, w.nodes[next].put("k", "new")
}

func TestLeaseReadInTheFutureMovesTheClock(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	if read, written := w.readInTheFutureThenTransfer(); written <= read {
		t.Fatalf("written at %d after a read at %d", written, read)
	}
}

// readIndexOfAFastClock: the leader's clock is ahead. It reads by ReadIndex; the
// answers of the others come late, when another leader has written.
func (w *world) readIndexOfAFastClock() (get *call, fixed, written hlc.Timestamp) {
	w.t.Helper()
	l := w.leader(2)
	l.put("k", "old")
	w.tick(3)
	l.ahead = 20_000
	watch := &seen{}
	l.table.cfg.Witness = watch
	get = l.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")})
	l.step()
	wire := w.wire
	w.wire = nil
	for _, p := range wire { // the heartbeats arrive
		w.nodes[p.to].host.Receive(p.frame)
	}
	for _, n := range w.nodes[1:] {
		if n != l {
			n.step()
		}
	}
	answers := w.wire // and are answered
	w.wire = nil
	w.isolate(l.id)
	written = w.electAnother(l).put("k", "new")
	l.ahead += 5000 // time has passed there, too
	for _, p := range answers {
		if p.to == l.id {
			l.host.Receive(p.frame)
		}
	}
	w.settle()
	if len(watch.otherReads) != 1 || get.count != 1 {
		w.t.Fatalf("%d reads, answered %+v", len(watch.otherReads), get.resp)
	}
	return get, watch.otherReads[0], written
}

func TestReadIndexFixesItsTimestampBeforeItAsks(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	get, fixed, written := w.readIndexOfAFastClock()
	if string(get.resp.Value) != "old" || written <= fixed {
		t.Fatalf("read %q at %d, written at %d", get.resp.Value, fixed, written)
	}
}

// As TestReadWaitsForASplitInFlight, where no quorum is asked.
func TestALeaseReadWaitsForASplitInFlight(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	w.lease = trueLease
	l := w.leader(2)
	l.put("m", "1")
	ended := false
	l.table.Split(2, key("k"), func(_, _ *metapb.RangeDescriptor, err error) { ended = true })
	w.drop = func(_, _ ids.NodeID, m *multiraft.Message) bool {
		return m.Range == 2 && m.Raft != nil && len(m.Raft.GetEntries()) > 0
	}
	w.settle()
	get := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("m")})
	w.tick(3)
	if get.count != 0 || ended {
		t.Fatalf("read answered %d times, split ended: %v", get.count, ended)
	}
}

// A write begins and ends between a read's look at the stripe and its timestamp.
func TestNoRowOfBeforeAWriteThatEndedWhileTheReadBegan(t *testing.T) {
	t.Parallel()
	_, n := rowsWorld(t)
	n.put("k", "old")
	n.warm("k")
	resume := n.pauseBefore("fix")
	c := n.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")})
	at := n.put("k", "new")
	resume()
	n.w.settle()
	if string(c.resp.Value) != "new" || c.resp.Timestamp != at {
		t.Fatalf("a read whose timestamp lies above the write got %+v", c.resp)
	}
}
