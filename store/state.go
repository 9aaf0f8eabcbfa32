package store

import (
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// State is the handle of replicated state.
type State struct{ s *Store }

// DB gives reads (NewIter) to mvcc; nobody writes through it. Prefer an
// iterator over a Pebble snapshot: an ingest that replaces a replica drops the
// old span from under open snapshots, not from under open iterators.
func (st *State) DB() *pebble.DB { return st.s.db }

// ReplicaState is what is stored of one replica.
type ReplicaState struct {
	Descriptor *metapb.RangeDescriptor
	Replica    ids.ReplicaID // this node's
	Applied    *metapb.AppliedState
}

// setProto stages a message under key, after prefix.
func (b *Batch) setProto(key, prefix []byte, m proto.Message) error {
	var err error
	b.buf = append(b.buf[:0], prefix...)
	b.buf, err = proto.MarshalOptions{Deterministic: true}.MarshalAppend(b.buf, m)
	if err != nil {
		return err
	}
	return b.b.Set(key, b.buf, nil)
}

// PutDescriptor stages a replica's descriptor and its own id.
func (st *State) PutDescriptor(
	b *Batch, r ids.RangeID, self ids.ReplicaID, d *metapb.RangeDescriptor,
) error {
	invariant.Check(self != 0 && d.GetRangeId() == uint64(r),
		"descriptor of range %d put for %v, replica %d", d.GetRangeId(), r, self)
	prefix := binary.AppendUvarint(nil, uint64(self))
	if err := b.setProto(rangeKey(r, rangeDescriptor), prefix, d); err != nil {
		return fmt.Errorf("stage descriptor of %v: %w", r, err)
	}
	return nil
}

// PutApplied stages what a replica has applied; it belongs into the batch of
// the data.
func (st *State) PutApplied(b *Batch, r ids.RangeID, a *metapb.AppliedState) error {
	if err := b.setProto(rangeKey(r, rangeApplied), nil, a); err != nil {
		return fmt.Errorf("stage applied state of %v: %w", r, err)
	}
	return nil
}

// Replica returns what is stored of this node's replica of r, nil if there is
// none: nothing at all, or only raft state of a replica that waits for its
// snapshot.
func (st *State) Replica(r ids.RangeID) (*ReplicaState, error) {
	it, err := st.s.iterator(ownSpan(r))
	if err != nil {
		return nil, err
	}
	rs, err := readReplica(it, r)
	if e := it.Close(); err == nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("read replica of %v from store %q: %w", r, st.s.o.Dir, err)
	}
	return rs, nil
}

// readReplica reads a replica through an iterator whose bounds include it.
func readReplica(it *pebble.Iterator, r ids.RangeID) (*ReplicaState, error) {
	v, err := seekExact(it, rangeKey(r, rangeDescriptor))
	if err != nil || v == nil {
		return nil, err
	}
	rs, err := decodeDescriptor(v)
	if err != nil {
		return nil, err
	}
	if v, err = seekExact(it, rangeKey(r, rangeApplied)); err != nil {
		return nil, err
	}
	return rs, rs.takeApplied(v)
}

// seekExact returns the value under key, nil if there is none. It is valid
// until the iterator moves.
func seekExact(it *pebble.Iterator, key []byte) ([]byte, error) {
	if !it.SeekGE(key) || string(it.Key()) != string(key) {
		return nil, it.Error()
	}
	v, err := it.ValueAndErr()
	if v == nil {
		v = []byte{}
	}
	return v, err
}

// Replicas lists all replicas of the store in order of range id. A node's start
// has more use for Preload.
func (st *State) Replicas() ([]*ReplicaState, error) {
	var all []*ReplicaState
	err := st.forEachRange(func(it *pebble.Iterator, r ids.RangeID) error {
		rs, err := readReplica(it, r)
		if rs != nil {
			all = append(all, rs)
		}
		return err
	})
	return all, err
}

// forEachRange calls f for every range id of which there is a key, jumping over
// the logs.
func (st *State) forEachRange(f func(*pebble.Iterator, ids.RangeID) error) (err error) {
	it, err := st.s.iterator(span{engineKey(prefixRange), engineKey(prefixRange + 1)})
	if err != nil {
		return err
	}
	defer func() {
		if e := it.Close(); err == nil {
			err = e
		}
		if err != nil {
			err = fmt.Errorf("list replicas of store %q: %w", st.s.o.Dir, err)
		}
	}()
	for ok := it.First(); ok; {
		r, _, valid := decodeRangeKey(it.Key())
		if !valid {
			return fmt.Errorf("key %x is malformed", it.Key())
		}
		if err := f(it, r); err != nil {
			return fmt.Errorf("%v: %w", r, err)
		}
		ok = it.SeekGE(rangeKey(r, rangeOwnEnd))
	}
	return it.Error()
}

// DestroyReplica stages the removal of everything of a replica but its
// tombstone: descriptor, applied state, log, hard state and, if the span is not
// empty, the user data in it.
func (st *State) DestroyReplica(b *Batch, r ids.RangeID, start, end []byte) error {
	st.s.preloaded.take(r)
	spans := []span{ownSpan(r)}
	if len(end) > 0 {
		invariant.Check(string(start) < string(end), "destroy %v: span %x to %x", r, start, end)
		for _, space := range keySpaces() {
			spans = append(spans, keySpan(space, start, end))
		}
	}
	for _, sp := range spans {
		if err := st.s.clear(b, sp); err != nil {
			return fmt.Errorf("destroy replica of %v: %w", r, err)
		}
	}
	return nil
}

// clear stages the deletion of a span, if something is in it: a range tombstone
// taxes every iterator that passes until it is compacted away.
func (s *Store) clear(b *Batch, sp span) error {
	found, err := s.hasKeys(sp)
	if err != nil || !found {
		return err
	}
	return b.b.DeleteRange(sp.lo, sp.hi, nil)
}

// PutLocal stages a small node-local record under a name (bootstrap progress,
// the system range's descriptor). A nil value removes it.
func (st *State) PutLocal(b *Batch, name string, value []byte) error {
	key := nodeKey(nodeName, []byte(name)...)
	if value == nil {
		return b.b.Delete(key, nil)
	}
	return b.b.Set(key, value, nil)
}

// GetLocal returns a copy of a record, nil if there is none.
func (st *State) GetLocal(name string) ([]byte, error) {
	return st.s.get(nodeKey(nodeName, []byte(name)...))
}
