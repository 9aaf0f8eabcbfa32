package multiraft

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// sending is a snapshot on its way to a replica. The log above its index is
// kept until it is done, so that the receiver can go on from the log.
type sending struct {
	to    uint64
	index ids.Index
}

// snapshotMetadata answers raft at once with what is applied; the data is
// pinned when the message comes out of the Ready, at that index or a later one.
func (g *Group) snapshotMetadata() (*raftpb.Snapshot, error) {
	if g.applied == 0 {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index:     new(uint64(g.applied)),
		Term:      new(g.appliedTerm),
		ConfState: g.conf,
	}}, nil
}

// sendSnapshot pins the state that a MsgSnap announces and hands it to the
// transport. If that cannot be done now, raft is told that it failed and tries
// again after the follower's next answer to a heartbeat.
func (g *Group) sendSnapshot(m *raftpb.Message) {
	to := m.GetTo()
	if err := g.startSnapshot(m); err != nil {
		g.shard.metrics.snapshotsRefused.Add(1)
		g.host.cfg.Logger.Debug("snapshot not sent", "range", g.cfg.Range,
			"replica", to, "error", err)
		g.rn.ReportSnapshot(to, raft.SnapshotFailure)
	}
}

func (g *Group) startSnapshot(m *raftpb.Message) error {
	h, to := g.host, m.GetTo()
	p := g.peer(ids.ReplicaID(to))
	if p == nil || p.node == 0 {
		return fmt.Errorf("replica %d lives on no known node", to)
	}
	if !h.snapshots.take(g.cfg.Range, to, &h.cfg, h.cfg.Support.Now()) {
		return fmt.Errorf("send snapshot: %w", ErrOverloaded)
	}
	data, err := h.cfg.Store.NewSnapshot(g.cfg.Range)
	if err != nil {
		h.snapshots.leave()
		return fmt.Errorf("pin snapshot: %w", err)
	}
	state := data.State()
	index := ids.Index(state.Applied.GetIndex())
	if promised := m.GetSnapshot().GetMetadata().GetIndex(); uint64(index) < promised {
		invariant.Failf("range %d: snapshot pinned at %d, promised at %d",
			g.cfg.Range, index, promised)
	}
	header := &metapb.SnapshotHeader{
		RangeId:     uint64(g.cfg.Range),
		FromNode:    uint64(h.cfg.Node),
		FromReplica: uint64(g.cfg.Replica),
		ToReplica:   to,
		Descriptor_: state.Descriptor,
		Applied:     state.Applied,
		RaftTerm:    m.GetTerm(),
	}
	stats := state.Applied.GetStats()
	header.ApproximateBytes = stats.GetKeyBytes() + stats.GetValueBytes()
	if h.cfg.Clock != nil {
		header.Stamp = uint64(h.cfg.Clock.Peek())
	}
	g.sending = append(g.sending, sending{to: to, index: index})
	g.shard.metrics.snapshotsSent.Add(1)
	h.cfg.Transport.SendSnapshot(p.node, header, data, func(err error) {
		h.snapshots.leave()
		g.shard.inbox.push(item{kind: itemControl, control: func(s *shard) {
			g.snapshotDone(to, index, err)
		}})
	})
	return nil
}

// snapshotDone tells raft how the sending ended.
func (g *Group) snapshotDone(to uint64, index ids.Index, err error) {
	for i, sn := range g.sending {
		if sn.to == to && sn.index == index {
			g.sending = append(g.sending[:i], g.sending[i+1:]...)
			break
		}
	}
	if !g.live() {
		return
	}
	status := raft.SnapshotFinish
	if err != nil {
		status = raft.SnapshotFailure
		g.shard.metrics.snapshotsFailed.Add(1)
		g.host.cfg.Logger.Warn("snapshot failed, raft will try again",
			"range", g.cfg.Range, "replica", to, "index", index, "error", err)
	}
	g.rn.ReportSnapshot(to, status)
	g.wake()
	g.shard.queue(g)
}
