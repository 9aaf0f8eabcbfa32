package sim

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const (
	// maxRunning is how many running operators are looked at, maxEnded how many of
	// those that ended since the last look.
	maxRunning = 10_000
	maxEnded   = 512
	// shown is how many operators of a kind a trace tells in full.
	shown = 3
)

// watcher follows the operators of the driver, through what the driver tells
// people about them.
type watcher struct {
	begun map[uint64]*adminpb.Operator // that run, by id; of this tenure
	last  uint64                       // the highest id seen, of this tenure
	ended uint64                       // the newest that ended, of this tenure

	kinds  map[string]*kindCount // since the last mark
	events []event               // not yet shown
	jumped int                   // repairs that began before more urgent ones
}

type kindCount struct{ begun, failed int }

type event struct {
	at         time.Duration
	kind, text string
}

func (t *watcher) reset() {
	t.begun = make(map[uint64]*adminpb.Operator)
	t.kinds = make(map[string]*kindCount)
}

// tenure forgets the operators of a driver that is not one any more.
func (t *watcher) tenure() {
	t.begun = make(map[uint64]*adminpb.Operator)
	t.last, t.ended = 0, 0
}

func (t *watcher) mark() {
	t.kinds, t.jumped = make(map[string]*kindCount), 0
}

func (t *watcher) running() int { return len(t.begun) }

func (t *watcher) kind(name string) *kindCount {
	if t.kinds[name] == nil {
		t.kinds[name] = &kindCount{}
	}
	return t.kinds[name]
}

// observe takes over what the driver's operators have done since the last look.
func (w *World) observe() {
	d, t := w.driving(), &w.watch
	if d == nil || !d.Active() {
		return
	}
	runs := d.Operators(&adminpb.OperatorsRequest{Limit: maxRunning}).GetOperators()
	history := &adminpb.OperatorsRequest{History: true, Limit: 1}
	newest := d.Operators(history).GetOperators()
	var ended []*adminpb.Operator
	if len(newest) > 0 && newest[0].GetId() != t.ended {
		history.Limit = maxEnded
		for _, op := range d.Operators(history).GetOperators() {
			if op.GetId() == t.ended {
				break
			}
			ended = append(ended, op)
		}
		t.ended = newest[0].GetId()
	}
	slices.Reverse(ended)
	fresh := slices.Concat(ended, runs)
	fresh = slices.DeleteFunc(fresh, func(op *adminpb.Operator) bool {
		return op.GetId() <= t.last
	})
	slices.SortFunc(fresh, func(a, b *adminpb.Operator) int {
		return cmp.Compare(a.GetId(), b.GetId())
	})
	for _, op := range fresh {
		t.last = op.GetId()
		t.begun[op.GetId()] = op
		t.kind(op.GetKind()).begun++
		w.urgent(op)
		t.events = append(t.events, event{w.now, op.GetKind(), fmt.Sprintf("r%d %s (%s)",
			op.GetRangeId(), op.GetReason(), strings.Join(op.GetSteps(), "; "))})
	}
	for _, op := range ended {
		if _, ok := t.begun[op.GetId()]; !ok {
			continue
		}
		delete(t.begun, op.GetId())
		outcome := op.GetOutcome()
		if outcome == "failed" {
			t.kind(op.GetKind()).failed++
		}
		if outcome != "done" {
			t.events = append(t.events, event{w.now, op.GetKind() + " " + outcome,
				fmt.Sprintf("r%d %s", op.GetRangeId(), op.GetError())})
		}
	}
}

// urgent counts a repair that began although a range that survives fewer failures
// waits for its own.
func (w *World) urgent(op *adminpb.Operator) {
	r := w.ranges[ids.RangeID(op.GetRangeId())]
	if op.GetKind() != "repair" || r == nil {
		return
	}
	busy := make(map[uint64]bool)
	for _, o := range w.watch.begun { // order-free: a set
		busy[o.GetRangeId()] = true
	}
	for _, o := range w.ranges { // order-free: whether there is any
		lost := slices.ContainsFunc(o.desc.GetReplicas(), w.deadReplica)
		if lost && !busy[uint64(o.id)] && o.leader != 0 &&
			w.survives(o.desc, w.up) < w.survives(r.desc, w.up) {
			w.watch.jumped++
			return
		}
	}
}

// deadReplica says whether the node of a copy has been down for so long that the
// copy is to be replaced.
func (w *World) deadReplica(p *metapb.Replica) bool {
	n := w.node(ids.NodeID(p.GetNodeId()))
	return !n.up && w.now-n.died > w.cfg.DeadAfter
}

// trace returns what placement decided since it was last asked: a few operators of
// each kind in full, then how many there were.
func (w *World) trace() string {
	var out strings.Builder
	told := make(map[string]int)
	for _, e := range w.watch.events {
		if told[e.kind]++; told[e.kind] <= shown {
			fmt.Fprintf(&out, "%s %s: %s\n", clock(e.at), e.kind, e.text)
		}
	}
	w.watch.events = nil
	for _, kind := range slices.Sorted(maps.Keys(told)) {
		if told[kind] > shown {
			fmt.Fprintf(&out, "        %s: %d more\n", kind, told[kind]-shown)
		}
	}
	return out.String()
}

// summary tells what was done since the last mark, beside what had to be.
func (w *World) summary() string {
	var parts []string
	add := func(n int, format string, args ...any) {
		if n != 0 {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	t, l := &w.tally, w.least
	add(t.moves+l.moves, "%d copies moved (least %d)", t.moves, l.moves)
	add(int(t.bytes)+int(l.bytes), "%s moved (least %s)", size(t.bytes), size(l.bytes))
	add(t.transfers()+l.transfers, "%d leaders moved (least %d)", t.transfers(), l.transfers)
	add(t.splits, "%d splits", t.splits)
	add(t.merges, "%d merges", t.merges)
	add(t.receiving, "at most %d snapshots at a time to a node", t.receiving)
	if len(parts) == 0 {
		return "nothing was moved"
	}
	return strings.Join(parts, ", ")
}

// table shows every node.
func (w *World) table(out io.Writer) {
	for _, n := range w.nodes {
		state := "up"
		if !n.up {
			state = "down"
		}
		if s := w.standing[n.id]; s != 0 {
			state += " " + strings.ToLower(strings.TrimPrefix(s.String(), "NODE_STANDING_"))
		}
		place := strings.Join(n.labels, ",")
		fmt.Fprintf(out, "%-4v %-22s %3d leaders %4d copies %10s  %.1f of %.0f cores  %s\n", n.id, place,
			len(n.leads), len(n.holds), size(n.bytes), n.cpu/microsPerCore, n.spec.Cores, state)
	}
}

// clock shows a virtual time.
func clock(d time.Duration) string {
	return fmt.Sprintf("%d:%02d:%02d", d/time.Hour, d%time.Hour/time.Minute, d%time.Minute/time.Second)
}

// size shows bytes as people read them.
func size(n int64) string {
	switch {
	case n >= gib:
		return fmt.Sprintf("%.1f GiB", float64(n)/float64(gib))
	case n >= mib:
		return fmt.Sprintf("%.1f MiB", float64(n)/float64(mib))
	default:
		return fmt.Sprintf("%d KiB", n/kib)
	}
}
