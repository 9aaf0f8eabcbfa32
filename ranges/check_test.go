package ranges

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// compared are the comparisons that nodes have led, in order.
type compared struct{ list []Comparison }

// comparing is a cluster of three that compares one range a second.
func comparing(t testing.TB) (w *world, led *compared) {
	led = &compared{}
	w = threeNodes(t, func(c *Config) {
		c.CheckEvery = time.Second
		c.Compare = func(x Comparison) { led.list = append(led.list, x) }
	})
	w.maintain(10) // what bootstrapping wrote
	led.list = nil
	return w, led
}

// held is what all nodes say they held.
func (w *world) held(c *Comparison) map[ids.NodeID]mvcc.Delta {
	held := map[ids.NodeID]mvcc.Delta{}
	for _, n := range w.nodes[1:] {
		if x, ok := n.table.Comparison(c.Range, c.Index); ok {
			held[n.id] = x.Own.Data
		}
	}
	return held
}

// lose takes the newest version of a key out of a node's engine, and nobody sees it.
func (n *node) lose(k string) {
	t := n.w.t
	t.Helper()
	it, err := n.store.State().DB().NewIter(&pebble.IterOptions{
		LowerBound: mvcc.AppendKey(nil, key(k), 0), UpperBound: mvcc.AppendKey(nil, key(k+"\x00"), 0),
	})
	must(t, err)
	if !it.First() {
		t.Fatalf("%v has no %s", n.id, k)
	}
	b := n.store.NewBatch()
	must(t, b.Pebble().Delete(it.Key(), nil))
	must(t, it.Close())
	must(t, n.store.CommitNoSync(b))
	b.Close()
}

func TestReplicasAreComparedAtOneIndexHoweverFarTheyHaveComeSince(t *testing.T) {
	t.Parallel()
	w, led := comparing(t)
	l := w.leader(2)
	for i := range 20 {
		l.put(fmt.Sprint("k", i), "value")
	}
	for _, n := range w.nodes[1:] {
		n.holdJobs = true
	}
	w.maintain(1)
	for i := range 20 { // the jobs have not begun to read
		l.put(fmt.Sprint("k", i), "newer")
	}
	if len(led.list) != 0 {
		t.Fatal("compared what was not read")
	}
	for _, n := range w.nodes[1:] {
		n.holdJobs = false
	}
	w.settle()
	if len(led.list) != 1 {
		t.Fatalf("%d comparisons", len(led.list))
	}
	c := &led.list[0]
	held := w.held(c)
	if j := c.Judge(held); len(held) != 3 || j.Result != AllEqual {
		t.Fatalf("of %v: %+v", held, j)
	}
	if c.Own.Data != c.Own.Recorded || c.Own.Data.Stats.Versions != 20 {
		t.Fatalf("read %s, recorded %s", SumWords(c.Own.Data), SumWords(c.Own.Recorded))
	}
}

// A range that nobody writes to is not read, whatever else happens to it.
func TestARangeAtRestIsComparedOnce(t *testing.T) {
	t.Parallel()
	w, led := comparing(t)
	w.leader(2).put("k", "v")
	w.maintain(5)
	if len(led.list) != 1 || led.list[0].Range != 2 {
		t.Fatalf("after one write: %v", led.list)
	}
	w.transfer(2, w.leader(2).id%3+1)
	w.leader(2).get("k")
	w.maintain(10)
	if len(led.list) != 1 {
		t.Fatalf("without another write: %v", led.list)
	}
	w.split(2, "m")
	w.tick(3)
	w.leader(2).put("a", "v")
	w.maintain(10)
	if n := len(led.list); n < 2 || n > 3 {
		t.Fatalf("after a split and a write: %v", led.list)
	}
}

func TestAReplicaThatLostAWriteInSilenceIsFound(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"leader", "follower"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			w, led := comparing(t)
			l := w.leader(2)
			l.put("k", "v")
			l.put("k", "newer")
			w.maintain(3)
			w.tick(2)
			bad := l
			if who == "follower" {
				bad = w.nodes[l.id%3+1]
			}
			bad.lose("k")
			led.list = nil
			l.put("other", "v")
			w.maintain(2)
			w.tick(2) // the others hear that the note is committed
			if len(led.list) != 1 {
				t.Fatalf("%d comparisons", len(led.list))
			}
			c := &led.list[0]
			j := c.Judge(w.held(c))
			if j.Result != Different || !slices.Equal(j.Wrong, []ids.NodeID{bad.id}) {
				t.Fatalf("%+v, wrong is %v", j, bad.id)
			}
			own, _ := bad.table.Comparison(c.Range, c.Index)
			if own.Judge(w.held(c)).Result != Different || own.Own.Data == j.Right {
				t.Fatal("by its own count it is right")
			}
			if _, wrong := bad.table.Checks(); wrong != 1 {
				t.Fatalf("it found %d times that its record is wrong", wrong)
			}
		})
	}
}

func TestABusyNodeDoesNotReadMoreForComparisonsThanItMay(t *testing.T) {
	t.Parallel()
	w, led := comparing(t)
	for _, k := range []string{"d", "h", "p"} {
		w.split(w.leaderOf("z"), k)
		w.tick(3)
	}
	busy := w.nodes[w.leader(2).id%3+1]
	busy.holdJobs = true
	for _, k := range []string{"a", "e", "i", "q"} {
		w.leader(2).put(k, "v")
	}
	w.maintain(8)
	w.tick(2)
	busy.holdJobs = false
	w.settle()
	answered := 0
	for i := range led.list {
		if _, ok := busy.table.Comparison(led.list[i].Range, led.list[i].Index); ok {
			answered++
		}
		if j := led.list[i].Judge(w.held(&led.list[i])); j.Result > SomeEqual {
			t.Errorf("%+v", j)
		}
	}
	if len(led.list) < 4 || answered != maxSums {
		t.Fatalf("%d of %d comparisons were answered", answered, len(led.list))
	}
}

func TestMostVotersAreRightAndNobodyElseIs(t *testing.T) {
	t.Parallel()
	const v, l = roleVoter, roleLearner
	a, b, c := mvcc.Delta{Fingerprint: 1}, mvcc.Delta{Fingerprint: 2}, mvcc.Delta{Fingerprint: 3}
	same := mvcc.Delta{Fingerprint: 1, Stats: mvcc.Stats{Versions: 1}}
	type held = map[ids.NodeID]mvcc.Delta
	type roles = []metapb.ReplicaRole
	type nodes = []ids.NodeID
	three := roles{v, v, v}
	for name, x := range map[string]struct {
		roles roles
		held  held
		want  Result
		wrong nodes
	}{
		"alone":                     {roles{v}, held{1: a}, AllEqual, nil},
		"all equal":                 {three, held{1: a, 2: a, 3: a}, AllEqual, nil},
		"one is silent":             {three, held{1: a, 3: a}, SomeEqual, nil},
		"two are silent":            {three, held{1: a}, SomeEqual, nil},
		"one differs":               {three, held{1: a, 2: b, 3: a}, Different, nodes{2}},
		"the first differs":         {three, held{1: b, 2: a, 3: a}, Different, nodes{1}},
		"two of three, and differ":  {three, held{1: a, 2: b}, Undecided, nil},
		"all differ":                {three, held{1: a, 2: b, 3: c}, Undecided, nil},
		"two voters, and differ":    {roles{v, v}, held{1: a, 2: b}, Undecided, nil},
		"equal but for its numbers": {three, held{1: a, 2: a, 3: same}, Different, nodes{3}},
		"a learner differs": {
			roles{v, v, v, l}, held{1: a, 2: a, 3: a, 4: b}, Different, nodes{4},
		},
		"learners do not vote": {
			roles{v, v, v, l, l}, held{1: a, 4: b, 5: b}, SomeEqual, nil,
		},
		"two of five differ": {
			roles{v, v, v, v, v}, held{1: a, 2: b, 3: a, 4: c, 5: a}, Different, nodes{2, 4},
		},
	} {
		c := Comparison{Range: 2, Index: 9}
		for i, role := range x.roles {
			c.Replicas = append(c.Replicas, &metapb.Replica{
				NodeId: uint64(i + 1), ReplicaId: uint64(i + 10), Role: role,
			})
		}
		j := c.Judge(x.held)
		if j.Result != x.want || !slices.Equal(j.Wrong, x.wrong) {
			t.Errorf("%s: %v, wrong are %v; want %v, %v", name, j.Result, j.Wrong, x.want, x.wrong)
		}
	}
}
