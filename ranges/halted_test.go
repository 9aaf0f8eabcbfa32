package ranges

import (
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// A replica halts and its node lives on. Its leader hears it from the replica itself,
// counts on it for no change, and tells placement, though nothing else happens.
func TestAReplicaThatHaltedIsToldToPlacement(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	w.tick(20)
	w.maintain(silentLooks + 3)
	from := len(l.facts)
	sick, well := w.nodes[l.id%3+1], w.nodes[(l.id+1)%3+1]
	x := sick.table.replica(2)
	st := x.group().Status()
	sick.host.Receive(multiraft.Frame{From: l.id, Messages: []multiraft.Message{{
		Range: 2, Raft: &raftpb.Message{
			Type: raftpb.MsgHeartbeat.Enum(), Term: new(uint64(st.Term)),
			From: new(uint64(l.table.replica(2).self)), To: new(uint64(x.self)),
			Commit: new(uint64(st.LastIndex) + 100), // so this disk lost what it acknowledged
		},
	}}})
	w.settle()
	if !x.group().Status().Halted {
		t.Fatal("the story is not told")
	}
	w.maintain(2)
	silent, _ := l.silentIn(2, from)
	if !slices.Equal(silent, []uint64{uint64(x.self)}) {
		t.Fatalf("placement was told that %v are silent, replica %d halted", silent, x.self)
	}
	w.wantOrder(&metapb.Order{
		RangeId: 2, Kind: metapb.OrderKind_ORDER_KIND_DEMOTE,
		ReplicaId: uint64(well.table.replica(2).self),
	}, ErrLagging)
	sick.crash()
	sick.restart()
	w.tick(10)
	w.maintain(2)
	if silent, _ := l.silentIn(2, from); len(silent) > 0 {
		t.Fatalf("%v are silent for placement, all answer: %v", silent, l.active(2))
	}
}

// active says who answers a range's leader, as far as that knows.
func (n *node) active(id ids.RangeID) (all []ids.ReplicaID) {
	for _, p := range n.table.replica(id).group().Progress() {
		if p.RecentActive {
			all = append(all, p.Replica)
		}
	}
	return all
}
