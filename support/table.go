package support

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
)

// Table is one node's side of all pairs. Any goroutine.
type Table struct {
	cfg      Config        // immutable
	votesAt  time.Duration // immutable; end of the boot wait on the lease clock
	stranger *Peer         // immutable; stands for nodes that found no room
	asked    chan struct{} // see AskNow
	changed  chan struct{} // see Changed
	bootWait atomic.Bool   // votes are refused until votesAt
	// peers are the entries in order of node id; the slice is replaced, never
	// changed, when one is added.
	peers atomic.Pointer[[]*Peer]

	// mu is the node-level lock of R3: making, extending and withdrawing promises
	// are serialised by it. What readers need is published in atomics.
	mu struct {
		sync.Mutex
		epochs uint32        // promises made in this life
		next   time.Duration // the event that Expire has named; 0: none
		news   news
	}
}

// New makes a table; nothing runs. The boot wait begins now.
func New(cfg Config) *Table {
	t := &Table{
		cfg:      cfg.withDefaults(),
		stranger: &Peer{},
		asked:    make(chan struct{}, tokens),
		changed:  make(chan struct{}, tokens),
	}
	t.peers.Store(&[]*Peer{})
	if wait := t.cfg.bootWait(); wait > 0 {
		t.votesAt = t.Now() + wait
		t.bootWait.Store(true)
	}
	return t
}

// Now reads the lease clock: Physical.Monotonic. A nil table's stands still.
func (t *Table) Now() time.Duration {
	if t == nil {
		return 0
	}
	return t.cfg.Physical.Monotonic()
}

// Peer returns the entry of a node, made on demand; stable for the table's life.
// A nil table returns an entry that never supports and is promised nothing, and
// so does one that holds maxPeers nodes already. Lock-free once it is made.
func (t *Table) Peer(n ids.NodeID) *Peer {
	if t == nil {
		return &Peer{}
	}
	if p := t.known(n); p != nil {
		return p
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := *t.peers.Load()
	at, found := find(old, n)
	switch {
	case found:
		return old[at]
	case len(old) >= maxPeers || n == 0 || n == t.cfg.Self:
		return t.stranger
	}
	p := &Peer{table: t, node: n}
	grown := slices.Insert(slices.Clip(old), at, p) // a copy: old has no room
	t.peers.Store(&grown)
	return p
}

// known returns the entry of a node, or nil.
func (t *Table) known(n ids.NodeID) *Peer {
	all := *t.peers.Load()
	if at, found := find(all, n); found {
		return all[at]
	}
	return nil
}

func find(all []*Peer, n ids.NodeID) (at int, found bool) {
	return slices.BinarySearchFunc(all, n, func(p *Peer, n ids.NodeID) int {
		return cmp.Compare(p.node, n)
	})
}

// MayVote is false during the boot wait (R6). A nil table always may. Lock-free.
//
// A process that starts has forgotten what its former life promised: until every
// such promise must have run out it neither campaigns nor helps a candidate.
func (t *Table) MayVote() bool {
	if t == nil || !t.bootWait.Load() || canary.On(canary.LeaseNoBootWait) {
		return true
	}
	return t.Now() >= t.votesAt
}

// Want counts groups of this node that lead and have a replica on n; requests go
// only to nodes that are wanted. delta is +1 or -1. Any goroutine.
func (t *Table) Want(n ids.NodeID, delta int) {
	if t == nil {
		return
	}
	wanted := t.Peer(n).wanted.Add(int64(delta))
	invariant.Check(wanted >= 0, "%v is wanted by %d groups", n, wanted)
	if delta > 0 && wanted == int64(delta) {
		t.AskNow() // the first group: its leader need not wait for the interval
	}
}

// Wanted returns the nodes to ask, in order.
func (t *Table) Wanted() []ids.NodeID {
	if t == nil {
		return nil
	}
	var nodes []ids.NodeID
	for _, p := range *t.peers.Load() {
		if p.wanted.Load() > 0 {
			nodes = append(nodes, p.node)
		}
	}
	return nodes
}

// AskNow asks that requests to all wanted nodes leave at once (a ceiling was too
// low). Cheap; wakes whoever waits on Asked, who bounds how often it asks.
func (t *Table) AskNow() {
	if t != nil {
		poke(t.asked)
	}
}

// Asked gets a token from AskNow, at most one waits. A nil table's never does.
func (t *Table) Asked() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.asked
}

// Changed gets a token when Expire should be called earlier than it said. A nil
// table's never does.
func (t *Table) Changed() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.changed
}

// poke leaves a mark; a mark already there is enough.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
