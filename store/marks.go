package store

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// Marks notice tables that are lost from the middle of the store.
//
// A damaged MANIFEST record is taken for the end of the MANIFEST. The tables
// named after it are then forgotten and deleted, while the newest write-ahead
// log is replayed as if nothing were missing; the counter, being in that log,
// looks perfectly new. So the first commit into every memtable carries the next
// number of one sequence, and so does every ingest. What a damaged MANIFEST
// loses is always its latest part, so the latest flush is among it, and with it
// a mark: the newest marks then have a gap, and Open refuses.
//
// The last markSlots marks are kept, each in slot number % markSlots; older
// ones are overwritten, since a loss reaches to the end and so to the newest.
//
// Why a crash cannot make a gap: mark n+1 is handed out only after the commit
// that carries mark n has returned, so it stands later in the log, and a crash
// takes the end of the log, never its middle.
type marks struct {
	wanted atomic.Bool // a new memtable has begun
	mu     sync.Mutex  // held while the commit or ingest that carries a mark is under way
	last   uint64      // newest mark in the store; guarded by mu
}

const markSlots = 16

// want asks for a mark with the next commit. Called under Pebble's locks.
func (m *marks) want() { m.wanted.Store(true) }

// take reserves the next mark if one is wanted and no other is under way. done
// must follow. It never waits: a commit that gets none leaves it to the next.
func (m *marks) take() (n uint64, ok bool) {
	if !m.wanted.Load() || !m.mu.TryLock() {
		return 0, false
	}
	m.wanted.Store(false)
	return m.last + 1, true
}

// must reserves the next mark, waiting for one that is under way.
func (m *marks) must() (n uint64) {
	m.mu.Lock()
	m.wanted.Store(false)
	return m.last + 1
}

// done ends what take or must began.
func (m *marks) done(n uint64, committed bool) {
	if committed {
		m.last = n
	} else {
		m.wanted.Store(true)
	}
	m.mu.Unlock()
}

func markKey(n uint64) []byte { return nodeKey(nodeMark, byte(n%markSlots)) }

func markValue(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// markNow commits a mark if one is wanted.
func (s *Store) markNow() error {
	n, ok := s.marks.take()
	if !ok {
		return nil
	}
	err := s.progress.during(func() error {
		return s.db.Set(markKey(n), markValue(n), pebble.Sync)
	})
	s.marks.done(n, err == nil)
	if err != nil {
		return fmt.Errorf("mark memtable of store %q: %w", s.o.Dir, err)
	}
	return nil
}

// loadMarks reads the marks and refuses a store in which one is missing.
func (s *Store) loadMarks() error {
	var slots [markSlots]uint64
	var newest uint64
	for i := range slots {
		v, err := s.get(markKey(uint64(i)))
		if err != nil {
			return openError(s.o.Dir, ErrUnreadable, err.Error(), remedyRebuild)
		}
		if len(v) == 8 {
			slots[i] = binary.BigEndian.Uint64(v)
		}
		newest = max(newest, slots[i])
	}
	for n := newest; n > 0 && n+markSlots > newest; n-- {
		if slots[n%markSlots] == n {
			continue
		}
		return openError(s.o.Dir, ErrRolledBack, fmt.Sprintf("tables are missing from %s: mark %d "+
			"of %d is gone, most likely a damaged MANIFEST file", s.path(engineDir), n, newest),
			remedyRebuild)
	}
	s.marks.last = newest
	return nil
}
