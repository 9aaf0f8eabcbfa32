package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const twinKeys = 24 // keys of the twin are single bytes from 0x20

// twin is a slow directory that is obviously right: a list of descriptors, and
// per key the least generation that may cover it.
type twin struct {
	list  []*twinRange
	floor [twinKeys]uint64
}

type twinRange struct {
	d      *metapb.RangeDescriptor
	leader uint64
	term   uint64
}

func (r *twinRange) has(key int) bool {
	return int(r.d.GetStart()[0]) <= key+0x20 && key+0x20 < int(r.d.GetEnd()[0])
}

func (w *twin) learn(f *metapb.RangeFact) {
	in := &twinRange{d: f.GetDescriptor_(), leader: f.GetLeaderNode(), term: f.GetTerm()}
	var old *twinRange
	victims := map[*twinRange]bool{}
	for key := range twinKeys {
		for _, r := range w.list {
			if r.d.GetRangeId() == in.d.GetRangeId() {
				old = r
			} else if r.has(key) && in.has(key) {
				victims[r] = true
			}
		}
	}
	if old != nil && in.d.GetGeneration() <= old.d.GetGeneration() {
		switch {
		case in.term > old.term,
			in.term == old.term && in.d.GetGeneration() == old.d.GetGeneration() && old.leader == 0:
			old.term, old.leader = in.term, in.leader
		}
		return
	}
	for key := range twinKeys {
		if in.has(key) && w.floor[key] > in.d.GetGeneration() {
			return
		}
	}
	for v := range victims {
		if v.d.GetGeneration() >= in.d.GetGeneration() {
			return
		}
	}
	if old != nil {
		victims[old] = true
		if old.term > in.term || old.term == in.term && old.leader != 0 {
			in.term, in.leader = old.term, old.leader
		}
	}
	w.list = slices.DeleteFunc(w.list, func(r *twinRange) bool {
		for key := range twinKeys {
			if victims[r] && r.has(key) {
				w.floor[key] = max(w.floor[key], r.d.GetGeneration()+1)
			}
		}
		return victims[r]
	})
	w.list = append(w.list, in)
	slices.SortFunc(w.list, func(a, b *twinRange) int {
		return int(a.d.GetStart()[0]) - int(b.d.GetStart()[0])
	})
}

func (w *twin) show() (s string) {
	for _, r := range w.list {
		s += fmt.Sprintf("r%d[%x,%x)g%d n%d t%d ", r.d.GetRangeId(), r.d.GetStart(), r.d.GetEnd(),
			r.d.GetGeneration(), r.leader, r.term)
	}
	return s
}

func show(ranges []*adminpb.RangeInfo) (s string) {
	for _, r := range ranges {
		d := r.GetDescriptor_()
		s += fmt.Sprintf("r%d[%x,%x)g%d n%d t%d ", d.GetRangeId(), d.GetStart(), d.GetEnd(),
			d.GetGeneration(), r.GetLeaderNode(), r.GetTerm())
	}
	return s
}

// lives lets a keyspace live through splits, merges, replica changes and
// elections, and returns a fact for every state that a leader ever saw. The
// last facts of the ranges that remain describe the truth.
func lives(rng *rand.Rand, steps int) (all []*metapb.RangeFact,
	truth map[uint64]*metapb.RangeFact) {
	truth = make(map[uint64]*metapb.RangeFact)
	var order []uint64 // live ranges by start
	next := uint64(3)
	emit := func(id uint64, start, end byte, gen, term uint64) {
		if old := truth[id]; old == nil || term > old.GetTerm() {
			// a term's leader never changes
			truth[id] = &metapb.RangeFact{LeaderNode: 1 + rng.Uint64N(4), Term: term}
		}
		f := &metapb.RangeFact{LeaderNode: truth[id].GetLeaderNode(), Term: term,
			Descriptor_: &metapb.RangeDescriptor{RangeId: id, Start: []byte{start},
				End: []byte{end}, Generation: gen, Replicas: []*metapb.Replica{
					voter(1+gen%4, gen), voter(1+(gen+1)%4, gen+1), learner(1+(gen+2)%4, gen+2)}}}
		truth[id] = f
		all = append(all, f)
	}
	emit(2, 0x20, 0x20+twinKeys, 1, 1)
	order = append(order, 2)
	for range steps {
		i := rng.IntN(len(order))
		f := truth[order[i]]
		d := f.GetDescriptor_()
		start, end, gen := d.GetStart()[0], d.GetEnd()[0], d.GetGeneration()
		switch rng.IntN(4) {
		case 0: // split
			if end-start < 2 {
				continue
			}
			at := start + 1 + byte(rng.IntN(int(end-start)-1))
			emit(order[i], start, at, gen+1, f.GetTerm())
			emit(next, at, end, gen+1, 1)
			order = slices.Insert(order, i+1, next)
			next++
		case 1: // merge with the right neighbour
			if i+1 == len(order) {
				continue
			}
			right := truth[order[i+1]].GetDescriptor_()
			delete(truth, order[i+1])
			emit(order[i], start, right.GetEnd()[0], max(gen, right.GetGeneration())+1, f.GetTerm())
			order = slices.Delete(order, i+1, i+2)
		case 2: // replicas
			emit(order[i], start, end, gen+1, f.GetTerm())
		case 3: // election
			emit(order[i], start, end, gen, f.GetTerm()+1)
		}
	}
	return all, truth
}

func TestStaleFactsNeverRegressTheDirectory(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 4))
		facts, truth := lives(rng, 60)
		c := newCluster(Config{}.withDefaults(), 0)
		w := &twin{}
		var known [twinKeys]uint64
		deliver := func(f *metapb.RangeFact) {
			c.learn(ids.NodeID(f.GetLeaderNode()), f)
			w.learn(f)
			got := show(listed(c))
			if got != w.show() {
				t.Fatalf("seed %d after %v:\n got %s\nwant %s", seed, f, got, w.show())
			}
			for key := range twinKeys {
				c.dir.overlapped([]byte{byte(key + 0x20)}, []byte{byte(key + 0x21)},
					func(r *rangeState) bool {
						if uint64(r.generation()) < known[key] {
							t.Fatalf("seed %d: key %x fell to %d from %d", seed, key+0x20,
								r.generation(), known[key])
						}
						known[key] = uint64(r.generation())
						return true
					})
			}
		}
		// Facts come late, twice, not at all.
		for i, f := range facts {
			if rng.IntN(3) > 0 {
				deliver(f)
			}
			if rng.IntN(2) == 0 {
				deliver(facts[rng.IntN(i+1)])
			}
			verify(t, c)
		}
		// Whoever leads repeats itself in the end.
		for _, f := range facts {
			if truth[f.GetDescriptor_().GetRangeId()] == f {
				deliver(f)
			}
		}
		for range 20 {
			deliver(facts[rng.IntN(len(facts))])
		}
		verify(t, c)
		if len(c.dir.byID) != len(truth) {
			t.Fatalf("seed %d: %d ranges, want %d: %s", seed, len(c.dir.byID), len(truth),
				show(listed(c)))
		}
		for id, f := range truth {
			r := c.dir.byID[ids.RangeID(id)]
			if r == nil || !proto.Equal(r.desc, f.GetDescriptor_()) ||
				uint64(r.term) != f.GetTerm() {
				t.Fatalf("seed %d: r%d is %v, want %v", seed, id, r, f)
			}
		}
		if c.dir.floors.Len() != 0 || c.dir.seams != len(truth)-1 {
			t.Fatalf("seed %d: %d floors, %d seams", seed, c.dir.floors.Len(), c.dir.seams)
		}
	}
}

func listed(c *cluster) []*adminpb.RangeInfo {
	return (&Driver{cluster: c}).List(&adminpb.ListRangesRequest{}).GetRanges()
}

func TestLookupsGoForwardAndBackward(t *testing.T) {
	t.Parallel()
	c := newCluster(Config{}.withDefaults(), 0)
	d := &Driver{cluster: c}
	c.register(&metapb.NodeDescriptor{NodeId: 1, StoreId: 1}, 1)
	for i := range uint64(5) {
		if i == 3 {
			continue // not known
		}
		c.learn(1, &metapb.RangeFact{Term: 1, Descriptor_: &metapb.RangeDescriptor{
			RangeId: i + 1, Start: []byte{0x20, byte(i * 10)}, End: []byte{0x20, byte(i*10 + 10)},
			Generation: 1, Replicas: []*metapb.Replica{voter(1, 1), voter(9, 2)}}})
	}
	key := func(b byte) []byte { return []byte{0x20, b} }
	for _, q := range []struct {
		r    *adminpb.LookupRequest
		want string
	}{
		{&adminpb.LookupRequest{Start: key(15)}, "2"},
		{&adminpb.LookupRequest{Start: key(20)}, "3"},
		{&adminpb.LookupRequest{Start: key(35)}, ""},
		{&adminpb.LookupRequest{Start: key(15), End: key(60)}, "2 3 5"},
		{&adminpb.LookupRequest{Start: key(15), End: key(20)}, "2"},
		{&adminpb.LookupRequest{Start: key(0), End: key(60), Limit: 2}, "1 2"},
		{&adminpb.LookupRequest{Start: key(20), Reverse: true}, "2"},
		{&adminpb.LookupRequest{Start: key(21), Reverse: true}, "3"},
		{&adminpb.LookupRequest{Start: key(40), Reverse: true}, ""},
		{&adminpb.LookupRequest{Start: key(0), Reverse: true}, ""},
		{&adminpb.LookupRequest{Start: key(60), Reverse: true}, ""},
		{&adminpb.LookupRequest{Start: key(60), End: key(15), Reverse: true}, "5 3 2"},
		{&adminpb.LookupRequest{Start: key(60), End: key(0), Reverse: true, Limit: 2}, "5 3"},
	} {
		reply := d.Lookup(q.r)
		got := ""
		for _, r := range reply.GetRanges() {
			got += fmt.Sprintf(" %d", r.GetDescriptor_().GetRangeId())
		}
		if got != "" {
			got = got[1:]
		}
		if got != q.want || (q.want != "") != (len(reply.GetNodes()) == 1) {
			t.Errorf("%v: got %q with %d nodes, want %q", q.r, got, len(reply.GetNodes()), q.want)
		}
	}
	if d.Range(2).GetLeaderNode() != 1 || d.Range(77) != nil {
		t.Error("range by id")
	}
}
