package store

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// The reading half of GroupLog: raft.Storage.

// InitialState returns the hard state (nil: there is none) and the
// configuration as applied, or what SetConfState set.
func (g *GroupLog) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	if g.hs == (hardState{}) {
		return nil, g.conf, nil
	}
	return g.hs.proto(), g.conf, nil
}

// Entries returns the entries [lo, hi), at least one and otherwise as many as
// fit into maxSize bytes. The slice is the caller's, the entries are shared and
// must not change. raft.ErrCompacted: lo is truncated; raft.ErrUnavailable: hi
// is above the last index plus one.
func (g *GroupLog) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	if lo <= g.trunc.index {
		return nil, raft.ErrCompacted
	}
	if hi > g.last()+1 {
		return nil, raft.ErrUnavailable
	}
	if lo >= hi {
		return nil, nil
	}
	limit := sizeLimit{left: maxSize}
	cached, from := g.s.cache.read(&g.ring, lo, hi, &limit)
	if from == lo {
		return cached, nil
	}
	entries, full, err := g.readEntries(lo, from, &limit)
	if err != nil {
		return nil, fmt.Errorf("read log of %v from store %q: %w", g.id, g.s.o.Dir, err)
	}
	for _, e := range cached {
		if full || !limit.admit(e) {
			break
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// readEntries reads [lo, hi) from Pebble, within the limit.
func (g *GroupLog) readEntries(
	lo, hi uint64, limit *sizeLimit,
) (entries []*raftpb.Entry, full bool, err error) {
	it, err := g.s.iterator(span{logKey(g.id, lo), logKey(g.id, hi)})
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	next := lo
	for ok := it.First(); ok; ok = it.Next() {
		index, isLog := decodeLogKey(it.Key())
		if !isLog || index != next {
			return nil, false, fmt.Errorf("entry %d is missing", next)
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, false, err
		}
		e, err := decodeEntry(index, v)
		if err != nil {
			return nil, false, fmt.Errorf("entry %d: %w", index, err)
		}
		if !limit.admit(e) {
			return entries, true, nil
		}
		entries = append(entries, e)
		next++
	}
	if err := it.Error(); err != nil {
		return nil, false, err
	}
	if next != hi {
		return nil, false, fmt.Errorf("entry %d is missing", next)
	}
	return entries, false, nil
}

// Term returns the term of entry i, from memory. raft.ErrCompacted below the
// first index minus one, raft.ErrUnavailable above the last index.
func (g *GroupLog) Term(i uint64) (uint64, error) {
	switch {
	case i < g.trunc.index:
		return 0, raft.ErrCompacted
	case i > g.last():
		return 0, raft.ErrUnavailable
	}
	return g.termAt(i), nil
}

// LastIndex returns the index of the last entry (0 for a new log).
func (g *GroupLog) LastIndex() (uint64, error) { return g.last(), nil }

// FirstIndex returns the index of the first entry that is or will be there.
func (g *GroupLog) FirstIndex() (uint64, error) { return g.trunc.index + 1, nil }

// Snapshot returns the metadata that OnSnapshot's function gives, or
// raft.ErrSnapshotTemporarilyUnavailable while there is none.
func (g *GroupLog) Snapshot() (*raftpb.Snapshot, error) {
	if g.onSnapshot == nil {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return g.onSnapshot()
}

// OnSnapshot sets who answers Snapshot. It runs inside raft's Step.
func (g *GroupLog) OnSnapshot(f func() (*raftpb.Snapshot, error)) { g.onSnapshot = f }

// SetConfState sets what InitialState returns. nil gives an empty one.
func (g *GroupLog) SetConfState(cs *raftpb.ConfState) {
	if cs == nil {
		cs = &raftpb.ConfState{}
	}
	g.conf = cs
}

// Bytes returns the size of the retained entries as stored.
func (g *GroupLog) Bytes() int64 { return g.bytes }

// Close drops the group from the cache. What is stored stays.
func (g *GroupLog) Close() { g.s.cache.drop(&g.ring) }
