package store

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// SyncBuckets is the number of buckets of the sync latency histogram.
const SyncBuckets = 16

// syncBucketUnit is the upper bound of the first bucket; each next is twice it.
const syncBucketUnit = 64 * time.Microsecond

// SyncBucketBound returns the upper bound of bucket i: 64 µs << i. The last
// bucket also counts everything above it.
func SyncBucketBound(i int) time.Duration { return syncBucketUnit << i }

// Metrics are the store's figures. Counters count since Open.
type Metrics struct {
	Syncs       uint64              // waited-for commits that became durable
	SyncLatency time.Duration       // sum over Syncs, commit and wait
	SyncBuckets [SyncBuckets]uint64 // by latency, not cumulative; see SyncBucketBound
	Commits     uint64
	CommitBytes uint64 // encoded batches
	WALBytes    uint64 // written to the write-ahead log

	CompactionDebt  uint64 // bytes that compaction has yet to move
	Compactions     uint64
	Flushes         uint64
	ReadAmp         int // levels and sublevels that a lookup may visit
	L0Sublevels     int
	MemTables       int
	MemTableBytes   uint64
	TableBytes      uint64 // live tables on disk
	DiskBytes       uint64 // all of the database on disk
	WriteStalls     uint64 // begun
	WriteStalled    bool
	ReadOnly        bool
	LowDisk         uint64        // warnings
	DiskSlow        uint64        // operations that took longer than 5 s
	BackgroundError uint64        // failed flushes and compactions (they are retried)
	SyncAge         time.Duration // of the oldest sync under way; see Store.SyncAge

	BlockCacheBytes  int64
	BlockCacheHits   int64
	BlockCacheMisses int64

	EntryCacheBytes     int64
	EntryCacheHits      uint64 // reads of a log that the cache answered
	EntryCacheMisses    uint64 // reads that went to Pebble, whole or in part
	EntryCacheEvictions uint64 // rings
}

// counters are what the store counts itself.
type counters struct {
	syncs, syncNanos     atomic.Uint64
	buckets              [SyncBuckets]atomic.Uint64
	commits, commitBytes atomic.Uint64
	writeStalls, lowDisk atomic.Uint64
	diskSlow             atomic.Uint64
	backgroundErrors     atomic.Uint64
}

func (c *counters) synced(d time.Duration) {
	c.syncs.Add(1)
	c.syncNanos.Add(uint64(d))
	i := 0
	if d > 0 {
		i = min(bits.Len64(uint64((d-1)/syncBucketUnit)), SyncBuckets-1)
	}
	c.buckets[i].Add(1)
}

// Metrics returns the figures. It takes Pebble's lock and costs some tens of
// microseconds: for every few seconds, not for every request.
func (s *Store) Metrics() Metrics {
	p := s.db.Metrics()
	c := &s.metrics
	m := Metrics{
		Syncs:            c.syncs.Load(),
		SyncLatency:      time.Duration(c.syncNanos.Load()),
		Commits:          c.commits.Load(),
		CommitBytes:      c.commitBytes.Load(),
		WALBytes:         p.WAL.BytesWritten,
		CompactionDebt:   p.Compact.EstimatedDebt,
		Compactions:      uint64(p.Compact.Count),
		Flushes:          uint64(p.Flush.Count),
		ReadAmp:          p.ReadAmp(),
		L0Sublevels:      int(p.Levels[0].Sublevels),
		MemTables:        int(p.MemTable.Count),
		MemTableBytes:    p.MemTable.Size,
		DiskBytes:        p.DiskSpaceUsage(),
		WriteStalls:      c.writeStalls.Load(),
		WriteStalled:     s.WriteStalled(),
		ReadOnly:         s.ReadOnly(),
		LowDisk:          c.lowDisk.Load(),
		DiskSlow:         c.diskSlow.Load(),
		BackgroundError:  c.backgroundErrors.Load(),
		SyncAge:          s.SyncAge(),
		BlockCacheBytes:  p.BlockCache.Size,
		BlockCacheHits:   p.BlockCache.Hits,
		BlockCacheMisses: p.BlockCache.Misses,
	}
	for i := range p.Levels {
		m.TableBytes += uint64(p.Levels[i].TablesSize)
	}
	for i := range m.SyncBuckets {
		m.SyncBuckets[i] = c.buckets[i].Load()
	}
	s.cache.metrics(&m)
	return m
}
