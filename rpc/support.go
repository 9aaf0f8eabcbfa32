package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/framecodec"
	"github.com/flotilla-kv/flotilla/support"
)

// Pace of the support streams.
const (
	// supportSilence is how long requests may stay unanswered before the stream
	// is given up and dialled anew. Support has lapsed long before: this bounds
	// how long after a cut heals TCP may still wait to repeat what it lost.
	supportSilence = time.Second
	// minSilentRounds is the same in rounds of requests, for long intervals.
	minSilentRounds = 4
	// supportReconnectMax is the longest wait between two attempts to reach a
	// node that is wanted.
	supportReconnectMax = 200 * time.Millisecond
	// askedPart: rounds that reads ask for follow one another at this part of the
	// interval at the soonest. A node whose clock is behind would ask all the time.
	askedPart = 10
)

// errSilent is why a stream was given up.
var errSilent = errors.New("requests for support are not answered")

// supports is what the streams need of *support.Table.
type supports interface {
	Wanted() []ids.NodeID
	Request(to ids.NodeID) (support.Request, bool)
	HandleRequest(from ids.NodeID, r support.Request) (support.Grant, bool)
	HandleGrant(from ids.NodeID, g support.Grant)
	Asked() <-chan struct{}
}

func supportStream() grpc.StreamDesc {
	return grpc.StreamDesc{
		StreamName: "Support", ServerStreams: true, ClientStreams: true,
		Handler: func(srv any, s grpc.ServerStream) error {
			return srv.(peerService).serveSupport(s)
		},
	}
}

// asker sends requests for support to one node and hears its grants. It has a
// goroutine, and so has every other node's: one that does not read delays none.
type asker struct {
	t    *Transport
	node ids.NodeID
	wake chan struct{} // a request is due

	waiting atomic.Bool  // something was sent, or is being opened, and not answered yet
	silent  atomic.Int32 // rounds that began while waiting

	mu     sync.Mutex
	cancel context.CancelCauseFunc // of the stream; nil while there is none
}

// askForSupport makes one round of requests in every interval, and one when a
// read has asked for it, until ctx ends. It never blocks on a peer: a round only
// wakes the askers. The pace is its own, so that it counts how long a peer has
// been silent in rounds that this node was awake for: after a pause of this
// process the answers that wait unread are not taken for silence.
func (t *Transport) askForSupport(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.support.Asked():
			}
			t.askAll(ctx, &wg, false)
			t.cfg.Pause(ctx, t.cfg.SupportInterval/askedPart)
		}
	})
	for ctx.Err() == nil {
		t.askAll(ctx, &wg, true)
		t.cfg.Pause(ctx, t.cfg.SupportInterval)
	}
}

// askAll wakes the asker of every wanted node; the first time it starts it.
// round counts the silence of those that have not answered.
func (t *Transport) askAll(ctx context.Context, wg *sync.WaitGroup, round bool) {
	for _, n := range t.support.Wanted() {
		t.mu.Lock()
		a, ok := t.askers[n]
		if !ok {
			a = &asker{t: t, node: n, wake: make(chan struct{}, wakeSlots)}
			t.askers[n] = a
		}
		t.mu.Unlock()
		if !ok {
			wg.Go(func() { a.run(ctx) })
		}
		if round && a.isSilent() {
			a.giveUp()
		}
		wake(a.wake)
	}
}

// isSilent counts one round and says whether it is one too many.
func (a *asker) isSilent() bool {
	if !a.waiting.Load() {
		return false
	}
	limit := max(int32(supportSilence/a.t.cfg.SupportInterval), minSilentRounds)
	return a.silent.Add(1) > limit
}

// heard ends the wait for an answer.
func (a *asker) heard() {
	a.waiting.Store(false)
	a.silent.Store(0)
}

// giveUp ends the stream, whatever it is blocked in.
func (a *asker) giveUp() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cancel != nil {
		a.cancel(errSilent)
	}
}

func (a *asker) begin(cancel context.CancelCauseFunc) {
	a.silent.Store(0)
	a.waiting.Store(true)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cancel = cancel
}

func (a *asker) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cancel = nil
}

// run opens a stream when a request is due, and again after it broke.
func (a *asker) run(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
			wake(a.wake) // for the stream: the request is still due
		}
		answered, err := a.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		if answered {
			attempt = 0
			a.t.metrics.supportLost.Add(1)
			a.t.cfg.Logger.Warn("support stream lost", "node", a.node, "error", err)
		} else {
			attempt++
			a.t.cfg.Logger.Debug("support not answered", "node", a.node, "error", err)
		}
		a.t.cfg.Pause(ctx, redialAfter(a.t.cfg.Self, a.node, attempt, supportReconnectMax))
	}
}

// stream dials, exchanges hellos and asks until the stream breaks; answered says
// whether there was any grant.
func (a *asker) stream(ctx context.Context) (answered bool, err error) {
	t := a.t
	addr, ok := t.cfg.Resolve(a.node)
	if !ok {
		return false, fmt.Errorf("open support stream to %v: %w", a.node, ErrUnknownNode)
	}
	conn, err := Dial(addr)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.begin(cancel)
	defer a.end()
	s, err := t.open(ctx, conn, a.node, supportStream(), supportMethod)
	if context.Cause(ctx) == errSilent {
		err = errSilent
	}
	if err != nil {
		return false, fmt.Errorf("open support stream to %v at %s: %w", a.node, addr, err)
	}
	a.heard()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil) // ends the listener
	heardErr := make(chan error, wakeSlots)
	wg.Go(func() {
		heardErr <- a.hearGrants(s, &answered)
		cancel(nil)
	})
	t.cfg.Logger.Debug("support stream opened", "node", a.node, "address", addr)
	err = a.ask(ctx, s)
	cancel(nil)
	if said := <-heardErr; said != nil {
		err = said // the peer's own words say more than "cancelled"
	}
	if context.Cause(ctx) == errSilent {
		err = errSilent
	}
	return answered, err
}

// ask sends a request whenever one is due, until the stream ends. The request is
// composed right before it is written: its time counts from there (R4), and its
// ceiling is the newest.
func (a *asker) ask(ctx context.Context, s grpc.ClientStream) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.wake:
		}
		r, ok := a.t.support.Request(a.node)
		if !ok {
			continue
		}
		a.waiting.Store(true)
		a.t.metrics.supportSent.Add(1)
		if err := s.SendMsg(&framecodec.Raw{Data: a.t.requestFrame(r)}); err != nil {
			return err
		}
	}
}

func (t *Transport) requestFrame(r support.Request) []byte {
	buf := make([]byte, 0, headerBytes+requestBytes+checksumBytes)
	buf = appendRequest(beginFrame(buf, kindRequest, t.cfg.Self), r)
	return sealFrame(buf, t.cfg.Clock.Peek())
}

func (t *Transport) grantFrame(g support.Grant) []byte {
	buf := make([]byte, 0, headerBytes+grantBytes+checksumBytes)
	buf = appendGrant(beginFrame(buf, kindGrant, t.cfg.Self), g)
	return sealFrame(buf, t.cfg.Clock.Peek())
}

// hearGrants takes grants until the stream ends.
func (a *asker) hearGrants(s grpc.ClientStream, answered *bool) error {
	for {
		env, err := a.t.read(s)
		if err != nil {
			return err
		}
		if env.kind != kindGrant || env.from != a.node {
			return fmt.Errorf("%w: kind %d from %v where a grant of %v was expected",
				errCorrupt, env.kind, env.from, a.node)
		}
		a.heard() // the peer lives, even if what it says cannot be used
		if !a.t.adoptSupport(env) {
			continue
		}
		g, err := decodeGrant(env.payload)
		if err != nil {
			a.t.metrics.rejected.Add(1)
			return err
		}
		*answered = true
		a.t.support.HandleGrant(a.node, g)
	}
}

// adoptSupport moves the clock to the stamp of a support frame (R9f). False: it
// cannot be adopted, and nothing of the frame may be handled. The stream goes
// on: the next frame comes within an interval, and the bound may be raised by then.
func (t *Transport) adoptSupport(env envelope) bool { return t.adopt(env) == nil }

// serveSupport answers the requests of one node, each at once and on this
// goroutine: an answer that waits in a queue would be an older promise than it
// says. If the node does not read its answers this blocks, and only this: what
// it asks for is not heard then, and it counts on nothing that it did not hear.
func (t *Transport) serveSupport(s grpc.ServerStream) error {
	if t.support == nil {
		return status.Error(codes.Unimplemented, "this node gives no support")
	}
	from, superseded, err := t.accept(s)
	if err != nil {
		return err
	}
	for {
		env, err := t.read(s)
		if err != nil {
			return err
		}
		if env.kind != kindRequest || env.from != from {
			return status.Errorf(codes.InvalidArgument,
				"frame of kind %d from %v on the support stream of %v", env.kind, env.from, from)
		}
		if superseded() {
			return status.Errorf(codes.Aborted, "%v has started anew since", from)
		}
		if !t.adoptSupport(env) {
			continue
		}
		r, err := decodeRequest(env.payload)
		if err != nil {
			t.metrics.rejected.Add(1)
			return status.Error(codes.DataLoss, err.Error())
		}
		g, ok := t.support.HandleRequest(from, r)
		if !ok {
			continue
		}
		t.metrics.supportAnswered.Add(1)
		if err := s.SendMsg(&framecodec.Raw{Data: t.grantFrame(g)}); err != nil {
			return err
		}
	}
}
