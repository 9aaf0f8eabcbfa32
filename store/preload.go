package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// A node starts by reading everything that stands by range id once, in the
// order of the keys: descriptor, applied state, hard state, truncated state and
// log of one range stand side by side. A read for each replica and record would
// be five seeks and an iterator for each; with tens of thousands of replicas
// that is what a start would consist of.

// Stored is what is stored of one range, for the start of a node.
type Stored struct {
	Range ids.RangeID
	// Tombstone is the next replica id that may live here, 0: no tombstone.
	Tombstone ids.ReplicaID
	// Replica is nil if there is no initialised replica: nothing but a tombstone
	// is there, or raft state of a replica that waits for its snapshot.
	Replica *ReplicaState
}

// Preload hands every range of which anything is stored to each, in order of
// range ids, in one pass over the store. The logs of the initialised replicas
// are kept until Log.Group takes them, which then reads nothing. An error of
// each ends the pass and is returned.
//
// Call it once, before anything else uses ranges of the store: what is written
// to a range's records other than through its GroupLog afterwards
// (DestroyReplica, InitialGroup, a snapshot's Install) has its kept log read anew.
func (s *Store) Preload(each func(Stored) error) (err error) {
	it, err := s.iterator(span{engineKey(prefixRange), engineKey(prefixRange + 1)})
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, it.Close()); err != nil {
			err = fmt.Errorf("load the ranges of store %q: %w", s.o.Dir, err)
		}
	}()
	for ok := it.First(); ok; {
		r, _, valid := decodeRangeKey(it.Key())
		if !valid {
			return fmt.Errorf("key %x is malformed", it.Key())
		}
		p := preload{g: &GroupLog{s: s, id: r}}
		if err := p.readReplica(it); err != nil {
			return fmt.Errorf("%v: %w", r, err)
		}
		// A log that cannot be read is not kept, so that Group, which reads it once
		// more, says so to the one group that is lost with it.
		if p.readLog(it) == nil && p.replica != nil {
			s.preloaded.put(p.g)
		}
		if err := each(Stored{r, p.tombstone, p.replica}); err != nil {
			return err
		}
		ok = p.next(it)
	}
	return it.Error()
}

// preload gathers what is stored of one range.
type preload struct {
	tombstone ids.ReplicaID
	replica   *ReplicaState
	g         *GroupLog
}

// here returns the part of the key at which the iterator stands, ok if it is
// one of this range's.
func (p *preload) here(it *pebble.Iterator) (sub byte, ok bool) {
	if !it.Valid() {
		return 0, false
	}
	r, sub, ok := decodeRangeKey(it.Key())
	return sub, ok && r == p.g.id
}

// next moves the iterator to the next range, wherever in this one it stands.
func (p *preload) next(it *pebble.Iterator) bool {
	if _, here := p.here(it); here || !it.Valid() && it.Error() != nil {
		return it.SeekGE(rangeKey(p.g.id, rangeOwnEnd))
	}
	return it.Valid()
}

// readReplica takes the records that stand before the log.
func (p *preload) readReplica(it *pebble.Iterator) error {
	for sub, ok := p.here(it); ok && sub < rangeHardState; sub, ok = p.here(it) {
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := p.take(sub, v); err != nil {
			return err
		}
		it.Next()
	}
	if err := it.Error(); err != nil {
		return err
	}
	if p.replica != nil && p.replica.Applied == nil {
		return fmt.Errorf("descriptor without applied state")
	}
	return nil
}

// readLog takes raft's records.
func (p *preload) readLog(it *pebble.Iterator) error {
	for sub, ok := p.here(it); ok; sub, ok = p.here(it) {
		v, err := it.ValueAndErr()
		if err == nil {
			err = p.g.take(sub, it.Key(), v)
		}
		switch {
		case err != nil:
			return err
		case sub == rangeTruncated:
			// Before the first entry that counts stand the deletions of those that
			// were cut; they are jumped over rather than walked.
			it.SeekGE(logKey(p.g.id, p.g.trunc.index+1))
		default:
			it.Next()
		}
	}
	if err := it.Error(); err != nil || p.replica == nil {
		return err
	}
	return p.g.finish(p.replica.Applied)
}

func (p *preload) take(sub byte, v []byte) (err error) {
	switch sub {
	case rangeTombstone:
		p.tombstone, err = decodeTombstone(v)
	case rangeDescriptor:
		p.replica, err = decodeDescriptor(v)
	case rangeApplied:
		if p.replica != nil {
			err = p.replica.takeApplied(v)
		}
	}
	return err
}

func decodeTombstone(v []byte) (ids.ReplicaID, error) {
	n, w := binary.Uvarint(v)
	if w <= 0 {
		return 0, fmt.Errorf("tombstone is damaged")
	}
	return ids.ReplicaID(n), nil
}

func decodeDescriptor(v []byte) (*ReplicaState, error) {
	self, n := binary.Uvarint(v)
	if n <= 0 {
		return nil, fmt.Errorf("descriptor record is damaged")
	}
	rs := &ReplicaState{Descriptor: new(metapb.RangeDescriptor), Replica: ids.ReplicaID(self)}
	if err := proto.Unmarshal(v[n:], rs.Descriptor); err != nil {
		return nil, fmt.Errorf("descriptor record is damaged: %w", err)
	}
	return rs, nil
}

func (rs *ReplicaState) takeApplied(v []byte) error {
	rs.Applied = new(metapb.AppliedState)
	if err := proto.Unmarshal(v, rs.Applied); err != nil {
		return fmt.Errorf("applied state is damaged: %w", err)
	}
	return nil
}

// preloaded are logs that Preload has read and that no group has taken yet.
type preloaded struct {
	mu   sync.Mutex
	logs map[ids.RangeID]*GroupLog
}

func (p *preloaded) put(g *GroupLog) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.logs == nil {
		p.logs = make(map[ids.RangeID]*GroupLog)
	}
	p.logs[g.id] = g
}

// take returns a log and forgets it, nil if it was not read.
func (p *preloaded) take(r ids.RangeID) *GroupLog {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.logs[r]
	delete(p.logs, r)
	if len(p.logs) == 0 {
		p.logs = nil // the map has done its duty
	}
	return g
}
