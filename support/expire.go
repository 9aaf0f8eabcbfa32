package support

import "time"

// Expire withdraws what has run out, notices lapsed support, and returns the lease
// clock's time of the next event (0: none). Called by one goroutine when that time
// has come or Changed has a token; late says how much later than asked it was
// called: a node that was starved itself waits so much longer (at most D) before
// it withdraws, since requests may wait unread. That is always safe: only a
// withdrawal lets anybody vote.
func (t *Table) Expire(late time.Duration) (next time.Duration) {
	if t == nil {
		return 0
	}
	t.mu.Lock()
	now := t.Now()
	for _, p := range *t.peers.Load() {
		next = earlier(next, t.expirePromise(p, now, late))
		next = earlier(next, t.noticeLapse(p, now))
	}
	next = earlier(next, t.endBootWait(now))
	t.mu.next = next
	t.tell() // unlocks
	return next
}

// expirePromise is R3's end by silence. It returns when to look again, 0: never.
func (t *Table) expirePromise(p *Peer, now, late time.Duration) time.Duration {
	if p.Promise() == 0 {
		return 0
	}
	s := &p.promised
	if due := max(s.until, s.notBefore); now < due {
		return due
	}
	if t.spare(p, now, late) {
		return s.notBefore
	}
	if !t.withdraw(p, Expired) {
		return now + t.cfg.Interval
	}
	return 0
}

// spare puts off the withdrawal of an overdue promise if this node was starved:
// the silence may be its own. What came in meanwhile gets as much time to be read
// as the look came late, at most D. Each further grace in one silence is half as
// long, and a short one is none, so that starvation that goes on keeps a dead
// node's promise for a handful of looks and not for ever.
func (t *Table) spare(p *Peer, now, late time.Duration) bool {
	grace := min(late, t.cfg.Duration) >> p.promised.graces
	if grace < t.cfg.Duration/leastGracePart {
		return false
	}
	p.promised.graces++
	p.promised.notBefore = now + grace
	p.counts.spared++
	return true
}

// noticeLapse tells that support has run out. It returns when to look again.
// Nothing rests on its being quick: Peer.Counts looks at the clock itself.
func (t *Table) noticeLapse(p *Peer, now time.Duration) time.Duration {
	if !p.asking.counted {
		return 0
	}
	if until := p.View().Until; now < until {
		return until
	}
	p.asking.counted = false
	p.counts.lapses++
	t.mu.news.unsupported(p)
	return 0
}

// endBootWait tells that the boot wait is over (R6). It returns when to look again.
func (t *Table) endBootWait(now time.Duration) time.Duration {
	if !t.bootWait.Load() {
		return 0
	}
	if now < t.votesAt {
		return t.votesAt
	}
	t.bootWait.Store(false)
	t.mu.news.votes = true
	return 0
}

// expect tells the goroutine that calls Expire of an event that is earlier than
// what it waits for. Extensions only move events away, so this is rare.
func (t *Table) expect(at time.Duration) {
	if t.mu.next == 0 || at < t.mu.next {
		t.mu.next = at
		poke(t.changed)
	}
}

// earlier returns the earlier of two events; 0 is none.
func earlier(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
