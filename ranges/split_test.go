package ranges

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func TestSplitHandsTheRightHalfOverWithExactStatistics(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	for i := range 20 {
		l.put(fmt.Sprintf("k%02d", i), "value")
		l.put(fmt.Sprintf("k%02d", i), "newer")
	}
	left, right := w.split(2, "k10")
	if left.GetGeneration() != right.GetGeneration() || !bytes.Equal(left.GetEnd(), key("k10")) {
		t.Fatalf("halves %v and %v", left, right)
	}
	w.tick(3)
	w.check()
	id := ids.RangeID(right.GetRangeId())
	if got := w.leader(id); got != l {
		t.Fatalf("right half is led by %v, left by %v", got, l)
	}
	if l.get("k15") != "newer" || l.get("k05") != "newer" {
		t.Fatal("data is gone")
	}
	l.put("k15", "x")
	w.check()
	for _, n := range w.nodes[1:] {
		n.crash()
	}
	for _, n := range w.nodes[1:] {
		n.restart()
	}
	w.leader(2)
	w.leader(id)
	w.check()
	if n := w.leader(id); n.get("k15") != "x" {
		t.Fatal("data is gone after a restart")
	}
}

// Bug class 2: a read that was confirmed before a split and served after it.
func TestReadThatWaitsOverASplitIsCheckedAgain(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("m", "old")
	l.holdJobs = true
	get := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("m")})
	scan := l.start(&kv.Request{Verb: kv.VerbScan, Key: key("a"), End: key("z")})
	w.settle() // confirmed; the read jobs wait
	held := l.jobs
	l.jobs, l.holdJobs = nil, false
	_, right := w.split(2, "k")
	w.tick(2)
	l.put("m", "new")
	for _, job := range held {
		job()
	}
	w.settle()
	for _, c := range []*call{get, scan} {
		wantCode(t, c.resp, kv.CodeWrongRange)
		found := false
		for _, raw := range c.resp.Descriptors {
			d := &metapb.RangeDescriptor{}
			must(t, proto.Unmarshal(raw, d))
			found = found || d.GetRangeId() == right.GetRangeId()
		}
		if !found {
			t.Fatal("the answer does not name the right half")
		}
	}
}

// A read waits for a split that is on its way: the right half may be elected
// elsewhere before the split is applied here.
func TestReadWaitsForASplitInFlight(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("m", "1")
	var splitErr error
	ended := false
	l.table.Split(2, key("k"), func(_, _ *metapb.RangeDescriptor, err error) {
		splitErr, ended = err, true
	})
	cut := false
	w.drop = func(_, _ ids.NodeID, m *multiraft.Message) bool {
		if cut || m.Range != 2 || m.Raft == nil {
			return false
		}
		// The split's entry does not get through; everything else does.
		return len(m.Raft.GetEntries()) > 0
	}
	w.settle()
	get := l.start(&kv.Request{Verb: kv.VerbGet, Key: key("m")})
	w.tick(3)
	if get.count != 0 || ended {
		t.Fatalf("read answered %d times, split ended: %v", get.count, ended)
	}
	cut = true
	w.tick(10)
	if !ended {
		t.Fatal("the split did not end")
	}
	must(t, splitErr)
	wantCode(t, get.resp, kv.CodeWrongRange)
}

func TestWritesQueueBehindASplitAndLandInTheRightHalf(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("a", "1")
	l.put("m", "1")
	l.holdJobs = true
	l.table.Split(2, key("k"), func(_, _ *metapb.RangeDescriptor, err error) { must(t, err) })
	w.settle() // holds the range; its statistics are not worked out yet
	left := l.start(l.putRequest("a", "2"))
	right := l.start(l.putRequest("m", "2"))
	w.settle()
	if left.count+right.count != 0 {
		t.Fatal("a write passed the split")
	}
	l.holdJobs = false
	w.settle()
	wantCode(t, left.resp, kv.CodeOK)
	wantCode(t, right.resp, kv.CodeWrongRange)
	w.check()
}

// Bug class 22: fast followers make the leader send snapshots during splits.
func TestManySplitsSendNoSnapshot(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	for i := range 40 {
		l.put(fmt.Sprintf("k%02d", i), "v")
	}
	before := w.snaps
	r := ids.RangeID(2)
	for i := 1; i < 20; i++ {
		_, right := w.split(r, fmt.Sprintf("k%02d", 2*i))
		r = ids.RangeID(right.GetRangeId())
		w.leader(r).put(fmt.Sprintf("k%02d", 2*i+1), "w")
	}
	w.tick(5)
	if w.snaps != before {
		t.Fatalf("%d snapshots were sent", w.snaps-before)
	}
	w.check()
}

func TestSizeSplitFindsTheMiddleAndLeavesOneHugeKeyAlone(t *testing.T) {
	t.Parallel()
	w := oneNode(t, func(c *Config) { c.RangeSize = 4 << 10 })
	n := w.nodes[1]
	for i := range 64 {
		n.put(fmt.Sprintf("k%02d", i), string(bytes.Repeat([]byte("x"), 100)))
	}
	w.maintain(6)
	replicas, leaders := n.table.Counts()
	if replicas < 3 || leaders != replicas {
		t.Fatalf("%d replicas, %d leaders", replicas, leaders)
	}
	for _, f := range n.table.Facts() {
		if s := f.GetStats(); s.GetKeyBytes()+s.GetValueBytes() > 4<<10 {
			t.Errorf("range %d is still %d bytes", f.GetDescriptor_().GetRangeId(),
				s.GetKeyBytes()+s.GetValueBytes())
		}
	}
	w.check()
	n.put("zz", string(bytes.Repeat([]byte("x"), 8<<10)))
	w.maintain(4)
	was, _ := n.table.Counts()
	w.maintain(4)
	if now, _ := n.table.Counts(); now != was {
		t.Fatal("a range of one key was split")
	}
}

func TestSplitRefusesWhatMakesNoSense(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	want := func(r ids.RangeID, k []byte, generation uint64, kind error) {
		t.Helper()
		var got error
		l.table.split(r, k, generation, 0, func(_, _ *metapb.RangeDescriptor, err error) { got = err })
		w.settle()
		if !errors.Is(got, kind) {
			t.Errorf("got %v, want %v", got, kind)
		}
	}
	want(1, []byte{kv.SystemPrefix, 1}, 0, ErrRefused)
	want(2, key(""), 0, ErrNoSplitKey)
	want(2, []byte{kv.EndPrefix}, 0, ErrNoSplitKey)
	want(2, nil, 0, ErrNoSplitKey)
	want(2, key("k"), 99, ErrStaleGeneration)
	want(77, key("k"), 0, ErrNoReplica)
	if l.table.replica(2).change != nil || !l.table.replica(2).latches.idle() {
		t.Fatal("a refused split left something behind")
	}
	l.put("k", "v")
}

func TestScanAndDeleteRangeGoOnOverRangeEnds(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	for i := range 10 {
		l.put(fmt.Sprintf("k%d", i), fmt.Sprint(i))
	}
	w.split(2, "k4")
	w.split(w.leaderOf("k4"), "k7")
	w.tick(5)
	// One node leads all three: its timestamp is an instant for the whole span.
	ts := l.do(&kv.Request{Verb: kv.VerbReadTimestamp, Key: key("k1")}).Timestamp
	for _, reverse := range []bool{false, true} {
		var got []string
		start, end, flags := key("k1"), key("k9"), uint8(0)
		if reverse {
			flags = kv.FlagReverse
		}
		for pages := 0; pages < 10; pages++ {
			resp := l.do(&kv.Request{
				Verb: kv.VerbScan, Key: start, End: end, Flags: flags, Limit: 2, Timestamp: ts,
			})
			wantCode(t, resp, kv.CodeOK)
			for _, row := range resp.Rows {
				got = append(got, string(row.Value))
			}
			if !resp.More {
				break
			}
			if reverse {
				end = resp.ResumeKey
			} else {
				start = resp.ResumeKey
			}
		}
		want := "[1 2 3 4 5 6 7 8]"
		if reverse {
			want = "[8 7 6 5 4 3 2 1]"
		}
		if fmt.Sprint(got) != want {
			t.Errorf("reverse %v: got %v", reverse, got)
		}
	}
	if n := l.deleteRange(t, "k2", "k8"); n != 6 {
		t.Errorf("%d keys deleted", n)
	}
	w.check()
}

func (w *world) leaderOf(k string) ids.RangeID { return w.leader(2).table.find(key(k)).id }

// deleteRange deletes a span page by page, each page twice.
func (n *node) deleteRange(t *testing.T, from, to string) (deleted uint32) {
	t.Helper()
	ts := n.do(&kv.Request{Verb: kv.VerbReadTimestamp, Key: key(from)}).Timestamp
	n.put(to+"later", "stays")
	start, id := key(from), n.identity()
	for range 20 {
		req := &kv.Request{
			Verb: kv.VerbDeleteRange, Key: start, End: key(to), Timestamp: ts,
			Limit: 2, Identity: id,
		}
		resp := n.do(req)
		wantCode(t, resp, kv.CodeOK)
		again := n.do(req)
		wantCode(t, again, kv.CodeOK)
		if again.Count < resp.Count {
			t.Fatalf("the retry of a page says %d, first %d", again.Count, resp.Count)
		}
		deleted += resp.Count
		if !resp.More {
			return deleted
		}
		start = resp.ResumeKey
	}
	t.Fatal("the deletion does not end")
	return 0
}

func TestRangeDeletionSparesWhatIsNewer(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("a", "old")
	l.put("b", "old")
	ts := l.do(&kv.Request{Verb: kv.VerbReadTimestamp, Key: key("a")}).Timestamp
	l.put("b", "new")
	resp := l.do(&kv.Request{
		Verb: kv.VerbDeleteRange, Key: key("a"), End: key("z"), Timestamp: ts,
		Identity: l.identity(),
	})
	wantCode(t, resp, kv.CodeOK)
	if resp.Count != 1 || resp.More || l.get("a") != "" || l.get("b") != "new" {
		t.Fatalf("deleted %d, a=%q b=%q", resp.Count, l.get("a"), l.get("b"))
	}
	w.check()
}
