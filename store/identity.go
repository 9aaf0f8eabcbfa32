package store

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
)

// Identity says who this store is and recognises a store that has lost
// something. The record stands in two alternating, checksummed, fsynced files
// beside Pebble, and inside Pebble as well.
//
// The order of the two writes decides what a crash between them looks like:
//
//   - inside first, synced, then outside: the crash leaves inside ahead of
//     outside. Nobody has seen the new record, since its writer had not
//     returned; taking the inside one is right, for a record only ever rises,
//     and where its bound falls (EndBound) either is right.
//   - outside first would leave inside behind outside, which is also how a
//     store looks that lost the end of its log, so that either every such crash
//     would be a refusal or no loss could be seen.
//
// So inside behind outside means that Pebble lost something which it had
// synced, and nothing else, and Open refuses. A file torn by a crash while it
// was written is replaced by the other, which is at most one behind, and the
// inside copy is whole anyway.
//
// Safe for concurrent use. Whoever only reads never waits for the disk, so that a
// node whose disk hangs can still introduce itself and recognise its peers.
type Identity struct {
	s     *Store
	mu    sync.Mutex // serialises the writes to disk
	ended bool       // EndBound was called; guarded by mu
	// record is what is durable, never changed in place, nil before start. Only
	// holders of mu replace it.
	record atomic.Pointer[IdentityRecord]

	peersMu sync.Mutex // serialises the writes to disk
	peers   sync.Map   // ids.NodeID to peer, as in Pebble; filled on demand
}

// IdentityRecord is what the identity files hold.
type IdentityRecord struct {
	StoreID   uint64 // random, drawn at creation
	ClusterID uint64 // 0 until joined
	Node      ids.NodeID
	Life      ids.Life      // raised at every open before Open returns
	Mark      uint64        // random, drawn with each life
	Bound     hlc.Timestamp // upper bound of issued timestamps
	Counter   uint64        // also inside Pebble; inside < outside means rolled back
}

// Record returns the record as it is durable. Lock-free: it does not wait for a
// write that is under way.
func (id *Identity) Record() IdentityRecord {
	if r := id.record.Load(); r != nil {
		return *r
	}
	return IdentityRecord{}
}

// Join makes cluster and node id durable, once; another value is ErrJoined.
// Blocks for two fsyncs.
func (id *Identity) Join(cluster uint64, node ids.NodeID) error {
	invariant.Check(cluster != 0 && node != 0, "join cluster %d as node %d", cluster, node)
	id.mu.Lock()
	defer id.mu.Unlock()
	r := id.Record()
	if r.ClusterID == cluster && r.Node == node {
		return nil
	}
	if r.ClusterID != 0 {
		return fmt.Errorf("join cluster %x as %v: %w: %v of cluster %x (store %q): %s",
			cluster, node, ErrJoined, r.Node, r.ClusterID, id.s.o.Dir,
			"give the new node its own directory")
	}
	r.ClusterID, r.Node = cluster, node
	return id.write(r)
}

// ExtendBound makes a higher clock bound durable (blocks for two fsyncs) and
// moves the counter. A bound that is not higher only moves the counter.
// ErrBoundEnded after EndBound.
func (id *Identity) ExtendBound(b hlc.Timestamp) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.ended {
		return fmt.Errorf("extend the clock bound of store %q: %w", id.s.o.Dir, ErrBoundEnded)
	}
	r := id.Record()
	r.Bound = max(r.Bound, b)
	return id.write(r)
}

// EndBound records where the clock ended, so that the next life begins there and
// not a window ahead. It is the only way in which a bound falls, and the last word
// of this life: ExtendBound is refused from now on. Blocks for two fsyncs.
//
// The caller vouches that nothing above b was issued, adopted or promised to
// anybody, and that nothing will be: its clock is sealed. A bound that is not
// lower than the recorded one changes nothing. After an error the record has
// either bound, and both are right.
func (id *Identity) EndBound(b hlc.Timestamp) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.ended = true
	r := id.Record()
	if b >= r.Bound {
		return nil
	}
	r.Bound = b
	return id.write(r)
}

// start begins a new life. Only Open calls it.
func (id *Identity) start(r IdentityRecord) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	before := r
	id.record.Store(&before)
	r.Life++
	r.Mark = id.s.nonZeroRandom()
	return id.write(r)
}

// write makes r the record, with the next counter. After an error the inside
// copy may already be the new one: the next write has the same counter and the
// same or higher values, so nothing is lost by that.
func (id *Identity) write(r IdentityRecord) error {
	r.Counter = id.Record().Counter + 1
	encoded := encodeIdentity(r)
	b := id.s.NewBatch()
	defer b.Close()
	if err := b.b.Set(nodeKey(nodeIdentity), encoded, nil); err != nil {
		return fmt.Errorf("write identity of store %q: %w", id.s.o.Dir, err)
	}
	err := id.s.progress.during(func() error {
		if err := id.s.commitAndSync(b); err != nil {
			return err
		}
		return id.s.writeIdentityFile(r.Counter, encoded)
	})
	if err != nil {
		return fmt.Errorf("write identity of store %q: %w", id.s.o.Dir, err)
	}
	id.record.Store(&r)
	return nil
}

// commitAndSync commits a batch and waits until it is durable.
func (s *Store) commitAndSync(b *Batch) error {
	return s.commit(b, func(pb *pebble.Batch) error { return s.db.Apply(pb, pebble.Sync) })
}

// checkIdentity compares the record beside Pebble with the one inside and
// returns the newer one, or an error if Pebble has lost something.
func (s *Store) checkIdentity(outside IdentityRecord) (IdentityRecord, error) {
	var none IdentityRecord
	files := fmt.Sprintf("%s and %s", s.path(identityFile(0)), s.path(identityFile(1)))
	raw, err := s.get(nodeKey(nodeIdentity))
	if err != nil {
		return none, openError(s.o.Dir, ErrUnreadable, err.Error(), remedyRebuild)
	}
	if raw == nil {
		return none, openError(s.o.Dir, ErrRolledBack, fmt.Sprintf("the database in %s is empty, "+
			"but %s say that it was not", s.path(engineDir), files), remedyRebuild)
	}
	inside, err := decodeIdentity(raw)
	switch {
	case err != nil:
		return none, openError(s.o.Dir, ErrUnreadable, "identity inside the database: "+
			err.Error(), remedyRebuild)
	case inside.StoreID != outside.StoreID:
		return none, openError(s.o.Dir, ErrRolledBack, fmt.Sprintf("the database in %s is of "+
			"store %016x, but %s are of store %016x", s.path(engineDir), inside.StoreID, files,
			outside.StoreID), "put the files that belong together back, or "+remedyRebuild)
	case inside.Counter < outside.Counter:
		return none, openError(s.o.Dir, ErrRolledBack, fmt.Sprintf("the database in %s is at "+
			"counter %d, but %s are at %d: the end of its log or of its MANIFEST is lost, or an "+
			"old copy was put back", s.path(engineDir), inside.Counter, files, outside.Counter),
			remedyRebuild)
	}
	return inside, nil
}
