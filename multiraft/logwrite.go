package multiraft

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store"
)

// writeLog writes the appends of all groups in one batch and starts its sync.
//
// Up to maxSyncs syncs of a shard are in flight. At that bound the batch is
// written without a sync and its responses are owed: the WAL is one sequence,
// so the next sync that is started covers what was written before it. Nothing
// stops meanwhile, heartbeats flow; only when much is owed are proposals and
// appends refused (checkStore).
func (s *shard) writeLog() {
	if len(s.appends) == 0 && !s.canPayOwed() {
		return
	}
	b := s.host.cfg.Store.NewBatch()
	responses := s.responses[:0]
	write := false
	for _, w := range s.appends {
		wrote, err := w.group.stageAppend(b, w.msg)
		if err != nil {
			// The staged rest is written, but the group gets no answer for it.
			w.group.halt("append", err)
			continue
		}
		write = write || wrote
		for _, m := range w.msg.GetResponses() {
			responses = append(responses, response{group: w.group, msg: m})
		}
	}
	clear(s.appends)
	s.appends = s.appends[:0]
	if write || s.canPayOwed() {
		s.commitLog(b, responses)
	} else {
		b.Close()
		s.respond(responses)
	}
	clear(responses)
	s.responses = responses[:0]
}

// stageAppend stages what a MsgStorageAppend asks for, entries before the hard
// state, and says whether anything must be durable before its responses leave.
// A hard state in which only the commit index moved is not written: it is
// raised to the applied index at load, which is all that is promised.
//
// Unless one of the entries is a seal: a change of the configuration, or what
// GroupConfig.Seals says. Let a leader propose it when it has applied F. Then
// everyone who has the seal in its log knows that F is committed: the leader does,
// and an append that brings the seal carries a commit index of at least F, which
// the receiver takes over in the same step, since its log then reaches beyond F.
// Whoever leads later and passes the seal on has it in its log, too. So the Ready
// with the seal, or an earlier one, brought a commit index of at least F, and here
// it is written in the batch of the seal: whose seal is durable, whose match the
// leader has seen at it, applies F after any crash, without asking anyone.
//
// For changes of the configuration F is the change before: a leader proposes one
// only when it has applied all earlier ones. Who has the second in its log and
// came back from a crash without knowing that the first is committed would believe
// in the configuration before both, be allowed to campaign in it (raft forbids that
// only beside a change that is known to be committed), and win by a majority that
// need not meet that of the configuration after both: two leaders that commit.
func (g *Group) stageAppend(b *store.Batch, m *raftpb.Message) (bool, error) {
	write, sealed := false, false
	if entries := m.GetEntries(); len(entries) > 0 {
		if err := g.log.Append(b, entries); err != nil {
			return false, fmt.Errorf("append entries from %d: %w", entries[0].GetIndex(), err)
		}
		g.shard.metrics.entriesAppended.Add(uint64(len(entries)))
		write, sealed = true, g.hasSeal(entries)
	}
	term, vote, commit := g.term, g.vote, uint64(g.status.Commit)
	if m.Term != nil {
		term, vote, commit = m.GetTerm(), m.GetVote(), m.GetCommit()
	}
	if term == g.term && vote == g.vote && !sealed {
		return write, nil
	}
	hs := &raftpb.HardState{Term: new(term), Vote: new(vote), Commit: new(commit)}
	if err := g.log.SetHardState(b, hs); err != nil {
		return false, fmt.Errorf("write hard state of term %d: %w", term, err)
	}
	g.term, g.vote = term, vote
	return true, nil
}

// hasSeal says whether one of the entries is a seal.
func (g *Group) hasSeal(entries []*raftpb.Entry) bool {
	if canary.On(canary.SealForgetsCommit) {
		return false
	}
	return slices.ContainsFunc(entries, func(e *raftpb.Entry) bool {
		return e.GetType() != raftpb.EntryNormal ||
			g.cfg.Seals != nil && g.cfg.Seals(e.GetData())
	})
}

// canPayOwed says whether writes are owed a sync that may be started. Bytes tell,
// not responses: a write that nobody waits for yet may be what the next
// response rests on.
func (s *shard) canPayOwed() bool {
	return s.owedBytes > 0 && s.inbox.inFlight() < maxSyncs
}

// commitLog commits a batch (which may be empty if something is owed).
func (s *shard) commitLog(b *store.Batch, responses []response) {
	st := s.host.cfg.Store
	if s.inbox.inFlight() >= maxSyncs {
		s.owedBytes += b.Len()
		s.metrics.syncsDeferred.Add(1)
		err := st.CommitNoSync(b)
		b.Close()
		if err != nil {
			s.host.fail(fmt.Errorf("write raft log: %w", err))
			return
		}
		s.owed = append(s.owed, responses...)
		return
	}
	if b.Empty() {
		// A sync needs a record in the WAL to stand behind; this one holds
		// nothing and is skipped by replay. (The sync of an empty batch would be
		// no barrier for what was written before.)
		if err := b.Pebble().LogData(nil, nil); err != nil {
			s.host.fail(fmt.Errorf("write raft log: %w", err))
			return
		}
	}
	sync, err := st.CommitSync(b)
	if err != nil {
		s.host.fail(fmt.Errorf("write raft log: %w", err))
		return
	}
	s.metrics.syncs.Add(1)
	all := make([]response, 0, len(s.owed)+len(responses))
	all = append(append(all, s.owed...), responses...)
	clear(s.owed)
	s.owed, s.owedBytes = s.owed[:0], 0
	if canary.On(canary.ResponsePastSync) {
		s.deliver(all)
		all = nil
	}
	s.inbox.launch(flight{sync: sync, batch: b, responses: all})
}

// respond delivers the responses of appends that wrote nothing: in their turn,
// behind every write of this shard that is not known to be durable. They may
// rest on those writes. (A commit-only MsgApp is acknowledged with the last
// index; sent at once that would acknowledge entries that are not on disk.)
func (s *shard) respond(responses []response) {
	switch {
	case len(responses) == 0:
	case canary.On(canary.ResponsePastSync):
		s.deliver(responses)
	case s.owedBytes > 0:
		s.owed = append(s.owed, responses...)
	case !s.inbox.queueBehind(responses):
		s.deliver(responses)
	}
}

// deliver steps or sends responses whose turn has come.
func (s *shard) deliver(responses []response) {
	for _, r := range responses {
		g := r.group
		if !g.live() {
			continue
		}
		if ids.ReplicaID(r.msg.GetTo()) == g.cfg.Replica {
			_ = g.rn.Step(r.msg)
			g.checkMatching()
			s.queue(g)
			continue
		}
		g.route(r.msg)
	}
}
