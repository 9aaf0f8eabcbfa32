package ranges

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// mergeChaos is chaos in which neighbours merge all the time.
func mergeChaos(t *testing.T, seed uint64, steps int) {
	w := threeNodes(t, nil)
	rng := rand.New(rand.NewPCG(seed, 11))
	var clients []*client
	for i := range 4 {
		clients = append(clients, &client{
			w: w, rng: rng, id: uint64(i + 1), wins: map[string]int{},
		})
	}
	loss, ended := 0.0, map[string]int{}
	w.drop = func(_, _ ids.NodeID, _ *multiraft.Message) bool { return rng.Float64() < loss }
	for step := range steps {
		for _, c := range clients {
			c.step()
		}
		for range 1 + rng.IntN(4) {
			w.once()
		}
		if step%3 == 0 {
			w.tickOnly()
		}
		w.restless(rng, step, &loss, ended)
	}
	loss = 0
	for _, n := range w.nodes[1:] {
		if n.down {
			n.restart()
		}
	}
	for range 400 {
		w.tick(1)
		open := 0
		for _, c := range clients {
			if c.swap != nil || c.call != nil {
				open++
				c.stop = true
				c.step()
			}
		}
		if open == 0 {
			break
		}
		w.maintain(1)
	}
	w.clean()
	t.Logf("seed %d: merges %v", seed, ended)
	w.verify(t, seed, clients)
}

// restless does something now and then: what upset does, and splits and merges.
func (w *world) restless(rng *rand.Rand, step int, loss *float64, ended map[string]int) {
	switch rng.IntN(24) {
	case 0, 1, 2, 3, 4, 5:
		w.upset(rng, step, loss)
	case 6, 7, 8, 9, 10:
		w.mergeSome(rng, ended)
	case 11:
		r := w.rangeOf(fmt.Sprintf("c%d", rng.IntN(counters)))
		k := key(fmt.Sprintf("c%d", rng.IntN(counters)))
		if n := w.leads(r); n != nil {
			n.table.Split(r, k, func(_, _ *metapb.RangeDescriptor, _ error) {})
		}
	case 12:
		for _, n := range w.nodes[1:] {
			if n.down {
				n.restart()
			} else {
				n.table.Maintain()
			}
		}
	case 13: // replicas that are on the move get on
		for _, n := range w.nodes[1:] {
			for _, r := range n.table.byKey() {
				d := r.descriptor()
				if !n.down && r.state.Load().leads() && (hasLearner(d) || len(d.GetReplicas()) < 3) {
					w.changeReplicas(rng, n, r.id)
				}
			}
		}
	}
}

// leads returns the node that leads a range now, nil if none.
func (w *world) leads(r ids.RangeID) *node {
	for _, n := range w.nodes[1:] {
		if !n.down && n.table.Leads(r) {
			return n
		}
	}
	return nil
}

// mergeSome begins a merge of some range with its right neighbour, or brings their
// leaders together first.
func (w *world) mergeSome(rng *rand.Rand, ended map[string]int) {
	n := w.nodes[1+rng.IntN(3)]
	if n.down {
		return
	}
	list := n.table.byKey()
	if len(list) < 3 {
		return
	}
	i := 1 + rng.IntN(len(list)-2)
	left, right := list[i], list[i+1]
	if !left.state.Load().leads() {
		return
	}
	if !right.state.Load().leads() {
		if o := w.leads(right.id); o != nil {
			o.table.Order(&metapb.Order{
				RangeId: uint64(right.id), Kind: metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER,
				NodeId: uint64(n.id),
			}, func(error) {})
		}
		return
	}
	n.table.Order(&metapb.Order{
		RangeId: uint64(left.id), OtherRangeId: uint64(right.id),
		Kind: metapb.OrderKind_ORDER_KIND_MERGE,
	}, func(err error) {
		for _, kind := range []error{
			nil, ErrLagging, ErrBusy, ErrRefused, ErrDropped, ErrNotLeader, ErrUnknownOutcome,
			errMergeStuck,
		} {
			if errors.Is(err, kind) {
				ended[fmt.Sprint(kind)]++
			}
		}
	})
}

// Bug class 7 and all others: counters count once while ranges split and merge,
// leaders and replicas move, nodes crash and messages are lost.
func TestCountersCountOnceThroughMerges(t *testing.T) {
	t.Parallel()
	for seed := range uint64(chaosSeeds()) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { mergeChaos(t, seed, 1500) })
	}
}

// mergeNeighbours splits and merges again and again what is led here.
func mergeNeighbours(t *testing.T, table *Table) {
	merged := 0
	for i := 0; merged < 30 && i < 20_000; i++ { // at first nobody leads
		k := key(fmt.Sprintf("k%03d", (i*7)%100))
		var wait sync.WaitGroup
		wait.Add(1)
		d, _, _ := table.Route(k)
		table.Split(ids.RangeID(d.GetRangeId()), k,
			func(_, _ *metapb.RangeDescriptor, _ error) { wait.Done() })
		wait.Wait()
		facts := table.Facts()
		for _, left := range facts {
			for _, right := range facts {
				l, r := left.GetDescriptor_(), right.GetDescriptor_()
				if string(l.GetEnd()) != string(r.GetStart()) {
					continue
				}
				wait.Add(1)
				table.Order(&metapb.Order{
					RangeId: l.GetRangeId(), OtherRangeId: r.GetRangeId(),
					Kind: metapb.OrderKind_ORDER_KIND_MERGE,
				}, func(err error) {
					if err == nil {
						merged++ // one at a time
					}
					wait.Done()
				})
				wait.Wait()
			}
		}
	}
	if merged < 30 {
		t.Errorf("only %d merges", merged)
	}
}
