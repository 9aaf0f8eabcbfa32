package ranges

import (
	"errors"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// verdict is how a proposal ended.
type verdict uint8

const (
	// applied: the entry took effect.
	applied verdict = iota
	// rejected: it did not and never will.
	rejected
	// refused: it was not proposed (no room).
	refused
	// lost: leadership ended first; it may still take effect.
	lost
	// handedOver: it was not proposed, because leadership is being handed over.
	handedOver
)

// proposal is one entry of this leader on its way through the log.
type proposal struct {
	sequence uint64
	writes   []*write
	// finish ends a structural proposal; nil for writes.
	finish  func(verdict)
	payload []byte // until proposed
}

// proposals are this leader's entries that are proposed and not applied, in
// the order of the log. Entries of one term keep their order, so when one
// applies, all that were before it and did not are rejected for good. Shard
// only; bounded by raft's budget of uncommitted bytes.
type proposals struct {
	last  uint64 // sequence given last
	queue []*proposal
}

func (p *proposals) next() uint64 {
	p.last++
	return p.last
}

func (p *proposals) push(x *proposal) {
	if !canary.On(canary.ForeignTerm) {
		x.payload = nil
	}
	p.queue = append(p.queue, x)
}

// take removes and returns all proposals up to and with the given sequence.
func (p *proposals) take(sequence uint64) []*proposal {
	n := 0
	for n < len(p.queue) && p.queue[n].sequence <= sequence {
		n++
	}
	taken := p.queue[:n:n]
	p.queue = p.queue[n:]
	if len(p.queue) == 0 {
		p.queue = nil
	}
	return taken
}

func (p *proposals) takeAll() []*proposal {
	taken := p.queue
	p.queue = nil
	return taken
}

// builder is the entry under construction: what the shard evaluated in this
// pass. It holds memory only while something is in it.
type builder struct {
	batch  *store.Batch
	delta  *mvcc.Delta // of batch
	writes []*write
	sealed []*proposal
}

// target returns the batch to write the next operation into.
func (b *builder) target(s *store.Store) *store.Batch {
	if b.batch == nil {
		b.batch, b.delta = s.NewBatch(), new(mvcc.Delta)
	}
	return b.batch
}

func (b *builder) empty() bool { return len(b.writes) == 0 && len(b.sealed) == 0 }

// full says that the entry should be sealed before more goes in.
func (b *builder) full() bool { return b.batch != nil && b.batch.Len() >= maxPayloadBytes }

// seal finishes the entry under construction.
func (b *builder) seal(h header) {
	if len(b.writes) == 0 {
		b.drop()
		return
	}
	h.delta = *b.delta
	b.sealed = append(b.sealed, &proposal{
		sequence: h.sequence,
		writes:   b.writes,
		payload:  encodeEntry(h, b.batch.Pebble().Repr()),
	})
	b.writes = nil
	b.drop()
}

func (b *builder) drop() {
	if b.batch != nil {
		b.batch.Close()
	}
	b.batch, b.delta, b.writes = nil, nil, nil
}

// headerFor is the header of an entry that is evaluated now.
func (r *Replica) headerFor(kind entryKind) header {
	s := r.state.Load()
	return header{
		kind:       kind,
		term:       s.lead.term,
		generation: ids.Generation(s.desc.GetGeneration()),
		bounds:     s.bounds,
		sequence:   r.pending.next(),
	}
}

// seal closes the entry under construction, if there is one.
func (r *Replica) seal() {
	if len(r.open.writes) > 0 {
		r.open.seal(r.headerFor(kindWrite))
	}
}

// flush proposes all that was evaluated: one entry, or a few if it is much,
// in one message. If raft refuses, nothing of it is in the log; it is
// taken back and answered so. What was waiting for it may then be evaluated,
// so flush goes on until nothing is left.
func (r *Replica) flush() {
	for !r.open.empty() {
		r.seal()
		sealed := r.open.sealed
		r.open.sealed = nil
		payloads := make([][]byte, len(sealed))
		for i, p := range sealed {
			payloads[i] = p.payload
		}
		err := r.group().Propose(payloads)
		if err == nil {
			r.setHeir(0)
			for _, p := range sealed {
				r.pending.push(p)
			}
			continue
		}
		// In reverse order, so that each key's record goes back to what it was.
		for i := len(sealed) - 1; i >= 0; i-- {
			r.takeBack(sealed[i])
		}
		v := refused
		switch {
		case errors.Is(err, multiraft.ErrNotLeader) || errors.Is(err, multiraft.ErrStopped):
			v = rejected
		case r.state.Load().lead.heir != 0:
			v = handedOver
		}
		for _, p := range sealed {
			r.finish(p, v, 0)
		}
		r.latches.drain()
	}
}

// propose sends a structural entry (or a page of garbage collection), after
// the writes that were evaluated before it. finish is called once, on the
// shard; not if propose returns an error.
func (r *Replica) propose(h header, body []byte, finish func(verdict)) error {
	r.flush()
	h.sequence = r.pending.next()
	if err := r.group().Propose([][]byte{encodeEntry(h, body)}); err != nil {
		return err
	}
	r.pending.push(&proposal{sequence: h.sequence, finish: finish})
	return nil
}

func (r *Replica) takeBack(p *proposal) {
	for i := len(p.writes) - 1; i >= 0; i-- {
		w := p.writes[i]
		for j := len(w.undo) - 1; j >= 0; j-- {
			r.recent.takeBack(w.undo[j])
		}
		w.undo = nil
	}
}

// finish ends a proposal: answers, and releases its latches. The caller drains
// them afterwards.
func (r *Replica) finish(p *proposal, v verdict, index ids.Index) {
	if p.finish != nil {
		p.finish(v)
		return
	}
	for _, w := range p.writes {
		if v == applied {
			for _, u := range w.undo {
				r.recent.applied(u, index)
			}
		}
		w.finished(v)
		r.latches.release(&w.hold)
	}
}

// deliver ends the proposal that the entry just applied belongs to, and those
// before it, which raft dropped. One that apply rejected is forgotten like
// those: a retry must not be attached to it for ever.
func (r *Replica) deliver(sequence uint64, v verdict, index ids.Index) {
	for _, p := range r.pending.take(sequence) {
		if p.sequence == sequence && v == applied {
			r.finish(p, v, index)
		} else {
			r.forgetRejected(p, index)
		}
	}
}

// forgetRejected ends a proposal that never took effect although its leader
// still leads. That is known late, when others were evaluated on top of it, so
// what memory believes is dropped rather than taken back.
func (r *Replica) forgetRejected(p *proposal, index ids.Index) {
	for _, w := range p.writes {
		for _, u := range w.undo {
			r.recent.applied(u, index)
		}
		if w.undo != nil {
			r.recent.disown(w.undo)
		}
	}
	if len(p.writes) > 0 {
		r.recent.forget(r.table.cfg.Clock.Peek(), index)
	}
	r.finish(p, rejected, index)
}
