package ranges

import (
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// staged is what Apply put into the batch, to be published when it is visible.
type staged struct {
	next     *state // nil: nothing
	results  []result
	split    *stagedSplit
	absorb   *stagedAbsorb
	marked   bool // the descriptor's merge mark changed
	replicas bool // the descriptor's replicas changed
	sum      bool // what the range holds now is to be compared, see check.go
}

// result is what became of an entry of some leader; if it was this one,
// somebody waits.
type result struct {
	term     ids.Term
	sequence uint64
	verdict  verdict
}

// Apply stages committed entries. What an entry does depends on itself and on
// the applied state only.
func (r *Replica) Apply(b *store.Batch, entries []*raftpb.Entry) (int, error) {
	defer r.clockOut(r.clockIn())
	if r.yields {
		return 0, multiraft.ErrNotYet // see subsume.go
	}
	next := *r.state.Load()
	r.staged = staged{next: &next}
	taken := 0
	for _, e := range entries {
		structural, err := r.applyEntry(b, &next, e)
		if errors.Is(err, multiraft.ErrNotYet) && taken > 0 {
			break // first what comes before it
		}
		if err != nil {
			r.staged = staged{}
			return 0, fmt.Errorf("apply entry %d of %v: %w", e.GetIndex(), r.id, err)
		}
		if ids.Index(e.GetIndex()) != next.applied+1 {
			invariant.Failf("%v applies entry %d after %d", r.id, e.GetIndex(), next.applied)
		}
		next.applied, next.term = ids.Index(e.GetIndex()), ids.Term(e.GetTerm())
		taken++
		if structural {
			break
		}
	}
	if err := r.stageApplied(b, &next); err != nil {
		r.staged = staged{}
		return 0, err
	}
	return taken, nil
}

// stageApplied puts the applied state into the batch of the data, so that no
// crash separates them.
func (r *Replica) stageApplied(b *store.Batch, next *state) error {
	st := r.table.cfg.Store
	if canary.On(canary.AppliedApart) {
		apart := st.NewBatch()
		defer apart.Close()
		if err := st.State().PutApplied(apart, r.id, next.appliedState()); err != nil {
			return err
		}
		return st.CommitNoSync(apart)
	}
	if err := st.State().PutApplied(b, r.id, next.appliedState()); err != nil {
		return fmt.Errorf("stage applied state of %v: %w", r.id, err)
	}
	return nil
}

// applyEntry stages one entry. structural: nothing may follow in this batch.
func (r *Replica) applyEntry(
	b *store.Batch, next *state, e *raftpb.Entry,
) (structural bool, err error) {
	switch {
	case e.GetType() == raftpb.EntryConfChangeV2:
		return true, r.applyReplicas(b, next, e)
	case e.GetType() != raftpb.EntryNormal:
		return false, fmt.Errorf("%w: raft type %v", errUnknownEntry, e.GetType())
	case len(e.GetData()) == 0:
		return false, nil // a leader's first entry
	}
	h, body, err := decodeEntry(e.GetData())
	if err != nil {
		return false, err
	}
	if h.kind == kindReplicas {
		return false, fmt.Errorf("%w: kind %d in a normal entry", errUnknownEntry, h.kind)
	}
	v := rejected
	if h.accepts(next, ids.Term(e.GetTerm()), canary.On(canary.ForeignTerm)) {
		v = applied
		if structural, err = r.applyKind(b, next, h, body); err != nil {
			return false, err
		}
	}
	r.staged.results = append(r.staged.results, result{h.term, h.sequence, v})
	return structural, nil
}

func (r *Replica) applyKind(
	b *store.Batch, next *state, h header, body []byte,
) (structural bool, err error) {
	switch h.kind {
	case kindWrite:
		if err := b.ApplyRepr(body); err != nil {
			return false, fmt.Errorf("merge batch: %w", err)
		}
		next.data.Add(h.delta)
		return false, nil
	case kindSplit:
		r.group().Hasten() // the right half needs its other replicas
		return true, r.applySplit(b, next, h, body)
	case kindMark:
		return true, r.applyMark(b, next, body)
	case kindAbsorb:
		return true, r.applyAbsorb(b, next, h, body)
	case kindSeal:
		r.staged.sum = len(body) > 0 && body[0] == checkNote
		return true, nil
	default: // kindGCThreshold; decodeEntry knows no other
		if len(body) != 8 {
			return false, fmt.Errorf("%w: threshold of %d bytes", errUnknownEntry, len(body))
		}
		t := hlc.Timestamp(binary.LittleEndian.Uint64(body))
		next.threshold = max(next.threshold, t)
		// Published before the first deletion under it is visible: readers look
		// at the threshold after they opened their iterator.
		return true, nil
	}
}

// applyReplicas applies a configuration change, whose context is an entry with
// the new descriptor. A change that is rejected is not told to raft as a
// change; its configuration stays as it is.
func (r *Replica) applyReplicas(b *store.Batch, next *state, e *raftpb.Entry) error {
	cc := &raftpb.ConfChangeV2{}
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		return fmt.Errorf("decode configuration change: %w", err)
	}
	h, body, err := decodeEntry(cc.GetContext())
	if err != nil {
		return err
	}
	if h.kind != kindReplicas {
		return fmt.Errorf("%w: kind %d in a configuration change", errUnknownEntry, h.kind)
	}
	if !h.accepts(next, ids.Term(e.GetTerm()), canary.On(canary.ForeignTerm)) {
		r.group().ApplyConfChange(nil)
		r.staged.results = append(r.staged.results, result{h.term, h.sequence, rejected})
		return nil
	}
	d := &metapb.RangeDescriptor{}
	if err := proto.Unmarshal(body, d); err != nil {
		return fmt.Errorf("decode descriptor: %w", err)
	}
	r.group().Hasten() // also to a replica that this change removes
	next.desc = d      // same bounds: a replica change moves no key
	if boundsHash(d) != next.bounds || d.GetGeneration() != uint64(h.generation)+1 {
		invariant.Failf("replica change of %v alters bounds or skips a generation", r.id)
	}
	shared := &r.table.shared
	shared.share(d)
	r.group().SetPeers(shared.peersOf(d))
	next.conf = shared.conf(confFromRaft(r.group().ApplyConfChange(cc))).stored
	r.staged.replicas = true
	r.staged.results = append(r.staged.results, result{h.term, h.sequence, applied})
	return r.table.cfg.Store.State().PutDescriptor(b, r.id, r.self, d)
}

// Applied publishes what is visible now, answers, and lets those go on who
// waited for it.
func (r *Replica) Applied() {
	defer r.clockOut(r.clockIn())
	s := r.staged
	r.staged = staged{}
	if s.next == nil {
		return
	}
	old := r.state.Load()
	s.next.lead = old.lead
	switch {
	case s.split != nil:
		r.table.publishSplit(r, s.next, s.split)
	case s.absorb != nil:
		r.publishAbsorb(s.next, s.absorb)
	default:
		r.publish(s.next)
	}
	if s.sum {
		r.takeSum(s.next)
	}
	for _, res := range s.results {
		if s.next.lead.mine && res.term == s.next.lead.term {
			r.deliver(res.sequence, res.verdict, s.next.applied)
		}
	}
	r.becomeReady()
	if s.replicas && replicaOf(s.next.desc, r.self) == nil {
		r.table.destroy(r, ids.ReplicaID(s.next.desc.GetNextReplicaId()))
		return
	}
	r.latches.drain()
	r.flush()
	if s.marked {
		r.markChanged()
	}
	if canary.On(canary.ForeignTerm) {
		r.proposeStale()
	}
	if s.next.lead.mine {
		r.leaderApplied(old, s.split != nil || s.replicas || s.marked || s.absorb != nil)
		if !old.lead.ready {
			r.tend()
		}
	}
}

// Restored reloads the state after a snapshot was installed.
func (r *Replica) Restored() error {
	rs, err := r.table.cfg.Store.State().Replica(r.id)
	if err != nil {
		return fmt.Errorf("reload %v after a snapshot: %w", r.id, err)
	}
	if rs == nil || rs.Descriptor == nil || rs.Replica != r.self {
		return fmt.Errorf("reload %v after a snapshot: it is not there", r.id)
	}
	shared := &r.table.shared
	shared.share(rs.Descriptor)
	rs.Applied.Conf = shared.conf(rs.Applied.GetConf()).stored
	next := newState(rs)
	old := r.state.Load()
	next.lead, next.grown = old.lead, old.grown+1
	if err := r.table.publishRestored(r, next); err != nil {
		return err
	}
	r.group().SetPeers(shared.peersOf(next.desc))
	r.markChanged()
	return nil
}
