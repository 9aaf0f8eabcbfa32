package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
)

// Install replaces the replica by the snapshot in one atomic, durable step
// (ingest-and-excise, or one synced batch below the threshold): user span,
// descriptor, applied state, and the raft state (log empty, truncated at the
// snapshot, hard state hs, whose commit index is raised to it). [clearStart,
// clearEnd), if not empty, is a wider span that the replica held before and that
// goes with it; it must touch the snapshot's. The tombstone stays; a replica id
// below it is ErrTombstone.
//
// Blocks for disk I/O; runs off the shard. Meanwhile nothing may be staged for
// the range, and afterwards its owner calls GroupLog.Reset with a nil batch.
// After an error nothing of the old replica has changed; Discard what is left.
func (in *IncomingSnapshot) Install(
	hs *raftpb.HardState, self ids.ReplicaID, clearStart, clearEnd []byte,
) error {
	invariant.Check(in.phase == finished, "%v: install of a snapshot that is not finished", in.r)
	in.phase = over
	err := in.install(hs, self, clearStart, clearEnd)
	if err != nil {
		in.Discard()
		return fmt.Errorf("install snapshot of %v in store %q: %w", in.r, in.s.o.Dir, err)
	}
	in.pairs = nil
	return nil
}

func (in *IncomingSnapshot) install(
	hs *raftpb.HardState, self ids.ReplicaID, clearStart, clearEnd []byte,
) error {
	in.s.preloaded.take(in.r)
	next, err := in.s.Log().Tombstone(in.r)
	if err != nil {
		return err
	}
	if self < next {
		return fmt.Errorf("replica %d, next allowed %d: %w", self, next, ErrTombstone)
	}
	h, err := in.hardState(hs)
	if err != nil {
		return err
	}
	start, end, err := in.widen(clearStart, clearEnd)
	if err != nil {
		return err
	}
	own, err := in.ownRecords(self, h)
	if err != nil {
		return err
	}
	if len(in.subsumed) > 0 {
		var dead []ids.RangeID
		for _, x := range in.subsumed {
			dead = append(dead, x.r)
		}
		in.s.tombstones.begin(dead)
		defer in.s.tombstones.end()
	}
	if in.spill {
		return in.ingest(own, start, end)
	}
	return in.commit(own, start, end)
}

// widen returns the smallest span with the snapshot's, the one to clear and those
// of the subsumed replicas.
func (in *IncomingSnapshot) widen(clearStart, clearEnd []byte) (start, end []byte, err error) {
	d := in.h.GetDescriptor_()
	start, end = d.GetStart(), d.GetEnd()
	spans := []subsumed{{0, clearStart, clearEnd}}
	for _, x := range append(spans, in.subsumed...) {
		if len(x.end) == 0 {
			continue
		}
		if bytes.Compare(x.start, d.GetEnd()) > 0 || bytes.Compare(d.GetStart(), x.end) > 0 {
			return nil, nil, fmt.Errorf("the span to clear does not touch the range")
		}
		if bytes.Compare(x.start, start) < 0 {
			start = x.start
		}
		if bytes.Compare(x.end, end) > 0 {
			end = x.end
		}
	}
	return start, end, nil
}

// hardState checks hs against what is stored: a snapshot must not take back a
// term or a vote.
func (in *IncomingSnapshot) hardState(hs *raftpb.HardState) (hardState, error) {
	it, err := in.s.iterator(ownSpan(in.r))
	if err != nil {
		return hardState{}, err
	}
	old, _, err := readRaftState(it, in.r)
	if err := errors.Join(err, it.Close()); err != nil {
		return hardState{}, err
	}
	index, term := in.h.GetApplied().GetIndex(), in.h.GetApplied().GetTerm()
	h := hardStateOf(hs)
	h.commit = max(h.commit, index)
	ok := h.term >= term && h.commit == index && h.term >= old.term &&
		(h.term > old.term || old.vote == 0 || h.vote == old.vote)
	invariant.Check(ok, "%v: hard state %+v with snapshot %d of term %d over %+v", in.r, h, index,
		term, old)
	return h, nil
}

// pair is an engine key and its value.
type pair struct{ key, value []byte }

// ownRecords are the records by range id, in engine order, with the tombstones of
// the subsumed ranges.
func (in *IncomingSnapshot) ownRecords(self ids.ReplicaID, h hardState) ([]pair, error) {
	o := proto.MarshalOptions{Deterministic: true}
	d, err := o.MarshalAppend(binary.AppendUvarint(nil, uint64(self)), in.h.GetDescriptor_())
	if err != nil {
		return nil, err
	}
	a, err := o.Marshal(in.h.GetApplied())
	if err != nil {
		return nil, err
	}
	trunc := position{in.h.GetApplied().GetIndex(), in.h.GetApplied().GetTerm()}
	own := []pair{
		{rangeKey(in.r, rangeDescriptor), d},
		{rangeKey(in.r, rangeApplied), a},
		{rangeKey(in.r, rangeHardState), h.encode()},
		{rangeKey(in.r, rangeTruncated), trunc.encode()},
	}
	var below, above []pair
	for _, x := range in.subsumed {
		dead := pair{
			rangeKey(x.r, rangeTombstone), binary.AppendUvarint(nil, uint64(ids.EveryReplica)),
		}
		if x.r < in.r {
			below = append(below, dead)
		} else {
			above = append(above, dead)
		}
	}
	return slices.Concat(below, own, above), nil
}

// commit installs a snapshot that is in memory: one synced batch.
func (in *IncomingSnapshot) commit(own []pair, start, end []byte) error {
	b := in.s.NewBatch()
	defer b.Close()
	// Deletions first: within a batch, later writes win.
	spans := []span{ownSpan(in.r)}
	for _, space := range keySpaces() {
		spans = append(spans, keySpan(space, start, end))
	}
	for _, sp := range spans {
		if err := in.s.clear(b, sp); err != nil {
			return err
		}
	}
	for _, p := range own {
		if err := b.b.Set(p.key, p.value, nil); err != nil {
			return err
		}
	}
	_, err := forEachPair(in.pairs, func(k, v []byte) error { return b.b.Set(k, v, nil) })
	if err != nil {
		return err
	}
	p, err := in.s.CommitSync(b)
	if err != nil {
		return err
	}
	return p.Wait()
}

// ingest installs a snapshot that is in tables. The user span is excised and
// replaced; every other span is cleared by a range tombstone in the table that
// brings its new keys (keys of one table have one sequence number, and a range
// tombstone deletes only what is older). All tables and the excision are one
// record of the log or of the MANIFEST: a crash leaves the old or the new.
func (in *IncomingSnapshot) ingest(own []pair, start, end []byte) error {
	t := &in.tables
	defer t.remove() // Pebble has its own links; whatever is left is of no use
	if err := in.clearByKey(start, end); err != nil {
		return err
	}
	// The table carries a mark, so that a MANIFEST that loses the ingest has lost
	// a mark as well (marks.go).
	s := in.s
	n := s.marks.must()
	ingested := false
	defer func() { s.marks.done(n, ingested) }()
	// An ingest into tables does not wait for the log. Without this sync a crash
	// could keep this mark and lose the one before, which was committed unsynced.
	if err := s.Sync(); err != nil {
		return err
	}
	if err := t.begin(); err != nil {
		return err
	}
	err := t.set(markKey(n), markValue(n))
	sp := ownSpan(in.r)
	err = errors.Join(err, t.w.DeleteRange(sp.lo, sp.hi))
	for _, p := range own {
		err = errors.Join(err, t.set(p.key, p.value))
	}
	if err := errors.Join(err, t.finish()); err != nil {
		return err
	}
	// Pebble links the files into its directory and syncs that directory.
	user := keySpan(prefixData, start, end)
	_, err = s.db.IngestAndExcise(context.Background(), t.paths, nil, nil,
		pebble.KeyRange{Start: user.lo, End: user.hi})
	ingested = err == nil
	s.marks.want() // the next commit shows that this mark must be there
	return err
}

// clearByKey adds tables that clear the spaces by key where the snapshot's own
// tables do not: spaces of which it has no keys, and what the wider span adds.
func (in *IncomingSnapshot) clearByKey(start, end []byte) error {
	for i, space := range keySpaces() {
		if space == prefixData {
			continue
		}
		wide, own := keySpan(space, start, end), in.spans[i]
		pieces := []span{{wide.lo, own.lo}, own, {own.hi, wide.hi}}
		if in.has[i] {
			pieces = []span{pieces[0], pieces[2]}
		}
		for _, p := range pieces {
			if bytes.Equal(p.lo, p.hi) {
				continue
			}
			if err := in.tables.clearing(p); err != nil {
				return err
			}
		}
	}
	return nil
}
