package ranges

import (
	"fmt"
	"slices"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// A directory that heard only of large changes said 1,105,311 versions after
// 1,107,425 records had been written once each. A range at rest tells exactly.
func TestARangeAtRestTellsItsExactStatistics(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	n := w.nodes[1]
	for i := range 50 {
		n.put(fmt.Sprintf("k%02d", i), "v")
	}
	for range 3 {
		n.table.Maintain()
		w.settle()
	}
	told := mvcc.Stats{}
	for _, f := range n.facts {
		if f.GetDescriptor_().GetRangeId() == 2 {
			told = mvcc.StatsFromProto(f.GetStats())
		}
	}
	if told.Versions != 50 {
		t.Errorf("placement was told of %d versions, there are 50", told.Versions)
	}
}

// silentIn returns who is silent by the newest fact about a range since the given
// one, and how many facts there were.
func (n *node) silentIn(id ids.RangeID, from int) (silent []uint64, count int) {
	for _, f := range n.factsOf(id, from) {
		silent = f.GetSilent()
		count++
	}
	return silent, count
}

// A range was relocated, which ends with another leader, and for half a minute
// placement refused to merge it: a copy "does not answer its leader". It had not been
// given the time to: the leader told what it knew when a majority had answered, and
// had nothing more to tell.
func TestANewLeaderCallsNobodySilentWhoHadNoTimeToAnswer(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	from := len(w.nodes[2].facts)
	slow := true
	w.drop = func(from, _ ids.NodeID, _ *multiraft.Message) bool { return slow && from == 3 }
	w.transfer(2, 2)
	if silent, count := w.nodes[2].silentIn(2, from); count == 0 || len(silent) > 0 {
		t.Fatalf("the first of %d facts calls %v silent", count, silent)
	}
	slow = false
	w.tick(5)
	w.maintain(2)
	if silent, _ := w.nodes[2].silentIn(2, from); len(silent) > 0 {
		t.Fatalf("%v has answered, and is silent for placement", silent)
	}
}

// Who stays away is silent, is told to be, and is so no more when it is back, though
// nothing else happens to the range. Then the range costs nothing again.
func TestASilentReplicaIsToldAndToldAgainWhenItAnswers(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.nodes[2]
	from, away := len(l.facts), true
	w.drop = func(from, to ids.NodeID, _ *multiraft.Message) bool {
		return away && (from == 3 || to == 3)
	}
	w.transfer(2, 2)
	w.tick(40)
	w.maintain(3)
	third := replicaOn(w.descriptor(2), 3).GetReplicaId()
	if silent, _ := l.silentIn(2, from); !slices.Equal(silent, []uint64{third}) {
		t.Fatalf("silent: %v, node 3 has replica %d", silent, third)
	}
	away = false
	w.tick(10)
	w.maintain(2)
	if silent, _ := l.silentIn(2, from); len(silent) > 0 {
		t.Fatalf("%v is back, and still silent for placement", silent)
	}
	w.maintain(silentLooks + 2)
	from = len(l.facts)
	w.maintain(5)
	if _, count := l.silentIn(2, from); count > 0 || len(l.table.dirty.set) > 0 {
		t.Fatalf("at rest: %d facts, %v to be looked at", count, l.table.dirty.set)
	}
}
