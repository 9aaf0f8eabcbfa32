package sim

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func TestKeysKeepTheOrderOfPositions(t *testing.T) {
	t.Parallel()
	k := newKeyspace([]string{"b", "a", "a-long"})
	var last []byte
	for _, p := range []position{0, 1, offsets - 1, offsets, offsets + 7, 2 * offsets, 2*offsets + 1,
		3*offsets - 1, k.end()} {
		key := k.key(p)
		if bytes.Compare(last, key) >= 0 {
			t.Fatalf("key %q of %d is not above %q", key, p, last)
		}
		if got := k.position(key); got != p {
			t.Errorf("position of %q is %d, want %d", key, got, p)
		}
		last = key
	}
	if p := k.position(kv.UserKey(nil, []byte("b/"))); p != 2*offsets {
		t.Errorf("tenant b begins at %d", p)
	}
}

func newTestWorld(t *testing.T, cfg Config) *World {
	t.Helper()
	w, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// learner adds a copy of r on a node behind placement's back.
func (w *World) learner(t *testing.T, r *simRange, to uint64) {
	t.Helper()
	if err := w.execute(w.node(r.leader), &metapb.Order{RangeId: uint64(r.id),
		Generation: r.desc.Generation, Kind: metapb.OrderKind_ORDER_KIND_ADD_LEARNER,
		NodeId: to}); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshotsShareTheBudgetsOfSenderAndReceiver(t *testing.T) {
	t.Parallel()
	spec := NodeSpec{In: 30 * mib, Out: 20 * mib}
	w := newTestWorld(t, Config{Nodes: []NodeSpec{spec, spec, spec, spec}, Ranges: 30,
		RangeBytes: 60 * mib})
	var free []*simRange // that node 4 has no copy of
	for _, r := range w.ranges {
		if replicaOn(r.desc, 4) == nil && r.id != systemID {
			free = append(free, r)
		}
	}
	from1, from2 := free[0], free[1]
	w.lead(from1, 1)
	w.lead(from2, 2)
	w.learner(t, from1, 4)
	w.learner(t, from2, 4)
	ticks := 0
	for ; len(w.transfers) > 0 && ticks < 10_000; ticks++ {
		w.now += tick
		w.copyBytes()
	}
	// Each sends 20 MiB/s at most, both together may bring 30: 15 each, so four seconds.
	if took := time.Duration(ticks) * tick; took < 3900*time.Millisecond || took > 4200*time.Millisecond {
		t.Errorf("two snapshots of 60 MiB took %v", took)
	}
	if w.tally.bytes < 119*mib || w.tally.bytes > 121*mib || w.tally.receiving != 2 {
		t.Errorf("%d bytes moved, %d at a time", w.tally.bytes, w.tally.receiving)
	}
}

func TestARangeRefusesWhatItMustNotDo(t *testing.T) {
	t.Parallel()
	w := newTestWorld(t, Config{Nodes: make([]NodeSpec, 4)})
	r := w.ranges[5]
	leader, id := w.node(r.leader), uint64(r.id)
	var outside, follower uint64
	for _, n := range w.nodes {
		switch p := replicaOn(r.desc, n.id); {
		case p == nil:
			outside = uint64(n.id)
		case n != leader:
			follower = uint64(n.id)
		}
	}
	mine := replicaOn(r.desc, leader.id)
	for name, o := range map[string]*metapb.Order{
		"a stale generation": {RangeId: id, Generation: 9, NodeId: outside,
			Kind: metapb.OrderKind_ORDER_KIND_ADD_LEARNER},
		"a second copy": {RangeId: id, Generation: 1, NodeId: follower,
			Kind: metapb.OrderKind_ORDER_KIND_ADD_LEARNER},
		"demoting itself": {RangeId: id, Generation: 1, NodeId: uint64(leader.id),
			ReplicaId: mine.ReplicaId, Kind: metapb.OrderKind_ORDER_KIND_DEMOTE},
		"a leader without a copy": {RangeId: id, Generation: 1, NodeId: outside,
			Kind: metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER},
		"a merge with the one before the last": {RangeId: id, Generation: 1, OtherRangeId: id - 1,
			OtherGeneration: 1, Kind: metapb.OrderKind_ORDER_KIND_MERGE},
	} {
		if err := w.execute(leader, o); err == nil {
			t.Errorf("%s was not refused", name)
		}
	}
	w.learner(t, r, outside)
	promote := &metapb.Order{RangeId: id, Generation: 2, NodeId: outside, ReplicaId: 4,
		DemoteReplicaId: replicaOn(r.desc, w.nodes[follower-1].id).ReplicaId,
		Kind:            metapb.OrderKind_ORDER_KIND_PROMOTE}
	if err := w.execute(leader, promote); err == nil {
		t.Error("a learner without the log was promoted")
	}
}

// The checks of the world are there to find what placement does wrong: here it is
// done on purpose.
func TestAChangeThatLosesAMajorityOrFillsAZoneIsSeen(t *testing.T) {
	t.Parallel()
	zones := []NodeSpec{{Zone: "a"}, {Zone: "b"}, {Zone: "c"}, {Zone: "a"}}
	w := newTestWorld(t, Config{Nodes: zones})
	w.judge(voters(1, 2, 3), voters(1, 2, 4))
	if len(w.violations) != 1 || !strings.Contains(w.violations[0], "zone a") {
		t.Errorf("two copies of three in one zone: %v", w.violations)
	}
	w.violations = nil
	w.judge(voters(1, 2, 3), voters(1, 2))
	if len(w.violations) == 0 {
		t.Error("a range that can lose no node any more was not seen")
	}
	w.violations = nil
	w.node(3).up = false
	w.judge(voters(1, 2, 3), voters(1, 3))
	if len(w.violations) == 0 {
		t.Error("a lost majority was not seen")
	}
}

// What is no fault is not seen as one: that would hide what is.
func TestTheJudgeDemandsWhatPlacementCanKnowAndNoMore(t *testing.T) {
	t.Parallel()
	const dead, silent = 10 * time.Minute, 10 * time.Second
	for _, s := range []struct {
		story         string
		down          time.Duration // for how long n3, the only one in zone c; 0: it is up
		up            time.Duration // for how long again; 0: for ever
		isolation     string
		before, after []uint64
		fault         string
	}{
		{"a zone is filled", 0, 0, "", []uint64{1, 2, 3}, []uint64{1, 2, 4}, "zone a"},
		{"of four the wrong one goes", 0, 0, "", []uint64{1, 2, 3, 4}, []uint64{1, 2, 4}, "zone a"},
		{"also if the right one is silent", silent, 0, "", []uint64{1, 2, 3, 4}, []uint64{1, 2, 4},
			"zone a"},
		{"there was no right one", 0, 0, "", []uint64{1, 2, 4, 5}, []uint64{1, 2, 4}, ""},
		{"a lost copy is replaced", dead, 0, "", []uint64{1, 2, 3}, []uint64{1, 2, 4}, ""},
		{"its node came up as it was", dead, time.Second / 2, "", []uint64{1, 2, 3}, []uint64{1, 2, 4}, ""},
		{"its node came up before", dead, 2 * time.Second, "", []uint64{1, 2, 3}, []uint64{1, 2, 4},
			"zone a"},
		{"isolation wants none instead", dead, 0, "zone", []uint64{1, 2, 3}, []uint64{1, 2, 4}, "zone a"},
		{"one copy becomes three", 0, 0, "", []uint64{1}, []uint64{1, 2, 4}, ""},
		{"the spare copy is given up", silent, 0, "", []uint64{1, 2, 3, 4, 5}, []uint64{1, 2, 3, 5},
			"can lose no node"},
		{"nobody can know that it was the spare one", time.Second, 0, "", []uint64{1, 2, 3, 4, 5},
			[]uint64{1, 2, 3, 5}, ""},
	} {
		w := newTestWorld(t, Config{Nodes: []NodeSpec{{Zone: "a"}, {Zone: "b"}, {Zone: "c"}, {Zone: "a"},
			{Zone: "b"}}})
		w.now = time.Hour
		w.rules = []*metapb.Rule{{Replicas: 3, Isolation: s.isolation}}
		if n := w.node(3); s.down > 0 {
			n.up, n.began, n.died = s.up > 0, w.now-s.up, w.now-s.up-s.down
		}
		w.judge(voters(s.before...), voters(s.after...))
		got := strings.Join(w.violations, "; ")
		if (got == "") != (s.fault == "") || !strings.Contains(got, s.fault) {
			t.Errorf("%s: %q, want %q", s.story, got, s.fault)
		}
	}
}

func voters(nodes ...uint64) *metapb.RangeDescriptor {
	d := &metapb.RangeDescriptor{RangeId: 2, Start: []byte{kv.UserPrefix}, End: []byte{kv.EndPrefix}}
	for _, n := range nodes {
		d.Replicas = append(d.Replicas, &metapb.Replica{NodeId: n, ReplicaId: n})
	}
	return d
}

func TestALoadIsHalvedWhereItHalves(t *testing.T) {
	t.Parallel()
	w := newTestWorld(t, Config{Ranges: 1})
	var r *simRange
	w.byStart.Scan(func(_ string, first *simRange) bool { r = first; return false })
	w.setLoad(&workload{name: "low", from: 0, to: offsets / 4, rates: rates{reads: 1000, cpu: 1e5}})
	if at, share := w.halving(r); at < offsets/8-1 || at > offsets/8+1 || share > 0.51 {
		t.Errorf("halves at %d, %.2f on the larger side", at, share)
	}
	w.setLoad(&workload{name: "low", from: 7, to: 8, rates: rates{reads: 1000, cpu: 1e5}})
	if _, share := w.halving(r); share < 0.99 {
		t.Errorf("one key is %.2f of the load on the larger side", share)
	}
}

func TestSamplesMakeACSV(t *testing.T) {
	t.Parallel()
	w := newTestWorld(t, Config{})
	w.Run(5 * time.Second)
	var out strings.Builder
	if err := WriteCSV(&out, w.Samples()); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) < 7 || lines[0] != "seconds,node,up,leaders,copies,bytes,cores" ||
		!strings.HasPrefix(lines[1], "0,n1,1,") {
		t.Errorf("%d lines:\n%s", len(lines), out.String())
	}
}
