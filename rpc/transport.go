package rpc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/ranges"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/support"
)

// Errors that SendSnapshot's done may get (wrapped), besides those of grpc.
var (
	// ErrSnapshotRefused says that the receiver did not want the snapshot; the
	// text has its reason.
	ErrSnapshotRefused = errors.New("snapshot refused by its receiver")
	// ErrBusy says that too many snapshots wait to be sent already.
	ErrBusy = errors.New("too many snapshots wait to be sent")
	// ErrStopped says that the transport's Run has ended.
	ErrStopped = errors.New("transport stopped")
	// ErrUnknownNode says that no address of the node is known.
	ErrUnknownNode = errors.New("no address of the node is known")
)

// Defaults of Config.
const (
	DefaultSnapshotsOut           = 2
	DefaultSnapshotBytesPerSecond = 64 << 20
	DefaultSupportInterval        = support.DefaultInterval
)

// The watchdog. A peer that says nothing for silenceLimit periods is given up;
// it says "alive" every aliveEvery, so that four in a row must be missed: a busy
// node must not look like a dead one.
const (
	watchEvery   = 500 * time.Millisecond
	silenceLimit = 8
	aliveEvery   = time.Second
)

// maxWaitingSnapshots bounds snapshots that wait for a token; further ones are
// refused with ErrBusy, and raft asks again later.
const maxWaitingSnapshots = 64

// wakeSlots is the size of channels that only say "look": one mark is enough.
const wakeSlots = 1

// Config configures the transport of a node. All functions are called on the
// transport's goroutines, several at once.
type Config struct {
	// Self is this node.
	Self ids.NodeID
	// Clock stamps every frame and adopts the stamps received.
	Clock *hlc.Hybrid
	// Hello returns what this node says when it opens or accepts a stream.
	Hello func() *metapb.Hello
	// Met checks and remembers a peer's hello (cluster, life, mark). An error
	// refuses the stream. May block for an fsync.
	Met func(*metapb.Hello) error
	// Resolve returns a node's current address, host:port.
	Resolve func(ids.NodeID) (addr string, ok bool)
	// Receive takes a frame of raft messages: Host.Receive. It must adopt the stamp itself.
	Receive func(multiraft.Frame)
	// Lost says that messages to a node were lost: Host.Unreachable.
	Lost func(ids.NodeID)
	// Admit admits an incoming snapshot: ranges.Table.AdmitSnapshot.
	Admit func(*metapb.SnapshotHeader) (*ranges.Admission, error)
	// Pause waits for d or until ctx ends: real time, which this package does
	// not take from the system by itself.
	Pause func(ctx context.Context, d time.Duration)
	// Support is this node's side of the promises between nodes; nil: none is
	// asked for, and none is given.
	Support *support.Table
	// SupportConn is where support datagrams come and go: the port of the node's
	// address, for UDP. Run closes it. Needed with Support.
	SupportConn *net.UDPConn
	// SupportInterval is between requests for support to a node that is wanted,
	// default 75 ms.
	SupportInterval time.Duration
	// Refused is told of the stamp of a frame that could not be adopted, so that
	// the durable bound can be raised at once if only that was in its way. It must
	// not block. Frames of raft messages are Receive's to judge. nil: ignored.
	Refused func(stamp hlc.Timestamp)
	// Logger is where connections made and lost are logged.
	Logger *slog.Logger
	// SnapshotsOut is how many snapshots are sent at once, default 2.
	SnapshotsOut int
	// SnapshotBytesPerSecond paces all outgoing snapshots together, default 64 MiB/s.
	SnapshotBytesPerSecond int
}

// Transport implements multiraft.Transport over gRPC. See the package comment
// for who may call what.
type Transport struct {
	cfg     Config
	limiter *rate.Limiter
	metrics counters
	support supports // cfg.Support, nil if there is none

	mu        sync.Mutex
	stopped   bool
	peers     map[ids.NodeID]*peer
	unstarted []*peer // made by Send, to be started by Run
	snapshots []*outgoing
	links     map[*link]struct{} // open streams, for the watchdog
	controls  map[ids.NodeID]*control
	lives     map[ids.NodeID]*atomic.Uint64 // newest life of each peer that was met

	started      chan struct{} // something in unstarted
	snapshotWake chan struct{} // something in snapshots
}

var _ multiraft.Transport = (*Transport)(nil)

// NewTransport makes a transport; streams are opened on demand after Run began.
func NewTransport(cfg Config) *Transport {
	if cfg.SnapshotsOut <= 0 {
		cfg.SnapshotsOut = DefaultSnapshotsOut
	}
	if cfg.SnapshotBytesPerSecond <= 0 {
		cfg.SnapshotBytesPerSecond = DefaultSnapshotBytesPerSecond
	}
	if cfg.SupportInterval <= 0 {
		cfg.SupportInterval = DefaultSupportInterval
	}
	if cfg.Refused == nil {
		cfg.Refused = func(hlc.Timestamp) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	pace := rate.Limit(cfg.SnapshotBytesPerSecond)
	t := &Transport{
		cfg:          cfg,
		limiter:      rate.NewLimiter(pace, max(snapshotBurstBytes, cfg.SnapshotBytesPerSecond/16)),
		peers:        make(map[ids.NodeID]*peer),
		links:        make(map[*link]struct{}),
		controls:     make(map[ids.NodeID]*control),
		lives:        make(map[ids.NodeID]*atomic.Uint64),
		started:      make(chan struct{}, wakeSlots),
		snapshotWake: make(chan struct{}, wakeSlots),
	}
	if cfg.Support != nil {
		t.support = cfg.Support
	}
	return t
}

// Run owns all senders; it blocks until ctx ends and all stopped. Inbound
// streams end with the grpc server that serves them.
func (t *Transport) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { t.watch(ctx) })
	if t.support != nil {
		wg.Go(func() { newSupporter(t).run(ctx) })
	}
	for range t.cfg.SnapshotsOut {
		wg.Go(func() { t.sendSnapshots(ctx) })
	}
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-t.started:
			for _, p := range t.takeUnstarted() {
				wg.Go(func() { p.run(ctx) })
			}
		}
	}
	waiting := t.stop()
	wg.Wait()
	for _, o := range waiting {
		o.finish(ErrStopped)
	}
	t.closeControls()
	return nil
}

func (t *Transport) stop() []*outgoing {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	waiting := t.snapshots
	t.snapshots = nil
	return waiting
}

func (t *Transport) takeUnstarted() []*peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	peers := t.unstarted
	t.unstarted = nil
	return peers
}

// Send queues messages for a node and never blocks; any goroutine. False:
// nothing was queued, because the queue is full, the node's address is unknown,
// or the node cannot be reached at the moment.
func (t *Transport) Send(to ids.NodeID, msgs []multiraft.Message) bool {
	p := t.peer(to)
	if p == nil || !p.enqueue(msgs) {
		t.metrics.dropped.Add(uint64(len(msgs)))
		return false
	}
	return true
}

// peer returns the sender of a node, nil if its address is unknown.
func (t *Transport) peer(n ids.NodeID) *peer {
	t.mu.Lock()
	p, ok := t.peers[n]
	t.mu.Unlock()
	if ok {
		return p
	}
	if _, known := t.cfg.Resolve(n); !known || n == t.cfg.Self {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.peers[n]; ok {
		return p
	}
	if t.stopped {
		return nil
	}
	p = newPeer(t, n)
	t.peers[n] = p
	t.unstarted = append(t.unstarted, p)
	wake(t.started)
	return p
}

// reaches says whether messages to a node are on their way as far as is known: its
// stream is open, or nobody needed one yet.
//
// Support is neither asked of nor given to a node that is not reached. Datagrams
// may pass where streams do not (a filter, a path that drops large packets, a
// sender that is stuck). A leader that is supported there keeps everybody from
// electing, though it cannot commit, and neither its notice that it stepped down
// nor any question about it gets through. Without support the promise ends, and
// those who reach one another elect.
func (t *Transport) reaches(n ids.NodeID) bool {
	t.mu.Lock()
	p := t.peers[n]
	t.mu.Unlock()
	return p == nil || !p.lost.Load()
}

// hasten has a node dialled now if that was put off.
func (t *Transport) hasten(n ids.NodeID) {
	t.mu.Lock()
	p := t.peers[n]
	t.mu.Unlock()
	if p != nil {
		p.hasten()
	}
}

// wake leaves a mark in a channel of wakeSlots; a mark already there is enough.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// link is an open outgoing stream as the watchdog sees it.
type link struct {
	cancel context.CancelFunc
	silent atomic.Int32 // watchdog periods since the peer was heard
}

func (l *link) heard() { l.silent.Store(0) }

func (t *Transport) link(cancel context.CancelFunc) *link {
	l := &link{cancel: cancel}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.links[l] = struct{}{}
	return l
}

func (t *Transport) unlink(l *link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.links, l)
}

// watch ends streams whose peer has fallen silent: a machine that lost power
// sends no FIN, and TCP alone would notice after many minutes. A stopped
// process is noticed too.
func (t *Transport) watch(ctx context.Context) {
	for {
		t.cfg.Pause(ctx, watchEvery)
		if ctx.Err() != nil {
			return
		}
		t.mu.Lock()
		for l := range t.links { // each alone: the order does not matter
			if l.silent.Add(1) > silenceLimit {
				l.cancel()
			}
		}
		t.mu.Unlock()
	}
}

// SendSnapshot streams a snapshot, closes it, and calls done exactly once, on
// the sender's goroutine or, if it is refused at once, before it returns.
func (t *Transport) SendSnapshot(
	to ids.NodeID, h *metapb.SnapshotHeader, s *store.OutgoingSnapshot, done func(error),
) {
	t.sendSource(&outgoing{to: to, header: h, source: s, done: done})
}

func (t *Transport) sendSource(o *outgoing) {
	t.mu.Lock()
	stopped, full := t.stopped, len(t.snapshots) >= maxWaitingSnapshots
	if !stopped && !full {
		t.snapshots = append(t.snapshots, o)
	}
	t.mu.Unlock()
	switch {
	case stopped:
		o.finish(ErrStopped)
	case full:
		o.finish(ErrBusy)
	default:
		wake(t.snapshotWake)
	}
}

// Metrics are counts since the start.
type Metrics struct {
	FramesOut, FramesIn     uint64
	MessagesOut, MessagesIn uint64
	BytesOut, BytesIn       uint64
	Dropped                 uint64 // messages that were refused or lost with a stream
	Rejected                uint64 // frames with a bad checksum, form or stamp
	StreamsLost             uint64 // raft streams to peers that broke
	SupportRequestsSent     uint64
	SupportRequestsAnswered uint64 // by this node
	SupportUnsent           uint64 // datagrams that the system did not take
	SupportRefused          uint64 // datagrams not heard: damaged, foreign, of a life not met
	SnapshotsSent           uint64
	SnapshotsReceived       uint64
	SnapshotBytesOut        uint64
}

type counters struct {
	framesOut, framesIn, messagesOut, messagesIn, bytesOut, bytesIn atomic.Uint64
	dropped, rejected, streamsLost                                  atomic.Uint64
	snapshotsSent, snapshotsReceived, snapshotBytesOut              atomic.Uint64
	supportSent, supportAnswered, supportUnsent, supportRefused     atomic.Uint64
}

// Metrics returns the counts; any goroutine.
func (t *Transport) Metrics() Metrics {
	c := &t.metrics
	return Metrics{
		FramesOut: c.framesOut.Load(), FramesIn: c.framesIn.Load(),
		MessagesOut: c.messagesOut.Load(), MessagesIn: c.messagesIn.Load(),
		BytesOut: c.bytesOut.Load(), BytesIn: c.bytesIn.Load(),
		Dropped: c.dropped.Load(), Rejected: c.rejected.Load(),
		StreamsLost:             c.streamsLost.Load(),
		SupportRequestsSent:     c.supportSent.Load(),
		SupportRequestsAnswered: c.supportAnswered.Load(),
		SupportUnsent:           c.supportUnsent.Load(),
		SupportRefused:          c.supportRefused.Load(),
		SnapshotsSent:           c.snapshotsSent.Load(),
		SnapshotsReceived:       c.snapshotsReceived.Load(),
		SnapshotBytesOut:        c.snapshotBytesOut.Load(),
	}
}
