package ranges

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/store/rowcache"
)

// Table is all replicas of a node: the routing table and what they share. Safe
// for concurrent use.
type Table struct {
	cfg     Config
	host    *multiraft.Host // set by Start
	leaders atomic.Int64
	shared  sharing
	dirty   dirtySet
	checks  checks
	census  census
	stripes stripes         // of writes in flight
	rows    *rowcache.Cache // nil: none
	// lease is groupLease; tests have leases of their own.
	lease func(r *Replica, term ids.Term, ts hlc.Timestamp) multiraft.LeaseState
	// gcTrigger is the garbage in bytes from which a range is collected.
	gcTrigger int64

	// mu guards which replicas exist and where their spans lie. Every creation
	// of a replica checks the tombstone under it, and every removal writes the
	// tombstone before the range leaves mu.dying: so no order of split, snapshot
	// and removal brings a dead replica back.
	mu struct {
		sync.RWMutex
		byID         map[ids.RangeID]*Replica
		spans        spans
		placeholders []*Admission // snapshots being received, at most maxSnapshotsIn
		dying        map[ids.RangeID]dying
	}
}

// dying is a replica that left the table while its data is still there: its
// span stays reserved until the data is gone, or the removal would take what a
// snapshot of another range puts there. Without an id: one that had no data and may
// come back, whose group has not ended yet.
type dying struct {
	self, next ids.ReplicaID
	start, end []byte
}

// spans finds initialised replicas by key. Spans do not overlap.
type spans struct{ tree *btree.BTreeG[span] }

type span struct {
	start   []byte
	replica *Replica // its state has the end
}

func newSpans() spans {
	return spans{btree.NewBTreeGOptions(func(a, b span) bool {
		return bytes.Compare(a.start, b.start) < 0
	}, btree.Options{NoLocks: true})}
}

func (s spans) set(r *Replica) { s.tree.Set(span{r.descriptor().GetStart(), r}) }

func (s spans) remove(start []byte) { s.tree.Delete(span{start: start}) }

// floor returns the replica with the highest start at or below key (or below
// it, if strict), whether or not it holds the key.
func (s spans) floor(key []byte, strict bool) (found *Replica) {
	s.tree.Descend(span{start: key}, func(at span) bool {
		if strict && bytes.Equal(at.start, key) {
			return true
		}
		found = at.replica
		return false
	})
	return found
}

// visit calls f for the replicas that overlap [start, end), in key order,
// until it returns false.
func (s spans) visit(start, end []byte, f func(*Replica) bool) {
	if r := s.floor(start, true); r != nil {
		if d := r.descriptor(); overlaps(d.GetStart(), d.GetEnd(), start, end) && !f(r) {
			return
		}
	}
	s.tree.Ascend(span{start: start}, func(at span) bool {
		return bytes.Compare(at.start, end) < 0 && f(at.replica)
	})
}

// New makes a table without replicas; Start loads them. An error names what
// the configuration lacks.
func New(cfg Config) (*Table, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	t := &Table{cfg: cfg, gcTrigger: gcTriggerBytes, lease: groupLease}
	if err := t.openRowCache(); err != nil {
		return nil, err
	}
	t.mu.byID = make(map[ids.RangeID]*Replica)
	t.mu.spans = newSpans()
	t.mu.dying = make(map[ids.RangeID]dying)
	return t, nil
}

// Start loads every replica of the store and adds its group to the host. Call
// it once, before the host runs and before any other method. It reads the store
// in one pass, which the groups' logs are part of: a node with tens of thousands
// of replicas serves within seconds.
func (t *Table) Start(h *multiraft.Host) error {
	t.host = h
	var loaded []*Replica
	err := t.cfg.Store.Preload(func(s store.Stored) error {
		if s.Replica == nil {
			return nil
		}
		r, err := t.load(s)
		if r != nil {
			loaded = append(loaded, r)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("load replicas: %w", err)
	}
	for _, r := range loaded {
		// Who is alone need not wait for an election timeout.
		s := r.state.Load()
		alone := len(s.conf.GetVoters()) == 1 && len(s.conf.GetVotersOutgoing()) == 0
		if err := t.addGroup(r, alone); err != nil {
			return fmt.Errorf("start %v: %w", r.id, err)
		}
	}
	return nil
}

// load enters a stored replica into the table. One that applied its own
// removal, or that a tombstone forbids, is finished off: a crash came between.
func (t *Table) load(stored store.Stored) (*Replica, error) {
	id, rs, next := stored.Range, stored.Replica, stored.Tombstone
	if next == ids.EveryReplica {
		// Its left neighbour took it in, and its data is that one's.
		return nil, t.eraseRecords(id)
	}
	if replicaOf(rs.Descriptor, rs.Replica) == nil {
		next = max(next, ids.ReplicaID(rs.Descriptor.GetNextReplicaId()))
	}
	if rs.Replica < next {
		return nil, t.erase(id, next, rs.Descriptor)
	}
	t.shared.share(rs.Descriptor)
	rs.Applied.Conf = t.shared.conf(rs.Applied.GetConf()).stored
	r := newReplica(t, id, rs.Replica, newState(rs))
	t.mu.Lock()
	defer t.mu.Unlock()
	if other := t.overlapLocked(id, rs.Descriptor); other != nil {
		return nil, fmt.Errorf("load %v: its span overlaps that of %v", id, other.id)
	}
	t.mu.byID[id] = r
	t.mu.spans.set(r)
	if rs.Descriptor.GetMerge() != nil {
		t.mark(id)
	}
	return r, nil
}

func (t *Table) addGroup(r *Replica, campaign bool) error {
	g, err := t.host.AddGroup(r.groupConfig(campaign))
	if err != nil {
		return err
	}
	r.raft.Store(g)
	return nil
}

// find returns the initialised replica that holds key, nil if none.
func (t *Table) find(key []byte) *Replica {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if r := t.mu.spans.floor(key, false); r != nil && holds(r.descriptor(), key) {
		return r
	}
	return nil
}

// findBefore returns the replica that holds the keys just below end.
func (t *Table) findBefore(end []byte) *Replica {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.mu.spans.floor(end, true)
	if r != nil && bytes.Compare(end, r.descriptor().GetEnd()) <= 0 {
		return r
	}
	return nil
}

func (t *Table) replica(id ids.RangeID) *Replica {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.mu.byID[id]
}

// all returns the replicas in order of their range ids.
func (t *Table) all() []*Replica {
	t.mu.RLock()
	list := make([]*Replica, 0, len(t.mu.byID))
	for _, r := range t.mu.byID {
		list = append(list, r)
	}
	t.mu.RUnlock()
	slices.SortFunc(list, func(a, b *Replica) int { return cmp.Compare(a.id, b.id) })
	return list
}

// overlapLocked returns a replica of another range that overlaps d.
func (t *Table) overlapLocked(id ids.RangeID, d *metapb.RangeDescriptor) (other *Replica) {
	t.mu.spans.visit(d.GetStart(), d.GetEnd(), func(r *Replica) bool {
		if r.id != id {
			other = r
		}
		return other == nil
	})
	return other
}

// Route returns the descriptor of the local replica that holds key, and the
// node believed to lead it (0: unknown). The descriptor must not be changed.
func (t *Table) Route(key []byte) (d *metapb.RangeDescriptor, leader ids.NodeID, ok bool) {
	r := t.find(key)
	if r == nil {
		return nil, 0, false
	}
	s := r.state.Load()
	return s.desc, s.leaderNode(), true
}

// Leads says whether this node leads range id and has applied its own term.
func (t *Table) Leads(id ids.RangeID) bool {
	r := t.replica(id)
	return r != nil && r.state.Load().leads()
}

// Counts returns how many replicas are here and how many of them lead.
func (t *Table) Counts() (replicas, leaders int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.mu.byID), int(t.leaders.Load())
}

// Gone says whether a replica of range id is known to be removed for ever, on
// whichever node, and the next id that may live. Any goroutine; a host's
// callback.
//
// A descriptor knows: replica ids rise with its own counter and are never used
// again, so one below the counter that is not in it was removed. That holds
// for an old descriptor, too. A tombstone does not know: it says which ids may
// not live on this node, and a lower one may be well on another. It is asked
// where a replica is created. Only the highest says that the range itself is
// gone: it was absorbed.
func (t *Table) Gone(id ids.RangeID, replica ids.ReplicaID) (next ids.ReplicaID, gone bool) {
	t.mu.RLock()
	r, leaving := t.mu.byID[id], t.mu.dying[id]
	t.mu.RUnlock()
	if replica == leaving.self && leaving.self != 0 || leaving.next == ids.EveryReplica {
		return leaving.next, true
	}
	if r == nil {
		next, err := t.cfg.Store.Log().Tombstone(id)
		return next, err == nil && next == ids.EveryReplica
	}
	d := r.descriptor()
	if d == nil || uint64(replica) >= d.GetNextReplicaId() || replicaOf(d, replica) != nil {
		return 0, false
	}
	return replica + 1, true
}

// OnGone destroys this node's replica of range id if its id is below next. That
// the whole range is gone is obeyed only by a replica that nothing here needs
// any more. On the range's shard; a host's callback.
func (t *Table) OnGone(id ids.RangeID, next ids.ReplicaID) {
	r := t.replica(id)
	if r == nil || r.self >= next || next == ids.EveryReplica && !r.expendable() {
		return
	}
	t.destroy(r, next)
}

// OnHalted has placement told that another replica of range id, which this node
// leads, answers no more. On the range's shard; a host's callback.
func (t *Table) OnHalted(id ids.RangeID) {
	if r := t.replica(id); r != nil {
		r.upkeep.looks = silentLooks
		r.mark()
	}
}

// destroy removes a replica for ever. First it leaves the table, so that
// nothing is routed to it any more; then its group ends; when nothing of that
// touches the store any more, data and tombstone are written in one batch.
// Reads with an open iterator see what they saw.
func (t *Table) destroy(r *Replica, next ids.ReplicaID) {
	t.mu.Lock()
	if t.mu.byID[r.id] != r || t.subsumedLocked(r) {
		// Gone already; or a snapshot that is on its way takes its place, and the
		// removal could take what that brings. Who wants it gone will say so again.
		t.mu.Unlock()
		return
	}
	s := *r.state.Load()
	d := s.desc
	if d != nil {
		t.mu.spans.remove(d.GetStart())
	}
	delete(t.mu.byID, r.id)
	t.mu.dying[r.id] = dying{self: r.self, next: next, start: d.GetStart(), end: d.GetEnd()}
	t.mu.Unlock()
	t.host.RemoveGroup(r.id, func() { t.destroyed(r, next) })
}

// destroyed runs on the shard when the group is gone.
func (t *Table) destroyed(r *Replica, next ids.ReplicaID) {
	s := *r.state.Load()
	if s.lead.mine {
		t.leaders.Add(-1)
	}
	d := s.desc
	s.destroyed, s.lead = true, leadership{}
	r.publish(&s) // before the data goes: readers look after they opened
	r.abandon()
	r.back.close()
	if err := t.erase(r.id, next, d); err != nil {
		t.cfg.Logger.Error("destroy replica, its span stays reserved until a restart removes it",
			"range", r.id, "replica", r.self, "error", err)
		// Data and no tombstone: a snapshot that came into its span, or a replica
		// that came back under its id, would meet what is still there.
		return
	}
	t.mu.Lock()
	delete(t.mu.dying, r.id)
	t.mu.Unlock()
}

// erase removes what is stored of a replica and leaves the tombstone, in one
// batch. Not synced: whatever may rely on it is written after it to the same
// log, and if a crash takes it, the replica is there again, whole, and is
// removed again.
func (t *Table) erase(id ids.RangeID, next ids.ReplicaID, d *metapb.RangeDescriptor) error {
	st := t.cfg.Store
	b := st.NewBatch()
	defer b.Close()
	if err := st.State().DestroyReplica(b, id, d.GetStart(), d.GetEnd()); err != nil {
		return fmt.Errorf("destroy %v: %w", id, err)
	}
	if !canary.On(canary.NoTombstone) {
		if err := st.Log().PutTombstone(b, id, next); err != nil {
			return fmt.Errorf("destroy %v: %w", id, err)
		}
	}
	if err := st.CommitNoSync(b); err != nil {
		return fmt.Errorf("destroy %v: %w", id, err)
	}
	return nil
}
