package multiraft

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store"
)

// earlyCutShare of MaxLogBytes is enough to cut fewer than TruncateEntries.
const earlyCutShare = 16

// followerLogFactor is how much longer than MaxLogBytes a log may become where
// the leader's word is missing or a snapshot is being sent.
const followerLogFactor = 2

// truncation is what a group knows about where its log may be cut.
//
// Why cutting needs no sync of its own and no entry in the log: the cut is
// staged in the batch that holds the applied index, or in a later one, and is
// never above it. Log and state are in one Pebble with one WAL, so a crash
// keeps a prefix of the batches: if the cut survives, so does the applied state
// that stands in for the entries. (With a log in a place of its own the cut
// would have to stay below the state's durable index.)
//
// The safe index of a leader is the smallest match of all replicas, learners
// too, that were heard lately. It says that all of them have the entries at
// or below; it does not become false later, so a follower keeps the largest it
// heard of, whoever led. A replica that joins, or comes back after a long
// silence, may still find the entries gone; it gets a snapshot.
type truncation struct {
	safe ids.Index // entries at or below may go
	next ids.Index // applied index at which a leader looks again
}

// stageTruncation stages the cut of a group's log after entries up to applied
// were staged in the same batch.
func (g *Group) stageTruncation(b *store.Batch, applied ids.Index) {
	if !g.live() || g.stopped.Load() {
		return
	}
	first, _ := g.log.FirstIndex()
	if uint64(applied) < first {
		return
	}
	cfg := &g.host.cfg
	size := g.log.Bytes()
	limit := cfg.MaxLogBytes
	if !g.status.IsLeader || len(g.sending) > 0 {
		limit *= followerLogFactor
	}
	if g.status.IsLeader && applied >= g.cut.next {
		g.cut.safe = max(g.cut.safe, g.safeIndex())
		g.cut.next = applied + ids.Index(max(1, cfg.TruncateEntries/2))
	}
	to := min(g.cut.safe, applied)
	for _, sn := range g.sending {
		to = min(to, sn.index)
	}
	step := uint64(cfg.TruncateEntries)
	if size > cfg.MaxLogBytes/earlyCutShare {
		step = 1
	}
	if size > limit {
		to = applied
		if g.status.IsLeader {
			g.cut.safe = max(g.cut.safe, applied)
		}
		g.shard.metrics.forcedTruncations.Add(1)
	}
	if uint64(to)+1 < first+step {
		return
	}
	if err := g.log.Truncate(b, to); err != nil {
		g.halt("truncate", fmt.Errorf("cut log at %d: %w", to, err))
		return
	}
	g.shard.metrics.truncations.Add(1)
}

// safeIndex returns the smallest match of the replicas that were heard within
// some election timeouts. One that is not in the descriptor yet counts as heard.
func (g *Group) safeIndex() ids.Index {
	grace := uint64(activeElections * g.host.cfg.ElectionTicks)
	safe := g.applied
	g.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		p := g.peer(ids.ReplicaID(id))
		silent := p != nil && id != uint64(g.cfg.Replica) && g.shard.now-p.seen > grace
		if !silent {
			safe = min(safe, ids.Index(pr.Match))
		}
	})
	return safe
}
