package ranges

import (
	"fmt"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Bug class 20: a split must not take back the hard state of a right half that
// has voted already.
func TestSplitKeepsHardStateOfANewerRightHalf(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	n := w.nodes[1]
	n.put("m", "v")
	before := n.store.NewBatch()
	must(t, n.store.Log().InitialGroup(before, 101, firstIndex, 77)) // as if it had voted in 77
	must(t, n.store.CommitNoSync(before))
	before.Close()
	_, right := w.split(2, "k")
	if right.GetRangeId() != 101 {
		t.Fatalf("right half is %v", right)
	}
	w.tick(30)
	if term := w.leader(101).table.replica(101).state.Load().lead.term; term < 77 {
		t.Fatalf("right half votes again in term %d", term)
	}
	if n.get("m") != "v" {
		t.Fatal("data is gone")
	}
}

// Bug class 19: the split finds a tombstone of its right half; it must not bring
// the dead replica back.
func TestSplitDoesNotBringBackADeadRightHalf(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("a", "v")
	l.put("m", "v")
	dead := w.nodes[l.id%3+1]
	b := dead.store.NewBatch()
	self := dead.table.replica(2).self
	must(t, dead.store.Log().PutTombstone(b, 101, self+1))
	must(t, dead.store.CommitNoSync(b))
	b.Close()
	w.split(2, "k")
	w.tick(5)
	if dead.table.replica(101) != nil {
		t.Fatal("the dead right half is back")
	}
	rs, err := dead.store.State().Replica(101)
	must(t, err)
	if rs != nil {
		t.Fatal("it is stored")
	}
	w.check()
}

// Bug class 24: data and applied index agree after a crash at any step.
func TestCrashAtAnyStepKeepsDataAndAppliedIndexTogether(t *testing.T) {
	t.Parallel()
	for steps := range 12 {
		w := oneNode(t, nil)
		n := w.nodes[1]
		n.put("a", "1")
		var acked []string
		for i := range 6 {
			k := fmt.Sprint("k", i)
			n.table.Submit(n.putRequest(k, "v"), func(r *kv.Response) {
				if r.Code == kv.CodeOK {
					acked = append(acked, k)
				}
			})
			if i == 3 {
				n.table.Split(2, key("k2"), func(_, _ *metapb.RangeDescriptor, _ error) {})
			}
			for range steps {
				w.once()
			}
		}
		n.crash()
		n.restart()
		w.leader(2)
		w.tick(20)
		w.check()
		for _, k := range acked {
			if n.get(k) != "v" {
				t.Fatalf("%d steps: acknowledged %s is gone", steps, k)
			}
		}
	}
}

func TestBootstrapTwiceChangesNothing(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	n := w.nodes[1]
	n.put("k", "v")
	must(t, Bootstrap(n.store, 1))
	rs, err := n.store.State().Replica(2)
	must(t, err)
	if ids.Index(rs.Applied.GetIndex()) <= firstIndex || n.get("k") != "v" {
		t.Fatal("bootstrap started over")
	}
}

// A leader that loses its leadership says that the outcome is open, and the
// retry finds what the next leader committed.
func TestLostLeadershipLeavesTheOutcomeOpenAndTheRetryFindsIt(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	req := l.putRequest("k", "v")
	c := l.start(req)
	for range 3 {
		l.step() // the entry leaves
	}
	wire := w.wire
	w.wire = nil
	for _, p := range wire {
		if p.run == nil {
			w.nodes[p.to].host.Receive(p.frame)
		}
	}
	cut := l.id
	w.drop = func(from, to ids.NodeID, _ *multiraft.Message) bool {
		return from == cut || to == cut
	}
	w.tick(40)
	if c.count != 1 {
		t.Fatalf("answered %d times", c.count)
	}
	wantCode(t, c.resp, kv.CodeNotLeader)
	if !c.resp.MaybeApplied {
		t.Fatal("the answer claims to know")
	}
	var second *kv.Response
	for _, n := range w.nodes[1:] {
		if n != l && n.table.Leads(2) {
			second = n.do(req)
			wantCode(t, second, kv.CodeOK)
		}
	}
	if second == nil {
		t.Fatal("no second leader")
	}
	w.drop = nil
	w.tick(20)
	w.check()
	d := w.leader(2).table.replica(2).state.Load().data.Stats
	if d.Versions != 1 {
		t.Fatalf("%d versions of one put", d.Versions)
	}
}
