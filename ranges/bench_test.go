package ranges

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/flotilla-kv/flotilla/proto/kv"
)

// BenchmarkPutOneNode measures what one put costs from Submit to its answer:
// look-up, evaluation, proposal, log, apply. inflight is how many are on their
// way at once, which decides how many share an entry and a sync.
func BenchmarkPutOneNode(b *testing.B) {
	for _, inflight := range []int{1, 32, 256} {
		b.Run(fmt.Sprint("inflight=", inflight), func(b *testing.B) {
			w := oneNode(b, nil)
			n := w.nodes[1]
			value := make([]byte, 100)
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += inflight {
				answered := 0
				for j := range inflight {
					n.table.Submit(&kv.Request{
						Verb: kv.VerbPut, Key: key(fmt.Sprint("k", (i+j)%100_000)),
						Value: value, Identity: n.identity(),
					}, func(r *kv.Response) {
						if r.Code == kv.CodeOK {
							answered++
						}
					})
				}
				w.settle()
				if answered != inflight {
					b.Fatalf("%d of %d were answered", answered, inflight)
				}
			}
		})
	}
}

// BenchmarkGetOneNode measures a get with a ReadIndex, in batches.
func BenchmarkGetOneNode(b *testing.B) {
	const inflight = 32
	w := oneNode(b, nil)
	n := w.nodes[1]
	n.put("k", "v")
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += inflight {
		for range inflight {
			n.table.Submit(&kv.Request{Verb: kv.VerbGet, Key: key("k")}, func(*kv.Response) {})
		}
		w.settle()
	}
}

// BenchmarkLeaseGet measures a get that a lease allows, on its caller's
// goroutine: one at a time, and in frames; without and with the cache of hot
// rows, uniform and skewed.
func BenchmarkLeaseGet(b *testing.B) {
	const keys = 100_000
	for _, cache := range []int64{0, 64 << 20} {
		w := oneNode(b, func(c *Config) { c.RowCacheBytes = cache })
		w.lease = leased
		n := w.nodes[1]
		defer n.table.Close()
		for i := range keys {
			n.table.Submit(&kv.Request{
				Verb: kv.VerbPut, Key: key(fmt.Sprintf("user%08d", i)),
				Value: make([]byte, 100), Identity: n.identity(),
			}, func(*kv.Response) {})
			if i%1000 == 0 {
				w.settle()
			}
		}
		w.settle()
		rnd := rand.New(rand.NewPCG(1, 2))
		skewed := rand.NewZipf(rnd, 1.1, 1, keys-1)
		draws := map[string]func() uint64{
			"uniform": func() uint64 { return rnd.Uint64N(keys) }, "zipf": skewed.Uint64,
		}
		for _, draw := range []string{"uniform", "zipf"} {
			for _, frame := range []int{1, 8, 32} {
				name := fmt.Sprintf("cache=%dMiB/%s/frame=%d", cache>>20, draw, frame)
				b.Run(name, func(b *testing.B) { benchGets(b, n, draws[draw], frame) })
			}
		}
	}
}

func benchGets(b *testing.B, n *node, draw func() uint64, frame int) {
	calls := make([]Call, frame)
	answered := 0
	done := func(r *kv.Response) {
		if r.Code == kv.CodeOK && r.Found {
			answered++
		}
	}
	reqs := make([]kv.Request, 1<<16)
	for i := range reqs {
		reqs[i] = kv.Request{Verb: kv.VerbGet, Key: key(fmt.Sprintf("user%08d", draw()))}
	}
	before := n.table.RowCache()
	b.ReportAllocs()
	b.ResetTimer()
	total := 0
	for ; total < b.N; total += frame {
		for i := range calls {
			calls[i] = Call{&reqs[(total+i)%len(reqs)], done}
		}
		n.table.SubmitBatch(calls)
	}
	if answered != total {
		b.Fatalf("%d of %d were answered", answered, total)
	}
	if s := n.table.RowCache(); s.Hits+s.Misses > before.Hits+before.Misses {
		hits := s.Hits - before.Hits
		b.ReportMetric(100*float64(hits)/float64(hits+s.Misses-before.Misses), "%hits")
	}
}
