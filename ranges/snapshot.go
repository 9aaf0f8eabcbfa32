package ranges

import (
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// Admission is an admitted snapshot: a placeholder for its span and one of the
// node's tokens, until Deliver or Abandon, one of which is called exactly once.
type Admission struct {
	// Incoming is what the transport adds the chunks to. After its Finish the
	// admission is delivered.
	Incoming *store.IncomingSnapshot

	table   *Table
	header  *metapb.SnapshotHeader
	replica *Replica
	created bool // the replica was made for this snapshot
	// subsumed are frozen replicas that the installation ends; see subsume.go.
	subsumed []*Replica
}

func refuseSnapshot(h *metapb.SnapshotHeader, why string) error {
	return fmt.Errorf("%w: %s of replica %d: %s", ErrSnapshotRefused,
		descriptorText(h.GetDescriptor_()), h.GetToReplica(), why)
}

// AdmitSnapshot reserves the span of an incoming snapshot (refused: overlap
// with another replica, tombstone, no token). Then the transport receives into
// the returned snapshot, and calls Deliver or Abandon exactly once. Any
// goroutine.
func (t *Table) AdmitSnapshot(h *metapb.SnapshotHeader) (*Admission, error) {
	// The data's versions lie at or below the stamp; later ones of this node's
	// clock must lie above them.
	if err := t.cfg.Clock.Update(hlc.Timestamp(h.GetStamp())); err != nil {
		return nil, refuseSnapshot(h, err.Error())
	}
	mine := replicaOn(h.GetDescriptor_(), t.cfg.Node)
	if mine == nil || mine.GetReplicaId() != h.GetToReplica() ||
		h.GetDescriptor_().GetRangeId() != h.GetRangeId() {
		return nil, refuseSnapshot(h, "its descriptor does not have that replica here")
	}
	a, outdated, err := t.reserve(h)
	if outdated != nil {
		// The descriptor proves that the older replica was removed: a node has
		// one at a time, and ids only rise.
		t.destroy(outdated, ids.ReplicaID(h.GetToReplica()))
	}
	if err != nil {
		return nil, err
	}
	if a.created {
		cfg := a.replica.groupConfig(false)
		cfg.Peers = peersOf(h.GetDescriptor_())
		g, err := t.host.AddGroup(cfg)
		if err != nil {
			a.release()
			return nil, refuseSnapshot(h, err.Error())
		}
		a.replica.raft.Store(g)
	}
	if a.Incoming, err = t.cfg.Store.ReceiveSnapshot(h); err != nil {
		a.release()
		return nil, fmt.Errorf("receive snapshot: %w", err)
	}
	return a, nil
}

// reserve checks and enters the placeholder, and the uninitialised replica if
// there is none, under the table's lock. outdated is a replica to be destroyed
// before the snapshot can come.
func (t *Table) reserve(h *metapb.SnapshotHeader) (a *Admission, outdated *Replica, err error) {
	id, self := ids.RangeID(h.GetRangeId()), ids.ReplicaID(h.GetToReplica())
	d := h.GetDescriptor_()
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.checkSpanLocked(h); err != nil {
		return nil, nil, err
	}
	subsumed, other := t.subsumableLocked(id, d)
	if other != nil {
		return nil, nil, refuseSnapshot(h, fmt.Sprintf("%v holds a part of its span", other.id))
	}
	next, err := t.cfg.Store.Log().Tombstone(id)
	if err != nil {
		return nil, nil, fmt.Errorf("read tombstone: %w", err)
	}
	if self < next {
		return nil, nil, refuseSnapshot(h, "that replica was removed")
	}
	a = &Admission{table: t, header: h, replica: t.mu.byID[id], subsumed: subsumed}
	switch {
	case a.replica == nil:
		a.replica = newReplica(t, id, self, &state{})
		a.created = true
		t.mu.byID[id] = a.replica
	case a.replica.self < self:
		return nil, a.replica, refuseSnapshot(h, "an older replica has to go first")
	case a.replica.self > self:
		return nil, nil, refuseSnapshot(h, "a newer replica is here")
	}
	t.mu.placeholders = append(t.mu.placeholders, a)
	return a, nil, nil
}

// checkSpanLocked refuses what other snapshots or dying replicas stand in the
// way of.
func (t *Table) checkSpanLocked(h *metapb.SnapshotHeader) error {
	d, id := h.GetDescriptor_(), ids.RangeID(h.GetRangeId())
	if len(t.mu.placeholders) >= maxSnapshotsIn {
		return refuseSnapshot(h, "this node receives as many as it may")
	}
	for _, p := range t.mu.placeholders {
		o := p.header.GetDescriptor_()
		if p.header.GetRangeId() == h.GetRangeId() ||
			overlaps(d.GetStart(), d.GetEnd(), o.GetStart(), o.GetEnd()) {
			return refuseSnapshot(h, "another snapshot is being received there")
		}
	}
	if _, leaving := t.mu.dying[id]; leaving {
		return refuseSnapshot(h, "an older replica is being destroyed")
	}
	for _, x := range t.mu.dying { // any order: the answer is yes or no
		if len(x.end) > 0 && overlaps(d.GetStart(), d.GetEnd(), x.start, x.end) {
			return refuseSnapshot(h, "a replica is being destroyed there")
		}
	}
	return nil
}

// Deliver hands the finished snapshot to raft. done is called once, on the
// shard: nil when it is installed, ErrSnapshotUnused when raft did not want it.
func (a *Admission) Deliver(done func(error)) {
	// Readers look at this after they opened their iterator: data that was
	// replaced meanwhile must not be read under the old threshold.
	a.replica.reads.replace()
	a.stopSubsumed(a.subsumed, func(err error) {
		if err != nil {
			a.Incoming.Discard()
			a.over(false, err, done)
			return
		}
		a.table.host.DeliverSnapshot(a.Incoming, func(installed bool, err error) {
			a.over(installed, err, done)
		})
	})
}

// over ends what Deliver began.
func (a *Admission) over(installed bool, err error, done func(error)) {
	a.replica.reads.replaced()
	if !installed {
		a.restoreSubsumed()
	}
	a.release()
	if err == nil && !installed {
		err = ErrSnapshotUnused
	}
	done(err)
}

// Abandon gives the snapshot up: its stream broke.
func (a *Admission) Abandon() {
	a.Incoming.Discard()
	a.release()
}

// release frees span and token. A replica that was made for the snapshot and
// did not get it goes again; its hard state, if any, stays for the next try. Until
// its group has ended, and raises that no more, nobody takes it over.
func (a *Admission) release() {
	t, r := a.table, a.replica
	t.mu.Lock()
	t.mu.placeholders = slices.DeleteFunc(t.mu.placeholders,
		func(p *Admission) bool { return p == a })
	remove := a.created && t.mu.byID[r.id] == r && !r.state.Load().initialised()
	if remove {
		delete(t.mu.byID, r.id)
		t.mu.dying[r.id] = dying{}
	}
	t.mu.Unlock()
	if remove {
		t.host.RemoveGroup(r.id, a.released)
	}
	t.resumeLeft(r)
	for _, x := range a.subsumed {
		t.resumeLeft(x)
	}
}

// released runs on the shard when the group of a replica that did not get its
// snapshot is gone. A split that brings that replica may wait for it.
func (a *Admission) released() {
	t, r := a.table, a.replica
	r.back.close()
	t.mu.Lock()
	delete(t.mu.dying, r.id)
	t.mu.Unlock()
	if parent := t.find(a.header.GetDescriptor_().GetStart()); parent != nil {
		if g := parent.raft.Load(); g != nil {
			g.ResumeApply()
		}
	}
}

// publishRestored puts a replica whose data a snapshot replaced at its place; the
// replicas that it subsumed go in the same moment.
func (t *Table) publishRestored(r *Replica, next *state) error {
	subsumed, err := t.placeRestored(r, next)
	for _, x := range subsumed {
		t.dismiss(x, r.id)
	}
	return err
}

func (t *Table) placeRestored(r *Replica, next *state) (subsumed []*Replica, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	subsumed = t.takeSubsumedLocked(r)
	if other := t.overlapLocked(r.id, next.desc); other != nil {
		return subsumed, fmt.Errorf("snapshot of %v overlaps %v", r.id, other.id)
	}
	if t.mu.byID[r.id] != r {
		// Removed meanwhile, and about to be erased. What it subsumed has its tombstone
		// already. All that came goes, so that is reserved from here on; until here the
		// placeholder did that.
		if leaving, ok := t.mu.dying[r.id]; ok {
			leaving.start, leaving.end = next.desc.GetStart(), next.desc.GetEnd()
			t.mu.dying[r.id] = leaving
			r.publish(next)
		}
		return subsumed, nil
	}
	if old := r.descriptor(); old != nil {
		t.mu.spans.remove(old.GetStart())
	}
	r.publish(next)
	t.mu.spans.set(r)
	return subsumed, nil
}
