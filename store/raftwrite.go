package store

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
)

// The staging half of GroupLog.

// rangeDeleteEntries is the number of entries above which Truncate writes one
// range tombstone instead of a point deletion each. Point deletions meet their
// entries in the memtable and both vanish there; a range tombstone is paid for
// by every iterator that passes.
const rangeDeleteEntries = 10_000

// Append stages entries (contiguous with the log, empty log included:
// asserted; a conflicting tail is deleted). The entries are kept in the cache
// and must not change any more. An empty slice does nothing.
func (g *GroupLog) Append(b *Batch, entries []*raftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	first, oldLast := entries[0].GetIndex(), g.last()
	// The empty log is the same case: its last index is where it was truncated,
	// so that its first entry must be the very next one. A log that begins with a
	// hole would acknowledge entries that it never had.
	if first <= g.trunc.index || first > oldLast+1 {
		invariant.Failf("%v: append at %d to log (%d, %d]", g.id, first, g.trunc.index, oldLast)
	}
	if first <= oldLast && first <= g.hs.commit {
		invariant.Failf("%v: append at %d overwrites committed entries, commit index %d",
			g.id, first, g.hs.commit)
	}
	oldSizes := g.sizes
	if first <= oldLast {
		g.cutTail(first)
		// cutTail keeps the array; the sizes of what goes are still needed below.
		oldSizes = append([]uint32(nil), oldSizes...)
	}
	for i, e := range entries {
		if e.GetIndex() != first+uint64(i) || e.GetTerm() < g.lastTerm() || e.GetTerm() == 0 {
			invariant.Failf("%v: append of entry %d of term %d after entry %d of term %d", g.id,
				e.GetIndex(), e.GetTerm(), g.last(), g.lastTerm())
		}
		n := entryValueLen(e)
		op := b.b.SetDeferred(logKeyLen, n)
		putLogKey(op.Key, g.id, e.GetIndex())
		putEntryValue(op.Value, e)
		if err := op.Finish(); err != nil {
			return fmt.Errorf("stage entry %d of %v: %w", e.GetIndex(), g.id, err)
		}
		g.note(e.GetIndex(), e.GetTerm(), logKeyLen+n)
	}
	for i := g.last() + 1; i <= oldLast; i++ {
		if err := g.stageDelete(b, i, oldSizes[i-g.trunc.index-1]); err != nil {
			return err
		}
	}
	g.s.cache.add(&g.ring, entries)
	return nil
}

// stageDelete stages a point deletion that tells compaction what it frees.
func (g *GroupLog) stageDelete(b *Batch, index uint64, size uint32) error {
	op := b.b.DeleteSizedDeferred(logKeyLen, size-logKeyLen)
	putLogKey(op.Key, g.id, index)
	if err := op.Finish(); err != nil {
		return fmt.Errorf("stage removal of entry %d of %v: %w", index, g.id, err)
	}
	return nil
}

// SetHardState stages the hard state; term never regresses, nor commit, nor the
// vote within a term (asserted), nor does commit pass the log. Call it when
// term or vote changed, and entries must be staged before it; a commit index
// that moved alone need not be written.
func (g *GroupLog) SetHardState(b *Batch, hs *raftpb.HardState) error {
	h := hardStateOf(hs)
	g.checkHardState(h, g.last())
	g.hs = h
	if err := b.b.Set(rangeKey(g.id, rangeHardState), h.encode(), nil); err != nil {
		return fmt.Errorf("stage hard state of %v: %w", g.id, err)
	}
	return nil
}

func (g *GroupLog) checkHardState(h hardState, last uint64) {
	old := g.hs
	ok := h.term >= old.term && h.commit >= old.commit && h.commit <= last &&
		(h.term > old.term || old.vote == 0 || h.vote == old.vote)
	if !ok {
		invariant.Failf("%v: hard state %+v after %+v, log ends at %d", g.id, h, old, last)
	}
}

// Truncate stages the removal of entries at or below index. At or below the
// last truncation it does nothing. The caller keeps index at or below the
// durable applied index; above the last entry is a defect (asserted).
func (g *GroupLog) Truncate(b *Batch, index ids.Index) error {
	to := uint64(index)
	if to <= g.trunc.index {
		return nil
	}
	invariant.Check(to <= g.last(), "%v: truncate at %d, log ends at %d", g.id, to, g.last())
	from := g.trunc.index + 1
	if to-from >= rangeDeleteEntries {
		err := b.b.DeleteRange(logKey(g.id, from), logKey(g.id, to+1), nil)
		if err != nil {
			return fmt.Errorf("stage truncation of %v: %w", g.id, err)
		}
	} else {
		for i := from; i <= to; i++ {
			if err := g.stageDelete(b, i, g.sizes[i-from]); err != nil {
				return err
			}
		}
	}
	g.cutHead(to)
	g.s.cache.truncate(&g.ring, to)
	if err := b.b.Set(rangeKey(g.id, rangeTruncated), g.trunc.encode(), nil); err != nil {
		return fmt.Errorf("stage truncation of %v: %w", g.id, err)
	}
	return nil
}

// Reset makes the log start after a snapshot: empty, truncated at index/term,
// with hard state hs (nil: the present one), its commit index raised to index.
// With a nil batch only the in-memory view changes: IncomingSnapshot.Install
// has written the rest, and the owner calls Reset on its shard once Install has
// returned. raft.ErrSnapOutOfDate: the log is truncated beyond index already.
func (g *GroupLog) Reset(
	b *Batch, index ids.Index, term ids.Term, hs *raftpb.HardState,
) error {
	if uint64(index) < g.trunc.index {
		return raft.ErrSnapOutOfDate
	}
	h := g.hs
	if hs != nil {
		h = hardStateOf(hs)
	}
	h.commit = max(h.commit, uint64(index))
	g.checkHardState(h, uint64(index))
	if b != nil {
		sp := logSpan(g.id)
		if len(g.sizes) > 0 {
			if err := b.b.DeleteRange(sp.lo, sp.hi, nil); err != nil {
				return fmt.Errorf("stage reset of %v: %w", g.id, err)
			}
		}
		err := putRaftState(b, g.id, h, position{uint64(index), uint64(term)})
		if err != nil {
			return fmt.Errorf("stage reset of %v: %w", g.id, err)
		}
	}
	g.s.cache.drop(&g.ring)
	g.trunc, g.hs = position{uint64(index), uint64(term)}, h
	g.terms, g.sizes, g.bytes = nil, nil, 0
	return nil
}
