package client

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/flotilla-kv/flotilla/client/core"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Op is one operation of a Batch, or one write of an Atomic. Make it with
// GetOp, PutOp or DeleteOp.
type Op struct {
	verb kv.Verb
	op   kv.Op
}

// GetOp reads a key (Batch only).
func GetOp(key []byte) Op { return Op{verb: kv.VerbGet, op: kv.Op{Key: key}} }

// PutOp writes a value, if the options' compare holds.
func PutOp(key, value []byte, opts ...CompareOption) Op {
	return newOp(kv.VerbPut, kv.Op{Key: key, Value: value}, opts)
}

// DeleteOp deletes a key, if the options' compare holds.
func DeleteOp(key []byte, opts ...CompareOption) Op {
	return newOp(kv.VerbDelete, kv.Op{Key: key, Delete: true}, opts)
}

func newOp(verb kv.Verb, op kv.Op, opts []CompareOption) Op {
	for _, o := range opts {
		o(&op)
	}
	return Op{verb: verb, op: op}
}

// name is the verb as errors show it.
func (o *Op) name() string {
	switch {
	case o.verb == kv.VerbGet:
		return "get"
	case o.op.Expect != kv.ExpectNothing:
		return "cas"
	case o.op.Delete:
		return "delete"
	default:
		return "put"
	}
}

// request turns an operation into a request of its own.
func (o *Op) request() (kv.Request, error) {
	k, err := internalKey(o.name(), o.op.Key)
	if err != nil {
		return kv.Request{}, err
	}
	r := kv.Request{Verb: o.verb, Key: k}
	switch {
	case o.verb == kv.VerbGet:
		return r, nil
	case o.op.Expect != kv.ExpectNothing:
		r.Verb, r.Expect = kv.VerbCompareAndSwap, o.op.Expect
		r.Expected, r.ExpectedVersion = bytes.Clone(o.op.Expected), o.op.ExpectedVersion
		if o.op.Delete {
			r.Flags |= kv.FlagDelete
		}
	case o.op.Delete:
		r.Verb = kv.VerbDelete
	default:
		r.Verb = kv.VerbPut
	}
	if !o.op.Delete {
		r.Value = bytes.Clone(o.op.Value)
	}
	return r, fits(o.name(), o.op.Key, &r)
}

// OpResult is what became of one operation of a batch.
type OpResult struct {
	Value   []byte // of a get
	Version Version
	Err     error // as the single verb's
}

// Batch runs independent operations at once: they share round trips, and
// nothing else. There is no order among them and no atomicity; each has a
// result of its own, at its index.
func (c *Client) Batch(ctx context.Context, ops []Op) []OpResult {
	results := make([]OpResult, len(ops))
	calls := make([]*core.Call, 0, len(ops))
	responses := make([]*kv.Response, len(ops))
	left := 0 // guarded by the client's mutex, under which Done runs
	done := make(chan struct{}, oneResponse)
	for i := range ops {
		request, err := ops[i].request()
		if err != nil {
			results[i].Err = err
			continue
		}
		left++
		calls = append(calls, &core.Call{Request: request, Done: func(r *kv.Response) {
			responses[i] = r
			if left--; left == 0 {
				done <- struct{}{}
			}
		}})
	}
	if len(calls) == 0 {
		return results
	}
	cause := c.start(ctx, calls...)
	if cause == nil {
		cause = c.await(ctx, calls, done)
	}
	for i := range ops {
		if results[i].Err != nil {
			continue
		}
		r := responses[i]
		if r == nil {
			r = &kv.Response{Code: kv.CodeUnavailable, Message: "nothing was sent"}
		}
		results[i] = ops[i].result(r, cause)
	}
	return results
}

// await waits until all calls are done, or cancels what is not.
func (c *Client) await(
	ctx context.Context, calls []*core.Call, done chan struct{},
) (cause error) {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		cause = ctx.Err()
	case <-c.ctx.Done():
		cause = ErrClosed
	}
	c.step(func(k *core.Core, now time.Duration) {
		for _, call := range calls {
			k.Cancel(now, call)
		}
	})
	<-done
	return cause
}

// result turns a response into the operation's result.
func (o *Op) result(r *kv.Response, cause error) OpResult {
	if o.verb == kv.VerbGet && r.Code == kv.CodeOK && !r.Found {
		r.Code = kv.CodeNotFound
	}
	if r.Code != kv.CodeOK {
		if r.Code != kv.CodeUnavailable && r.Code != kv.CodeUnknownOutcome {
			cause = nil
		}
		return OpResult{Err: failure(o.name(), o.op.Key, r, cause)}
	}
	if o.verb == kv.VerbGet {
		found := resultOf(r)
		return OpResult{Value: found.Value, Version: found.Version}
	}
	return OpResult{Version: Version(r.Timestamp)}
}

// Atomic runs writes all or nothing, and returns their common version. All
// keys must lie in one range, else the error is ErrCrossRange: keys that share
// a long prefix mostly do, but ranges split where they must. If a compare
// fails nothing is written, and the error is an ErrConflict.
func (c *Client) Atomic(ctx context.Context, writes []Op) (Version, error) {
	const verb = "atomic batch"
	if len(writes) == 0 {
		return 0, &Error{Verb: verb, Kind: ErrInvalid, Detail: "it is empty"}
	}
	if len(writes) > kv.MaxAtomicOps {
		return 0, &Error{Verb: verb, Kind: ErrTooLarge, Detail: fmt.Sprintf(
			"it has %d operations, the limit is %d", len(writes), kv.MaxAtomicOps)}
	}
	request := kv.Request{Verb: kv.VerbAtomic, Ops: make([]kv.Op, 0, len(writes))}
	for i := range writes {
		w := &writes[i]
		if w.verb == kv.VerbGet {
			return 0, &Error{
				Verb: verb, Key: w.op.Key, Kind: ErrInvalid, Detail: "it may hold writes only",
			}
		}
		k, err := internalKey(verb, w.op.Key)
		if err != nil {
			return 0, err
		}
		op := w.op
		op.Key, op.Value, op.Expected = k, bytes.Clone(op.Value), bytes.Clone(op.Expected)
		request.Ops = append(request.Ops, op)
	}
	if err := fits(verb, writes[0].op.Key, &request); err != nil {
		return 0, err
	}
	r, cause := c.do(ctx, &request)
	if r.Code != kv.CodeOK {
		return 0, failure(verb, writes[0].op.Key, r, cause)
	}
	return Version(r.Timestamp), nil
}
