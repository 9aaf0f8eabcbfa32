package ranges

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// readAfterTheDecision plays R9j. The absorb is proposed by l and waits for its
// quorum. Meanwhile the frozen right half is led by another node, whose clock is
// ahead; there somebody reads, at the timestamp that is returned (0: was not
// served). Then the two halves become one, whose leader l writes the key.
func readAfterTheDecision(t *testing.T) (read, written hlc.Timestamp) {
	t.Helper()
	w, l, right := halves(t, nil)
	w.lease = trueLease
	frozen := func() bool { return phaseOf(l.table.replica(right).descriptor()) == phaseFrozen }
	w.drop = func(_, _ ids.NodeID, m *multiraft.Message) bool {
		return m.Range == 2 && m.Raft != nil && len(m.Raft.GetEntries()) > 0 && frozen()
	}
	o := l.startMerge(2, right)
	w.settle()
	if m := l.table.replica(2).change.merge; o.count != 0 || m == nil || !m.decided {
		t.Fatalf("the absorb is not on its way: answered %d times with %v", o.count, o.err)
	}
	next := w.nodes[l.id%3+1]
	x := l.table.replica(right)
	heir := ids.ReplicaID(replicaOn(x.descriptor(), next.id).GetReplicaId())
	must(t, x.enqueue(multiraft.TaskFunc(func() { x.handTo(heir) }), 0))
	w.tick(3)
	if !next.table.Leads(right) {
		t.Fatal("the right half is not led elsewhere")
	}
	w.drop = func(from, to ids.NodeID, _ *multiraft.Message) bool {
		return from == next.id || to == next.id
	}
	next.ahead = 20_000
	get := next.start(&kv.Request{Verb: kv.VerbGet, Key: key("x1")})
	w.settle()
	if get.count > 0 && get.resp.Code == kv.CodeOK {
		read = next.clock.Peek()
	}
	w.tick(5)
	if l.table.replica(right) != nil {
		t.Fatal("the halves did not become one")
	}
	return read, l.put("x1", "late")
}

func TestAFrozenRangeIsNotReadAboveTheClockOfWhoAbsorbsIt(t *testing.T) {
	t.Parallel()
	if read, written := readAfterTheDecision(t); read != 0 {
		t.Fatalf("read at %d, written at %d", read.Wall(), written.Wall())
	}
}
