package support

import (
	"math"
	"time"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// promised is what this node, as B, keeps for a peer A. The epoch in force is
// Peer.promise; the rest of the state means something only while that is set.
type promised struct {
	life     ids.Life      // the highest life of A that was heard of
	sequence uint64        // the highest request of that life
	epoch    Epoch         // of the last promise, in force or not
	until    time.Duration // on this node's lease clock
	ceiling  hlc.Timestamp // the highest that was granted under the epoch

	// Starvation, see Table.spare.
	notBefore time.Duration // no withdrawal before this
	graces    uint          // given in this silence
}

// HandleRequest is the answering side; false: ignored or refused (an earlier
// life, a duration longer than MaxPromise, no room for another peer). The stamp
// of the frame that carried r has moved the clock before (R9f). Any goroutine.
func (t *Table) HandleRequest(from ids.NodeID, r Request) (Grant, bool) {
	if t == nil {
		return Grant{}, false
	}
	p := t.Peer(from)
	if p.table == nil {
		return Grant{}, false
	}
	t.mu.Lock()
	g, ok := t.answer(p, r)
	t.tell() // unlocks
	return g, ok
}

func (t *Table) answer(p *Peer, r Request) (Grant, bool) {
	if !t.orderLives(p, r.Life) {
		p.counts.outdated++
		return Grant{}, false
	}
	// R6: the next life waits for the longest duration that is on disk. A longer
	// promise would outlive that wait.
	tooLong := r.Duration > t.cfg.MaxPromise && !canary.On(canary.LeaseOutlastsWait)
	if r.Duration <= 0 || tooLong {
		p.counts.refused++
		return Grant{}, false
	}
	// The clock is read under the lock: now is not before the receipt (R4), and
	// nobody has withdrawn in between (R3).
	now := t.Now()
	if !t.extend(p, now, r.Duration) {
		p.counts.refused++
		return Grant{}, false
	}
	t.compareDigests(p, r, now)
	wall := t.cfg.Physical.Wall()
	p.offset.heard(now, r.Wall-wall)
	p.counts.granted++
	return Grant{
		Life: r.Life, Sequence: r.Sequence, Epoch: p.Promise(),
		Ceiling: t.grantCeiling(p, r.Ceiling), Wall: wall,
	}, true
}

// orderLives is R3: lives are ordered. A later life of A ends the promise made to
// its former one at once, because that process is dead (its successor holds the
// lock of its directory). A request of an earlier life is a straggler of a dead
// process and must not be taken for another restart: the A that lives is counting
// on the promise.
func (t *Table) orderLives(p *Peer, life ids.Life) bool {
	switch s := &p.promised; {
	case life == s.life:
		return true
	case life > s.life || canary.On(canary.LeaseLivesUnordered):
		s.life, s.sequence = life, 0
		p.digest = disagreement{}
		t.withdraw(p, LaterLife)
		return true
	}
	return false
}

// extend makes the promise to p last until D after now. One that is in force
// keeps its epoch, even if it is overdue: nothing has followed from its end as
// long as it was not withdrawn, and withdrawals hold the same lock. One that was
// withdrawn stays so, for acks of it may have been void for a while, and votes
// given; the new promise has a new epoch, which old acks do not match (R3).
func (t *Table) extend(p *Peer, now, d time.Duration) bool {
	s := &p.promised
	if p.Promise() == 0 {
		e := t.nextEpoch(s.epoch)
		if e == 0 {
			return false
		}
		s.epoch, s.until, s.ceiling = e, 0, 0
		p.promise.Store(uint64(e))
	}
	s.until = max(s.until, now+d)
	s.notBefore, s.graces = 0, 0
	t.expect(s.until)
	return true
}

// nextEpoch numbers a promise (R6). 0: this life has made 2^32 promises, and
// makes no more.
func (t *Table) nextEpoch(last Epoch) Epoch {
	if last != 0 && canary.On(canary.LeaseRevives) {
		return last
	}
	if t.mu.epochs == math.MaxUint32 {
		return 0
	}
	t.mu.epochs++
	if canary.On(canary.LeaseEpochsRepeat) {
		return Epoch(t.mu.epochs)
	}
	return Epoch(t.cfg.Life)<<epochCountBits | Epoch(t.mu.epochs)
}

// grantCeiling is R9b: this node agrees to pass a timestamp at the end of the
// promise, at most one that it would adopt as a stamp, and at most its durable
// bound: were it to crash instead, it would begin there. It does not wait for the
// disk to raise the bound; the asker asks again soon, and the bound is kept ahead
// of the wall clock by more than D.
func (t *Table) grantCeiling(p *Peer, asked hlc.Timestamp) hlc.Timestamp {
	granted := min(asked, t.cfg.Clock.Tolerated())
	if !canary.On(canary.LeaseBoundLate) {
		granted = min(granted, t.cfg.Clock.Bound())
	}
	p.promised.ceiling = max(p.promised.ceiling, granted)
	return granted
}

// withdraw ends a promise for good (R3), under the table's lock. False: the clock
// was sealed, because this process is ending, and cannot pass the ceiling; then
// the promise stays, and nobody here votes against it any more.
//
// If it expired, A may be alive and reading; all that it reads under this promise
// lies at or below the ceiling, and the clock passes that first (R9d), for all
// groups at once. A later life of A needs no ceiling: A's reads ended with its
// former process, whose clock the new one has taken over (R9g) and stamped on
// the frame that brought the news, so this node's clock is above them (R9e).
func (t *Table) withdraw(p *Peer, why Reason) bool {
	if p.Promise() == 0 {
		return true
	}
	if why == Expired && !canary.On(canary.LeaseEndsBelowCeiling) && !t.passCeiling(p) {
		return false
	}
	p.promise.Store(0)
	switch {
	case why == LaterLife:
		p.counts.laterLife++
	case p.records.Load() == 0:
		p.counts.unused++ // no group here rested on it
	default:
		p.counts.expired++
	}
	t.mu.news.withdrawn(p, why)
	return true
}

// passCeiling moves the clock past all that p may have read under its promise. A
// ceiling is at or below the durable bound when it is granted and the bound never
// falls, unless the clock is sealed: only then is the answer false.
func (t *Table) passCeiling(p *Peer) bool {
	ceiling := p.promised.ceiling
	if canary.On(canary.LeaseBoundLate) {
		ceiling = min(ceiling, t.cfg.Clock.Bound())
	}
	return t.cfg.Clock.Advance(ceiling) == nil
}

// PassCeiling moves the clock past the ceiling granted to a node, if a promise to
// it is in force. No rule asks for it: an end that A announces moves the clock by
// its stamp alone (R9e), and passing ceilings there drives the clocks ahead. It
// is here for the planted bug that shows so.
func (t *Table) PassCeiling(n ids.NodeID) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.known(n); p != nil && p.Promise() != 0 {
		t.passCeiling(p)
	}
}
