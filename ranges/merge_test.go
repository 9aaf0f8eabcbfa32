package ranges

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// ordered is an order that is under way.
type ordered struct {
	err   error
	count int
}

// startMerge orders a node to merge a range with its right neighbour.
func (n *node) startMerge(left, right ids.RangeID) *ordered {
	o := &ordered{}
	n.table.Order(&metapb.Order{
		RangeId: uint64(left), OtherRangeId: uint64(right),
		Kind: metapb.OrderKind_ORDER_KIND_MERGE,
	}, func(err error) { o.err = err; o.count++ })
	return o
}

// merge merges two ranges that one node leads.
func (w *world) merge(left, right ids.RangeID) {
	w.t.Helper()
	var o *ordered
	for range 20 {
		o = w.leader(left).startMerge(left, right)
		w.settle()
		if o.count != 1 {
			w.t.Fatalf("the merge was answered %d times", o.count)
		}
		if !errors.Is(o.err, ErrLagging) {
			break
		}
		w.tick(1) // just after raft has asked who is active
	}
	must(w.t, o.err)
}

// halves is a cluster of three with data in two neighbouring ranges that one node
// leads: 2 holds a to l, the other one m to z.
func halves(t testing.TB, tune func(*Config)) (w *world, l *node, right ids.RangeID) {
	w = threeNodes(t, tune)
	l = w.leader(2)
	for i := range 10 {
		l.put(fmt.Sprint("a", i), "left")
		l.put(fmt.Sprint("x", i), "right")
	}
	_, d := w.split(2, "m")
	w.tick(3)
	right = ids.RangeID(d.GetRangeId())
	if w.leader(right) != l {
		t.Fatal("the halves are led by two nodes")
	}
	return w, l, right
}

// clean lets time pass until no range of any node has a mark, and fails if that
// does not happen.
func (w *world) clean() {
	w.t.Helper()
	for range 60 {
		w.tick(3)
		w.maintain(1)
		marks := 0
		for _, n := range w.nodes[1:] {
			for _, r := range n.table.all() {
				if r.mergeMark() != nil || r.change != nil {
					marks++
				}
			}
		}
		if marks == 0 {
			w.check()
			return
		}
	}
	w.dump()
	w.t.Fatal("marks of merges do not go away")
}

// merged says whether a range is nowhere, and fails if it is somewhere only.
func (w *world) merged(right ids.RangeID) bool {
	w.t.Helper()
	there := 0
	for _, n := range w.nodes[1:] {
		if n.table.replica(right) != nil {
			there++
		}
	}
	if there != 0 && there != len(w.nodes)-1 {
		w.dump()
		w.t.Fatalf("%v is on %d nodes", right, there)
	}
	return there == 0
}

// tiles makes sure that on every node the replicas cover the users' keys.
func (w *world) tiles() {
	w.t.Helper()
	for _, n := range w.nodes[1:] {
		if hole := n.hole(); hole != "" {
			w.dump()
			w.t.Fatalf("%v: %s", n.id, hole)
		}
	}
}

func TestMergeJoinsDataStatisticsAndFingerprints(t *testing.T) {
	t.Parallel()
	w, l, right := halves(t, nil)
	left, rightDesc := w.descriptor(2), w.descriptor(right)
	w.merge(2, right)
	w.tick(3)
	w.check()
	w.tiles()
	if !w.merged(right) {
		t.Fatal("the right half is still there")
	}
	d := w.descriptor(2)
	want := max(left.GetGeneration()+1, rightDesc.GetGeneration()+1) + 1
	if string(d.GetEnd()) != string(rightDesc.GetEnd()) || d.GetMerge() != nil ||
		d.GetGeneration() != want {
		t.Fatalf("merged descriptor %v, want generation %d", d, want)
	}
	if l.get("a3") != "left" || l.get("x3") != "right" {
		t.Fatal("data is gone")
	}
	l.put("a3", "new")
	l.put("x3", "new")
	scan := l.do(&kv.Request{Verb: kv.VerbScan, Key: key("a"), End: key("z")})
	wantCode(t, scan, kv.CodeOK)
	if len(scan.Rows) != 20 || scan.More {
		t.Fatalf("%d rows, more: %v", len(scan.Rows), scan.More)
	}
	facts := l.facts[len(l.facts)-1]
	if facts.GetDescriptor_().GetGeneration() != want {
		t.Fatalf("placement was told %v", facts.GetDescriptor_())
	}
	for _, n := range w.nodes[1:] {
		n.crash()
	}
	for _, n := range w.nodes[1:] {
		n.restart()
	}
	w.clean()
	w.tiles()
	if n := w.leader(2); !w.merged(right) || n.get("x3") != "new" || n.get("a3") != "new" {
		t.Fatal("the merge did not outlive a restart")
	}
	for _, n := range w.nodes[1:] {
		rs, err := n.store.State().Replica(right)
		must(t, err)
		if rs != nil {
			t.Fatalf("%v still stores the right half", n.id)
		}
	}
}

// A retry finds the first result of a write of the right half, whether the leader
// of the left half remembers much or little.
func TestRetryOfAWriteOfTheRightHalfIsFoundAfterTheMerge(t *testing.T) {
	t.Parallel()
	if w, l, right := halves(t, nil); retriedTwice(w, l, right) {
		t.Fatal("the retry applied again")
	}
}

func retriedTwice(w *world, l *node, right ids.RangeID) bool {
	req := l.putRequest("x5", "once")
	first := l.do(req)
	wantCode(w.t, first, kv.CodeOK)
	l.put("x5", "newer")
	w.merge(2, right)
	l.put("a1", "the left half's leader has a memory")
	again := l.do(req)
	wantCode(w.t, again, kv.CodeOK)
	return again.Timestamp != first.Timestamp
}

func TestMergeRefusesWhatMakesNoSense(t *testing.T) {
	t.Parallel()
	w, l, right := halves(t, nil)
	_, third := w.split(right, "t")
	w.tick(3)
	want := func(left, other ids.RangeID, kind error) {
		t.Helper()
		o := l.startMerge(left, other)
		w.settle()
		if o.count != 1 || !errors.Is(o.err, kind) {
			t.Errorf("%v with %v: answered %d times with %v, want %v",
				left, other, o.count, o.err, kind)
		}
	}
	want(1, 2, ErrRefused)
	want(2, ids.RangeID(third.GetRangeId()), ErrRefused)
	want(right, 2, ErrRefused)
	want(2, 2, ErrRefused)
	want(2, 777, ErrRefused)
	want(777, right, ErrNoReplica)
	stale := &ordered{}
	l.table.Order(&metapb.Order{
		RangeId: 2, OtherRangeId: uint64(right), OtherGeneration: 1,
		Kind: metapb.OrderKind_ORDER_KIND_MERGE,
	}, func(err error) { stale.err = err })
	w.settle()
	if !errors.Is(stale.err, ErrStaleGeneration) {
		t.Errorf("stale right half: %v", stale.err)
	}
	before := w.descriptor(2).GetGeneration()
	w.transfer(right, l.id%3+1)
	want(2, right, ErrRefused)
	w.transfer(right, l.id)
	if id := replicaOn(w.descriptor(right), l.id%3+1).GetReplicaId(); id != 0 {
		w.removeReplica(right, ids.ReplicaID(id))
	}
	want(2, right, ErrRefused)
	if w.descriptor(2).GetGeneration() != before {
		t.Error("a refused merge changed the left half")
	}
	w.clean()
	l.put("a", "v")
	l.put("x", "v")
}

// A range whose follower is away is not frozen in vain.
func TestMergeIsRefusedWhileAReplicaIsAway(t *testing.T) {
	t.Parallel()
	w, l, right := halves(t, nil)
	w.nodes[l.id%3+1].down = true
	w.tick(25)
	o := l.startMerge(2, right)
	w.settle()
	if o.count != 1 || !errors.Is(o.err, ErrLagging) {
		t.Fatalf("answered %d times with %v", o.count, o.err)
	}
	w.nodes[l.id%3+1].down = false
	w.clean()
}

// cutEntries holds back the entries of a range that go to a node.
func cutEntries(to ids.NodeID, ranges ...ids.RangeID) func(
	_, _ ids.NodeID, m *multiraft.Message) bool {
	return func(_, at ids.NodeID, m *multiraft.Message) bool {
		for _, r := range ranges {
			if at == to && m.Range == r && m.Raft != nil && len(m.Raft.GetEntries()) > 0 {
				return true
			}
		}
		return false
	}
}

// stuck begins a merge whose right half cannot make sure that all freeze: one
// follower does not get its entries.
func stuck(t *testing.T) (w *world, l, away *node, right ids.RangeID, o *ordered) {
	t.Helper()
	w, l, right = halves(t, nil)
	away = w.nodes[l.id%3+1]
	w.drop = cutEntries(away.id, right)
	o = l.startMerge(2, right)
	w.settle()
	if o.count != 0 || phaseOf(l.table.replica(right).descriptor()) != phaseFrozen {
		t.Fatalf("answered %d times with %v; right half %v", o.count, o.err,
			l.table.replica(right).descriptor())
	}
	return w, l, away, right, o
}

// Without every replica's word the left half does not absorb: it gives up in
// time, and the right half serves again.
func TestMergeThatNotAllHearOfIsAborted(t *testing.T) {
	t.Parallel()
	w, l, _, right, o := stuck(t)
	w.tick(2)
	write, read := l.start(l.putRequest("x1", "w")), l.start(&kv.Request{
		Verb: kv.VerbGet, Key: key("x1"),
	})
	w.settle()
	if write.count+read.count != 0 {
		t.Fatalf("a frozen range answered %v %v", write.resp, read.resp)
	}
	w.maintain(5)
	if o.count != 1 || !errors.Is(o.err, errMergeStuck) {
		t.Fatalf("answered %d times with %v", o.count, o.err)
	}
	for _, c := range []*call{write, read} {
		if c.count != 1 || c.resp.Code != kv.CodeNotLeader && c.resp.Code != kv.CodeOK {
			t.Fatalf("answered %d times with %+v", c.count, c.resp)
		}
	}
	l.put("x1", "again") // thawed, although one follower is still cut off
	w.drop = nil
	w.clean()
	w.tiles()
	if w.merged(right) {
		t.Fatal("it merged after all")
	}
	w.merge(2, right)
	w.clean()
	if l.get("x1") != "again" {
		t.Fatal("data is gone")
	}
}

// Bug classes 1 and 6: what a frozen range answers, whoever leads it.
func TestFrozenRangeServesNothingWhoeverLeadsIt(t *testing.T) {
	t.Parallel()
	w, l, away, right, _ := stuck(t)
	w.lease = trueLease
	if servedFrozen(l) {
		t.Fatal("the leader served")
	}
	next := w.frozenElsewhere(l, away, right)
	if !next.table.Leads(right) || phaseOf(next.table.replica(right).descriptor()) != phaseFrozen {
		w.dump()
		t.Fatal("the next leader is not frozen")
	}
	if servedFrozen(next) {
		t.Fatal("the next leader served")
	}
	w.drop = nil
	w.clean()
}

// frozenElsewhere moves the leadership of a frozen range, while the left half can
// decide nothing, and returns the next leader.
func (w *world) frozenElsewhere(l, away *node, right ids.RangeID) (next *node) {
	w.t.Helper()
	next = w.nodes[(l.id+1)%3+1]
	cut := cutEntries(away.id, right)
	w.drop = func(from, to ids.NodeID, m *multiraft.Message) bool {
		return cut(from, to, m) || m.Range == 2 && m.Raft != nil && len(m.Raft.GetEntries()) > 0
	}
	x := l.table.replica(right)
	id := ids.ReplicaID(replicaOn(x.descriptor(), next.id).GetReplicaId())
	must(w.t, x.enqueue(multiraft.TaskFunc(func() { x.handTo(id) }), 0))
	w.tick(5)
	return next
}

// servedFrozen says whether a node answers a get, a scan, a timestamp or a put of
// the right half with anything but a refusal. Requests may also wait.
func servedFrozen(n *node) bool {
	for _, req := range []*kv.Request{
		{Verb: kv.VerbGet, Key: key("x1")},
		{Verb: kv.VerbScan, Key: key("x"), End: key("z")},
		{Verb: kv.VerbReadTimestamp, Key: key("x"), End: key("z")},
		n.putRequest("x1", "late"),
	} {
		c := n.start(req)
		n.w.settle()
		if c.count > 0 && c.resp.Code != kv.CodeNotLeader {
			return true
		}
	}
	return false
}

// Bug class 12: a read in the future, then a merge, then another leader whose
// clock is behind: no write lands at or below the read.
func TestWriteAfterAMergeLiesAboveReadsOfTheRightHalf(t *testing.T) {
	t.Parallel()
	w, l, right := halves(t, nil)
	w.lease = trueLease
	read := hlc.New(w.wall+60_000, 0)
	get := l.do(&kv.Request{Verb: kv.VerbGet, Key: key("x1"), Timestamp: read})
	wantCode(t, get, kv.CodeOK)
	w.merge(2, right)
	next := w.nodes[l.id%3+1]
	w.transfer(2, next.id)
	if at := next.put("x1", "late"); at <= read {
		t.Fatalf("written at %v, read at %v", at, read)
	}
	w.clean()
}

// Bug class 1, the pause: a read of the right half that is let in before the
// freeze and goes on after the merge is refused, or as of before.
func TestReadThatPausesOverAMerge(t *testing.T) {
	t.Parallel()
	for _, step := range readSteps {
		w, l, right := halves(t, nil)
		w.lease = leased
		resume := l.pauseBefore(step)
		get := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("x1")})
		w.merge(2, right)
		at := l.put("x1", "new")
		resume()
		w.settle()
		if get.count != 1 {
			t.Fatalf("%s: answered %d times", step, get.count)
		}
		switch get.resp.Code {
		case kv.CodeOK:
			// The timestamp of a get is its version's.
			if string(get.resp.Value) == "new" != (get.resp.Timestamp == at) {
				t.Fatalf("%s: %+v", step, get.resp)
			}
			if step == "fix" && string(get.resp.Value) != "new" {
				t.Fatalf("%s: a timestamp of after the write, and a value of before", step)
			}
		case kv.CodeNotLeader, kv.CodeWrongRange:
		default:
			t.Fatalf("%s: %+v", step, get.resp)
		}
		w.clean()
	}
}

// Requests that come while a merge is under way wait and are told where to go.
func TestRequestsDuringAMergeAreSentToTheLeftHalf(t *testing.T) {
	t.Parallel()
	for steps := range 14 {
		w, l, right := halves(t, nil)
		o := l.startMerge(2, right)
		for range steps {
			w.once()
		}
		var calls []*call
		for _, k := range []string{"a1", "x1"} {
			calls = append(calls, l.start(l.putRequest(k, "during")),
				l.start(&kv.Request{Verb: kv.VerbGet, Key: key(k)}),
				l.start(&kv.Request{Verb: kv.VerbScan, Key: key(k), End: key(k + "z")}))
		}
		w.settle()
		must(t, o.err)
		for i, c := range calls {
			if c.count != 1 {
				t.Fatalf("%d steps: request %d was answered %d times", steps, i, c.count)
			}
			switch c.resp.Code {
			case kv.CodeOK, kv.CodeNotLeader, kv.CodeWrongRange:
			default:
				t.Fatalf("%d steps: request %d: %+v", steps, i, c.resp)
			}
			if i < 3 {
				wantCode(t, c.resp, kv.CodeOK)
			}
		}
		l.put("x1", "after")
		w.clean()
	}
}

func TestManySplitsAndMergesOfTheSameNeighbours(t *testing.T) {
	t.Parallel()
	w, l, right := halves(t, nil)
	before := w.snaps
	for i := range 12 {
		w.merge(2, right)
		_, d := w.split(2, []string{"m", "x3", "a2"}[i%3])
		right = ids.RangeID(d.GetRangeId())
		l.put("a1", fmt.Sprint(i))
		l.put("x5", fmt.Sprint(i))
		w.tick(2)
	}
	w.merge(2, right)
	w.clean()
	w.tiles()
	if w.snaps != before {
		t.Errorf("%d snapshots were sent", w.snaps-before)
	}
	if l.get("x5") != "11" || l.get("a1") != "11" {
		t.Fatal("data is gone")
	}
}

// Three neighbours become one, the middle one in two roles.
func TestRangeThatAbsorbedIsAbsorbed(t *testing.T) {
	t.Parallel()
	w, l, right := halves(t, nil)
	_, d := w.split(right, "x5")
	third := ids.RangeID(d.GetRangeId())
	w.tick(3)
	w.merge(right, third)
	w.merge(2, right)
	w.clean()
	w.tiles()
	if l.get("x7") != "right" || l.table.find(key("x7")).id != 2 {
		t.Fatal("the keys of the third range are not in the first")
	}
}

func TestGarbageOfBothHalvesGoesAfterAMerge(t *testing.T) {
	t.Parallel()
	w, l, right := halves(t, nil)
	w.collectGarbage(2)
	for range 3 {
		for i := range 10 {
			l.put(fmt.Sprint("x", i), strings.Repeat("x", 10))
		}
	}
	w.merge(2, right)
	w.collectGarbage(2)
	w.maintain(3)
	w.check()
	// The first "gc" of collectGarbage was overwritten just now.
	if g := w.leader(2).table.replica(2).state.Load().data.Stats.GarbageBytes; g > 40 {
		t.Fatalf("%d bytes of garbage", g)
	}
}
