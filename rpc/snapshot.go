package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/framecodec"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// snapshotBurstBytes is what the pace lets through at once.
const snapshotBurstBytes = 1 << 20

// verdict is the first byte of a frame of kind kindVerdict.
type verdict byte

const (
	verdictAdmitted verdict = 1 // send the data
	verdictTaken    verdict = 2 // it is in the log
	verdictRefused  verdict = 3 // the reason follows
)

// source is where a snapshot's chunks come from: *store.OutgoingSnapshot.
type source interface {
	Next() ([]byte, error)
	Close()
}

// outgoing is a snapshot to be sent.
type outgoing struct {
	to     ids.NodeID
	header *metapb.SnapshotHeader
	source source
	done   func(error)
}

// finish closes the snapshot and tells the outcome, once.
func (o *outgoing) finish(err error) {
	o.source.Close()
	o.done(err)
}

// sendSnapshots is one of the SnapshotsOut senders: each holds one token by
// being one of so many goroutines.
func (t *Transport) sendSnapshots(ctx context.Context) {
	for {
		o := t.nextSnapshot()
		if o == nil {
			select {
			case <-ctx.Done():
				return
			case <-t.snapshotWake:
				continue
			}
		}
		err := t.sendSnapshot(ctx, o)
		if err == nil {
			t.metrics.snapshotsSent.Add(1)
		}
		o.finish(err)
	}
}

func (t *Transport) nextSnapshot() *outgoing {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.snapshots) == 0 {
		return nil
	}
	o := t.snapshots[0]
	t.snapshots = t.snapshots[1:]
	if len(t.snapshots) > 0 {
		wake(t.snapshotWake) // for the next sender
	}
	return o
}

func (t *Transport) sendSnapshot(ctx context.Context, o *outgoing) error {
	fail := func(err error) error {
		return fmt.Errorf("send snapshot of r%d to %v: %w", o.header.GetRangeId(), o.to, err)
	}
	addr, ok := t.cfg.Resolve(o.to)
	if !ok {
		return fail(ErrUnknownNode)
	}
	conn, err := Dial(addr)
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := t.link(cancel)
	defer t.unlink(l)
	s, err := t.open(ctx, conn, o.to, snapshotStream(), snapshotMethod)
	if err != nil {
		return fail(err)
	}
	// The receiver's words: alive frames go to the watchdog, a verdict goes on.
	verdicts := make(chan error)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { t.hearVerdicts(ctx, s, l, verdicts, cancel) })
	next := func() error {
		select {
		case err := <-verdicts:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := t.sendHeader(s, o.header); err != nil {
		return fail(err)
	}
	if err := next(); err != nil {
		return fail(err)
	}
	if err := t.sendChunks(ctx, s, o.source); err != nil {
		// A refusal in mid-stream ends it: its reason is worth more than EOF.
		select {
		case said := <-verdicts:
			err = errors.Join(said, err)
		default:
		}
		return fail(err)
	}
	if err := next(); err != nil {
		return fail(err)
	}
	return nil
}

// hearVerdicts passes verdicts on (nil: admitted, then taken) until the stream ends.
func (t *Transport) hearVerdicts(
	ctx context.Context, s grpc.ClientStream, l *link, verdicts chan<- error, cancel func(),
) {
	defer cancel()
	for {
		env, err := t.receive(s)
		if err == nil {
			l.heard()
			if env.kind == kindAlive {
				continue
			}
			err = readVerdict(env)
		}
		select {
		case verdicts <- err:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

func readVerdict(env envelope) error {
	if env.kind != kindVerdict || len(env.payload) == 0 {
		return fmt.Errorf("%w: kind %d where a verdict was expected", errCorrupt, env.kind)
	}
	switch verdict(env.payload[0]) {
	case verdictAdmitted, verdictTaken:
		return nil
	case verdictRefused:
		return fmt.Errorf("%w: %s", ErrSnapshotRefused, env.payload[1:])
	}
	return fmt.Errorf("%w: verdict %d", errCorrupt, env.payload[0])
}

func (t *Transport) sendHeader(s grpc.ClientStream, h *metapb.SnapshotHeader) error {
	h = proto.CloneOf(h)
	h.FromNode = uint64(t.cfg.Self)
	h.Stamp = uint64(t.cfg.Clock.Peek())
	frame, err := t.protoFrame(kindHeader, h)
	if err != nil {
		return err
	}
	return s.SendMsg(&framecodec.Raw{Data: frame})
}

func (t *Transport) sendChunks(ctx context.Context, s grpc.ClientStream, src source) error {
	for {
		chunk, err := src.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read snapshot: %w", err)
		}
		// A chunk with one large row may exceed the burst.
		for left := len(chunk); left > 0; left -= t.limiter.Burst() {
			if err := t.limiter.WaitN(ctx, min(left, t.limiter.Burst())); err != nil {
				return err
			}
		}
		buf := make([]byte, 0, headerBytes+len(chunk)+checksumBytes)
		buf = append(beginFrame(buf, kindChunk, t.cfg.Self), chunk...)
		if err := s.SendMsg(&framecodec.Raw{Data: sealFrame(buf, t.cfg.Clock.Peek())}); err != nil {
			return err
		}
		t.metrics.snapshotBytesOut.Add(uint64(len(chunk)))
	}
	end := sealFrame(beginFrame(nil, kindEnd, t.cfg.Self), t.cfg.Clock.Peek())
	return s.SendMsg(&framecodec.Raw{Data: end})
}

// serveSnapshot receives one snapshot.
func (t *Transport) serveSnapshot(s grpc.ServerStream) error {
	from, _, err := t.accept(s)
	if err != nil {
		return err
	}
	h := &metapb.SnapshotHeader{}
	if err := t.receiveProto(s, kindHeader, h); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	ctx, cancel := context.WithCancel(s.Context())
	var (
		wg sync.WaitGroup
		mu sync.Mutex // SendMsg is not for two goroutines
	)
	defer wg.Wait()
	defer cancel()
	send := func(frame []byte) error {
		mu.Lock()
		defer mu.Unlock()
		return s.SendMsg(&framecodec.Raw{Data: frame})
	}
	wg.Go(func() { t.alive(ctx, send) })
	say := func(v verdict, reason string) error {
		buf := append(beginFrame(nil, kindVerdict, t.cfg.Self), byte(v))
		return send(sealFrame(append(buf, reason...), t.cfg.Clock.Peek()))
	}
	if h.GetFromNode() != uint64(from) {
		return status.Errorf(codes.InvalidArgument, "snapshot of n%d on the stream of %v",
			h.GetFromNode(), from)
	}
	if err := t.takeSnapshot(ctx, s, h, say); err != nil {
		t.cfg.Logger.Info("snapshot refused", "range", h.GetRangeId(), "node", from, "error", err)
		return say(verdictRefused, err.Error())
	}
	t.metrics.snapshotsReceived.Add(1)
	return say(verdictTaken, "")
}

// takeSnapshot admits, receives and delivers. Every path calls exactly one of
// Deliver and Abandon on what was admitted.
func (t *Transport) takeSnapshot(
	ctx context.Context, s grpc.ServerStream, h *metapb.SnapshotHeader,
	say func(verdict, string) error,
) error {
	admission, err := t.cfg.Admit(h)
	if err != nil {
		return err
	}
	if err := t.receiveChunks(s, admission.Incoming, say); err != nil {
		admission.Abandon()
		return err
	}
	outcome := make(chan error, wakeSlots)
	admission.Deliver(func(err error) { outcome <- err })
	select {
	case err := <-outcome:
		return err
	case <-ctx.Done():
		return ctx.Err() // delivered all the same; the sender learns it by raft
	}
}

// sink is where chunks go: *store.IncomingSnapshot.
type sink interface {
	Add(chunk []byte) error
	Finish() error
}

func (t *Transport) receiveChunks(
	s grpc.ServerStream, in sink, say func(verdict, string) error,
) error {
	if err := say(verdictAdmitted, ""); err != nil {
		return err
	}
	for {
		env, err := t.receive(s)
		if err != nil {
			return err
		}
		switch env.kind {
		case kindChunk:
			if err := in.Add(env.payload); err != nil {
				return err
			}
		case kindEnd:
			return in.Finish()
		default:
			return fmt.Errorf("%w: kind %d in a snapshot", errCorrupt, env.kind)
		}
	}
}
