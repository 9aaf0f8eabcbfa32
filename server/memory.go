package server

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Go keeps the memory that a burst of work has used, up to twice of what is
// alive, until the next such burst: after a start, or after many splits, a node
// with tens of thousands of idle ranges would hold as much garbage as ranges. So
// when a node comes to rest it collects once and gives back what is free.
//
// Once for each burst: a node at rest allocates next to nothing, so the next
// time is minutes away at the least, and what that costs does not depend on time.
const (
	memoryEvery = 10 * time.Second
	// restAllocation is what a node at rest allocates in memoryEvery at most.
	restAllocation = 2 << 20
	// burstAllocation is what must have been allocated since the last time.
	burstAllocation = 64 << 20
)

// burst decides when memory is given back.
type burst struct {
	seen     uint64 // bytes allocated in this life, at the last look
	returned uint64 // and when memory was given back last
}

// over says whether a burst of work is over, given the bytes allocated in this
// life.
func (b *burst) over(allocated uint64) bool {
	rest := allocated-b.seen <= restAllocation
	b.seen = allocated
	if !rest || allocated-b.returned < burstAllocation {
		return false
	}
	b.returned = allocated
	return true
}

// returnMemory gives memory back until ctx ends.
func returnMemory(ctx context.Context) error {
	var b burst
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	return every(ctx, memoryEvery, func() {
		metrics.Read(sample)
		if sample[0].Value.Kind() == metrics.KindUint64 && b.over(sample[0].Value.Uint64()) {
			debug.FreeOSMemory()
		}
	})
}
