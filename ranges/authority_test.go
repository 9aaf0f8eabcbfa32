package ranges

import (
	"errors"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// Stories of answers that rest on an authority which is over.

// staleLeader cuts a range's leader off, so that it does not know of the next
// one, whose clock is ahead and who has acknowledged a write of k.
func (w *world) staleLeader(k, value string) (stale, next *node) {
	w.t.Helper()
	stale = w.leader(2)
	stale.put(k, "old")
	w.isolate(stale.id)
	for range 100 {
		for _, n := range w.nodes[1:] {
			if n != stale {
				n.host.Tick()
				if n.table.Leads(2) {
					next = n
				}
			}
		}
		w.settle()
	}
	if next == nil || !stale.table.Leads(2) {
		w.t.Fatal("no second leader beside the one that is cut off")
	}
	must(w.t, next.clock.Update(hlc.New(w.wall+60_000, 0)))
	next.put(k, value)
	return stale, next
}

// A leader that is cut off, and whose clock is behind, fixes the timestamp of a
// read; before the read comes to the shard the replica is elected again. That
// it leads now says nothing for a timestamp of the time when it did not.
func TestTimestampOfALeadershipThatWasOverIsNotReadAtByTheNext(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	stale, _ := w.staleLeader("k", "acknowledged")
	resume := stale.pauseBefore("stripes")
	c := stale.start(&kv.Request{Verb: kv.VerbGet, Key: key("k")})
	w.drop = nil
	w.tick(5)
	w.transfer(2, stale.id)
	resume()
	w.settle()
	if c.count != 1 || c.resp.Code != kv.CodeNotLeader {
		t.Fatalf("answered %d times, with %+v", c.count, c.resp)
	}
	if v := stale.get("k"); v != "acknowledged" {
		t.Fatalf("got %q", v)
	}
}

// A replica is removed while a job of it runs. The group refuses the job's
// continuation from then on, but its shard has not come to the removal yet: the
// continuation must wait for it, not run beside it.
func TestContinuationOfARemovedReplicaRunsOnItsShardOnly(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	n := w.nodes[1]
	n.put("a", "1")
	n.put("b", "2")
	r := n.table.replica(2)
	n.holdJobs = true
	var ended []error
	n.table.Split(2, nil, func(_, _ *metapb.RangeDescriptor, err error) { ended = append(ended, err) })
	w.settle()
	if len(n.jobs) != 1 {
		t.Fatalf("%d jobs wait", len(n.jobs))
	}
	n.table.OnGone(2, 99)
	n.jobs[0]()
	if !r.latches.idle() || len(ended) != 0 || r.change == nil {
		t.Fatal("the continuation ran beside the shard")
	}
	n.jobs = nil
	w.settle()
	if len(ended) != 1 || !errors.Is(ended[0], ErrNotLeader) {
		t.Fatalf("the split ended with %v", ended)
	}
}

// A split deletes the data of a right half that this node must not have. A read
// of that half has passed the latches and comes to the data between the commit
// and the moment at which the new bounds are published: it must not say that
// nothing is there.
func TestReadDuringASplitThatDropsItsRightHalfIsNotTakenForNotFound(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	n := w.nodes[1]
	n.put("a", "1")
	n.put("z", "2")
	r := n.table.replica(2)
	n.holdJobs = true
	c := n.start(&kv.Request{Verb: kv.VerbGet, Key: key("z")})
	w.settle()
	if len(n.jobs) != 1 {
		t.Fatalf("%d jobs wait", len(n.jobs))
	}
	b := n.store.NewBatch()
	must(t, n.store.Log().PutTombstone(b, 101, r.self+1))
	must(t, n.store.CommitNoSync(b))
	b.Close()
	s := r.state.Load()
	left, right := splitDescriptor(s.desc, key("m"), 101)
	data, err := mvcc.Compute(n.store.State().DB(), key("m"), s.desc.GetEnd())
	must(t, err)
	body, err := encodeSplit(left, right, data)
	must(t, err)
	b = n.store.NewBatch()
	_, err = r.Apply(b, []*raftpb.Entry{{
		Term: new(uint64(s.lead.term)), Index: new(uint64(s.applied) + 1),
		Data: encodeEntry(r.headerFor(kindSplit), body),
	}})
	must(t, err)
	must(t, n.store.CommitNoSync(b))
	b.Close()
	n.jobs[0]()
	if c.resp == nil || c.resp.Code == kv.CodeNotFound {
		t.Fatalf("answered with %+v", c.resp)
	}
	r.Applied()
	if r.reads.isReplacing() {
		t.Fatal("reads stay refused")
	}
	n.jobs = nil
}

// R9i: whatever was read before a write lies below it, also when the reader was
// another leader whose clock was ahead.
func TestNewLeaderWritesAboveItsClock(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("k", "old")
	ahead := hlc.New(w.wall+500, 0)
	wantCode(t, l.do(&kv.Request{Verb: kv.VerbGet, Key: key("k"), Timestamp: ahead}), kv.CodeOK)
	w.transfer(2, l.id%3+1)
	w.tick(5)
	n := w.leader(2)
	if n == l {
		t.Fatal("the leader did not change")
	}
	if version := n.put("k", "new"); version <= ahead {
		t.Fatalf("written at %d, read before at %d", version, ahead)
	}
}
