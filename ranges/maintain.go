package ranges

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// dirtySet holds the ranges that maintenance should look at. A range is in it
// because something changed, never because it exists.
type dirtySet struct {
	mu      sync.Mutex
	set     map[ids.RangeID]struct{}
	watched []*Replica // whose load is watched, see load.go

	loadSplits, merges        atomic.Uint64
	leftFreezes, rightFreezes freezes
}

func (t *Table) mark(id ids.RangeID) {
	t.dirty.mu.Lock()
	defer t.dirty.mu.Unlock()
	if t.dirty.set == nil {
		t.dirty.set = make(map[ids.RangeID]struct{})
	}
	t.dirty.set[id] = struct{}{}
}

// Maintain is one step of what time drives: size splits that could not start,
// load and load splits, garbage collection, stuck changes. Called about once a
// second; cost grows with what changed, not with what exists. Any goroutine, one
// at a time.
func (t *Table) Maintain() {
	t.lookAtLoads()
	t.checkNext()
	t.dirty.mu.Lock()
	set := t.dirty.set
	t.dirty.set = nil
	t.dirty.mu.Unlock()
	list := make([]ids.RangeID, 0, len(set))
	for id := range set {
		list = append(list, id)
	}
	slices.Sort(list)
	for _, id := range list {
		r := t.replica(id)
		if r == nil {
			continue
		}
		if err := r.enqueue(multiraft.TaskFunc(r.maintain), 0); err != nil {
			t.mark(id)
		}
	}
}

// upkeep is what a leader remembers for maintenance. Shard only.
type upkeep struct {
	marked    bool  // in the table's dirty set
	unchecked bool  // wanted by checks: written to since it was compared
	noSplit   int64 // size at which no split key was found; 0: none
	collected hlc.Timestamp
	gc        *collection
	writes    uint64        // the meter's count, at the last step
	since     time.Duration // when this leadership began
	looks     int           // left at who is silent, see facts.go
	frozen    time.Duration // when a merge that was given up took this half; 0: none
}

// lead begins a term of leadership. How far an earlier leader's collection got
// is not known, so the first pass looks at everything.
func (u *upkeep) lead(now time.Duration) { *u = upkeep{since: now, looks: silentLooks} }

// young says whether this leadership is so new that replicas may not have
// answered yet.
func (u *upkeep) young(now time.Duration) bool { return now-u.since < answerTime }

func (u *upkeep) follow() { *u = upkeep{} }

// mark puts the range into the table's dirty set, once. Shard only.
func (r *Replica) mark() {
	if !r.upkeep.marked {
		r.upkeep.marked = true
		r.table.mark(r.id)
	}
}

// leaderApplied looks, on the shard, whether what was applied makes work:
// structural changes, or that this replica leads now.
func (r *Replica) leaderApplied(old *state, structural bool) {
	s := r.state.Load()
	if !s.leads() {
		return
	}
	structural = structural || !old.lead.ready
	if !old.lead.ready {
		r.wake(0) // what the load was, the leader before knows
	}
	if structural {
		r.sendFact()
		r.leaveJoint()
	}
	if r.upkeep.looks > 0 {
		r.mark()
	}
	if old.data != s.data {
		r.changedUnchecked()
	}
	if r.wantsSplit(s) || r.wantsCollection(s) || hasLearner(s.desc) && structural ||
		old.data != s.data && r.factIsOld(s) || !r.recent.empty() {
		r.mark()
	}
}

// maintain is a range's step, on its shard.
func (r *Replica) maintain() {
	r.upkeep.marked = false
	r.tend()
	s := r.state.Load()
	if !s.leads() {
		return
	}
	if isJoint(s.desc) {
		r.leaveJoint()
		r.mark()
	}
	if hasLearner(s.desc) {
		if caughtUp, _ := r.peerNews(); !r.sameCaughtUp(caughtUp) {
			r.sendFact()
		}
		r.mark()
	}
	if r.factIsOld(s) || r.loadIsOld() {
		r.sendFact()
	}
	r.lookAtSilence()
	if r.wantsSplit(s) && r.change == nil {
		r.startSplit(nil, 0, 0, r.sizeSplitEnded(s.size()))
	}
	if r.wantsCollection(s) {
		r.collect(s)
		r.mark()
	}
	r.forgetIfIdle()
}

func (r *Replica) wantsSplit(s *state) bool {
	return r.id != 1 && s.size() > r.table.cfg.RangeSize && s.size() > r.upkeep.noSplit
}

// sizeSplitEnded remembers a size at which no split was possible: one huge key
// must not be searched again until it has grown by a tenth.
func (r *Replica) sizeSplitEnded(size int64) func(_, _ *metapb.RangeDescriptor, err error) {
	return func(_, _ *metapb.RangeDescriptor, err error) {
		if err == nil {
			return
		}
		if errors.Is(err, ErrNoSplitKey) {
			r.upkeep.noSplit = size + size/10
		} else {
			r.table.mark(r.id)
		}
		r.table.cfg.Logger.Debug("range over its size was not split", "range", r.id, "error", err)
	}
}

// forgetIfIdle drops what memory knows when a step saw no write, so that an
// idle range costs nothing.
func (r *Replica) forgetIfIdle() {
	if r.recent.empty() {
		return
	}
	writes := r.load.writes.word.Load()
	if writes == r.upkeep.writes && r.latches.idle() && r.open.empty() {
		r.recent.forget(r.table.cfg.Clock.Peek(), r.state.Load().applied)
		r.latches.shrink()
		if !r.toldExactly(r.state.Load()) {
			r.sendFact() // at rest the directory is exact
		}
	}
	r.upkeep.writes = writes
	if !r.recent.empty() {
		r.mark()
	}
}
