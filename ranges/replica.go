package ranges

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Replica is one copy of a range on this node. Its parts know nothing of one
// another. It has no goroutine: all but state, reads, load and back belongs to
// the shard of its group.
type Replica struct {
	// Immutable.
	id    ids.RangeID
	self  ids.ReplicaID
	table *Table // what the replicas of a node share

	// Any goroutine.
	state atomic.Pointer[state]           // stored on the shard only
	raft  atomic.Pointer[multiraft.Group] // nil until the group is born
	reads readQueue                       // confirmed reads, wait for a reader
	load  meter                           // counts
	// moving is what reads on their callers' goroutines see of the latches;
	// changed on the shard.
	moving moving
	back   returns // continuations on their way to the shard

	// Shard only.
	latches latches
	recent  recent
	open    builder
	pending proposals
	staged  staged    // what Apply staged, for Applied to publish
	change  *change   // the structural change in progress
	upkeep  upkeep    // what maintenance remembers
	yields  bool      // nothing is applied: a snapshot is subsuming the range
	stale   *[][]byte // canary: entries of a leadership that is over
}

var _ multiraft.StateMachine = (*Replica)(nil)

func newReplica(t *Table, id ids.RangeID, self ids.ReplicaID, s *state) *Replica {
	r := &Replica{id: id, self: self, table: t}
	r.publish(s)
	return r
}

// group is for the shard, where it is never nil.
func (r *Replica) group() *multiraft.Group { return r.raft.Load() }

// groupConfig describes the replica's group to the host.
func (r *Replica) groupConfig(campaign bool) multiraft.GroupConfig {
	s := r.state.Load()
	cfg := multiraft.GroupConfig{
		Range:    r.id,
		Replica:  r.self,
		Machine:  r,
		Campaign: campaign,
		Born:     func(g *multiraft.Group) { r.raft.Store(g) },
		Seals:    isSeal,
		Span: func() (start, end []byte) {
			if s := r.state.Load(); s.initialised() {
				return s.desc.GetStart(), s.desc.GetEnd()
			}
			return nil, nil
		},
	}
	if s.initialised() {
		cfg.Applied = s.applied
		cfg.Conf = r.table.shared.conf(s.conf).raft
		cfg.Peers = r.table.shared.peersOf(s.desc)
	}
	return cfg
}

// enqueue runs a task on the shard. A task runs once even if the group is gone
// by then. An error says that it will not run.
func (r *Replica) enqueue(t multiraft.Task, bytes int) error {
	g := r.raft.Load()
	if g == nil {
		return multiraft.ErrOverloaded // being born: the caller tries again
	}
	return g.Enqueue(t, bytes)
}

// leadsIn says whether this replica still leads in a term.
func (r *Replica) leadsIn(term ids.Term) bool {
	s := r.state.Load()
	return s.leads() && s.lead.term == term
}

// Flush is called once in each pass in which tasks ran: what they evaluated is
// proposed as one entry.
func (r *Replica) Flush() {
	defer r.clockOut(r.clockIn())
	r.back.run()
	r.latches.drain()
	r.flush()
}

// Changed takes over who leads. It publishes before any message of the Ready
// that changed it leaves, so that no read or write is served on a leadership
// that the replica has told others it gave up.
func (r *Replica) Changed(status multiraft.Status) {
	old := r.state.Load()
	lead := leadership{
		term:   status.Term,
		leader: status.Leader,
		mine:   status.IsLeader && !status.Halted,
	}
	if lead.mine && old.lead.mine && lead.term == old.lead.term {
		lead.ready, lead.lowWater = old.lead.ready, old.lead.lowWater
	}
	if lead.leader == 0 || lead.mine && old.lead.mine && lead.term == old.lead.term {
		lead.heir = old.lead.heir
	}
	if status.Halted && lead.leader == r.self {
		lead.leader = 0
	}
	s := *old
	s.lead = lead
	r.publish(&s)
	if old.lead.mine && (!lead.mine || lead.term != old.lead.term) {
		r.table.leaders.Add(-1)
		r.abandon()
	}
	if lead.mine && (!old.lead.mine || lead.term != old.lead.term) {
		r.table.leaders.Add(1)
	}
	r.becomeReady()
}

// becomeReady opens the replica for evaluation once it leads and has applied
// an entry of its own term.
func (r *Replica) becomeReady() {
	s := r.state.Load()
	if !s.lead.mine || s.lead.ready || s.term != s.lead.term || s.destroyed || !s.initialised() {
		return
	}
	next := *s
	next.lead.ready = true
	// Frames carry stamps, so the clock is above all that the log holds; what is
	// issued from now on is above this.
	next.lead.lowWater = r.table.cfg.Clock.Peek()
	r.recent.start(next.lead.lowWater, s.applied)
	r.publish(&next)
	r.upkeep.lead(r.table.cfg.Physical.Monotonic())
}

// abandon ends everything that rested on a leadership that is over. Entries in
// the log may still be committed by the next leader, so their outcome is open;
// what was not proposed never applies.
func (r *Replica) abandon() {
	pending, sealed, open := r.pending.takeAll(), r.open.sealed, r.open.writes
	r.open.drop()
	r.open.sealed = nil
	r.recent.clear()
	r.upkeep.follow()
	for _, p := range pending {
		if canary.On(canary.ForeignTerm) && p.payload != nil {
			r.keepStale(p.payload)
		}
		r.abandonProposal(p, lost)
	}
	for _, p := range sealed {
		r.abandonProposal(p, rejected)
	}
	for _, w := range open {
		w.finished(rejected)
	}
	r.latches.reset()
	if c := r.change; c != nil && c.merge != nil {
		c.merge.end(ErrUnknownOutcome) // it was the right half's turn
	}
}

func (r *Replica) abandonProposal(p *proposal, v verdict) {
	if p.finish != nil {
		p.finish(v)
		return
	}
	for _, w := range p.writes {
		w.finished(v)
	}
}

// returns carries continuations from read jobs back to the shard. The list
// keeps them when the inbox refuses the task that would fetch them: any later
// pass with tasks, and maintenance, fetches them, too. It is bounded by the
// jobs in flight: few per replica.
type returns struct {
	mu     sync.Mutex
	list   []func()
	closed bool // the replica is gone, there is no shard to return to
}

// push queues f; false: closed, the caller runs it, which then finds its hold
// dropped and only answers.
func (b *returns) push(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.list = append(b.list, f)
	}
	return !b.closed
}

func (b *returns) run() {
	b.mu.Lock()
	list := b.list
	b.list = nil
	b.mu.Unlock()
	for _, f := range list {
		f()
	}
}

func (b *returns) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.run()
}

// offShard runs job away from the shard and then what it returns on the shard.
func (r *Replica) offShard(job func() (then func())) {
	r.table.cfg.Execute(func() {
		r.onShard(job())
	})
}

// onShard runs f on the shard, once, whatever bound is reached; if the replica is
// gone, here and now. Any goroutine, another range's shard included.
func (r *Replica) onShard(f func()) {
	if !r.back.push(f) {
		f()
		return
	}
	err := r.enqueue(multiraft.TaskFunc(func() {}), 0)
	if err != nil && !errors.Is(err, multiraft.ErrStopped) {
		r.table.mark(r.id) // maintenance fetches it
	}
	// Stopped says that the group will end, not that its shard is done with
	// this replica: it must not be run here beside it. Whoever removes the
	// group closes back, which runs what is left; if the whole host ends,
	// nobody is left to be answered.
}

// newest descriptor for others; nil while uninitialised.
func (r *Replica) descriptor() *metapb.RangeDescriptor { return r.state.Load().desc }

// proposeStale is the planted bug foreign-term: a leader that was elected again
// proposes once more what it had proposed before, evaluated in a term that is
// over. Apply must reject it by its header, and does not with this bug.
func (r *Replica) proposeStale() {
	if stale := r.stale; stale != nil && r.state.Load().leads() {
		r.stale = nil
		_ = r.group().Propose(*stale)
	}
}

// keepStale keeps an entry for proposeStale.
func (r *Replica) keepStale(payload []byte) {
	if r.stale == nil {
		r.stale = new([][]byte)
	}
	*r.stale = append(*r.stale, payload)
}
