package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/ranges"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// lose takes a key out of a node's engine, and nobody sees it.
func (r *running) lose(t *testing.T, key string) {
	t.Helper()
	st := r.n.store
	var version []byte
	eventually(t, "the replica has the key", func(context.Context) error { // it may lag
		it, err := st.State().DB().NewIter(&pebble.IterOptions{
			LowerBound: mvcc.AppendKey(nil, inUsers(key), 0),
			UpperBound: mvcc.AppendKey(nil, inUsers(key+"\x00"), 0),
		})
		if err != nil {
			return err
		}
		if it.First() {
			version = slices.Clone(it.Key())
		} else {
			err = fmt.Errorf("%v has no %s", r.n.self, key)
		}
		return errors.Join(err, it.Close())
	})
	b := st.NewBatch()
	defer b.Close()
	if err := errors.Join(b.Pebble().Delete(version, nil), st.CommitNoSync(b)); err != nil {
		t.Fatal(err)
	}
}

// compared sums up what came of comparisons.
func compared(nodes []*running) (by [ranges.Judgements]uint64, bad uint64) {
	for _, r := range nodes {
		one, wrong := r.n.table.Checks()
		for i := range by {
			by[i] += one[i]
		}
		bad += wrong
	}
	return by, bad
}

// A node's engine loses a write in silence. It is found, stops, and does not start on
// that directory again; the others serve on.
func TestANodeWhoseCopyDivergedStopsAndDoesNotStartAgain(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3)
	nodes[0].healthy(t, 3, 0)
	c, err := client.Open(t.Context(), []string{nodes[0].cfg.Listen})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	put := func(key string) {
		t.Helper()
		if _, err := c.Put(t.Context(), []byte(key), []byte("value")); err != nil {
			t.Fatal(err)
		}
	}
	put("k")
	eventually(t, "the replicas are compared", func(context.Context) error {
		if by, bad := compared(nodes); by[ranges.AllEqual] < 2 || bad != 0 {
			return fmt.Errorf("%v, %d records wrong", by, bad)
		}
		return nil
	})

	// What one node is told does not make it stop: it counts by itself.
	sound := nodes[1]
	if _, err := (&controlService{n: sound.n}).Held(t.Context(),
		&adminpb.HeldRequest{RangeId: 2, Index: 1 << 40, Differs: true}); err != nil {
		t.Fatal(err)
	}

	bad := nodes[2]
	bad.lose(t, "k")
	put("another")
	select {
	case <-bad.ended:
	case <-time.After(time.Minute):
		by, wrong := compared(nodes)
		t.Fatalf("it runs on; comparisons %v, %d records wrong", by, wrong)
	}
	if !errors.Is(bad.err, ErrDiverged) {
		t.Fatalf("it ended with %v", bad.err)
	}
	put("k")
	if by, _ := compared(nodes[:2]); by[ranges.Undecided] != 0 {
		t.Errorf("comparisons: %v", by)
	}
	if _, err := New(bad.cfg); !errors.Is(err, ErrDiverged) {
		t.Fatalf("it starts again: %v", err)
	}
	for _, r := range nodes[:2] {
		select {
		case <-r.ended:
			t.Errorf("%v ended with %v", r.n.self, r.err)
		default:
		}
	}
}
