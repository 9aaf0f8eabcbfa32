package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Store is a node's Pebble with its two handles. Safe for concurrent use.
type Store struct {
	o        Options
	fs       vfs.FS
	fsCloser io.Closer // of the disk health checks; nil when FS was given
	lock     io.Closer // of the directory
	db       *pebble.DB
	options  *pebble.Options // as given to Pebble, for writers of sstables

	identity   Identity
	marks      marks
	cache      entryCache
	preloaded  preloaded
	tombstones tombstones
	metrics    counters
	progress   progress
	batches    sync.Pool // *Batch

	quietUntil atomic.Uint64 // committed bytes before which memtables cannot be near a stall
	stalled    atomic.Bool   // Pebble stalls writes now
	deep       atomic.Bool   // level 0 is so deep that writes are refused
	readOnly   atomic.Bool
	snapshotID atomic.Uint64 // names of files in the snapshot directory
}

// Log returns the handle of the raft logs.
func (s *Store) Log() *Log { return &Log{s} }

// State returns the handle of the replicated state.
func (s *Store) State() *State { return &State{s} }

// Identity returns the store's identity.
func (s *Store) Identity() *Identity { return &s.identity }

// Close closes the store. Iterators, snapshots and batches must be closed
// before. What was committed without a sync is synced on the way out; a
// simulated crash takes its clone of the disk before.
func (s *Store) Close() error {
	err := s.markNow()
	return errors.Join(err, s.release())
}

// release closes whatever is open, in the order opposite to Open.
func (s *Store) release() error {
	var errs []error
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	for _, c := range []io.Closer{s.lock, s.fsCloser} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close store %q: %w", s.o.Dir, err)
	}
	return nil
}

// Sync makes everything committed so far durable. Blocks for an fsync.
func (s *Store) Sync() error {
	// One write-ahead log in sequence order: syncing an empty record makes all
	// that stands before it durable.
	err := s.progress.during(func() error { return s.db.LogData(nil, pebble.Sync) })
	if err != nil {
		return fmt.Errorf("sync store %q: %w", s.o.Dir, err)
	}
	return nil
}

// Flush writes the memtable out and waits. For tests, tools and the simulator.
func (s *Store) Flush() error {
	if err := s.markNow(); err != nil {
		return err
	}
	if err := s.db.Flush(); err != nil {
		return fmt.Errorf("flush store %q: %w", s.o.Dir, err)
	}
	return s.markNow()
}

// Compact compacts the whole store and waits. For tests, tools and the simulator.
func (s *Store) Compact() error {
	lo, hi := engineKey(prefixNode), engineKey(0xff)
	if err := s.db.Compact(context.Background(), lo, hi, false); err != nil {
		return fmt.Errorf("compact store %q: %w", s.o.Dir, err)
	}
	return nil
}

// get returns a copy of the value of an engine key, nil if there is none.
func (s *Store) get(key []byte) ([]byte, error) {
	v, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read from store %q: %w", s.o.Dir, err)
	}
	out := append(make([]byte, 0, len(v)), v...)
	if err := closer.Close(); err != nil {
		return nil, fmt.Errorf("read from store %q: %w", s.o.Dir, err)
	}
	return out, nil
}

// iterator opens an iterator over a span.
func (s *Store) iterator(sp span) (*pebble.Iterator, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: sp.lo, UpperBound: sp.hi})
	if err != nil {
		return nil, fmt.Errorf("read from store %q: %w", s.o.Dir, err)
	}
	return it, nil
}

// hasKeys says whether a span holds any key.
func (s *Store) hasKeys(sp span) (bool, error) {
	it, err := s.iterator(sp)
	if err != nil {
		return false, err
	}
	found := it.First()
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return false, fmt.Errorf("read from store %q: %w", s.o.Dir, err)
	}
	return found, nil
}
