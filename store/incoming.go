package store

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2/cockroachkvs"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// IncomingSnapshot is a snapshot being received: a small one stays in memory, a
// large one goes to tables in the store's snapshot directory (emptied at Open).
// ReceiveSnapshot, Add …, Finish, then Install or Discard; Discard at any time
// before Install. One goroutine at a time.
type IncomingSnapshot struct {
	s      *Store
	h      *metapb.SnapshotHeader
	r      ids.RangeID
	spans  [3]span // of the key spaces, in engine order
	space  int     // index of the one that the last key was in
	last   []byte  // last key, to see that they ascend
	pairs  []byte  // what is kept in memory, encoded as in a chunk
	spill  bool    // the rest goes to tables
	has    [3]bool // which spaces have tables
	tables tables
	phase  phase

	subsumed []subsumed // in order of range ids
}

// subsumed is another range whose replica here ends with the installation.
type subsumed struct {
	r          ids.RangeID
	start, end []byte
}

type phase uint8

const (
	receiving phase = iota
	finished
	over // installed or discarded
)

// ReceiveSnapshot begins to receive. The header is kept and must not change.
func (s *Store) ReceiveSnapshot(h *metapb.SnapshotHeader) (*IncomingSnapshot, error) {
	d := h.GetDescriptor_()
	if d.GetRangeId() == 0 || d.GetRangeId() != h.GetRangeId() || h.GetApplied().GetIndex() == 0 ||
		h.GetApplied().GetTerm() == 0 || len(d.GetStart()) == 0 || d.GetStart()[0] < prefixData ||
		bytes.Compare(d.GetStart(), d.GetEnd()) >= 0 {
		return nil, fmt.Errorf("receive snapshot of range %d: %w: its header is incomplete",
			h.GetRangeId(), ErrBadSnapshot)
	}
	r := ids.RangeID(h.GetRangeId())
	in := &IncomingSnapshot{s: s, h: h, r: r, tables: tables{s: s, r: r}}
	for i, space := range keySpaces() {
		in.spans[i] = keySpan(space, d.GetStart(), d.GetEnd())
	}
	return in, nil
}

// Header returns the header.
func (in *IncomingSnapshot) Header() *metapb.SnapshotHeader { return in.h }

// Add takes the next chunk, which may be reused afterwards. ErrBadSnapshot: it
// is damaged, or holds what does not belong to the range. After an error only
// Discard is left.
func (in *IncomingSnapshot) Add(chunk []byte) error {
	invariant.Check(in.phase == receiving, "%v: snapshot chunk after its end", in.r)
	if err := in.add(chunk); err != nil {
		return fmt.Errorf("receive snapshot of %v: %w", in.r, err)
	}
	return nil
}

func (in *IncomingSnapshot) add(chunk []byte) error {
	pairs, count, err := openChunk(chunk)
	if err != nil {
		return err
	}
	if !in.spill && int64(len(in.pairs)+len(pairs)) <= in.s.o.SnapshotInMemoryBytes {
		n, err := forEachPair(pairs, func(k, _ []byte) error { return in.check(k) })
		if err == nil && n != count {
			err = fmt.Errorf("%w: %d pairs in a chunk of %d", ErrBadSnapshot, n, count)
		}
		in.pairs = append(in.pairs, pairs...)
		return err
	}
	if !in.spill {
		// From here on to tables, and first what was kept, which is checked
		// already: begin anew.
		in.spill, in.space, in.last = true, 0, nil
		kept := in.pairs
		in.pairs = nil
		if _, err := forEachPair(kept, in.write); err != nil {
			return err
		}
	}
	n, err := forEachPair(pairs, in.write)
	if err == nil && n != count {
		err = fmt.Errorf("%w: %d pairs in a chunk of %d", ErrBadSnapshot, n, count)
	}
	return err
}

// check makes sure that keys ascend and lie in the range's spans. It moves
// space on.
func (in *IncomingSnapshot) check(key []byte) error {
	if err := checkReplicatedKey(key); err != nil {
		return fmt.Errorf("%w: %w", ErrBadSnapshot, err)
	}
	if in.last != nil && cockroachkvs.Compare(key, in.last) <= 0 {
		return fmt.Errorf("%w: keys do not ascend", ErrBadSnapshot)
	}
	in.last = append(in.last[:0], key...)
	for i := in.space; i < len(in.spans); i++ {
		sp := in.spans[i]
		if cockroachkvs.Compare(key, sp.lo) >= 0 && cockroachkvs.Compare(key, sp.hi) < 0 {
			in.space = i
			return nil
		}
	}
	return fmt.Errorf("%w: key outside the range", ErrBadSnapshot)
}

// write checks a pair and appends it to the tables. A table holds one space:
// spans between the spaces belong to other ranges. The user span is cleared by
// excising it; the table of another space opens with a range tombstone, and so
// is not cut into several.
func (in *IncomingSnapshot) write(key, value []byte) error {
	t := &in.tables
	before, fresh := in.space, in.last == nil
	var lastPrefix []byte // a full table ends with all versions of a key
	if t.bytes >= tableBytes {
		lastPrefix = bytes.Clone(in.last[:cockroachkvs.Split(in.last)])
	}
	if err := in.check(key); err != nil {
		return err
	}
	data := in.space == len(in.spans)-1
	cut := data && lastPrefix != nil && !bytes.Equal(lastPrefix, key[:cockroachkvs.Split(key)])
	if fresh || in.space != before || cut {
		if err := t.finish(); err != nil {
			return err
		}
		if err := t.begin(); err != nil {
			return err
		}
		if !data {
			sp := in.spans[in.space]
			if err := t.w.DeleteRange(sp.lo, sp.hi); err != nil {
				return err
			}
		}
	}
	in.has[in.space] = true
	return t.set(key, value)
}

// Finish ends the data; afterwards Install may be called. Blocks for fsyncs if
// the snapshot is large.
func (in *IncomingSnapshot) Finish() error {
	invariant.Check(in.phase == receiving, "%v: snapshot finished twice", in.r)
	if err := in.tables.finish(); err != nil {
		return fmt.Errorf("receive snapshot of %v: %w", in.r, err)
	}
	in.phase = finished
	return nil
}

// Subsume has the installation end another range's replica for ever, in the same
// atomic step: the snapshot's range has taken that range in. [start, end) is what
// the replica holds here; it must touch the snapshot's span, and what of it lies
// outside goes. Its tombstone becomes the highest. Its records by range id stay:
// whoever drives the replica removes them when it has ended, or a start does, to
// which the tombstone tells that they are of no use. Before Install, in any order.
func (in *IncomingSnapshot) Subsume(r ids.RangeID, start, end []byte) {
	invariant.Check(in.phase != over && r != in.r && string(start) < string(end),
		"%v: subsume %v too late, or nothing of it", in.r, r)
	in.subsumed = append(in.subsumed, subsumed{r, start, end})
	slices.SortFunc(in.subsumed, func(a, b subsumed) int { return cmp.Compare(a.r, b.r) })
}

// Discard drops a snapshot that is not installed. After Install it does nothing.
func (in *IncomingSnapshot) Discard() {
	in.phase = over
	in.tables.remove()
	in.pairs = nil
}
