package ranges

import (
	"slices"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
)

const (
	// maxDepartures bounds the transfers in flight: their elections share the
	// syncs of three disks, and the more there are the longer each range is
	// without a leader.
	maxDepartures = 8
	// departurePatience is how long one transfer may take before another target
	// is asked.
	departurePatience = 200 * time.Millisecond
	// scanEvery is how often the replicas are looked through for leaders while
	// some are left: a split or an election may bring new ones.
	scanEvery = 50 * time.Millisecond
	// lookBackEvery is how often they are while many wait: a node that stops, too,
	// sends back what it is given. The walk takes about a millisecond or two with
	// 50,000 replicas.
	lookBackEvery = 250 * time.Millisecond
	// maxReturned ranges may come back from a node that is still given others.
	maxReturned = 2
)

// Handover empties a node of leaders, for a graceful stop. Step starts as many
// transfers as may be in flight and is called again and again, a few
// milliseconds apart: each time those that have ended make room for others. One
// goroutine.
//
// The target of a transfer is a voter that lives and is caught up, on the node
// that was given the fewest so far. A node from which ranges come back stops
// itself, most likely, and gets nothing more: so several nodes that stop
// together do not pass their leaders round.
type Handover struct {
	t       *Table
	scanned time.Duration
	began   bool
	waiting []*Replica
	moving  []*departure
	sent    map[ids.RangeID]ids.NodeID // whom a range was given to

	mu    sync.Mutex // the rest is used on shards, too
	given map[ids.NodeID]int
	back  map[ids.NodeID]int // how many ranges came back from there
}

// departure is one transfer.
type departure struct {
	r     *Replica
	term  ids.Term
	began time.Duration

	// Under the handover's mutex.
	tried []ids.ReplicaID
	to    ids.NodeID // of the last try; 0: nobody could take it
}

// NewHandover makes a handover; nothing happens before Step.
func (t *Table) NewHandover() *Handover {
	return &Handover{
		t: t, sent: make(map[ids.RangeID]ids.NodeID), given: make(map[ids.NodeID]int),
		back: make(map[ids.NodeID]int),
	}
}

// Step goes on and returns how many ranges are led here that others could lead.
// now is monotonic.
func (h *Handover) Step(now time.Duration) (left int) {
	h.moving = slices.DeleteFunc(h.moving, func(d *departure) bool { return h.ended(now, d) })
	every := lookBackEvery
	if len(h.waiting) == 0 {
		every = scanEvery
	}
	if !h.began || now-h.scanned >= every {
		h.scan(now)
	}
	rest := h.waiting[:0]
	for _, r := range h.waiting {
		s := r.state.Load()
		switch {
		case !s.lead.mine:
		case len(h.moving) < maxDepartures && s.leads():
			h.depart(now, r, s.lead.term)
		default:
			rest = append(rest, r) // there is no room, or it does not serve yet
		}
	}
	clear(h.waiting[len(rest):])
	h.waiting = rest
	return len(h.waiting) + len(h.moving)
}

// scan looks for leaders. The count of all of them saves the walk at the end.
func (h *Handover) scan(now time.Duration) {
	h.began, h.scanned = true, now
	clear(h.waiting)
	h.waiting = h.waiting[:0]
	if h.t.leaders.Load() == 0 {
		return
	}
	for _, r := range h.t.all() {
		if s := r.state.Load(); !s.lead.mine || len(s.conf.GetVoters()) < 2 {
			continue
		}
		if slices.ContainsFunc(h.moving, func(d *departure) bool { return d.r == r }) {
			continue
		}
		h.returned(r)
		h.waiting = append(h.waiting, r)
	}
}

// returned notes who sent a range back.
func (h *Handover) returned(r *Replica) {
	n, gave := h.sent[r.id]
	if !gave {
		return
	}
	delete(h.sent, r.id)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.back[n]++
}

// depart begins a transfer.
func (h *Handover) depart(now time.Duration, r *Replica, term ids.Term) {
	d := &departure{r: r, term: term, began: now}
	h.moving = append(h.moving, d)
	h.try(d)
}

// try asks the next target. A shard whose inbox is full is tried again when
// patience ends.
func (h *Handover) try(d *departure) {
	_ = d.r.enqueue(multiraft.TaskFunc(func() { h.transfer(d) }), 0)
}

// ended says whether a transfer is over, and asks another target when it takes
// too long.
func (h *Handover) ended(now time.Duration, d *departure) bool {
	s := d.r.state.Load()
	h.mu.Lock()
	to := d.to
	h.mu.Unlock()
	late := now-d.began >= departurePatience
	switch {
	case s.destroyed || !s.lead.mine:
		if to != 0 {
			h.sent[d.r.id] = to
		}
		return true
	case s.lead.term != d.term || late && to == 0:
		return true // elected again, or nobody could take it: the next scan finds it
	case late:
		d.began = now
		h.try(d)
	}
	return false
}

// transfer runs on the shard.
func (h *Handover) transfer(d *departure) {
	r := d.r
	if s := r.state.Load(); !s.leads() || s.lead.term != d.term {
		return
	}
	to, node := h.pick(d)
	h.mu.Lock()
	if d.to != 0 {
		h.given[d.to]--
	}
	if d.to = node; to != 0 {
		d.tried = append(d.tried, to)
		h.given[node]++
	}
	h.mu.Unlock()
	if to != 0 {
		r.handTo(to)
	}
}

// pick chooses the target: not one that was tried in this round, the node that
// was given the fewest, in order of ids. When all were tried they are again.
func (h *Handover) pick(d *departure) (best ids.ReplicaID, on ids.NodeID) {
	r := d.r
	desc, progress := r.descriptor(), r.group().Progress()
	h.mu.Lock()
	defer h.mu.Unlock()
	for round := 0; round < 2 && best == 0; round++ {
		for _, p := range progress {
			voter := replicaOf(desc, p.Replica)
			node := ids.NodeID(voter.GetNodeId())
			if p.Replica == r.self || voter == nil || voter.GetRole() != roleVoter ||
				h.back[node] > maxReturned || slices.Contains(d.tried, p.Replica) ||
				!p.RecentActive || !r.caughtUp(p.Replica) {
				continue
			}
			if best == 0 || h.given[node] < h.given[on] {
				best, on = p.Replica, node
			}
		}
		if best == 0 {
			d.tried = d.tried[:0]
		}
	}
	return best, on
}
