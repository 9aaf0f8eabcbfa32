package placement

import (
	"bytes"
	"time"

	"github.com/tidwall/btree"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// rangeState is what the driver knows of one range.
type rangeState struct {
	desc   *metapb.RangeDescriptor // immutable; shared with answers
	leader ids.NodeID              // 0: unknown
	term   ids.Term                // of leader and of everything below

	stats    *metapb.RangeStats
	caughtUp []uint64 // replica ids of learners that hold the log
	silent   []uint64 // replica ids that did not answer the leader; see cluster.mute
	silentAt time.Duration
	load     load // at the leader
	// hotBecause says why the leader has not split the range although it is hot.
	hotBecause string

	rule      *ruling // never nil once it is in the directory
	straddles bool    // another rule begins inside it
	health    health  // derived; see cluster.review

	since     time.Duration // needs something since then; never: it does not
	changedAt time.Duration // when this driver first saw its descriptor
	mergeAt   time.Duration // its place among those that may be merged; never: none
	restUntil time.Duration // no new operator before
	failures  uint          // operators that failed in a row
	avoid     ids.NodeID    // where the last one failed; 0: nowhere
}

func (r *rangeState) id() ids.RangeID { return ids.RangeID(r.desc.GetRangeId()) }
func (r *rangeState) generation() ids.Generation {
	return ids.Generation(r.desc.GetGeneration())
}

func (r *rangeState) info() *adminpb.RangeInfo {
	return &adminpb.RangeInfo{
		Descriptor_: r.desc, LeaderNode: uint64(r.leader), Term: uint64(r.term), Stats: r.stats,
		CpuMicrosPerSecond: uint64(max(0, r.load.cpu)),
		WritesPerSecond:    float64(r.load.writes), ReadsPerSecond: float64(r.load.reads),
	}
}

// directory is the cache of range descriptors, ordered by start key. The
// spans in it never overlap; they may leave gaps.
//
// Per key the generation never falls. While a descriptor covers a key that is
// simple: what is not newer than all it overlaps is dropped. When a newer
// descriptor evicts one that reached further than itself, the remainder becomes
// a gap, and a still older descriptor could creep in there. So the gap keeps a
// floor: the evicted descriptor is dead as a whole, and whatever covers any of
// its keys now has at least the next generation.
type directory struct {
	byID    map[ids.RangeID]*rangeState
	byStart btree.Map[string, *rangeState]
	floors  btree.Map[string, floor] // by start; disjoint, and disjoint from the ranges
	seams   int                      // neighbours of which one ends where the next starts
}

// floor is the least generation that a gap accepts.
type floor struct {
	end        string
	generation ids.Generation
}

func newDirectory() *directory {
	return &directory{byID: make(map[ids.RangeID]*rangeState)}
}

func wellFormed(d *metapb.RangeDescriptor) bool {
	return d.GetRangeId() != 0 && bytes.Compare(d.GetStart(), d.GetEnd()) < 0
}

// room says whether d may enter: it is newer than everything it overlaps,
// itself excepted. It returns those others, which d evicts.
func (dir *directory) room(d *metapb.RangeDescriptor) (victims []*rangeState, ok bool) {
	generation := ids.Generation(d.GetGeneration())
	ok = true
	dir.overlapped(d.GetStart(), d.GetEnd(), func(o *rangeState) bool {
		if o.id() == ids.RangeID(d.GetRangeId()) {
			return true
		}
		victims = append(victims, o)
		ok = o.generation() < generation
		return ok
	})
	if !ok {
		return nil, false
	}
	start, end := string(d.GetStart()), string(d.GetEnd())
	dir.floorsOver(start, end, func(_ string, f floor) bool {
		ok = f.generation <= generation
		return ok
	})
	return victims, ok
}

// overlapped visits the ranges that overlap [start, end), in ascending order.
func (dir *directory) overlapped(start, end []byte, visit func(*rangeState) bool) {
	from := string(start)
	dir.byStart.Descend(from, func(at string, r *rangeState) bool {
		if bytes.Compare(r.desc.GetEnd(), start) > 0 {
			from = at
		}
		return false
	})
	limit := string(end)
	dir.byStart.Ascend(from, func(at string, r *rangeState) bool {
		return at < limit && visit(r)
	})
}

func (dir *directory) floorsOver(start, end string, visit func(at string, f floor) bool) {
	from := start
	dir.floors.Descend(start, func(at string, f floor) bool {
		if f.end > start {
			from = at
		}
		return false
	})
	dir.floors.Ascend(from, func(at string, f floor) bool {
		return at < end && visit(at, f)
	})
}

// insert adds r, whose span is free of ranges (room, remove).
func (dir *directory) insert(r *rangeState) {
	start, end := string(r.desc.GetStart()), string(r.desc.GetEnd())
	dir.carve(start, end)
	dir.seams += dir.seamsAround(r)
	dir.byID[r.id()] = r
	_, replaced := dir.byStart.Set(start, r)
	invariant.Check(!replaced, "range %d enters the directory over another", r.id())
}

// remove takes r out and leaves a floor in its place.
func (dir *directory) remove(r *rangeState) {
	start, end := string(r.desc.GetStart()), string(r.desc.GetEnd())
	_, found := dir.byStart.Delete(start)
	invariant.Check(found, "range %d is missing in the directory's order", r.id())
	delete(dir.byID, r.id())
	dir.seams -= dir.seamsAround(r)
	dir.floors.Set(start, floor{end: end, generation: r.generation() + 1})
}

// seamsAround returns by how much the number of seams grows when r, which is
// not in the order now, enters it.
func (dir *directory) seamsAround(r *rangeState) int {
	var before, after *rangeState
	start := string(r.desc.GetStart())
	dir.byStart.Descend(start, func(_ string, o *rangeState) bool { before = o; return false })
	dir.byStart.Ascend(start, func(_ string, o *rangeState) bool { after = o; return false })
	return seam(before, r) + seam(r, after) - seam(before, after)
}

func seam(left, right *rangeState) int {
	if left != nil && right != nil && bytes.Equal(left.desc.GetEnd(), right.desc.GetStart()) {
		return 1
	}
	return 0
}

// carve takes [start, end) out of the floors.
func (dir *directory) carve(start, end string) {
	type piece struct {
		start string
		floor
	}
	var over []piece
	dir.floorsOver(start, end, func(at string, f floor) bool {
		over = append(over, piece{at, f})
		return true
	})
	for _, p := range over {
		dir.floors.Delete(p.start)
		if p.start < start {
			dir.floors.Set(p.start, floor{end: start, generation: p.generation})
		}
		if p.end > end {
			dir.floors.Set(end, floor{end: p.end, generation: p.generation})
		}
	}
}

// gaps returns how many spans of the keyspace no known range covers.
func (dir *directory) gaps() int {
	if dir.byStart.Len() == 0 {
		return 1
	}
	gaps := dir.byStart.Len() - 1 - dir.seams
	if first, _, _ := dir.byStart.Min(); first > string([]byte{kv.SystemPrefix}) {
		gaps++
	}
	if _, last, _ := dir.byStart.Max(); string(last.desc.GetEnd()) < string([]byte{kv.EndPrefix}) {
		gaps++
	}
	return gaps
}

// before returns the range that holds the keys just below key, or the nearest
// one below it.
func (dir *directory) before(key []byte) (found *rangeState) {
	dir.byStart.Descend(string(key), func(at string, r *rangeState) bool {
		if at == string(key) {
			return true
		}
		found = r
		return false
	})
	return found
}
