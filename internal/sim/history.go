package sim

import (
	"fmt"
	"math"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// opKind is a kind of register operation.
type opKind uint8

const (
	opRead opKind = iota
	opWrite
	opDelete
	opCAS // expects Old, writes New
)

// input and output of one register operation; "" is the absent value.
type registerInput struct {
	kind     opKind
	old, new string
}

type registerOutput struct {
	value   string // read; what a failed compare saw
	ok      bool   // compare-and-swap
	unknown bool
}

// register is the strict model of one key. A compare-and-swap whose outcome is
// unknown may have failed without effect.
func register() porcupine.Model {
	model := porcupine.NondeterministicModel{
		Init: func() []any { return []any{""} },
		Step: stepRegister,
		DescribeOperation: func(in, out any) string {
			return fmt.Sprintf("%v -> %v", in, out)
		},
	}
	return model.ToModel()
}

// stepRegister returns the states that a register may have after an operation.
func stepRegister(state, in, out any) []any {
	s, i, o := state.(string), in.(registerInput), out.(registerOutput)
	switch {
	case i.kind == opRead:
		if s == o.value {
			return []any{s}
		}
		return nil
	case i.kind == opWrite:
		return []any{i.new}
	case i.kind == opDelete:
		return []any{""}
	case o.unknown && s == i.old:
		return []any{i.new}
	case o.unknown:
		return []any{s}
	case o.ok && s == i.old:
		return []any{i.new}
	case !o.ok && s != i.old && s == o.value:
		return []any{s}
	}
	return nil
}

// history collects register operations by key.
type history struct {
	ops     map[string][]porcupine.Operation
	unknown map[string]int
}

// Bounds that keep the checker's verdict cheap: a key with more is not used any more.
const (
	maxKeyOps     = 250
	maxKeyUnknown = 6
)

func newHistory() *history {
	return &history{ops: map[string][]porcupine.Operation{}, unknown: map[string]int{}}
}

// full says that a key has as many operations as the checker can take.
func (h *history) full(key string) bool {
	return len(h.ops[key]) >= maxKeyOps || h.unknown[key] >= maxKeyUnknown
}

// add records an operation. An unknown write returns at the end of time.
func (h *history) add(
	client int, key string, in registerInput, out registerOutput, start, end time.Duration,
) {
	op := porcupine.Operation{
		ClientId: client, Input: in, Output: out, Call: int64(start), Return: int64(end),
	}
	if out.unknown {
		if in.kind == opRead {
			return
		}
		op.Return = math.MaxInt64
		op.ClientId = 1000 + len(h.ops[key]) // a client with an unknown outcome is gone
		h.unknown[key]++
	}
	h.ops[key] = append(h.ops[key], op)
}

// check returns the first key whose history is not linearizable.
func (h *history) check() error {
	keys := make([]string, 0, len(h.ops))
	for k := range h.ops {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	model := register()
	for _, k := range keys {
		switch porcupine.CheckOperationsTimeout(model, h.ops[k], 20*time.Second) {
		case porcupine.Illegal:
			return fmt.Errorf("history of %q is not linearizable:\n%s", k, h.describe(k))
		case porcupine.Unknown:
			return fmt.Errorf("history of %q: no verdict (%d operations, %d unknown)",
				k, len(h.ops[k]), h.unknown[k])
		case porcupine.Ok:
		}
	}
	return nil
}

func (h *history) describe(key string) string {
	ops := append([]porcupine.Operation(nil), h.ops[key]...)
	sort.SliceStable(ops, func(i, j int) bool { return ops[i].Call < ops[j].Call })
	out := ""
	names := [...]string{"read", "write", "delete", "cas"}
	for _, o := range ops {
		in, res := o.Input.(registerInput), o.Output.(registerOutput)
		end := "∞"
		if o.Return != math.MaxInt64 {
			end = time.Duration(o.Return).String()
		}
		out += fmt.Sprintf("  c%-4d %14s … %-14s %s old=%q new=%q -> value=%q ok=%v unknown=%v\n",
			o.ClientId, time.Duration(o.Call), end, names[in.kind], in.old, in.new,
			res.value, res.ok, res.unknown)
	}
	return out
}
