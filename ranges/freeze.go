package ranges

import (
	"fmt"
	"time"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// freezing is the right half's part of a merge, on the right half's shard: freeze
// it here, and then make sure that every replica will freeze by itself.
type freezing struct {
	m          *merge
	term       ids.Term // of the right half's leadership
	generation uint64   // at which it was claimed
	change     *change
	hold       hold
	held       bool // in moving.splits
	over       bool

	// Set before the left half is told to absorb.
	taken time.Duration // when the range was; 0: not yet
	at    ids.Index     // of the freeze
	desc  *metapb.RangeDescriptor
}

// fail tells the left half that it cannot be done.
func (f *freezing) fail(err error) {
	m := f.m
	m.l.onShard(func() { m.end(err) })
}

// prepare claims the right half, so that it does not split or move meanwhile.
func (f *freezing) prepare() {
	m, r := f.m, f.m.r
	s := r.state.Load()
	if !s.leads() {
		f.fail(fmt.Errorf("%w: this node does not lead %v, transfer it first", ErrRefused, r.id))
		return
	}
	if err := r.begin("merge", m.want); err != nil {
		f.fail(err)
		return
	}
	f.change, f.term, f.generation = r.change, s.lead.term, s.desc.GetGeneration()
	switch {
	case !aligned(m.l.descriptor(), s.desc):
		f.fail(fmt.Errorf("%w: %v has its replicas on other nodes", ErrRefused, r.id))
	case !r.allCaughtUp():
		f.fail(fmt.Errorf("%w: not all replicas of %v follow closely", ErrLagging, r.id))
	default:
		m.l.onShard(func() { m.intend(f.generation) })
	}
}

// freeze takes the whole range.
func (f *freezing) freeze() {
	r := f.m.r
	s := r.state.Load()
	switch {
	case f.over:
		return
	case !r.leadsIn(f.term) || s.desc.GetGeneration() != f.generation:
		f.fail(ErrNotLeader)
		return
	}
	f.hold.start, f.hold.end = string(s.desc.GetStart()), string(s.desc.GetEnd())
	f.hold.exclusive = true
	f.taken = r.table.cfg.Physical.Monotonic()
	r.latches.acquire(&f.hold, f)
}

// granted: every earlier write of the range is applied, later ones wait until the
// merge has ended, and so do all reads from here on. Those that were let through
// before have their timestamp, which this node's clock has passed; so the frames
// that bring the absorb carry a stamp above it, and whoever leads the left half
// from then on writes above it. (Reads that earlier leaders of this range served
// lie below this leader's low water.)
func (f *freezing) granted() {
	r := f.m.r
	switch {
	case f.over:
		return
	case !r.leadsIn(f.term):
		f.fail(ErrNotLeader)
		return
	}
	f.hold.ts = everyRead
	f.held = true
	r.moving.splits.Add(1)
	mark := &metapb.MergeMark{
		Phase: phaseFrozen, RangeId: uint64(f.m.l.id), Generation: f.m.mark.GetGeneration(),
	}
	if err := r.proposeMark(mark, f.frozen); err != nil {
		f.fail(err)
	}
}

func (f *freezing) aborted() { f.fail(ErrNotLeader) }

// frozen: the freeze is applied here. A second entry is proposed, and once every
// replica has that on disk, every replica will apply the freeze by itself, after
// any crash, without asking anybody (multiraft, Group.stageAppend): so the group
// of this range may die.
func (f *freezing) frozen(v verdict) {
	r := f.m.r
	if f.over {
		return
	}
	if v != applied {
		f.fail(outcomeOf(v))
		return
	}
	s := r.state.Load()
	f.at, f.desc = s.applied, s.desc // nothing follows a mark in one batch
	if err := r.propose(r.headerFor(kindSeal), nil, f.sealed); err != nil {
		f.fail(err)
	}
}

func (f *freezing) sealed(v verdict) {
	r := f.m.r
	switch {
	case f.over:
	case v != applied:
		f.fail(outcomeOf(v))
	case canary.On(canary.MergeUnsealed):
		f.matched(true)
	default:
		r.group().AwaitMatch(r.state.Load().applied, f.matched)
	}
}

// matched: all replicas have the seal on disk.
func (f *freezing) matched(ok bool) {
	switch {
	case f.over:
	case !ok:
		f.fail(ErrNotLeader)
	default:
		f.m.l.onShard(f.m.absorb)
	}
}

// leave ends the right half's part. If it was absorbed there is nothing left to
// be released; else those that waited go on, and find it frozen or not.
func (f *freezing) leave() {
	r := f.m.r
	if f.over {
		return
	}
	f.over = true
	if f.held {
		r.moving.splits.Add(-1)
	}
	r.latches.release(&f.hold)
	if f.change != nil && r.change == f.change {
		r.change = nil
	}
	if s := r.state.Load(); !s.destroyed {
		r.upkeep.frozen = f.taken // until it is thawed, or now if it never froze
		r.thawed()
		r.group().EndAwait()
		r.heed()
	}
}
