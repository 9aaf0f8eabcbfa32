package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/ranges"
	"github.com/flotilla-kv/flotilla/rpc"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/support"
)

const (
	maintainEvery = time.Second
	diskEvery     = 2 * time.Second
	// usedChecks: every so many checks of the disk the size of the store is taken, which
	// costs more and changes slowly.
	usedChecks = 5
)

// node is a booted node: all parts, wired.
type node struct {
	s       *Server
	cfg     *Config
	self    ids.NodeID
	cluster uint64
	origin  string

	store     *store.Store
	clock     *hlc.Hybrid
	bound     *boundKeeper
	host      *multiraft.Host
	table     *ranges.Table
	transport *rpc.Transport
	support   *support.Table
	registry  *registry
	driver    *driverOwner
	reporter  *reporter
	ids       *idBlocks
	reads     *readPool
	comparer  *comparer
	kv        *kvService
	grpc      *grpc.Server
	health    *health.Server

	diskTotal, diskFree, diskUsed atomic.Uint64
	ready                         atomic.Bool // registered and heard by placement
	draining                      atomic.Bool // the process is to stop; see standing.go, too

	standingNow atomic.Int32  // metapb.NodeStanding, as placement told it last
	stood       bool          // told anything yet; the reporter's
	retired     chan struct{} // closed when placement says that it is decommissioned
	late        bool          // it was so before it began; written before retired closes
}

// newNode wires the parts. Nothing runs, and no frame has left, when it
// returns; the clock's bound is durable.
func newNode(s *Server, m *membership) (*node, error) {
	n := &node{
		s: s, cfg: &s.cfg, self: m.node, cluster: m.cluster, origin: m.origin, store: s.store,
		retired: make(chan struct{}),
	}
	rec := n.store.Identity().Record()
	phys := s.clock
	n.clock = hlc.NewHybrid(phys, startOfClock(phys.Wall(), rec.Bound), maxAhead)
	n.bound = newBoundKeeper(n.clock, n.store.Identity().ExtendBound)
	if err := n.bound.step(); err != nil {
		return nil, err
	}
	n.registry = newRegistry(n.self, m.known.GetNodes(), m.known.GetSystemRange(),
		func(data []byte) error { return saveRegistry(n.store, data) })
	n.reporter = newReporter(n)
	n.ids = newIDBlocks(n.allocateIDs)
	n.reads = newReadPool(n.cfg.ReadWorkers)
	n.comparer = newComparer(n)
	var err error
	n.table, err = ranges.New(ranges.Config{
		Node: n.self, Store: n.store, Clock: n.clock, Physical: phys,
		RangeSize: n.cfg.RangeSize, MaxValueBytes: n.cfg.MaxValueBytes, GCWindow: n.cfg.GCWindow,
		RowCacheBytes: n.cfg.RowCacheBytes, QuorumReads: n.cfg.QuorumReads,
		LoadSplitCPU: n.cfg.LoadSplitCPU, LoadSplitOps: n.cfg.LoadSplitOps,
		CheckEvery: n.cfg.CheckEvery, Compare: n.comparer.lead,
		Logger: n.cfg.Logger, Execute: n.reads.execute,
		NextRangeID: n.ids.next, OnFact: n.reporter.fact,
	})
	if err != nil {
		return nil, fmt.Errorf("set up the ranges: %w", err)
	}
	if n.support, err = n.newSupport(phys); err != nil {
		return nil, err
	}
	n.transport = rpc.NewTransport(rpc.Config{
		Self: n.self, Clock: n.clock, Hello: n.hello, Met: n.met, Resolve: n.registry.resolve,
		Receive: func(f multiraft.Frame) {
			n.host.Receive(f)
			n.bound.heard(f.Stamp)
		},
		Lost:   func(p ids.NodeID) { n.host.Unreachable(p) },
		Admit:  n.table.AdmitSnapshot,
		Pause:  pause,
		Logger: n.cfg.Logger,

		Support: n.support, SupportConn: s.supportConn,
		SupportInterval: n.cfg.SupportInterval, Refused: n.bound.heard,
	})
	n.host, err = multiraft.NewHost(multiraft.Config{
		Node: n.self, Store: n.store, Clock: n.clock, Transport: n.transport,
		Support: n.support, Shards: n.cfg.Shards, Logger: n.cfg.Logger,
		Gone: n.table.Gone, OnGone: n.table.OnGone, OnHalted: n.table.OnHalted,
	})
	if err != nil {
		return nil, fmt.Errorf("set up the raft groups: %w", err)
	}
	if err := n.table.Start(n.host); err != nil {
		return nil, fmt.Errorf("load the replicas: %w", err)
	}
	n.wireDriver(phys)
	n.wireServices()
	return n, nil
}

func (n *node) wireDriver(phys hlc.Clock) {
	n.driver = newDriverOwner(func() bool { return n.table.Leads(systemID) }, phys.Monotonic)
	n.driver.driver = placement.NewDriver(placement.Config{
		Self: n.self, ClusterID: n.cluster, ReplicationFactor: n.cfg.ReplicationFactor,
		DeadAfter: n.cfg.DeadAfter, SuspectAfter: n.cfg.suspectAfter, RangeSize: n.cfg.RangeSize,
		MergeBelow: n.cfg.MergeBelow, MergeAfter: n.cfg.MergeAfter, Logger: n.cfg.Logger,
		Wall: phys.Wall, Later: n.driver.post,
		KV: &driverKV{
			submit: n.table.Submit, post: n.driver.post, clock: n.clock,
			client: n.store.Identity().Record().Mark,
		},
	})
}

func (n *node) wireServices() {
	n.kv = &kvService{
		submit: n.table.SubmitBatch, clock: n.clock, heard: n.bound.heard, hello: n.hello,
		self: n.self, cluster: n.cluster, leaving: make(chan struct{}),
	}
	n.grpc = rpc.NewServer(
		grpc.UnaryInterceptor(rpc.StampServer(n.clock, n.cluster)),
		// The store closes after the server: no handler may still read.
		grpc.WaitForHandlers(true))
	n.transport.Register(n.grpc)
	n.kv.register(n.grpc)
	adminpb.RegisterAdminServer(n.grpc, &adminService{n: n})
	adminpb.RegisterControlServer(n.grpc, &controlService{n: n})
	n.health = health.NewServer()
	n.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(n.grpc, n.health)
}

// run is the table of contents of a node: every goroutine but those of one
// stream or one request starts here. When ctx ends the node drains, then
// everything stops; when a part fails everything stops at once.
func (n *node) run(ctx context.Context) error {
	defer n.table.Close()
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, all := errgroup.WithContext(inner)
	part := func(name string, run func(context.Context) error) {
		g.Go(func() error {
			err := run(all)
			if err != nil && !(errors.Is(err, context.Canceled) && all.Err() != nil) {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	part("clock bound", n.bound.run)               // keeps the durable bound ahead of the clock
	part("raft groups", n.host.Run)                // shard workers, sync waiters, ticker
	part("transport", n.transport.Run)             // a sender per peer, snapshot senders
	part("support", n.expireSupport)               // withdraws promises when their time has come
	part("time", func(ctx context.Context) error { // agrees on it with the others
		return n.s.clocks.run(ctx, n.clock, n.registry.list)
	})
	part("reads", n.reads.run)       // the pool that runs reads
	part("placement", n.driver.run)  // owns the driver
	part("reports", n.reporter.run)  // facts up, orders down
	part("range ids", n.ids.run)     // refills the stock of range ids
	part("maintenance", n.maintain)  // what time drives in ranges
	part("replicas", n.comparer.run) // compares them, stops the node if its own are wrong
	part("disk", n.watchDisk)        // free space, read-only mode
	part("memory", returnMemory)     // gives back what a burst of work has used
	part("serve", func(context.Context) error { return n.serve(n.s.bounded(n.s.grpcLn, n.s.connections)) })
	part("stop", func(all context.Context) error { // hands over, then ends the others
		select {
		case <-ctx.Done():
			n.drain(all)
		case <-n.retired:
			n.drain(all)
		case <-all.Done():
		}
		n.grpc.Stop()
		stop()
		return nil
	})
	return g.Wait()
}

func (n *node) serve(ln net.Listener) error {
	if err := n.grpc.Serve(ln); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// every calls f at an interval until ctx ends.
func every(ctx context.Context, d time.Duration, f func()) error {
	ticker := time.NewTicker(d)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			f()
		}
	}
}

func (n *node) maintain(ctx context.Context) error {
	return every(ctx, maintainEvery, n.table.Maintain)
}

func (n *node) watchDisk(ctx context.Context) error {
	checks := 0
	check := func() {
		if checks++; checks%usedChecks == 1 {
			n.diskUsed.Store(n.store.Metrics().DiskBytes)
		}
		total, free, err := n.store.CheckDisk()
		if err != nil {
			n.cfg.Logger.Warn("free disk space not known", "error", err)
			return
		}
		n.diskTotal.Store(total)
		n.diskFree.Store(free)
	}
	check()
	return every(ctx, diskEvery, check)
}

// hello is what this node says when a stream opens.
func (n *node) hello() *metapb.Hello {
	rec := n.store.Identity().Record()
	return &metapb.Hello{
		ProtocolMin: rpc.ProtocolMin, ProtocolMax: rpc.ProtocolMax,
		ClusterId: n.cluster, NodeId: uint64(n.self), Life: uint64(rec.Life), Mark: rec.Mark,
		Stamp: uint64(n.clock.Peek()),
	}
}

// met checks a peer's hello and remembers its life and mark durably: a store
// that was rolled back or copied shows itself by them.
func (n *node) met(h *metapb.Hello) error {
	if h.GetClusterId() != n.cluster {
		return fmt.Errorf("n%d belongs to cluster %016x, this node to %016x: check its --join",
			h.GetNodeId(), h.GetClusterId(), n.cluster)
	}
	peer := ids.NodeID(h.GetNodeId())
	if peer == n.self || peer == 0 {
		return fmt.Errorf("a peer calls itself %v, and so is this node: one of them runs on a "+
			"copied directory", peer)
	}
	return n.store.Identity().MetPeer(peer, ids.Life(h.GetLife()), h.GetMark())
}

// becameReady tells the world once that this node serves.
func (n *node) becameReady() {
	if n.ready.Swap(true) {
		return
	}
	n.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
	replicas, leaders := n.table.Counts()
	info := Info{
		Node: n.self, Cluster: n.cluster, Client: n.s.advertise, HTTP: n.s.HTTPAddr(),
		Data: n.cfg.Data, Origin: n.origin, Replicas: replicas, Leaders: leaders,
		Took: time.Since(n.s.began), Version: n.cfg.Version, Commit: n.cfg.Commit,
	}
	for _, d := range n.registry.list() {
		info.Nodes = append(info.Nodes, d.GetAddress())
	}
	n.cfg.Ready(info)
}
