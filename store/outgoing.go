package store

import (
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// OutgoingSnapshot is a consistent view of one replica, taken at once and
// cheap. One goroutine at a time; Close must follow.
//
// It is one Pebble iterator. An iterator sees the store as it was when it was
// made, however its bounds are moved. A Pebble snapshot would do for reading,
// but a span that an ingest excises vanishes from under it, and this node may
// receive a snapshot of the range whose old copy it is sending; it also holds up
// compaction everywhere. The iterator's price is that it keeps up to four
// memtables in memory, so the number of outgoing snapshots is bounded by their
// tokens.
type OutgoingSnapshot struct {
	s     *Store
	it    *pebble.Iterator
	state *ReplicaState
	spans []span // still to be read; the first one is being read
	begun bool   // the iterator stands in spans[0]
	chunk chunkWriter
}

// NewSnapshot pins the replica's state as applied now. ErrNoReplica: there is
// none, or its range is gone for ever though its records are still there: its
// data is another range's by then, which changes it.
func (s *Store) NewSnapshot(r ids.RangeID) (*OutgoingSnapshot, error) {
	it, err := s.iterator(span{rangeKey(r, rangeTombstone), rangeKey(r, rangeOwnEnd)})
	if err != nil {
		return nil, err
	}
	rs, err := readReplica(it, r)
	if err == nil && rs == nil {
		err = ErrNoReplica
	}
	if err == nil {
		err = notGone(it, r)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot of %v from store %q: %w", r, s.o.Dir,
			errors.Join(err, it.Close()))
	}
	o := &OutgoingSnapshot{s: s, it: it, state: rs}
	for _, space := range keySpaces() {
		o.spans = append(o.spans, keySpan(space, rs.Descriptor.GetStart(), rs.Descriptor.GetEnd()))
	}
	return o, nil
}

// notGone looks for the highest tombstone in the view that is pinned.
func notGone(it *pebble.Iterator, r ids.RangeID) error {
	v, err := seekExact(it, rangeKey(r, rangeTombstone))
	if err != nil || v == nil {
		return err
	}
	next, err := decodeTombstone(v)
	if err == nil && next == ids.EveryReplica {
		err = ErrNoReplica
	}
	return err
}

// State returns descriptor and applied state of the view. It must not be changed.
func (o *OutgoingSnapshot) State() *ReplicaState { return o.state }

// Next returns the next chunk (about 256 KiB: count, then key/value pairs in
// engine order, with a checksum), io.EOF at the end. The chunk is the caller's.
func (o *OutgoingSnapshot) Next() ([]byte, error) {
	for len(o.spans) > 0 && !o.chunk.full() {
		var ok bool
		if o.begun {
			ok = o.it.Next()
		} else {
			o.it.SetBounds(o.spans[0].lo, o.spans[0].hi)
			ok, o.begun = o.it.First(), true
		}
		if !ok {
			if err := o.it.Error(); err != nil {
				return nil, o.failed(err)
			}
			o.spans, o.begun = o.spans[1:], false
			continue
		}
		v, err := o.it.ValueAndErr()
		if err != nil {
			return nil, o.failed(err)
		}
		o.chunk.add(o.it.Key(), v)
	}
	if o.chunk.n == 0 {
		return nil, io.EOF
	}
	return o.chunk.take(), nil
}

func (o *OutgoingSnapshot) failed(err error) error {
	return fmt.Errorf("snapshot of range %d from store %q: %w",
		o.state.Descriptor.GetRangeId(), o.s.o.Dir, err)
}

// Close releases the view. A second Close does nothing.
func (o *OutgoingSnapshot) Close() {
	if o.it == nil {
		return
	}
	// What could fail has failed in Next already.
	_ = o.it.Close()
	o.it, o.spans = nil, nil
}
