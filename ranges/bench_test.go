package ranges

import (
	"fmt"
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
