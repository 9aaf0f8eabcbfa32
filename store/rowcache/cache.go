package rowcache

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/dgraph-io/ristretto/v2"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

const (
	// rowOverhead is what a row costs beside its key and value: the entry, the
	// slots of the library's two maps, the item on its way there.
	rowOverhead = 320
	// counterCost is how many bytes of the bound there are for each of the
	// library's counters, of 3 bytes: ten counters for each row of middling size.
	counterCost = 48
	// MinBytes is the smallest useful bound.
	MinBytes = 1 << 20
	// maxRowPart: a row larger than this part of the bound is not kept.
	maxRowPart = 256
	// getBuffer is how many accesses the library collects before it counts them;
	// when they come faster than it counts, some are not counted.
	getBuffer = 64
)

// Stamp says under what a row was read. Two are the same only if nothing can
// have changed the row in between. The zero value is none that a reader has.
type Stamp struct {
	Term       ids.Term       // in which the reader's replica led
	Generation ids.Generation // of the range's descriptor
	Word       uint64         // of the writes to the key's stripe
}

// Row is the newest version of a key. Value must not be changed by anyone.
type Row struct {
	Version hlc.Timestamp
	Value   []byte
}

// entry is a row as it is kept.
type entry struct {
	id    ids.RangeID
	key   []byte
	stamp Stamp
	row   Row
}

// Stats count since New.
type Stats struct {
	Hits   uint64
	Misses uint64 // not there, or there and not fit for the reader: see below
	Stale  uint64 // of the misses: the stamp differed
	Ahead  uint64 // of the misses: the version is above the reader's timestamp
	Bytes  int64  // kept now, as counted against the bound
}

// Cache is a cache of rows, bounded in bytes. What does not fit is dropped by
// how often it is asked for.
type Cache struct {
	rows *ristretto.Cache[uint64, *entry]
	most int // bytes of the largest row that is kept

	hits, misses, stale, ahead atomic.Uint64

	// closing: the library panics if a Set meets a Close.
	closing sync.RWMutex
	closed  bool
}

// New returns a cache of at most the given bytes, rows and the library's own
// tables together (MinBytes at least).
func New(size int64) (*Cache, error) {
	size = max(size, MinBytes)
	counters := size / counterCost
	rows, err := ristretto.NewCache(&ristretto.Config[uint64, *entry]{
		NumCounters:        counters,
		MaxCost:            size - 3*counters,
		BufferItems:        getBuffer,
		IgnoreInternalCost: true, // rowOverhead has it
		KeyToHash:          func(hash uint64) (uint64, uint64) { return hash, 0 },
	})
	if err != nil {
		return nil, fmt.Errorf("make row cache of %d bytes: %w", size, err)
	}
	return &Cache{rows: rows, most: int(size / maxRowPart)}, nil
}

// Hash is the hash under which a key of a range is kept. It serves for other
// tables, too: all its bits depend on both.
func Hash(id ids.RangeID, key []byte) uint64 {
	const odd = 0x9e3779b97f4a7c15 // spreads small ids over all bits
	h := xxhash.Sum64(key) ^ uint64(id)*odd
	return h ^ h>>32
}

// Get returns the row of a key if its stamp is now's and its version lies at or
// below ts. hash is Hash(id, key).
func (c *Cache) Get(
	hash uint64, id ids.RangeID, key []byte, now Stamp, ts hlc.Timestamp,
) (Row, bool) {
	if c == nil {
		return Row{}, false
	}
	e, ok := c.rows.Get(hash)
	switch {
	case !ok || e == nil || e.id != id || !bytes.Equal(e.key, key):
	case e.stamp != now && !canary.On(canary.StaleRow):
		c.stale.Add(1)
	case e.row.Version > ts:
		c.ahead.Add(1)
	default:
		c.hits.Add(1)
		return e.row, true
	}
	c.misses.Add(1)
	return Row{}, false
}

// Put offers a row, which may or may not be kept. The key is copied, the value
// is not. hash is Hash(id, key).
func (c *Cache) Put(hash uint64, id ids.RangeID, key []byte, s Stamp, r Row) {
	if c == nil || len(key)+len(r.Value)+rowOverhead > c.most {
		return
	}
	e := &entry{id: id, key: bytes.Clone(key), stamp: s, row: r}
	c.closing.RLock()
	defer c.closing.RUnlock()
	if !c.closed {
		c.rows.Set(hash, e, int64(len(key)+cap(r.Value)+rowOverhead))
	}
}

// Settle returns when all rows offered before are in or refused: for whoever
// must see the same hits in every run.
func (c *Cache) Settle() {
	if c == nil {
		return
	}
	c.closing.RLock()
	defer c.closing.RUnlock()
	if !c.closed {
		c.rows.Wait()
	}
}

// Stats returns the counts.
func (c *Cache) Stats() Stats {
	if c == nil {
		return Stats{}
	}
	return Stats{
		Hits:   c.hits.Load(),
		Misses: c.misses.Load(),
		Stale:  c.stale.Load(),
		Ahead:  c.ahead.Load(),
		Bytes:  c.rows.MaxCost() - c.rows.RemainingCost(),
	}
}

// Close ends the library's goroutine. Afterwards nothing is found or kept.
func (c *Cache) Close() {
	if c == nil {
		return
	}
	c.closing.Lock()
	defer c.closing.Unlock()
	if !c.closed {
		c.closed = true
		c.rows.Close()
	}
}
