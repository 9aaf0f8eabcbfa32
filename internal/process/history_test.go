package process

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/flotilla-kv/flotilla/client"
)

// Bounds that keep the verdict on a key cheap. A key that has reached one is not
// used any more; another takes its place.
const (
	maxKeyOps     = 250
	maxKeyUnknown = 6
	checkTimeout  = 60 * time.Second
)

// registers are keys, a few at a time, spread over the key space, on which
// clients act while the history of each is kept.
type registers struct {
	begin time.Time
	slots int
	value atomic.Int64 // values are unique
	mu    sync.Mutex
	keys  []*register
	done  []*register

	acked, refused, unknown, cutReads atomic.Int64
}

// register is the history of one key.
type register struct {
	key     string
	ops     []porcupine.Operation
	unknown int
}

type action struct {
	kind     string // get, put or cas
	old, new string
}

type outcome struct {
	value   string // of a get, or what a refused cas saw; "": absent
	ok      bool   // of a cas
	unknown bool   // of a cas
}

func newRegisters(slots int) *registers {
	r := &registers{begin: time.Now(), slots: slots}
	for i := range slots {
		r.keys = append(r.keys, &register{key: r.key(i, 0)})
	}
	return r
}

// key is the nth key of a slot. Slots lie in different parts of the key space.
func (r *registers) key(slot, nth int) string {
	return fmt.Sprintf("user%04x/%d", slot*0x10000/r.slots, nth)
}

// current is the key of a slot. A full one is put aside first.
func (r *registers) current(slot int) *register {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.keys[slot]
	if len(k.ops) >= maxKeyOps || k.unknown >= maxKeyUnknown {
		r.done = append(r.done, k)
		r.keys[slot] = &register{key: r.key(slot, len(r.done))}
	}
	return r.keys[slot]
}

func (r *registers) now() time.Duration { return time.Since(r.begin) }

// add notes an operation that ended now. A write of which nobody knows whether
// it was done returns at the end of time.
func (r *registers) add(k *register, id int, a action, o outcome, called time.Duration, known bool) {
	op := porcupine.Operation{
		ClientId: id, Input: a, Output: o, Call: int64(called), Return: int64(r.now()),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !known {
		op.Return = math.MaxInt64
		op.ClientId = 1000 + len(k.ops) // who does not know does nothing more under this name
		k.unknown++
	}
	k.ops = append(k.ops, op)
}

// run acts until ctx ends. cut says whether the node that this client is pinned
// to is cut off at the moment.
func (r *registers) run(
	ctx context.Context, cl *client.Client, id int, seed uint64, timeout time.Duration,
	cut func() bool,
) {
	random := rand.New(rand.NewPCG(seed, uint64(id)))
	seen := make([]string, r.slots) // what a cas may expect
	for ctx.Err() == nil {
		slot := random.IntN(r.slots)
		k := r.current(slot)
		a := action{kind: "get"}
		switch x := random.IntN(100); {
		case x < 35:
			a = action{kind: "put", new: fmt.Sprint(r.value.Add(1))}
		case x < 50 && seen[slot] != "":
			a = action{kind: "cas", old: seen[slot], new: fmt.Sprint(r.value.Add(1))}
		}
		call, done := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		called, wasCut := r.now(), cut()
		o, err := act(call, cl, k.key, a)
		done()
		switch {
		case err == nil:
			r.acked.Add(1)
			r.add(k, id, a, o, called, true)
			if seen[slot] = a.new; a.kind == "get" || a.kind == "cas" && !o.ok {
				seen[slot] = o.value
			}
			if a.kind == "get" && wasCut && cut() {
				r.cutReads.Add(1)
			}
		case a.kind == "get" || !errors.Is(err, client.ErrUnknownOutcome) &&
			errors.Is(err, client.ErrUnavailable):
			r.refused.Add(1) // nothing was done and never will be: so the client says
		default:
			r.unknown.Add(1)
			o.unknown = true
			r.add(k, id, a, o, called, false)
		}
		select {
		case <-time.After(time.Duration(5+random.IntN(20)) * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// act does it.
func act(ctx context.Context, cl *client.Client, key string, a action) (o outcome, err error) {
	switch a.kind {
	case "get":
		got, err := cl.Get(ctx, []byte(key))
		if errors.Is(err, client.ErrNotFound) {
			return outcome{}, nil
		}
		return outcome{value: string(got.Value)}, err
	case "put":
		_, err := cl.Put(ctx, []byte(key), []byte(a.new))
		return outcome{}, err
	}
	_, err = cl.CompareAndSwap(ctx, []byte(key), nil, []byte(a.new), client.IfValue([]byte(a.old)))
	var conflict *client.ConflictError
	if errors.As(err, &conflict) && !errors.Is(err, client.ErrUnknownOutcome) {
		return outcome{value: string(conflict.Value)}, nil
	}
	return outcome{ok: true}, err
}

// step returns the states in which a key may be after an operation.
func step(state, in, out any) []any {
	s, a, o := state.(string), in.(action), out.(outcome)
	switch {
	case a.kind == "get" && s == o.value:
		return []any{s}
	case a.kind == "put":
		return []any{a.new}
	case a.kind == "cas" && o.unknown && s == a.old:
		return []any{a.new}
	case a.kind == "cas" && o.unknown:
		return []any{s}
	case a.kind == "cas" && o.ok && s == a.old:
		return []any{a.new}
	case a.kind == "cas" && !o.ok && s != a.old && s == o.value:
		return []any{s}
	}
	return nil
}

// check demands that every history is linearizable; no verdict is a failure.
func (r *registers) check(t *testing.T) {
	t.Helper()
	model := (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{""} }, Step: step,
	}).ToModel()
	all := append(slices.Clone(r.done), r.keys...)
	bad, noVerdict, ops := 0, 0, 0
	for _, k := range all {
		ops += len(k.ops)
		switch porcupine.CheckOperationsTimeout(model, k.ops, checkTimeout) {
		case porcupine.Illegal:
			if bad++; bad == 1 {
				t.Errorf("the history of %q is not linearizable:\n%s", k.key, k.describe())
			}
		case porcupine.Unknown:
			noVerdict++
		case porcupine.Ok:
		}
	}
	t.Logf("histories: %d keys, %d operations (%d acknowledged, %d refused, %d unknown), "+
		"%d not linearizable, %d without a verdict", len(all), ops, r.acked.Load(), r.refused.Load(),
		r.unknown.Load(), bad, noVerdict)
	if bad+noVerdict > 0 {
		t.Errorf("%d histories are not linearizable, %d have no verdict", bad, noVerdict)
	}
}

func (k *register) describe() string {
	ops := slices.Clone(k.ops)
	sort.SliceStable(ops, func(i, j int) bool { return ops[i].Call < ops[j].Call })
	var b strings.Builder
	for _, o := range ops {
		end := "never"
		if o.Return != math.MaxInt64 {
			end = time.Duration(o.Return).String()
		}
		fmt.Fprintf(&b, "  client %-4d %14s … %-14s %+v -> %+v\n",
			o.ClientId, time.Duration(o.Call), end, o.Input, o.Output)
	}
	return b.String()
}

// TestTheCheckerOfHistoriesSeesAStaleRead: a checker that finds nothing proves
// nothing.
func TestTheCheckerOfHistoriesSeesAStaleRead(t *testing.T) {
	t.Parallel()
	op := func(a action, o outcome, from, to int64) porcupine.Operation {
		return porcupine.Operation{Input: a, Output: o, Call: from, Return: to}
	}
	put := func(v string, from, to int64) porcupine.Operation {
		return op(action{kind: "put", new: v}, outcome{}, from, to)
	}
	get := func(v string, from, to int64) porcupine.Operation {
		return op(action{kind: "get"}, outcome{value: v}, from, to)
	}
	cas := func(from, to string, o outcome, at int64) porcupine.Operation {
		return op(action{kind: "cas", old: from, new: to}, o, at, at+1)
	}
	const never = math.MaxInt64
	model := (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{""} }, Step: step,
	}).ToModel()
	for name, x := range map[string]struct {
		ops  []porcupine.Operation
		want bool
	}{
		"in order":                   {[]porcupine.Operation{put("1", 0, 1), get("1", 2, 3)}, true},
		"stale":                      {[]porcupine.Operation{put("1", 0, 1), get("", 2, 3)}, false},
		"at the same time":           {[]porcupine.Operation{put("1", 0, 5), get("", 2, 3)}, true},
		"unknown, seen later":        {[]porcupine.Operation{put("1", 0, never), get("1", 9, 10)}, true},
		"seen, then gone":            {[]porcupine.Operation{put("1", 0, never), get("1", 2, 3), get("", 4, 5)}, false},
		"refused and seen":           {[]porcupine.Operation{get("7", 2, 3)}, false},
		"swapped from another value": {[]porcupine.Operation{put("1", 0, 1), cas("2", "3", outcome{ok: true}, 2)}, false},
		"refused though it matches":  {[]porcupine.Operation{put("1", 0, 1), cas("1", "3", outcome{value: "1"}, 2)}, false},
		"refused as it should be":    {[]porcupine.Operation{put("1", 0, 1), cas("2", "3", outcome{value: "1"}, 2)}, true},
	} {
		if got := porcupine.CheckOperations(model, x.ops); got != x.want {
			t.Errorf("%s: linearizable %v, want %v", name, got, x.want)
		}
	}
}
