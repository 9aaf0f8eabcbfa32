package multiraft

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// incoming is a snapshot that was delivered: first offered to raft, then, if
// raft's next Ready carries it, installed in the background. While it runs the
// group's Readys are held: no append and no apply may run beside it.
type incoming struct {
	host    *Host
	data    *store.IncomingSnapshot
	done    func(installed bool, err error)
	running bool
	append  *raftpb.Message // the MsgStorageAppend that carries the snapshot
	hard    *raftpb.HardState
	after   []func() // the group was removed meanwhile; call when it is over
}

// discard ends an offer that is not installed.
func (in *incoming) discard(err error) {
	in.data.Discard()
	in.host.installs.Add(-1)
	in.done(false, err)
}

// deliverSnapshot offers a snapshot to its group. Raft decides by its metadata.
// They are made from the header: what was sent may be newer than what raft on
// the sending side announced.
func (s *shard) deliverSnapshot(
	data *store.IncomingSnapshot, done func(installed bool, err error),
) {
	h := data.Header()
	in := &incoming{host: s.host, data: data, done: done}
	g := s.groups[ids.RangeID(h.GetRangeId())]
	full := s.host.installs.Add(1) > maxInstalls
	switch {
	case g == nil || !g.live():
		in.discard(ErrStopped)
		return
	case ids.ReplicaID(h.GetToReplica()) != g.cfg.Replica || g.incoming != nil:
		in.discard(nil)
		return
	case full:
		in.discard(ErrOverloaded)
		return
	}
	sender := ids.ReplicaID(h.GetFromReplica())
	if g.peer(sender) == nil {
		g.learn(sender, ids.NodeID(h.GetFromNode()))
	}
	g.incoming = in
	msg := &raftpb.Message{
		Type: raftpb.MsgSnap.Enum(),
		From: new(h.GetFromReplica()),
		To:   new(h.GetToReplica()),
		Term: new(h.GetRaftTerm()),
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
			Index:     new(h.GetApplied().GetIndex()),
			Term:      new(h.GetApplied().GetTerm()),
			ConfState: confState(h.GetApplied().GetConf()),
		}},
	}
	_ = g.rn.Step(msg)
	g.noteLeader(msg)
	g.wake()
	s.queue(g)
	s.offered = append(s.offered, g)
}

// rejectOffered discards the offers that no Ready carried: raft did not want
// them (it has the state already, or follows a newer term).
func (s *shard) rejectOffered() {
	for i, g := range s.offered {
		s.offered[i] = nil
		if in := g.incoming; in != nil && !in.running {
			g.incoming = nil
			in.discard(nil)
			s.queue(g)
		}
	}
	s.offered = s.offered[:0]
}

// install starts the installation of the offered snapshot. The store makes the
// replica's state, its log and its hard state one durable step.
func (g *Group) install(m *raftpb.Message) {
	in := g.incoming
	index := m.GetSnapshot().GetMetadata().GetIndex()
	if in == nil || in.data.Header().GetApplied().GetIndex() != index || m.Term == nil {
		invariant.Failf("range %d: raft installs a snapshot at %d that was not offered",
			g.cfg.Range, index)
	}
	in.running, in.append = true, m
	in.hard = &raftpb.HardState{
		Term: new(m.GetTerm()), Vote: new(m.GetVote()), Commit: new(m.GetCommit()),
	}
	var start, end []byte
	if g.cfg.Span != nil {
		start, end = g.cfg.Span()
	}
	g.host.cfg.Background(func() {
		err := in.data.Install(in.hard, g.cfg.Replica, start, end)
		g.shard.inbox.push(item{kind: itemControl, control: func(s *shard) {
			g.installed(err)
		}})
	})
}

// installed goes on after an install: the log in memory starts after the
// snapshot, the StateMachine reloads, and what raft wanted written or answered
// with the snapshot takes its turn.
func (g *Group) installed(err error) {
	in, s := g.incoming, g.shard
	g.incoming = nil
	g.host.installs.Add(-1)
	if g.detached {
		s.forgetClosing(g)
		g.close()
		in.done(false, ErrStopped)
		for _, f := range in.after {
			f()
		}
		return
	}
	if err == nil {
		err = g.restart(in)
	}
	if err == nil {
		g.passOver()
		err = g.cfg.Machine.Restored()
	}
	if err != nil {
		g.halt("install snapshot", err)
		in.done(false, err)
		return
	}
	s.metrics.snapshotsInstalled.Add(1)
	s.appends = append(s.appends, storageWork{group: g, msg: in.append})
	s.queue(g)
	in.done(true, nil)
}

// restart sets the group to the state of an installed snapshot.
func (g *Group) restart(in *incoming) error {
	applied := in.data.Header().GetApplied()
	b := g.host.cfg.Store.NewBatch()
	defer b.Close()
	// What Reset stages is what the install made durable already.
	err := g.log.Reset(b, ids.Index(applied.GetIndex()), ids.Term(applied.GetTerm()), in.hard)
	if err != nil {
		return fmt.Errorf("restart log at snapshot %d: %w", applied.GetIndex(), err)
	}
	if !b.Empty() {
		if err := g.host.cfg.Store.CommitNoSync(b); err != nil {
			return fmt.Errorf("restart log at snapshot %d: %w", applied.GetIndex(), err)
		}
	}
	g.term, g.vote = in.hard.GetTerm(), in.hard.GetVote()
	g.applied, g.appliedTerm = ids.Index(applied.GetIndex()), applied.GetTerm()
	g.conf = confState(applied.GetConf())
	g.log.SetConfState(g.conf)
	g.markRoles()
	return nil
}

// forgetClosing takes a removed group from the list of those that still write.
func (s *shard) forgetClosing(g *Group) {
	for i, c := range s.closing {
		if c == g {
			s.closing = append(s.closing[:i], s.closing[i+1:]...)
			return
		}
	}
}

// confState converts a stored configuration to raft's.
func confState(c *metapb.ConfState) *raftpb.ConfState {
	return &raftpb.ConfState{
		Voters:         c.GetVoters(),
		Learners:       c.GetLearners(),
		VotersOutgoing: c.GetVotersOutgoing(),
		LearnersNext:   c.GetLearnersNext(),
		AutoLeave:      new(c.GetAutoLeave()),
	}
}
