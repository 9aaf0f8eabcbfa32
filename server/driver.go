package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Bounds and pace of the driver's owner.
const (
	// maxAsked bounds questions that wait for the owner; beyond, they are
	// refused with errDriverBusy and asked again by their callers.
	maxAsked   = 1024
	driverTick = 250 * time.Millisecond
	systemID   = ids.RangeID(1)
)

var errDriverBusy = errors.New("placement is busy: try again")

// errNotDriver says that this node does not drive placement at the moment.
var errNotDriver = errors.New("this node does not drive placement")

// driverOwner is the one goroutine that calls placement.Driver. Others post
// functions to its mailbox. The driver's key-value calls are answered on
// shards; those answers are posted too, so the driver never runs twice at once
// and never inside its own call.
type driverOwner struct {
	driver *placement.Driver
	leads  func() bool // whether this node leads the system range
	now    func() time.Duration
	wake   chan struct{}

	mu      sync.Mutex
	mailbox []func()
}

func newDriverOwner(leads func() bool, now func() time.Duration) *driverOwner {
	return &driverOwner{leads: leads, now: now, wake: make(chan struct{}, wakeSlots)}
}

// post queues f for the owner; any goroutine, never blocks. It is for answers
// to the driver's own calls, whose number the driver bounds, so it never refuses.
func (o *driverOwner) post(f func()) {
	o.mu.Lock()
	o.mailbox = append(o.mailbox, f)
	o.mu.Unlock()
	wake(o.wake)
}

// offer is post for questions from outside: refused above maxAsked.
func (o *driverOwner) offer(f func()) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.mailbox) >= maxAsked {
		return false
	}
	o.mailbox = append(o.mailbox, f)
	wake(o.wake)
	return true
}

// run owns the driver until ctx ends.
func (o *driverOwner) run(ctx context.Context) error {
	ticker := time.NewTicker(driverTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.wake:
		case <-ticker.C:
			now := o.now()
			o.driver.SetActive(o.leads(), now)
			o.driver.Step(now)
		}
		o.mu.Lock()
		mail := o.mailbox
		o.mailbox = nil
		o.mu.Unlock()
		for _, f := range mail {
			f()
		}
	}
}

// question is asked on the owner's goroutine; it calls reply once, then or later.
type question[T any] func(d *placement.Driver, now time.Duration, reply func(T, error))

// askDriver has the owner ask, and waits. It fails with errNotDriver unless
// this node drives and has read its registry.
func askDriver[T any](ctx context.Context, o *driverOwner, ask question[T]) (T, error) {
	return askOwner(ctx, o, func(d *placement.Driver, now time.Duration, reply func(T, error)) {
		if !d.Active() {
			var none T
			reply(none, errNotDriver)
			return
		}
		ask(d, now, reply)
	})
}

// askOwner is askDriver for questions that a driver takes while it still starts.
func askOwner[T any](ctx context.Context, o *driverOwner, ask question[T]) (T, error) {
	type answer struct {
		value T
		err   error
	}
	var none T
	answers := make(chan answer, wakeSlots)
	asked := o.offer(func() {
		reply := func(v T, err error) { answers <- answer{v, err} }
		now := o.now()
		leads := o.leads()
		o.driver.SetActive(leads, now)
		if !leads {
			reply(none, errNotDriver)
			return
		}
		ask(o.driver, now, reply)
	})
	if !asked {
		return none, errDriverBusy
	}
	select {
	case a := <-answers:
		return a.value, a.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// driverKV is the seam through which placement keeps its state: requests to
// this node's own table. Its methods are called on the owner's goroutine, and
// their answers come there through the mailbox.
type driverKV struct {
	submit func(*kv.Request, func(*kv.Response))
	post   func(func())
	client uint64 // identity of this life's writes
	clock  *hlc.Hybrid
	last   uint64 // sequence of the last write
}

var _ placement.KV = (*driverKV)(nil)

// do submits and brings the response to the owner.
func (k *driverKV) do(req *kv.Request, done func(*kv.Response)) {
	k.submit(req, func(r *kv.Response) { k.post(func() { done(r) }) })
}

func failed(verb string, r *kv.Response) error {
	return fmt.Errorf("%s a system key: %v %s", verb, r.Code, r.Message)
}

// Get reads a key; version 0: it does not exist.
func (k *driverKV) Get(key []byte, done func([]byte, hlc.Timestamp, error)) {
	k.do(&kv.Request{Verb: kv.VerbGet, Key: key}, func(r *kv.Response) {
		switch r.Code {
		case kv.CodeOK:
			done(r.Value, r.Timestamp, nil)
		case kv.CodeNotFound:
			done(nil, 0, nil)
		default:
			done(nil, 0, failed("read", r))
		}
	})
}

// Scan reads [start, end), at most limit rows, page after page: a page may end
// early at its limit of bytes.
func (k *driverKV) Scan(start, end []byte, limit int, done func([]placement.KeyValue, error)) {
	k.scan(nil, &kv.Request{Verb: kv.VerbScan, Key: start, End: end}, limit, done)
}

func (k *driverKV) scan(
	rows []placement.KeyValue, req *kv.Request, limit int, done func([]placement.KeyValue, error),
) {
	req.Limit = uint32(min(limit-len(rows), kv.MaxScanLimit))
	k.do(req, func(r *kv.Response) {
		if r.Code != kv.CodeOK {
			done(nil, failed("scan", r))
			return
		}
		for _, row := range r.Rows {
			rows = append(rows, placement.KeyValue{
				Key: row.Key, Value: row.Value, Version: row.Version,
			})
		}
		if !r.More || len(rows) >= limit {
			done(rows, nil)
			return
		}
		next := &kv.Request{
			Verb: kv.VerbScan, Key: r.ResumeKey, End: req.End, Timestamp: r.Timestamp,
		}
		k.scan(rows, next, limit, done)
	})
}

// CompareAndSwap writes value if the key's version is still expect (0: absent).
// An outcome that is not known is an error; the driver reads again then.
func (k *driverKV) CompareAndSwap(
	key, value []byte, expect hlc.Timestamp, done func(bool, error),
) {
	k.last++
	req := &kv.Request{
		Verb: kv.VerbCompareAndSwap, Key: key, Value: value, Expect: kv.ExpectAbsent,
		Identity: kv.Identity{Client: k.client, Sequence: k.last, Floor: k.clock.Peek()},
	}
	if expect != 0 {
		req.Expect, req.ExpectedVersion = kv.ExpectVersion, expect
	}
	k.do(req, func(r *kv.Response) {
		switch r.Code {
		case kv.CodeOK:
			done(true, nil)
		case kv.CodeConflict:
			done(false, nil)
		default:
			done(false, failed("write", r))
		}
	})
}
