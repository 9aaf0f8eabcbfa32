package core

import (
	"fmt"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// A client that knows nothing asks for a key of each of many ranges at once. All but a
// few wait until a lookup is free, a third of them not long enough. The others are
// served, by about as many lookups as the answers have room for.
func TestManyRangesAskedForAtOnceShareTheLookups(t *testing.T) {
	t.Parallel()
	const ranges = 4096
	w := newWorld(t, 1, 3)
	for i := range ranges {
		w.cluster.Split(key(fmt.Sprintf("k%05d", i)))
	}
	u := w.newUser(1)
	counted := &lookupCounter{user: u}
	u.core.effects = counted
	codes := make(map[kv.Code]int)
	for _, i := range w.rng.Perm(ranges) {
		var deadline time.Duration
		if i%3 == 0 {
			deadline = time.Microsecond // less than any message takes
		}
		u.call(get(fmt.Sprintf("k%05d", i)), deadline, func(r *kv.Response) { codes[r.Code]++ })
	}
	w.run(10*time.Second, nil)
	late := (ranges + 2) / 3
	if codes[kv.CodeUnavailable] != late || codes[kv.CodeNotFound] != ranges-late {
		t.Errorf("verdicts %v, not %d in time and %d too late", codes, ranges-late, late)
	}
	if most := 4 * ranges / lookupRanges; counted.lookups > most {
		t.Errorf("%d lookups, more than %d", counted.lookups, most)
	}
	if n := len(u.core.timers); n != 0 || u.core.queued.first != nil || len(u.core.lookups) != 0 {
		t.Errorf("%d timers and %d lookups are left", n, len(u.core.lookups))
	}
}

// lookupCounter counts what a user looks up.
type lookupCounter struct {
	*user
	lookups int
}

func (l *lookupCounter) Lookup(token uint64, r *adminpb.LookupRequest) {
	l.lookups++
	l.user.Lookup(token, r)
}

// The cost of a call must not depend on how many others wait for a lookup, whether it
// is served or ends there.
func BenchmarkCallsThatWaitForALookup(b *testing.B) {
	for _, waiting := range []int{1 << 10, 1 << 14, 1 << 16} {
		b.Run(fmt.Sprint(waiting), func(b *testing.B) {
			keys := make([][]byte, waiting+1)
			for i := range keys {
				keys[i] = key(fmt.Sprintf("k%06d", i))
			}
			for b.Loop() {
				askAll(b, keys)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*waiting), "ns/call")
		})
	}
}

// askAll asks for every key but the last, each in a range of its own; every second call
// is cancelled.
func askAll(b *testing.B, keys [][]byte) {
	e := &askEffects{}
	c := New(Config{Client: 1, Random: func() uint64 { return 7 }}, e)
	calls := make([]Call, len(keys)-1)
	answered := 0
	for i := range calls {
		calls[i] = Call{
			Request: kv.Request{Verb: kv.VerbGet, Key: keys[i]},
			Done:    func(*kv.Response) { answered++ },
		}
		c.Start(1, &calls[i])
	}
	for i := 0; i < len(calls); i += 2 {
		c.Cancel(2, &calls[i])
	}
	for len(e.tokens) > 0 {
		token, first := e.tokens[0], e.first[0]
		e.tokens, e.first = e.tokens[1:], e.first[1:]
		r := &adminpb.LookupReply{}
		var at int
		_, _ = fmt.Sscanf(string(first[2:]), "%d", &at)
		for i := at; i < min(at+lookupRanges, len(keys)-1); i++ {
			r.Ranges = append(r.Ranges, &adminpb.RangeInfo{
				Descriptor_: &metapb.RangeDescriptor{
					RangeId: uint64(i + 1), Generation: 1, Start: keys[i], End: keys[i+1],
					Replicas: []*metapb.Replica{{NodeId: 1, ReplicaId: 1}},
				}, LeaderNode: 1,
			})
		}
		c.LookupDone(3, token, r, nil)
		for _, id := range e.sent {
			c.Response(4, 1, &kv.Response{ID: id})
		}
		e.sent = e.sent[:0]
	}
	if answered != len(calls) {
		b.Fatalf("%d of %d calls ended", answered, len(calls))
	}
}

// askEffects keeps what is to be answered.
type askEffects struct {
	tokens []uint64
	first  [][]byte
	sent   []uint64
}

func (e *askEffects) Send(_ ids.NodeID, r *kv.Request) { e.sent = append(e.sent, r.ID) }
func (e *askEffects) Lookup(token uint64, r *adminpb.LookupRequest) {
	e.tokens, e.first = append(e.tokens, token), append(e.first, r.GetStart())
}
