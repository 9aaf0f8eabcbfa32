package store

import (
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Batch collects writes of both handles (today one Pebble, so one batch is
// atomic across them). Not safe for concurrent use. Close releases it.
type Batch struct {
	s *Store
	b *pebble.Batch

	// scratch lends ApplyRepr a Pebble batch around a payload. It is never
	// committed, reset or closed while a payload is in it: each of these writes
	// into the first twelve bytes, which belong to a raft entry.
	scratch pebble.Batch
	header  [batchrepr.HeaderLen]byte // what scratch holds in between
	buf     []byte                    // encoding of protos

	dead []ids.RangeID // whose tombstones are in it
}

// NewBatch returns an empty batch.
func (s *Store) NewBatch() *Batch {
	b, _ := s.batches.Get().(*Batch)
	if b == nil {
		b = &Batch{s: s}
	}
	b.b = s.db.NewBatch()
	return b
}

// Pebble returns the batch to write versions into. It stays the store's: do not
// commit, reset or close it.
func (b *Batch) Pebble() *pebble.Batch { return b.b }

// Len returns the size in bytes.
func (b *Batch) Len() int { return b.b.Len() }

// Empty says whether nothing was written.
func (b *Batch) Empty() bool { return b.b.Empty() }

// Reset empties the batch for reuse. Not before its PendingSync's Wait.
func (b *Batch) Reset() {
	b.b.Reset()
	b.dead = b.dead[:0]
}

// Close releases the batch, committed or not. Not before its PendingSync's
// Wait. A second Close does nothing, as long as no NewBatch came between.
func (b *Batch) Close() {
	if b.b == nil {
		return
	}
	// Close of a batch fails only if it is closed already.
	_ = b.b.Close()
	b.b, b.dead = nil, b.dead[:0]
	b.s.batches.Put(b)
}

// ApplyRepr merges an encoded batch (the payload of an entry). The payload is
// copied, never aliased or written to. ErrBadPayload: nothing was merged.
func (b *Batch) ApplyRepr(repr []byte) error {
	if err := checkRepr(repr); err != nil {
		return fmt.Errorf("%w: %w", ErrBadPayload, err)
	}
	err := b.scratch.SetRepr(repr)
	if err == nil {
		err = b.b.Apply(&b.scratch, nil)
	}
	if e := b.scratch.SetRepr(b.header[:]); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadPayload, err)
	}
	return nil
}

// checkRepr walks an encoded batch. Pebble's own reader trusts its input: it
// reads past the end of a truncated payload, and a wrong count or an odd key
// would stop the node at commit.
func checkRepr(repr []byte) error {
	h, ok := batchrepr.ReadHeader(repr)
	if !ok {
		return fmt.Errorf("%d bytes are less than a header", len(repr))
	}
	var records uint32
	for rest := repr[batchrepr.HeaderLen:]; len(rest) > 0; records++ {
		kind := pebble.InternalKeyKind(rest[0])
		key, after, ok := takeString(rest[1:])
		if !ok {
			return fmt.Errorf("record %d is cut short", records)
		}
		if err := checkReplicatedKey(key); err != nil {
			return fmt.Errorf("record %d: %w", records, err)
		}
		switch kind {
		case pebble.InternalKeyKindSet, pebble.InternalKeyKindDeleteSized:
			if _, after, ok = takeString(after); !ok {
				return fmt.Errorf("value of record %d is cut short", records)
			}
		case pebble.InternalKeyKindRangeDelete:
			var end []byte
			if end, after, ok = takeString(after); !ok {
				return fmt.Errorf("end of record %d is cut short", records)
			}
			if err := checkReplicatedKey(end); err != nil {
				return fmt.Errorf("end of record %d: %w", records, err)
			}
		case pebble.InternalKeyKindDelete:
		default:
			return fmt.Errorf("record %d has kind %d", records, kind)
		}
		rest = after
	}
	if records != h.Count {
		return fmt.Errorf("header says %d records, there are %d", h.Count, records)
	}
	return nil
}

// takeString reads a length and that many bytes. The length must be in its
// shortest form: Pebble reads longer ones differently.
func takeString(b []byte) (s, rest []byte, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || w != uvarintLen(n) || n > uint64(len(b)-w) {
		return nil, nil, false
	}
	return b[w : w+int(n)], b[w+int(n):], true
}

// commit hands a batch to Pebble, with a mark if one is wanted.
func (s *Store) commit(b *Batch, apply func(*pebble.Batch) error) error {
	if len(b.dead) > 0 {
		s.tombstones.begin(b.dead)
		defer s.tombstones.end()
	}
	n, marked := s.marks.take()
	var err error
	if marked {
		err = b.b.Set(markKey(n), markValue(n), nil)
	}
	size := b.b.Len()
	if err == nil {
		err = apply(b.b)
	}
	if marked {
		s.marks.done(n, err == nil)
	}
	if err != nil {
		return fmt.Errorf("commit to store %q: %w", s.o.Dir, err)
	}
	s.metrics.commits.Add(1)
	s.metrics.commitBytes.Add(uint64(size))
	if s.o.AfterCommit != nil {
		s.o.AfterCommit()
	}
	return nil
}

// CommitNoSync commits; visible on return, durable with any later sync. The
// batch may be reused after Reset. Blocks only while Pebble stalls writes.
func (s *Store) CommitNoSync(b *Batch) error {
	if b.Empty() {
		return nil
	}
	return s.commit(b, s.applyNoSync)
}

func (s *Store) applyNoSync(b *pebble.Batch) error { return s.db.Apply(b, pebble.NoSync) }

func (s *Store) applyNoSyncWait(b *pebble.Batch) error {
	return s.db.ApplyNoSyncWait(b, pebble.Sync)
}

// PendingSync is a commit whose sync runs. One goroutine calls Wait, once.
type PendingSync struct {
	s    *Store
	b    *pebble.Batch // nil: nothing to wait for
	mark syncMark
}

// CommitSync commits and starts the sync without waiting: visible on return.
// The batch belongs to the PendingSync until Wait returns. An empty batch has
// nothing to make durable: its Wait returns at once and is no barrier for
// earlier commits (Sync is one). Blocks only while Pebble stalls writes.
func (s *Store) CommitSync(b *Batch) (*PendingSync, error) {
	p := &PendingSync{s: s}
	if b.Empty() {
		return p, nil
	}
	if canary.On(canary.SkipSync) {
		return p, s.commit(b, s.applyNoSync)
	}
	apply := s.applyNoSyncWait
	if s.o.Simulated {
		apply = s.applyNoSync
	}
	s.progress.begin(&p.mark)
	if err := s.commit(b, apply); err != nil {
		s.progress.end(&p.mark)
		return nil, err
	}
	p.b = b.b
	return p, nil
}

// Wait blocks until the commit is durable, and with it every earlier one. An
// error is a failed fsync: what the disk has is unknown from then on, so the
// store calls Options.Fatal before it would return it.
func (p *PendingSync) Wait() error {
	if p.b == nil {
		return nil
	}
	s, b := p.s, p.b
	p.b = nil
	defer s.progress.end(&p.mark)
	if s.o.Simulated {
		// One log in sequence order: a sync of its end covers the commit.
		if err := s.Sync(); err != nil {
			s.fatal(err.Error())
		}
		s.metrics.synced(0)
		return nil
	}
	if err := b.SyncWait(); err != nil {
		s.fatal("log sync failed: " + err.Error())
	}
	s.metrics.synced(b.CommitStats().TotalDuration)
	return nil
}
