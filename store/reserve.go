package store

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A full disk must never be reached: a flush that gets ENOSPC is retried
// without pause and without end, and writes one failed file each time. So the
// node stops taking writes while there is still room for what it has taken:
// memtables to flush and compactions, which need space to free space.

// ReadOnly says that the disk is so full that writes must be refused. It is
// the last verdict of CheckDisk.
func (s *Store) ReadOnly() bool { return s.readOnly.Load() }

// CheckDisk measures the disk (bytes) and switches read-only mode; called every
// few seconds from a Run loop of server. A file system that cannot tell (one in
// memory) has total 0 and is never read-only. It also measures what
// WriteStalled foresees.
func (s *Store) CheckDisk() (total, free uint64, err error) {
	s.checkPressure()
	u, err := s.fs.GetDiskUsage(s.o.Dir)
	if errors.Is(err, vfs.ErrUnsupported) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("measure disk of store %q: %w", s.o.Dir, err)
	}
	reserve := uint64(max(s.o.ReserveBytes, 0))
	switch {
	case u.AvailBytes < reserve+reserve/4 && !s.readOnly.Swap(true):
		s.o.Logger.Warn("disk nearly full, refusing writes", "free", u.AvailBytes,
			"reserve", reserve)
	case u.AvailBytes > reserve+reserve/2 && s.readOnly.Swap(false):
		s.o.Logger.Info("disk has room again, taking writes", "free", u.AvailBytes,
			"reserve", reserve)
	}
	return u.TotalBytes, u.AvailBytes, nil
}

// WriteStalled says that Pebble is about to stall or stalls writes: proposals
// are refused and incoming appends dropped meanwhile, so that no shard blocks
// inside a commit. Cheap.
//
// Pebble stalls when a memtable is full and all of them together have
// memTableStopWrites times the full size. So writes are refused from that size
// on: the current memtable is the slack for what is under way. Counting
// memtables instead is wrong: a young store has many small ones, which Pebble
// does not flush before they are half a full one together, so a store that
// refused writes for their number would refuse them for ever.
//
// The size is asked for only after enough was committed to matter.
func (s *Store) WriteStalled() bool {
	if s.stalled.Load() || s.deep.Load() {
		return true
	}
	written := s.metrics.commitBytes.Load()
	if written < s.quietUntil.Load() {
		return false
	}
	limit := uint64(memTableStopWrites) * s.o.MemTableBytes
	size := s.db.Metrics().MemTable.Size
	if size >= limit {
		return true
	}
	// A committed byte takes more than one in a memtable, for small records
	// some; an eighth of what is left leaves room for that.
	s.quietUntil.Store(written + max((limit-size)/8, minStallSlack))
	return false
}

// checkPressure looks at the depth of level 0, with hysteresis. It grows by one
// per flushed memtable, so every few seconds is often enough.
func (s *Store) checkPressure() {
	m := s.db.Metrics()
	switch depth := m.Levels[0].Sublevels; {
	case s.o.Simulated: // compaction is the simulator's business
	case depth >= l0Refuse && !s.deep.Swap(true):
		s.o.Logger.Warn("level 0 is deep, refusing writes", "sublevels", depth)
	case depth < l0Accept && s.deep.Swap(false):
		s.o.Logger.Info("level 0 is compacted, taking writes", "sublevels", depth)
	}
}
