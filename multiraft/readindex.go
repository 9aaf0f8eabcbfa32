package multiraft

import (
	"encoding/binary"

	"go.etcd.io/raft/v3"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// reads are the waiters of a group's ReadIndex requests. At most one request is
// outstanding; those who come meanwhile wait for the next one, so nobody is
// confirmed by a request that was issued before he came. A context is a count
// that is never used again, in this term or another: the answer to an earlier
// request confirms nothing.
type reads struct {
	waiting   []ReadWaiter // came since the last request
	asked     []ReadWaiter // wait for the outstanding request
	context   uint64       // of the outstanding request, 0: none
	last      uint64       // the last context used
	age       int          // ticks since the outstanding request
	confirmed []confirmedRead
}

// confirmedRead are waiters for the state at an index.
type confirmedRead struct {
	index   ids.Index
	waiters []ReadWaiter
}

// Read waits for a ReadIndex begun after this call.
func (g *Group) Read(w ReadWaiter) {
	g.shard.metrics.reads.Add(1)
	switch {
	case !g.live() || g.stopped.Load() || g.host.stopped.Load():
		w.ReadReady(ErrStopped)
	case !g.status.IsLeader:
		w.ReadReady(ErrNotLeader)
	case canary.On(canary.StaleReadIndex):
		w.ReadReady(nil)
	case len(g.reads.waiting)+len(g.reads.asked) >= maxReadWaiters:
		w.ReadReady(ErrOverloaded)
	default:
		g.reads.waiting = append(g.reads.waiting, w)
		g.wake()
		g.shard.queue(g)
	}
}

// askRead issues a request for all who wait, unless one is outstanding.
//
// Nothing is asked before an entry of the leader's own term is applied. The
// library waits for that too, except with a single voter, where it answers
// from a commit index that lies behind after a restart.
func (g *Group) askRead() {
	r := &g.reads
	if len(r.waiting) == 0 || r.context != 0 ||
		g.appliedTerm != uint64(g.status.Term) || !g.leadsPublishedTerm() {
		return
	}
	r.asked, r.waiting = append(r.asked, r.waiting...), nil
	r.last++
	r.context, r.age = r.last, 0
	g.shard.metrics.readRequests.Add(1)
	g.rn.ReadIndex(binary.LittleEndian.AppendUint64(nil, r.context))
}

// tickRead gives an unanswered request up for a new one. Heartbeats carry the
// request again by themselves; this is for whatever they do not repair.
func (g *Group) tickRead() {
	r := &g.reads
	if r.context == 0 {
		return
	}
	if r.age++; r.age < readRetryTicks {
		return
	}
	r.waiting, r.asked = append(r.asked, r.waiting...), nil
	r.context = 0
	g.shard.queue(g)
}

// confirmReads takes raft's answers.
func (g *Group) confirmReads(states []raft.ReadState) {
	r := &g.reads
	for _, st := range states {
		if len(st.RequestCtx) != 8 {
			continue
		}
		if c := binary.LittleEndian.Uint64(st.RequestCtx); c == 0 || c != r.context {
			continue // of an earlier term or of a request that was given up
		}
		r.confirmed = append(r.confirmed,
			confirmedRead{index: ids.Index(st.Index), waiters: r.asked})
		r.asked, r.context = nil, 0
		if len(r.waiting) > 0 {
			g.shard.queue(g)
		}
	}
	g.releaseReads()
}

// releaseReads lets those go whose index is applied.
func (g *Group) releaseReads() {
	r := &g.reads
	for len(r.confirmed) > 0 && r.confirmed[0].index <= g.applied {
		waiters := r.confirmed[0].waiters
		r.confirmed = r.confirmed[1:]
		for _, w := range waiters {
			w.ReadReady(nil)
		}
	}
	if len(r.confirmed) == 0 {
		r.confirmed = nil
	}
}

// idle says whether nobody waits.
func (r *reads) idle() bool {
	return len(r.waiting)+len(r.asked)+len(r.confirmed) == 0 && r.context == 0
}

// fail ends all waiting with an error.
func (r *reads) fail(err error) {
	all := append(append([]ReadWaiter(nil), r.asked...), r.waiting...)
	confirmed := r.confirmed
	r.asked, r.waiting, r.confirmed, r.context = nil, nil, nil, 0
	for _, c := range confirmed {
		for _, w := range c.waiters {
			w.ReadReady(err)
		}
	}
	for _, w := range all {
		w.ReadReady(err)
	}
}
