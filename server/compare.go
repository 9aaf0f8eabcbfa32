package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/ranges"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// Replicas are compared in two steps. The node that leads a range fetches what the
// others held and counts. If it finds that one of them is wrong it tells that one, which
// does not believe it: it fetches and counts by itself, and stops only if by its own
// count most voters hold something else. So no message stops a node that is right.
//
// It stops at once, without handing leaders over, and its data directory is marked: what
// it holds cannot be trusted, and a supervisor that starts it again would only have it
// serve wrong data until the next comparison. Rejected: to remove the one replica and to
// go on. What damaged it, a bug, memory or a disk, is not known, and is still there.

const (
	// compareTimeout is how long the others are given to apply and read the range, and
	// compareEvery how often they are asked.
	compareTimeout = 10 * time.Second
	compareEvery   = 500 * time.Millisecond
	// maxCompares bounds the comparisons that wait; more are dropped, and counted as
	// ones that nobody answered.
	maxCompares = 16

	divergedRecord = "diverged"
)

// ErrDiverged says that this node's copy of a range is not what most of the others hold.
var ErrDiverged = errors.New("the data of this node has diverged from that of the other nodes")

// comparison is one that waits.
type comparison struct {
	ranges.Comparison
	led bool // by this node
}

// comparer compares what replicas held, one range after the other.
type comparer struct {
	n    *node
	wake chan struct{}

	mu    sync.Mutex
	queue []comparison
}

func newComparer(n *node) *comparer {
	return &comparer{n: n, wake: make(chan struct{}, wakeSlots)}
}

// lead takes a comparison of a range that this node leads. Any goroutine, never blocks.
func (c *comparer) lead(x ranges.Comparison) { c.add(comparison{x, true}) }

func (c *comparer) add(x comparison) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) >= maxCompares {
		if x.led {
			c.n.table.Judged(ranges.Judgement{Result: ranges.SomeEqual})
		}
		return
	}
	c.queue = append(c.queue, x)
	wake(c.wake)
}

func (c *comparer) take() (comparison, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return comparison{}, false
	}
	x := c.queue[0]
	c.queue = slices.Delete(c.queue, 0, 1)
	return x, true
}

// run compares until ctx ends, or this node is wrong: that is its error.
func (c *comparer) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
		for x, ok := c.take(); ok; x, ok = c.take() {
			held := c.fetch(ctx, &x)
			if ctx.Err() != nil {
				return nil
			}
			if err := c.judge(ctx, &x, held); err != nil {
				return err
			}
		}
	}
}

// fetch asks the other replicas' nodes what they held, until all have answered or the
// time is over.
func (c *comparer) fetch(ctx context.Context, x *comparison) map[ids.NodeID]mvcc.Delta {
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	held := map[ids.NodeID]mvcc.Delta{c.n.self: x.Own.Data}
	for {
		for _, r := range x.Replicas {
			at := ids.NodeID(r.GetNodeId())
			if _, ok := held[at]; ok {
				continue
			}
			if reply, err := c.ask(ctx, at, x, false); err == nil && reply.GetKnown() {
				held[at] = mvcc.Delta{
					Stats:       mvcc.StatsFromProto(reply.GetStats()),
					Fingerprint: reply.GetFingerprint(),
				}
			}
		}
		if len(held) == len(x.Replicas) || ctx.Err() != nil {
			return held
		}
		pause(ctx, compareEvery)
	}
}

func (c *comparer) ask(
	ctx context.Context, at ids.NodeID, x *comparison, differs bool,
) (*adminpb.HeldReply, error) {
	control, _, err := c.n.transport.Control(at)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, hopTimeout)
	defer cancel()
	return control.Held(ctx, &adminpb.HeldRequest{
		RangeId: uint64(x.Range), Index: uint64(x.Index), Differs: differs,
	})
}

// judge counts, says what is wrong, and returns an error if this node is.
func (c *comparer) judge(
	ctx context.Context, x *comparison, held map[ids.NodeID]mvcc.Delta,
) error {
	n, j := c.n, x.Judge(held)
	if x.led {
		n.table.Judged(j)
	}
	if j.Result != ranges.Different && j.Result != ranges.Undecided {
		return nil
	}
	for _, r := range x.Replicas {
		at := ids.NodeID(r.GetNodeId())
		if d, ok := held[at]; ok {
			n.cfg.Logger.Error("the replicas of a range differ", "range", x.Range, "index", x.Index,
				"node", at, "wrong", slices.Contains(j.Wrong, at), "holds", ranges.SumWords(d))
		}
	}
	if slices.Contains(j.Wrong, n.self) {
		return n.diverged(x, j.Right)
	}
	for _, at := range j.Wrong {
		if _, err := c.ask(ctx, at, x, true); err != nil {
			n.cfg.Logger.Warn("a node was not told that it differs; the next comparison will",
				"node", at, "error", err)
		}
	}
	return nil
}

// diverged marks the directory and returns why the node stops.
func (n *node) diverged(x *comparison, right mvcc.Delta) error {
	why := fmt.Sprintf("at index %d of %v %v holds %s, and most of its replicas hold %s",
		x.Index, x.Range, n.self, ranges.SumWords(x.Own.Data), ranges.SumWords(right))
	b := n.store.NewBatch()
	defer b.Close()
	err := n.store.State().PutLocal(b, divergedRecord, []byte(why))
	if err == nil {
		var pending *store.PendingSync
		if pending, err = n.store.CommitSync(b); err == nil {
			err = pending.Wait()
		}
	}
	if err != nil {
		err = fmt.Errorf("mark the data directory: %w", err)
	}
	return errors.Join(fmt.Errorf("%w: %s: %s", ErrDiverged, why, divergedRemedy(n.self)), err)
}

func divergedRemedy(self ids.NodeID) string {
	return fmt.Sprintf("keep the directory for who looks into it, decommission %v, and start a "+
		"new node with an empty --data", self)
}

// checkDiverged refuses the directory of a node that has stopped so.
func checkDiverged(cfg Config, st *store.Store) error {
	why, err := st.State().GetLocal(divergedRecord)
	if err != nil {
		return fmt.Errorf("read whether the data of %q has diverged: %w", cfg.Data, err)
	}
	if why == nil {
		return nil
	}
	return fmt.Errorf("data directory %q: %w: %s: %s", cfg.Data, ErrDiverged, why,
		divergedRemedy(st.Identity().Record().Node))
}

// Held answers what this node's replica of a range held at an index.
func (c *controlService) Held(
	_ context.Context, r *adminpb.HeldRequest,
) (*adminpb.HeldReply, error) {
	x, known := c.n.table.Comparison(ids.RangeID(r.GetRangeId()), ids.Index(r.GetIndex()))
	if !known {
		return &adminpb.HeldReply{}, nil
	}
	if r.GetDiffers() {
		c.n.comparer.add(comparison{Comparison: x})
	}
	return &adminpb.HeldReply{
		Known: true, Fingerprint: x.Own.Data.Fingerprint, Stats: x.Own.Data.Stats.Proto(),
	}, nil
}

// comparisons sends what has come of comparing replicas.
func (e emitter) comparisons(t *ranges.Table) {
	by, bad := t.Checks()
	for i, count := range by {
		e.labelled("replica_comparisons_total",
			"Comparisons of a range's replicas that this node has led. different and undecided "+
				"mean that data is wrong somewhere; incomplete, that a replica gave no answer.",
			prometheus.CounterValue, float64(count), []string{"result"}, ranges.Result(i).String())
	}
	e.total("replica_records_wrong",
		"Ranges that this node read and whose statistics said something else.", bad)
}
