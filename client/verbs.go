package client

import (
	"bytes"
	"context"
	"fmt"

	"github.com/flotilla-kv/flotilla/proto/kv"
)

// MaxKeyBytes is the length of the longest key; the shortest has one byte.
const MaxKeyBytes = kv.MaxKeyBytes

// maxRequestBytes leaves a request room in a frame.
const maxRequestBytes = kv.MaxFrameBytes - 64<<10

// Result is what a Get found. Value is the caller's; an empty value is not nil.
type Result struct {
	Value   []byte
	Version Version
}

// internalKey copies a user's key into the internal keyspace, or says why not.
func internalKey(verb string, key []byte) ([]byte, error) {
	if len(key) == 0 {
		return nil, &Error{Verb: verb, Key: key, Kind: ErrInvalid, Detail: "the key is empty"}
	}
	if len(key) > MaxKeyBytes {
		return nil, &Error{
			Verb: verb, Key: key, Kind: ErrTooLarge,
			Detail: fmt.Sprintf("the key has %d bytes, the limit is %d", len(key), MaxKeyBytes),
		}
	}
	return kv.UserKey(make([]byte, 0, len(key)+1), key), nil
}

// fits refuses what no frame could carry. The limit of values is the nodes'
// (a flag), and lower.
func fits(verb string, key []byte, r *kv.Request) error {
	if n := r.Size(); n > maxRequestBytes {
		return &Error{
			Verb: verb, Key: key, Kind: ErrTooLarge,
			Detail: fmt.Sprintf("the request has %d bytes, the limit is %d", n, maxRequestBytes),
		}
	}
	return nil
}

// Get returns the value of a key, or ErrNotFound.
func (c *Client) Get(ctx context.Context, key []byte, opts ...GetOption) (Result, error) {
	const verb = "get"
	k, err := internalKey(verb, key)
	if err != nil {
		return Result{}, err
	}
	request := kv.Request{Verb: kv.VerbGet, Key: k}
	for _, o := range opts {
		o.applyGet(&request)
	}
	r, cause := c.do(ctx, &request)
	if r.Code != kv.CodeOK {
		return Result{}, failure(verb, key, r, cause)
	}
	if !r.Found {
		return Result{}, failure(verb, key, &kv.Response{Code: kv.CodeNotFound}, nil)
	}
	return resultOf(r), nil
}

// resultOf copies the value out of the frame that it came in, which it would
// otherwise keep in memory.
func resultOf(r *kv.Response) Result {
	return Result{Value: append([]byte{}, r.Value...), Version: Version(r.Timestamp)}
}

// Put writes a value and returns its version.
func (c *Client) Put(ctx context.Context, key, value []byte) (Version, error) {
	return c.write(ctx, "put", key, &kv.Request{Verb: kv.VerbPut, Value: bytes.Clone(value)})
}

// Delete deletes a key and returns the version of that. It is no error if there
// is no such key.
func (c *Client) Delete(ctx context.Context, key []byte) (Version, error) {
	return c.write(ctx, "delete", key, &kv.Request{Verb: kv.VerbDelete})
}

// CompareAndSwap writes value if the present value is byte-equal to expected.
// IfVersion, IfAbsent and IfExists compare otherwise (expected is then not
// looked at); ThenDelete deletes instead. If the compare fails the error is an
// ErrConflict, and errors.As with *ConflictError tells what is there.
func (c *Client) CompareAndSwap(
	ctx context.Context, key, expected, value []byte, opts ...CompareOption,
) (Version, error) {
	op := kv.Op{Expect: kv.ExpectValue, Expected: expected, Value: value}
	for _, o := range opts {
		o(&op)
	}
	request := kv.Request{
		Verb: kv.VerbCompareAndSwap, Expect: op.Expect, ExpectedVersion: op.ExpectedVersion,
		Expected: bytes.Clone(op.Expected), Value: bytes.Clone(op.Value),
	}
	if op.Delete {
		request.Flags |= kv.FlagDelete
	}
	return c.write(ctx, "cas", key, &request)
}

// write runs a write of one key. The request's slices are its own.
func (c *Client) write(
	ctx context.Context, verb string, key []byte, request *kv.Request,
) (Version, error) {
	k, err := internalKey(verb, key)
	if err != nil {
		return 0, err
	}
	request.Key = k
	if err := fits(verb, key, request); err != nil {
		return 0, err
	}
	r, cause := c.do(ctx, request)
	if r.Code != kv.CodeOK {
		return 0, failure(verb, key, r, cause)
	}
	return Version(r.Timestamp), nil
}

// DeleteRange deletes the keys in [start, end) that existed at one instant
// after the call began, and returns how many. An empty start is the first key,
// an empty end is beyond the last. It goes on page by page: if the context ends
// midway some keys are deleted, the error is ErrUnknownOutcome, and the count
// says how many were deleted for certain.
func (c *Client) DeleteRange(ctx context.Context, start, end []byte) (int64, error) {
	const verb = "delete range"
	lo, hi, err := internalSpan(verb, start, end)
	if err != nil {
		return 0, err
	}
	r, cause := c.do(ctx, &kv.Request{Verb: kv.VerbDeleteRange, Key: lo, End: hi})
	return int64(r.Count), failure(verb, start, r, cause)
}

// internalSpan copies the bounds of a span into the internal keyspace.
func internalSpan(verb string, start, end []byte) (lo, hi []byte, err error) {
	for _, key := range [][]byte{start, end} {
		if len(key) > MaxKeyBytes+1 { // one more: the key after the last one
			_, err := internalKey(verb, key)
			return nil, nil, err
		}
	}
	lo = kv.UserKey(make([]byte, 0, len(start)+1), start)
	if len(end) == 0 {
		return lo, []byte{kv.EndPrefix}, nil
	}
	return lo, kv.UserKey(make([]byte, 0, len(end)+1), end), nil
}
