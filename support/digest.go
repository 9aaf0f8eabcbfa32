package support

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Digests: the sums, kept by change, of Mark over the groups of this node that
// follow a leader on the peer under a live record (NoteRecord, B's side), and over
// the followers on the peer whose acks this node counts (NoteAck, A's side). The
// request carries A's sum, B compares it with its own. delta +1 or -1.

// NoteRecord moves B's sum. Any goroutine.
func (p *Peer) NoteRecord(mark uint64, delta int) { p.records.Add(mark * uint64(delta)) }

// NoteAck moves A's sum. Any goroutine.
func (p *Peer) NoteAck(mark uint64, delta int) { p.acks.Add(mark * uint64(delta)) }

// Mark is one group's part of a digest. Both sides compute it from the same
// facts; nodes of different versions must agree on it.
func Mark(r ids.RangeID, follower ids.ReplicaID, term ids.Term) uint64 {
	return scatter(scatter(scatter(uint64(r))^uint64(follower)) ^ uint64(term))
}

// scatter is a bijection in which each bit of x moves about half of the bits.
func scatter(x uint64) uint64 {
	const odd1, odd2, odd3 = 0x9e3779b97f4a7c15, 0xff51afd7ed558ccd, 0xc4ceb9fe1a85ec53
	x += odd1
	x = (x ^ x>>33) * odd2
	x = (x ^ x>>33) * odd3
	return x ^ x>>33
}

// disagreement is how long two sums have differed.
type disagreement struct {
	since time.Duration // or since it was told last
	pause time.Duration // until it is told; 0: they do not differ
}

// compareDigests is R7's safety net. A notice that A stepped down may be lost and
// a follower may vanish; then a record would bind a group to a leader that is
// none. A difference proves nothing by itself: sums change with every election
// and a request may be older than a record. So only sums that were unequal ever
// since for MismatchAfter are told of, and all that it leads to is a question,
// whose answer, given later than the record, releases. Other groups may move both
// sums meanwhile: they must not hide the one that is lost.
//
// What questions do not mend (a follower that halted acknowledges nothing, while
// its leader still counts its ack) is told of less and less often: each telling
// asks about every group between the two nodes.
func (t *Table) compareDigests(p *Peer, r Request, now time.Duration) {
	if r.Sequence <= p.promised.sequence {
		return // a straggler: what it says is outdated
	}
	p.promised.sequence = r.Sequence
	d, ours := &p.digest, p.records.Load()
	switch {
	case canary.On(canary.LeaseDigestUnread):
	case r.Digest == ours:
		*d = disagreement{}
	case d.pause == 0:
		*d = disagreement{since: now, pause: MismatchAfter}
	case now-d.since >= d.pause:
		d.since, d.pause = now, min(2*d.pause, mismatchMost)
		p.counts.mismatches++
		t.mu.news.mismatch(p)
	}
}
