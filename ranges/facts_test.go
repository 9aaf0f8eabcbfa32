package ranges

import (
	"fmt"
	"testing"

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
