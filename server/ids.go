package server

import (
	"context"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Blocks of range ids. A block is fetched when fewer than lowIDs are left, so
// that splits go on for a while when placement is away, and that a node which
// splits a thousand times a second has half a second for the next block. Ids left
// over at a restart are never used, which costs nothing: there are 2^64.
const (
	idBlock     = 1024
	lowIDs      = 512
	maxIDBlocks = 4 // a driver may hand out small blocks; more are not asked for
	idRetry     = 500 * time.Millisecond
)

// idBlocks is this node's stock of range ids.
type idBlocks struct {
	// allocate asks placement for a block; it blocks.
	allocate func(ctx context.Context, count uint32) (first uint64, n uint32, err error)
	low      chan struct{}

	mu     sync.Mutex
	blocks [][2]uint64 // first and end of each
}

func newIDBlocks(
	allocate func(context.Context, uint32) (uint64, uint32, error),
) *idBlocks {
	return &idBlocks{allocate: allocate, low: make(chan struct{}, wakeSlots)}
}

// next takes an id; false: none left, try later. Never blocks, any goroutine.
func (b *idBlocks) next() (ids.RangeID, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left() <= lowIDs {
		wake(b.low)
	}
	if len(b.blocks) == 0 {
		return 0, false
	}
	id := b.blocks[0][0]
	if b.blocks[0][0]++; b.blocks[0][0] == b.blocks[0][1] {
		b.blocks = b.blocks[1:]
	}
	return ids.RangeID(id), true
}

func (b *idBlocks) left() (n uint64) {
	for _, k := range b.blocks {
		n += k[1] - k[0]
	}
	return n
}

// run fetches blocks ahead until ctx ends.
func (b *idBlocks) run(ctx context.Context) error {
	for ctx.Err() == nil {
		b.mu.Lock()
		enough := b.left() > lowIDs || len(b.blocks) >= maxIDBlocks
		b.mu.Unlock()
		if enough {
			select {
			case <-ctx.Done():
			case <-b.low:
			}
			continue
		}
		first, n, err := b.allocate(ctx, idBlock)
		if err != nil || n == 0 {
			pause(ctx, idRetry) // the reporter says who does not answer
			continue
		}
		b.mu.Lock()
		b.blocks = append(b.blocks, [2]uint64{first, first + uint64(n)})
		b.mu.Unlock()
	}
	return nil
}

// pause waits unless ctx ends before.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
