package multiraft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/store"
)

// errAppliedNone stands for a StateMachine that takes no entry and says nothing.
var errAppliedNone = errors.New("state machine took none of the committed entries")

// stagedApply is what one group staged into the apply batch.
type stagedApply struct {
	group    *Group
	index    ids.Index
	term     uint64
	response *raftpb.Message // nil: more entries of the same message follow
}

// apply applies what is committed in all groups in one unsynced batch. It need
// not be durable: the entries are, and the applied index is in the same batch
// as the state, so a restart goes on where the state is.
func (s *shard) apply() {
	if len(s.applies) == 0 || s.host.failure.Load() != nil {
		return
	}
	b := s.host.cfg.Store.NewBatch()
	for i := range s.applies {
		b = s.applyGroup(b, s.applies[i].group, s.applies[i].msg)
		s.applies[i] = storageWork{}
	}
	s.applies, s.resumed = s.applies[:0], false
	for i := range s.staged {
		s.staged[i].group.stageTruncation(b, s.staged[i].index)
	}
	s.commitApplied(b)
}

// applyGroup stages the entries of one group. It returns the batch to go on
// with: a structural entry ends the shared one.
func (s *shard) applyGroup(b *store.Batch, g *Group, m *raftpb.Message) *store.Batch {
	if len(g.parked) > 0 || g.installs() {
		g.park(m, m.GetEntries())
		return b
	}
	if s.resumed && s.hasStaged(g) {
		// Of a group that goes on there are several messages in one pass, and the
		// StateMachine has not published what the one before it did.
		s.commitApplied(b)
		b = s.host.cfg.Store.NewBatch()
	}
	entries := m.GetEntries()
	for len(entries) > 0 && g.live() && !g.stopped.Load() {
		size, count := b.Len(), b.Pebble().Count()
		n, err := g.cfg.Machine.Apply(b, entries)
		if n == 0 && errors.Is(err, ErrNotYet) {
			g.park(m, entries)
			return b
		}
		if err == nil && (n <= 0 || n > len(entries)) {
			err = errAppliedNone
		}
		if err != nil {
			g.halt("apply", fmt.Errorf("apply entries from %d: %w", entries[0].GetIndex(), err))
			return s.rewind(b, size, count)
		}
		s.metrics.entriesApplied.Add(uint64(n))
		last := entries[n-1]
		entries = entries[n:]
		st := stagedApply{group: g, index: ids.Index(last.GetIndex()), term: last.GetTerm()}
		if len(entries) == 0 {
			if responses := m.GetResponses(); len(responses) > 0 {
				st.response = responses[0]
			}
			s.staged = append(s.staged, st)
			return b
		}
		s.staged = append(s.staged, st)
		s.commitApplied(b)
		b = s.host.cfg.Store.NewBatch()
	}
	return b
}

// rewind returns a batch with the first size bytes (count operations) of b,
// which it closes: what a failed Apply staged must not be committed without its
// applied index, nor may it take the other groups' work with it.
func (s *shard) rewind(b *store.Batch, size int, count uint32) *store.Batch {
	const countAt, countEnd = 8, 12 // after the sequence number in a batch's header
	fresh := s.host.cfg.Store.NewBatch()
	if count > 0 {
		prefix := bytes.Clone(b.Pebble().Repr()[:size])
		binary.LittleEndian.PutUint32(prefix[countAt:countEnd], count)
		var kept pebble.Batch
		err := kept.SetRepr(prefix)
		if err == nil {
			err = fresh.Pebble().Apply(&kept, nil)
		}
		if err != nil {
			s.host.fail(fmt.Errorf("rewind apply batch: %w", err))
		}
	}
	b.Close()
	return fresh
}

// commitApplied commits the apply batch and tells the groups.
func (s *shard) commitApplied(b *store.Batch) {
	if !b.Empty() {
		if err := s.host.cfg.Store.CommitNoSync(b); err != nil {
			s.host.fail(fmt.Errorf("write applied state: %w", err))
		}
	}
	b.Close()
	staged := s.staged
	s.staged = nil
	for i := range staged {
		if s.host.failure.Load() == nil {
			staged[i].finish()
		}
		staged[i] = stagedApply{}
	}
	s.staged = staged[:0]
}

// finish tells raft and the StateMachine that entries are applied. Raft hears
// of it first, so that Applied may propose a configuration change: raft refuses
// one while an earlier one is not applied.
func (st *stagedApply) finish() {
	g := st.group
	if st.index <= g.applied {
		invariant.Failf("range %d applied %d after %d", g.cfg.Range, st.index, g.applied)
	}
	ownTerm := st.term != g.appliedTerm
	g.applied, g.appliedTerm = st.index, st.term
	if ownTerm {
		g.publishLease() // R8: not before the own term's first entry is applied
	}
	if st.response != nil && g.live() {
		_ = g.rn.Step(st.response)
		g.shard.queue(g)
	}
	g.cfg.Machine.Applied()
	g.releaseReads()
}
