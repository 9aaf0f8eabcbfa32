package support

// news are the ends and beginnings that the callbacks have not been told yet, at
// most one entry a node: a later one of the same kind takes the earlier's place.
// Guarded by Table.mu.
type news struct {
	queue   []*Peer // with something pending, in order
	votes   bool    // the boot wait is over
	telling bool    // somebody is at it
}

// pending is what one node's callbacks are still to be told.
type pending struct {
	queued      bool
	withdrawn   Reason // 0: nothing
	mismatch    bool
	supported   Epoch // 0: nothing
	unsupported bool  // excludes supported
}

func (n *news) add(p *Peer) {
	if !p.pending.queued {
		p.pending.queued = true
		n.queue = append(n.queue, p)
	}
}

// withdrawn keeps the later reason of two: it holds for both ends.
func (n *news) withdrawn(p *Peer, why Reason) {
	p.pending.withdrawn = why
	n.add(p)
}

func (n *news) mismatch(p *Peer) {
	p.pending.mismatch = true
	n.add(p)
}

func (n *news) supported(p *Peer, e Epoch) {
	p.pending.supported, p.pending.unsupported = e, false
	n.add(p)
}

func (n *news) unsupported(p *Peer) {
	p.pending.supported, p.pending.unsupported = 0, true
	n.add(p)
}

// tell calls the callbacks for all that is pending. It is called with the table's
// lock and returns without. Only one goroutine is at it at a time, also if a
// callback calls the table: whoever adds something meanwhile leaves it to that
// one. So callbacks never run at once and come in the order of what they tell.
func (t *Table) tell() {
	n := &t.mu.news
	if n.telling {
		t.mu.Unlock()
		return
	}
	n.telling = true
	for n.votes || len(n.queue) > 0 {
		var p *Peer
		var what pending
		votes := n.votes
		if n.votes = false; len(n.queue) > 0 {
			p = n.queue[0]
			n.queue = n.queue[1:]
			what, p.pending = p.pending, pending{}
		}
		t.mu.Unlock()
		if votes {
			t.cfg.OnVotes()
		}
		if p != nil {
			t.tellOf(p, what)
		}
		t.mu.Lock()
	}
	n.queue = nil
	n.telling = false
	t.mu.Unlock()
}

func (t *Table) tellOf(p *Peer, what pending) {
	if what.withdrawn != 0 {
		t.cfg.OnWithdrawn(p.node, what.withdrawn)
	}
	if what.unsupported {
		t.cfg.OnUnsupported(p.node)
	}
	if what.supported != 0 {
		t.cfg.OnSupported(p.node, what.supported)
	}
	if what.mismatch {
		t.cfg.OnMismatch(p.node)
	}
}
