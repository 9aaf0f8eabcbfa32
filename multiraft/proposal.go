package multiraft

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Propose proposes payloads as entries in one MsgProp, in the term that the
// StateMachine last heard of. The payloads belong to raft afterwards.
// ErrNotLeader, ErrDropped, ErrStopped: none was proposed.
func (g *Group) Propose(payloads [][]byte) error {
	if len(payloads) == 0 {
		return nil
	}
	if err := g.mayPropose(); err != nil {
		return err
	}
	entries := make([]*raftpb.Entry, len(payloads))
	for i, p := range payloads {
		entries[i] = &raftpb.Entry{Data: p}
	}
	return g.propose(entries)
}

// mayPropose says whether this replica leads in the term that was published.
// Messages that were stepped since may have ended that term, or even begun
// another one that this replica leads too: what was evaluated in the old one
// must not enter the log in the new one.
func (g *Group) mayPropose() error {
	switch {
	case !g.live() || g.stopped.Load() || g.host.stopped.Load():
		return ErrStopped
	case !g.status.IsLeader || !g.leadsPublishedTerm():
		return ErrNotLeader
	case g.shard.refuseProposals:
		g.shard.metrics.proposalsDropped.Add(1)
		return ErrDropped
	}
	return nil
}

// leadsPublishedTerm compares with the RawNode's own state.
func (g *Group) leadsPublishedTerm() bool {
	st := g.rn.BasicStatus()
	return st.RaftState == raft.StateLeader && st.HardState.GetTerm() == uint64(g.status.Term)
}

func (g *Group) propose(entries []*raftpb.Entry) error {
	err := g.rn.Step(&raftpb.Message{
		Type:    raftpb.MsgProp.Enum(),
		From:    new(uint64(g.cfg.Replica)),
		Entries: entries,
	})
	g.wake()
	g.shard.queue(g)
	switch {
	case err == nil:
		g.shard.metrics.proposals.Add(1)
		g.shard.metrics.entriesProposed.Add(uint64(len(entries)))
		return nil
	case errors.Is(err, raft.ErrProposalDropped):
		g.shard.metrics.proposalsDropped.Add(1)
		return ErrDropped
	}
	return fmt.Errorf("propose to range %d: %w", g.cfg.Range, err)
}

// ProposeConfChange proposes a configuration change; its context is in the
// entry. Beside Propose's errors: ErrDropped also if raft refuses the change (it
// appends an empty entry instead, which is harmless) because another one is not
// applied yet or the configuration is joint and the change does not leave it.
func (g *Group) ProposeConfChange(cc *raftpb.ConfChangeV2) error {
	if err := g.mayPropose(); err != nil {
		return err
	}
	data, err := proto.Marshal(cc)
	if err != nil {
		return fmt.Errorf("encode configuration change of range %d: %w", g.cfg.Range, err)
	}
	entries := []*raftpb.Entry{{Type: raftpb.EntryConfChangeV2.Enum(), Data: data}}
	if err := g.propose(entries); err != nil {
		return err
	}
	if entries[0].GetType() != raftpb.EntryConfChangeV2 {
		g.host.cfg.Logger.Warn("configuration change became an empty entry",
			"range", g.cfg.Range, "term", g.status.Term, "index", g.applied)
		return fmt.Errorf("configuration change of range %d refused by raft: %w",
			g.cfg.Range, ErrDropped)
	}
	return nil
}

// ApplyConfChange is called from Apply for a configuration entry and returns
// the new configuration, which belongs to raft. A change that the StateMachine
// refuses is told with nil, or with a change without content and context; the
// configuration stays as it is then. (A change that leaves a joint configuration
// has no content either, but always a context.)
func (g *Group) ApplyConfChange(cc *raftpb.ConfChangeV2) *raftpb.ConfState {
	if !g.live() {
		return g.conf
	}
	if cc == nil || cc.LeaveJoint() &&
		(len(cc.GetContext()) == 0 || len(g.conf.VotersOutgoing) == 0) {
		return g.conf
	}
	g.conf = g.rn.ApplyConfChange(cc)
	g.log.SetConfState(g.conf)
	g.markRoles()
	g.shard.queue(g)
	return g.conf
}
