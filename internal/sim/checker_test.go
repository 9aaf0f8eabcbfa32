package sim

import (
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Each checker must find a planted violation of each kind that it claims to
// find (bug class 45): a checker that finds nothing proves nothing.

func TestHistoryCheckFindsAStaleRead(t *testing.T) {
	at := func(ms int) time.Duration { return time.Duration(ms) * time.Millisecond }
	write := func(h *history, v string, from, to int) {
		h.add(1, "k", registerInput{kind: opWrite, new: v}, registerOutput{}, at(from), at(to))
	}
	read := func(h *history, v string, from, to int) {
		h.add(2, "k", registerInput{kind: opRead}, registerOutput{value: v}, at(from), at(to))
	}
	for name, c := range map[string]struct {
		build func(h *history)
		legal bool
	}{
		"read of the newest": {func(h *history) {
			write(h, "a", 0, 1)
			write(h, "b", 2, 3)
			read(h, "b", 4, 5)
		}, true},
		"stale read": {func(h *history) { write(h, "a", 0, 1); write(h, "b", 2, 3); read(h, "a", 4, 5) }, false},
		"lost write": {func(h *history) { write(h, "a", 0, 1); read(h, "", 2, 3) }, false},
		"unknown write seen later": {func(h *history) {
			h.add(1, "k", registerInput{kind: opWrite, new: "a"},
				registerOutput{unknown: true}, at(0), at(1))
			read(h, "", 2, 3)
			read(h, "a", 4, 5)
		}, true},
		"swap from a value that was not there": {func(h *history) {
			write(h, "a", 0, 1)
			h.add(1, "k", registerInput{kind: opCAS, old: "b", new: "c"},
				registerOutput{ok: true}, at(2), at(3))
		}, false},
		"swap applied twice": {func(h *history) {
			h.add(1, "k", registerInput{kind: opCAS, old: "", new: "a"}, registerOutput{ok: true}, at(0), at(1))
			h.add(2, "k", registerInput{kind: opCAS, old: "a", new: "b"}, registerOutput{ok: true}, at(2), at(3))
			read(h, "a", 4, 5)
		}, false},
	} {
		h := newHistory()
		c.build(h)
		if err := h.check(); (err == nil) != c.legal {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFinalChecksFindLostAndDoubledWrites(t *testing.T) {
	s := newSim(calm(1))
	w := s.workers[0]
	w.insertsTried, w.insertsDone = 2, map[int]bool{0: true}
	row := func(key []byte, v string) kv.KeyValue { return kv.KeyValue{Key: key, Value: []byte(v)} }
	first, second := insertKey(0, 0), insertKey(0, 1)
	if err := s.checkInserts([]kv.KeyValue{row(first, "x"), row(second, "x")}); err != nil {
		t.Errorf("an unacknowledged insert may be there: %v", err)
	}
	if err := s.checkInserts([]kv.KeyValue{row(second, "x")}); err == nil {
		t.Error("a lost insert was not found")
	}
	foreign := []kv.KeyValue{row(first, "x"), row(insertKey(0, 7), "x")}
	if err := s.checkInserts(foreign); err == nil {
		t.Error("an insert that nobody tried was not found")
	}
	s.counted[0].sure, s.counted[0].unknown = 5, 1
	for value, legal := range map[string]bool{"4": false, "5": true, "6": true, "7": false} {
		err := s.checkCounters([]kv.KeyValue{row(userKey("n/0"), value)})
		if (err == nil) != legal {
			t.Errorf("counter %s: %v", value, err)
		}
	}
}

func TestScanCheckFindsHalfAPair(t *testing.T) {
	for name, values := range map[string][]string{"differ": {"x", "y"}, "half": {"x"}} {
		s := newSim(calm(1))
		rows := []kv.KeyValue{{Key: userKey("p/0/a"), Value: []byte(values[0])}}
		if len(values) > 1 {
			rows = append(rows, kv.KeyValue{Key: userKey("p/0/b"), Value: []byte(values[1])})
		}
		s.workers[0].checkPairs(rows)
		if s.err == nil || !strings.Contains(s.err.Error(), "half a pair") {
			t.Errorf("%s: %v", name, s.err)
		}
	}
}

func TestMessageCheckFindsTwoLeadersOfATerm(t *testing.T) {
	s := newSim(calm(1))
	send := func(n int, from, term uint64) {
		s.checker.sent(s.machines[n], []multiraft.Message{{Range: 2, Raft: &raftpb.Message{
			Type: raftpb.MsgApp.Enum(), From: &from, Term: &term,
		}}})
	}
	send(0, 1, 5)
	send(1, 2, 6)
	if s.err != nil {
		t.Fatal(s.err)
	}
	send(2, 3, 5)
	if s.err == nil {
		t.Error("two leaders in term 5 were not found")
	}
}

func TestLeaseCheckFindsReadsAndWritesInTheWrongOrder(t *testing.T) {
	whole := func(id ids.RangeID, term ids.Term, gen uint64) *served {
		return &served{authority: authority{id, term, gen}, start: []byte("a"), end: []byte("z")}
	}
	half := func(id ids.RangeID, term ids.Term, gen uint64, start, end string) *served {
		return &served{authority: authority{id, term, gen}, start: []byte(start), end: []byte(end)}
	}
	for name, c := range map[string]struct {
		act   func(c *leaseChecker, n *node)
		legal bool
	}{
		"later leader writes above": {func(c *leaseChecker, n *node) {
			c.read(n, whole(2, 5, 1), 100)
			c.written(n, whole(2, 6, 1), 101)
			c.read(n, whole(2, 5, 1), 100)
		}, true},
		"later leader writes at a served timestamp": {func(c *leaseChecker, n *node) {
			c.read(n, whole(2, 5, 1), 100)
			c.written(n, whole(2, 6, 1), 100)
		}, false},
		"earlier leader reads what a later one has passed": {func(c *leaseChecker, n *node) {
			c.written(n, whole(2, 6, 1), 100)
			c.read(n, whole(2, 5, 1), 100)
		}, false},
		"a leader writes below its own read": {func(c *leaseChecker, n *node) {
			c.read(n, whole(2, 5, 1), 100)
			c.written(n, whole(2, 5, 1), 90)
		}, false},
		"right half writes below the parent's read": {func(c *leaseChecker, n *node) {
			c.read(n, whole(2, 5, 1), 100)
			c.written(n, half(3, 1, 2, "m", "z"), 90)
		}, false},
		"left half reads on, right half writes": {func(c *leaseChecker, n *node) {
			c.read(n, half(2, 5, 2, "a", "m"), 100)
			c.written(n, half(3, 1, 2, "m", "z"), 90)
		}, true},
		"stale parent reads over its right half": {func(c *leaseChecker, n *node) {
			c.written(n, half(3, 1, 2, "m", "z"), 90)
			c.read(n, whole(2, 5, 1), 100)
		}, false},
	} {
		s := newSim(calm(1))
		c.act(s.checker.lease, s.machines[0])
		if (s.err == nil) != c.legal {
			t.Errorf("%s: %v", name, s.err)
		}
	}
}

func TestAckCheckFindsMissedWrites(t *testing.T) {
	found := func(ts hlc.Timestamp) *kv.Response { return &kv.Response{Timestamp: ts} }
	for name, c := range map[string]struct {
		act   func(c *ackChecker, n *node)
		legal bool
	}{
		"a read sees the newest": {func(c *ackChecker, n *node) {
			c.wrote(n, "k", 10)
			c.wrote(n, "k", 20)
			c.read(n, "k", 0, 20, found(20))
		}, true},
		"a read misses an acknowledged write": {func(c *ackChecker, n *node) {
			c.wrote(n, "k", 10)
			c.wrote(n, "k", 20)
			c.read(n, "k", 0, 20, found(10))
		}, false},
		"a read misses a write in flight below it": {func(c *ackChecker, n *node) {
			c.wrote(n, "k", 10)
			c.read(n, "k", 30, 10, found(10))
			c.wrote(n, "k", 20)
		}, false},
		"a key that was never deleted is gone": {func(c *ackChecker, n *node) {
			c.wrote(n, "k", 10)
			c.read(n, "k", 0, 10, &kv.Response{Code: kv.CodeNotFound, Timestamp: 30})
		}, false},
	} {
		s := newSim(calm(1))
		c.act(s.checker.acks, s.machines[0])
		if (s.err == nil) != c.legal {
			t.Errorf("%s: %v", name, s.err)
		}
	}
}

func TestClockCheckFindsAClockThatRunsAway(t *testing.T) {
	s := newSim(calm(1))
	n := s.machines[0]
	n.clock = hlc.NewHybrid(n.physical, hlc.New(n.physical.Wall()+2_000, 0), maxAhead)
	if s.checker.lease.clock(n); s.err != nil {
		t.Fatal(s.err)
	}
	n.clock = hlc.NewHybrid(n.physical, hlc.New(n.physical.Wall()+8_000, 0), maxAhead)
	if s.checker.lease.clock(n); s.err == nil {
		t.Error("a clock 8 s ahead of every wall clock was not found")
	}
}
