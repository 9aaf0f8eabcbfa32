package server

import (
	"runtime/metrics"
	"testing"
)

func TestMemoryGoesBackOnceWhenABurstIsOver(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	var b burst
	for i, look := range []struct {
		allocated uint64 // MiB in this life
		want      bool
	}{
		{100, false}, {300, false}, // the start
		{301, true}, {302, false}, {303, false}, // at rest
		{320, false}, {321, false}, // a little work is not worth it
		{500, false}, {700, false}, {702, true}, // more is, when it is over
		{703, false},
	} {
		if got := b.over(look.allocated * mib); got != look.want {
			t.Errorf("look %d at %d MiB: %v", i, look.allocated, got)
		}
	}
}

func TestTheRuntimeCountsWhatIsAllocated(t *testing.T) {
	t.Parallel()
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 || sample[0].Value.Uint64() == 0 {
		t.Errorf("%v", sample[0].Value.Kind())
	}
}
