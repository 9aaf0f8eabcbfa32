package store

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"
)

// entryCache keeps recent log entries, decoded, in a ring per group under one
// node-wide byte budget. When it is over budget, the ring that was not touched
// for longest goes, whole: half a ring serves nobody, since followers read from
// some index to the end.
//
// Rings are filled by Append only. A laggard that reads old entries from Pebble
// must not drive out what all the others are about to need.
//
// One mutex guards everything. Its sections copy a few pointers; with a handful
// of shards it is never the bottleneck, and eviction reaches into rings that
// belong to other shards.
type entryCache struct {
	mu        sync.Mutex
	budget    int64
	bytes     int64
	lru       ring // sentinel of a circular list; next is the most recent
	hits      uint64
	misses    uint64
	evictions uint64
}

// ring is the cached part of one log: entries [first, first+n), contiguous.
// Only entryCache touches it.
type ring struct {
	prev, next *ring           // nil: not in the list, and empty
	buf        []*raftpb.Entry // length: a power of two
	head, n    int
	first      uint64
	bytes      int64
}

const (
	entryOverhead = 128 // bytes charged beside the data: the entry, its scalars, its slot
	ringMinSlots  = 4
	readSlots     = 64 // of the answer to a read, which grows beyond
)

func entryCost(e *raftpb.Entry) int64 { return int64(len(e.GetData())) + entryOverhead }

func (c *entryCache) init(budget int64) {
	c.budget = budget
	c.lru.prev, c.lru.next = &c.lru, &c.lru
}

// add puts appended entries into a ring, replacing a conflicting tail.
func (c *entryCache) add(r *ring, entries []*raftpb.Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := entries[0].GetIndex()
	if r.n > 0 && (at < r.first || at > r.first+uint64(r.n)) {
		c.empty(r) // does not join: what is older is of no use
	}
	if r.n == 0 {
		r.first = at
	}
	for uint64(r.n) > at-r.first {
		c.charge(r, -entryCost(r.pop()))
	}
	for _, e := range entries {
		r.push(e)
		c.charge(r, entryCost(e))
	}
	c.touch(r)
	for c.bytes > c.budget && c.lru.prev != &c.lru {
		c.empty(c.lru.prev)
		c.evictions++
	}
}

// read returns cached entries of [lo, hi): those from the first one on after
// which all are cached, and the index of that one (hi: none is). The caller
// reads what is before from Pebble. If all are cached, the limit is applied.
func (c *entryCache) read(
	r *ring, lo, hi uint64, limit *sizeLimit,
) (entries []*raftpb.Entry, from uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := r.first + uint64(r.n)
	from = max(lo, r.first)
	if r.n == 0 || end < hi || from >= hi {
		c.misses++
		return nil, hi
	}
	c.touch(r)
	if from > lo {
		c.misses++
	} else {
		c.hits++
	}
	entries = make([]*raftpb.Entry, 0, min(hi-from, readSlots))
	for i := from; i < hi; i++ {
		e := *r.slot(int(i - r.first))
		if from == lo && !limit.admit(e) {
			break
		}
		entries = append(entries, e)
	}
	return entries, from
}

// truncate drops entries at or below index.
func (c *entryCache) truncate(r *ring, index uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for r.n > 0 && r.first <= index {
		p := r.slot(0)
		c.charge(r, -entryCost(*p))
		*p = nil
		r.head = (r.head + 1) & (len(r.buf) - 1)
		r.first++
		r.n--
	}
	if r.n == 0 {
		c.empty(r)
	}
}

// drop forgets a ring.
func (c *entryCache) drop(r *ring) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.empty(r)
}

func (c *entryCache) metrics(m *Metrics) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.EntryCacheBytes, m.EntryCacheEvictions = c.bytes, c.evictions
	m.EntryCacheHits, m.EntryCacheMisses = c.hits, c.misses
}

// The methods below need mu.

func (c *entryCache) charge(r *ring, bytes int64) {
	r.bytes += bytes
	c.bytes += bytes
}

// empty takes everything out of a ring and gives its memory back: an idle group
// keeps none.
func (c *entryCache) empty(r *ring) {
	c.bytes -= r.bytes
	if r.next != nil {
		r.prev.next, r.next.prev = r.next, r.prev
	}
	*r = ring{}
}

// touch makes a ring the most recently used.
func (c *entryCache) touch(r *ring) {
	if r.next != nil {
		r.prev.next, r.next.prev = r.next, r.prev
	}
	r.prev, r.next = &c.lru, c.lru.next
	r.prev.next, r.next.prev = r, r
}

func (r *ring) slot(i int) **raftpb.Entry { return &r.buf[(r.head+i)&(len(r.buf)-1)] }

func (r *ring) push(e *raftpb.Entry) {
	if r.n == len(r.buf) {
		bigger := make([]*raftpb.Entry, max(ringMinSlots, 2*len(r.buf)))
		for i := range r.n {
			bigger[i] = *r.slot(i)
		}
		r.buf, r.head = bigger, 0
	}
	*r.slot(r.n) = e
	r.n++
}

func (r *ring) pop() *raftpb.Entry {
	p := r.slot(r.n - 1)
	e := *p
	*p = nil
	r.n--
	return e
}
