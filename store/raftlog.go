package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Log is the handle of the raft logs.
type Log struct{ s *Store }

// Tombstone returns the next replica id that range r may have on this node. A
// replica with a lower id never lives (again). 0: there is no tombstone. Any
// goroutine; mostly from memory (tombstones).
func (l *Log) Tombstone(r ids.RangeID) (next ids.ReplicaID, err error) {
	next, known, version := l.s.tombstones.get(r)
	if known {
		return next, nil
	}
	if next, err = l.readTombstone(r); err != nil {
		return 0, err
	}
	l.s.tombstones.put(r, next, version)
	return next, nil
}

// readTombstone asks the engine.
func (l *Log) readTombstone(r ids.RangeID) (next ids.ReplicaID, err error) {
	v, err := l.s.get(rangeKey(r, rangeTombstone))
	if err != nil || v == nil {
		return 0, err
	}
	if next, err = decodeTombstone(v); err != nil {
		return 0, fmt.Errorf("read from store %q: %v: %w", l.s.o.Dir, r, err)
	}
	return next, nil
}

// PutTombstone stages a tombstone. It is never lowered: a lower next than the
// one that is there changes nothing.
func (l *Log) PutTombstone(b *Batch, r ids.RangeID, next ids.ReplicaID) error {
	if canary.On(canary.NoTombstone) {
		return nil
	}
	old, err := l.Tombstone(r)
	if err != nil || next <= old {
		return err
	}
	v := binary.AppendUvarint(nil, uint64(next))
	b.dead = append(b.dead, r)
	return b.b.Set(rangeKey(r, rangeTombstone), v, nil)
}

// GroupLog is the log of one group; it implements raft.Storage. First and last
// index and all terms are in memory, recent entries in the node-wide cache.
// Owned by the group's shard; the staging methods change the in-memory view at
// once (raft may read what is staged as soon as its append is answered), so a
// batch that something was staged into must be committed.
//
// Pebble lags behind the view until the batch is committed. That is sound: raft
// reads entries from here only after their append was answered, hence committed;
// before that it has them itself.
//
// Memory of an idle group: this struct, four bytes per retained entry, and its
// entries as long as the cache keeps them.
type GroupLog struct {
	s  *Store
	id ids.RangeID

	trunc position  // the log begins after it
	terms []termRun // of the entries after trunc, ascending; terms rarely change
	sizes []uint32  // of the stored entries after trunc, key and value
	bytes int64     // sum of sizes
	hs    hardState
	conf  *raftpb.ConfState

	onSnapshot func() (*raftpb.Snapshot, error)
	ring       ring
}

// termRun says that entries from index on (to the next run) have term.
type termRun position

// Group loads a group's log, without a read if Preload has done that. A group
// without one has first index 1, last 0. The commit index is raised to the
// applied index, since a hard state in which only the commit index moved need not
// be written.
func (l *Log) Group(r ids.RangeID) (*GroupLog, error) {
	if g := l.s.preloaded.take(r); g != nil {
		return g, nil
	}
	g := &GroupLog{s: l.s, id: r}
	it, err := l.s.iterator(ownSpan(r))
	if err != nil {
		return nil, err
	}
	err = g.load(it)
	if err := errors.Join(err, it.Close()); err != nil {
		return nil, fmt.Errorf("load log of %v from store %q: %w", r, l.s.o.Dir, err)
	}
	return g, nil
}

func (g *GroupLog) load(it *pebble.Iterator) error {
	var applied metapb.AppliedState
	v, err := seekExact(it, rangeKey(g.id, rangeApplied))
	if err == nil {
		err = proto.Unmarshal(v, &applied)
	}
	if err != nil {
		return err
	}
	if g.hs, g.trunc, err = readRaftState(it, g.id); err != nil {
		return err
	}
	for ok := it.SeekGE(logKey(g.id, g.trunc.index+1)); ok; ok = it.Next() {
		_, sub, _ := decodeRangeKey(it.Key())
		v, err := it.ValueAndErr()
		if err == nil {
			err = g.take(sub, it.Key(), v)
		}
		if err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return err
	}
	return g.finish(&applied)
}

// take takes over one stored record of the log. They come in the order of their
// keys: hard state, truncated state, entries after it.
func (g *GroupLog) take(sub byte, key, v []byte) (err error) {
	switch sub {
	case rangeHardState:
		g.hs, err = decodeHardState(v)
	case rangeTruncated:
		g.trunc, err = decodePosition(v)
	case rangeLog:
		err = g.takeEntry(key, v)
	}
	return err
}

func (g *GroupLog) takeEntry(key, v []byte) error {
	index, ok := decodeLogKey(key)
	if !ok {
		return fmt.Errorf("key %x is malformed", key)
	}
	_, term, _, err := splitEntryValue(v)
	if err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	if index != g.last()+1 || term < g.lastTerm() {
		return fmt.Errorf("entry %d of term %d follows entry %d of term %d", index, term,
			g.last(), g.lastTerm())
	}
	g.note(index, term, logKeyLen+len(v))
	return nil
}

// finish completes the log by what is applied, and checks it.
func (g *GroupLog) finish(applied *metapb.AppliedState) error {
	g.conf = confState(applied.GetConf())
	g.hs.commit = max(g.hs.commit, applied.GetIndex())
	// Either would make raft panic, or vote twice.
	if g.hs.commit > g.last() || g.hs.term < g.lastTerm() {
		return fmt.Errorf("log ends at %d of term %d, but commit index is %d and term %d",
			g.last(), g.lastTerm(), g.hs.commit, g.hs.term)
	}
	return nil
}

// readRaftState reads hard state and truncated state; both may be missing.
func readRaftState(it *pebble.Iterator, r ids.RangeID) (h hardState, p position, err error) {
	v, err := seekExact(it, rangeKey(r, rangeHardState))
	if err == nil && v != nil {
		h, err = decodeHardState(v)
	}
	if err != nil {
		return h, p, err
	}
	v, err = seekExact(it, rangeKey(r, rangeTruncated))
	if err == nil && v != nil {
		p, err = decodePosition(v)
	}
	return h, p, err
}

// confState translates a stored configuration; nil gives an empty one.
func confState(c *metapb.ConfState) *raftpb.ConfState {
	cs := &raftpb.ConfState{
		Voters:         c.GetVoters(),
		Learners:       c.GetLearners(),
		VotersOutgoing: c.GetVotersOutgoing(),
		LearnersNext:   c.GetLearnersNext(),
	}
	if c.GetAutoLeave() {
		cs.AutoLeave = new(true)
	}
	return cs
}

// InitialGroup stages the start of a new group's log: truncated at index/term,
// hard state {term, commit: index} unless a newer one is there, whose term and
// vote are kept (else a replica that voted before its split was applied could
// vote again). A log that is past that start already is ErrInitialized, and
// nothing is staged. It reads the store: an uninitialised group of the range
// must have been removed, with its batches committed.
func (l *Log) InitialGroup(b *Batch, r ids.RangeID, index ids.Index, term ids.Term) error {
	l.s.preloaded.take(r)
	it, err := l.s.iterator(ownSpan(r))
	if err != nil {
		return err
	}
	hs, trunc, err := readRaftState(it, r)
	if err == nil && it.SeekGE(logKey(r, 0)) {
		if first, ok := decodeLogKey(it.Key()); ok {
			err = fmt.Errorf("%w: it has entry %d", ErrInitialized, first)
		}
	}
	if err == nil && trunc.index > uint64(index) {
		err = fmt.Errorf("%w: truncated at %d", ErrInitialized, trunc.index)
	}
	if err := errors.Join(err, it.Error(), it.Close()); err != nil {
		return fmt.Errorf("start log of %v at %d in store %q: %w", r, index, l.s.o.Dir, err)
	}
	if hs.term < uint64(term) {
		hs.term, hs.vote = uint64(term), 0
	}
	hs.commit = max(hs.commit, uint64(index))
	return putRaftState(b, r, hs, position{uint64(index), uint64(term)})
}

func putRaftState(b *Batch, r ids.RangeID, hs hardState, trunc position) error {
	if err := b.b.Set(rangeKey(r, rangeHardState), hs.encode(), nil); err != nil {
		return err
	}
	return b.b.Set(rangeKey(r, rangeTruncated), trunc.encode(), nil)
}

// last is the index of the last entry, or of the start of an empty log.
func (g *GroupLog) last() uint64 { return g.trunc.index + uint64(len(g.sizes)) }

func (g *GroupLog) lastTerm() uint64 {
	if n := len(g.terms); n > 0 {
		return g.terms[n-1].term
	}
	return g.trunc.term
}

// note adds the entry after the last to what is in memory.
func (g *GroupLog) note(index, term uint64, size int) {
	if len(g.terms) == 0 || g.terms[len(g.terms)-1].term != term {
		g.terms = append(g.terms, termRun{index, term})
	}
	g.sizes = append(g.sizes, uint32(size))
	g.bytes += int64(size)
}

// cutTail drops the entries at or above index from what is in memory.
func (g *GroupLog) cutTail(index uint64) {
	keep := int(index - g.trunc.index - 1)
	for _, size := range g.sizes[keep:] {
		g.bytes -= int64(size)
	}
	g.sizes = g.sizes[:keep]
	for n := len(g.terms); n > 0 && g.terms[n-1].index >= index; n-- {
		g.terms = g.terms[:n-1]
	}
}

// cutHead drops the entries at or below index.
func (g *GroupLog) cutHead(index uint64) {
	drop := int(index - g.trunc.index)
	for _, size := range g.sizes[:drop] {
		g.bytes -= int64(size)
	}
	term := g.termAt(index)
	g.sizes = g.sizes[drop:]
	g.trunc = position{index, term}
	run := g.runOf(index + 1)
	g.terms = g.terms[min(run, len(g.terms)):]
	if len(g.sizes) == 0 {
		g.terms, g.sizes = nil, nil
	} else if g.terms[0].index <= index {
		g.terms[0].index = index + 1
	}
}

// runOf returns the position in terms of the run that holds an index after trunc.
func (g *GroupLog) runOf(index uint64) int {
	return max(sort.Search(len(g.terms), func(i int) bool {
		return g.terms[i].index > index
	})-1, 0)
}

// termAt returns the term of trunc or of an entry that is there.
func (g *GroupLog) termAt(index uint64) uint64 {
	if index == g.trunc.index {
		return g.trunc.term
	}
	invariant.Check(index > g.trunc.index && index <= g.last(),
		"%v: term of entry %d of log (%d, %d]", g.id, index, g.trunc.index, g.last())
	return g.terms[g.runOf(index)].term
}

// Interface check: raft reads its log from here.
var _ raft.Storage = (*GroupLog)(nil)
