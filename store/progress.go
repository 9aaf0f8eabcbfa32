package store

import (
	"sync"
	"sync/atomic"
	"time"
)

// progress knows since when the oldest sync that has not ended is under way, so
// that a node whose disk hangs can say so while every writer is still waiting.
//
// Every sync that somebody waits for is noted from before the commit that it
// belongs to: a disk that hangs while a log is rotated blocks inside the commit.
// Begin times come from one clock under one lock, so the list is in their order
// and its head is the oldest. What hangs is not found by a timer or a goroutine
// but by whoever asks.
//
// Rejected: the time of the last sync that ended. The disk of an idle node makes
// no progress either; and with several writers, one file that hangs would hide
// behind the others. Pebble's and vfs's own warnings of slow disks: they come
// once per operation, at a limit that is fixed when the file is opened, and not
// at all from a file system that a test made.
type progress struct {
	clock  func() time.Duration // nil: nothing is noted
	oldest atomic.Int64         // begin of the head plus 1 ns; 0: no sync is under way

	mu         sync.Mutex // never held over I/O
	head, tail *syncMark
}

// syncMark is one sync under way. The zero value is one that has not begun.
type syncMark struct {
	began      int64 // as in oldest; 0: not in the list
	prev, next *syncMark
}

// begin notes that a sync starts.
func (p *progress) begin(m *syncMark) {
	if p.clock == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m.began = int64(p.clock()) + 1
	m.prev, m.next = p.tail, nil
	if p.tail == nil {
		p.head = m
		p.oldest.Store(m.began)
	} else {
		p.tail.next = m
	}
	p.tail = m
}

// end notes that the sync is over, whatever came of it. A second call, and one
// without begin, does nothing.
func (p *progress) end(m *syncMark) {
	if p.clock == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.began == 0 {
		return
	}
	if m.prev == nil {
		p.head = m.next
	} else {
		m.prev.next = m.next
	}
	if m.next == nil {
		p.tail = m.prev
	} else {
		m.next.prev = m.prev
	}
	*m = syncMark{}
	if p.head == nil {
		p.oldest.Store(0)
	} else {
		p.oldest.Store(p.head.began)
	}
}

// during runs one sync that its caller waits for.
func (p *progress) during(sync func() error) error {
	var m syncMark
	p.begin(&m)
	defer p.end(&m)
	return sync()
}

// SyncAge returns how long the oldest sync that was started and has not ended is
// under way; 0 if there is none, or without Options.Monotonic. It counts log syncs
// and identity records, from before their commit on. Lock-free, any goroutine;
// it never waits for the disk. Some tens of nanoseconds and a reading of the clock.
func (s *Store) SyncAge() time.Duration {
	began := s.progress.oldest.Load()
	if began == 0 {
		return 0
	}
	return max(0, s.progress.clock()-time.Duration(began-1))
}

// SyncStalled says whether the disk makes no progress: a sync that was started has
// not ended within limit. It ends with that sync. As SyncAge; Identity.ExtendBound,
// which a node calls every second or two, makes it notice on an idle store too.
func (s *Store) SyncStalled(limit time.Duration) bool { return s.SyncAge() > limit }
