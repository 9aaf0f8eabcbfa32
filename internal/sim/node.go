package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/ranges"
	"github.com/flotilla-kv/flotilla/store"
)

// Timing of a node's loops, in its own time.
const (
	tickInterval     = 100 * time.Millisecond
	boundWindow      = 3 * time.Second
	boundInterval    = 250 * time.Millisecond
	reportInterval   = 150 * time.Millisecond
	driverInterval   = 250 * time.Millisecond
	maintainInterval = time.Second
	maxAhead         = boundWindow + 2*time.Second // tolerated lead of a remote clock
)

// node is one simulated machine: its disk and clock outlive its processes.
type node struct {
	sim      *Sim
	id       ids.NodeID // the machine's number, and the node id it is to get
	physical *clock
	fs       *vfs.MemFS
	locality []string
	rand     *rand.Rand

	alive       bool
	paused      bool
	deferred    []func() // what happened to a paused process
	incarnation int
	disk        time.Duration // latency of a sync
	stalled     bool          // no sync ends
	stalledAt   time.Duration
	doom        int                 // commits until the machine loses power, 0: not armed
	isolated    bool                // all its links are cut
	standing    metapb.NodeStanding // as it was told last
	looks       int                 // how often the checker looked at the store

	// One process; made anew by boot.
	store   *store.Store
	clock   *hlc.Hybrid
	host    *multiraft.Host
	table   *ranges.Table
	driver  *placement.Driver
	control control
	polling []bool // a pass of the shard is scheduled
	syncing []bool // the end of a sync of the shard is scheduled
	reads   []func()

	promises    *promises
	polled      bool                      // a shard made a pass: replicas may have changed
	known       []*metapb.RangeDescriptor // here, when the checker looked last
	booted      time.Duration             // on the lease clock
	leasesMoved bool                      // the event may have changed which leases are held here
	settled     bool                      // others have agreed to this process's time
	raising     bool                      // a remote stamp above the bound raises it at once
}

// run executes f as part of the node's present process, later if it is paused.
func (n *node) run(f func()) {
	if !n.alive {
		return
	}
	if n.paused {
		n.deferred = append(n.deferred, f)
		return
	}
	if n.survives(f) {
		n.wake()
		n.sim.checker.after(n)
	}
}

// after schedules f in the node's present process; it is lost with it.
func (n *node) after(d time.Duration, f func()) {
	incarnation := n.incarnation
	n.sim.loop.after(d, func() {
		if n.incarnation == incarnation {
			n.run(f)
		}
	})
}

// every repeats f while the process lives.
func (n *node) every(d time.Duration, f func()) {
	var again func()
	again = func() {
		n.after(time.Duration(float64(d)/n.physical.rate), func() {
			f()
			again()
		})
	}
	again()
}

// wake schedules passes and sync completions for shards that have work.
func (n *node) wake() {
	if !n.alive || n.host == nil {
		return
	}
	n.promises.follow()
	for shard := range n.polling {
		work, syncs := n.host.PendingWork(shard)
		if work && !n.polling[shard] {
			n.polling[shard] = true
			n.after(between(n.rand, time.Microsecond, 200*time.Microsecond), func() {
				n.polling[shard] = false
				n.leasesMoved, n.polled = true, true
				n.host.Poll(shard)
			})
		}
		if syncs > 0 && !n.syncing[shard] && !n.stalled {
			n.syncing[shard] = true
			n.after(n.syncLatency(), func() {
				n.syncing[shard] = false
				if !n.stalled {
					n.host.CompleteSync(shard)
				}
			})
		}
	}
}

func (n *node) syncLatency() time.Duration {
	d := n.disk
	if chance(n.rand, 0.02) {
		d *= 20
	}
	return between(n.rand, d/2, d*2)
}

// boot starts a process on the node's disk.
func (n *node) boot() error {
	n.incarnation++
	s, err := store.Open(store.Options{
		Dir: "store", FS: n.fs, Create: true, Simulated: true,
		CacheBytes: 4 << 20, MemTableBytes: 4 << 20, EntryCacheBytes: 1 << 20,
		SnapshotInMemoryBytes: n.sim.options.SnapshotInMemoryBytes,
		Logger:                n.sim.logger(n.id), Random: n.rand.Uint64,
		AfterCommit: n.afterCommit,
		Fatal:       func(m string) { invariant.Failf("fatal: %s", m) },
	})
	if err != nil {
		return fmt.Errorf("open store of %s: %w", n.id, err)
	}
	n.store = s
	record := s.Identity().Record()
	n.alive, n.paused, n.deferred, n.reads, n.clock = true, false, nil, nil, nil
	n.raising, n.settled, n.promises, n.known = false, record.Node == 0, nil, nil
	n.booted = n.physical.Monotonic()
	n.physical.thaw()
	n.physical.restart()
	n.sim.checker.lease.restarted()
	n.control = control{n: n}
	switch {
	case record.Node != 0:
		n.agree(func() {
			if err := n.serve(); err != nil {
				n.sim.fail("serve %s: %v", n, err)
			}
		})
		return nil
	case n.id != 1:
		n.control.join()
		return nil
	}
	if err := n.bootstrap(); err != nil {
		return err
	}
	return n.serve()
}

func (n *node) bootstrap() error {
	if err := ranges.Bootstrap(n.store, n.id); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	return n.store.Identity().Join(n.sim.options.Seed|1, n.id)
}

// startClock makes the hybrid clock: it begins above all that was issued before.
func (n *node) startClock() error {
	bound := n.store.Identity().Record().Bound
	n.clock = hlc.NewHybrid(n.physical, max(hlc.New(n.physical.Wall(), 0), bound), maxAhead)
	return n.raiseBound() // waited for, however slow the disk: no frame leaves before it
}

// serve starts what needs a node id and the right time.
func (n *node) serve() error {
	if err := n.startClock(); err != nil {
		return err
	}
	logger := n.sim.logger(n.id)
	n.promises = n.promise()
	table, err := ranges.New(ranges.Config{
		Node: n.id, Store: n.store, Clock: n.clock, Physical: n.physical,
		RangeSize: n.sim.options.RangeSize, GCWindow: 5 * time.Second, Logger: logger,
		LoadSplitOps: n.sim.options.Placement.LoadSplitOps, LoadSplitCPU: -1,
		Execute:     n.execute,
		NextRangeID: n.control.nextRangeID,
		OnFact:      n.control.fact,
		CheckEvery:  compareEvery, Compare: n.compare,
		Witness: &witness{n}, Pause: n.pauseRead, RowCacheBytes: n.sim.options.RowCache,
	})
	if err != nil {
		return fmt.Errorf("make table: %w", err)
	}
	n.host, err = multiraft.NewHost(multiraft.Config{
		Node: n.id, Store: n.store, Clock: n.clock, Transport: &nodeTransport{n},
		Support: n.promises.table, Shards: 2, TickInterval: tickInterval, Logger: logger,
		Gone: table.Gone, OnGone: table.OnGone, OnHalted: table.OnHalted,
		Background: func(job func()) {
			n.after(between(n.rand, n.disk, 10*n.disk), job)
		},
		TruncateEntries: 16, MaxLogBytes: n.sim.options.MaxLogBytes,
	})
	if err != nil {
		return fmt.Errorf("make host: %w", err)
	}
	n.table = table
	n.polling = make([]bool, n.host.Shards())
	n.syncing = make([]bool, n.host.Shards())
	if err := table.Start(n.host); err != nil {
		return fmt.Errorf("start table: %w", err)
	}
	p := n.sim.options.Placement
	n.driver = placement.NewDriver(placement.Config{
		Self: n.id, ClusterID: n.sim.options.Seed | 1, KV: &systemKV{n: n},
		ReplicationFactor: p.Replicas, DeadAfter: p.DeadAfter,
		RangeSize: n.sim.options.RangeSize, MergeBelow: p.MergeBelow, MergeAfter: p.MergeAfter,
		Logger: logger,
	})
	n.loops()
	n.wake()
	return nil
}

func (n *node) loops() {
	n.every(tickInterval, n.host.Tick)
	n.every(boundInterval, func() {
		if err := n.extendBound(); err != nil {
			n.sim.fail("extend bound of %s: %v", n.id, err)
		}
	})
	n.every(maintainInterval, n.table.Maintain)
	n.promises.start()
	n.every(reportInterval, n.control.report)
	n.every(driverInterval, func() {
		now := n.physical.Monotonic()
		n.driver.SetActive(n.table.Leads(1), now)
		n.driver.Step(now)
	})
	n.control.started()
}

func (n *node) extendBound() error {
	if n.stalled {
		return nil
	}
	return n.raiseBound()
}

func (n *node) raiseBound() error {
	bound, due := n.clock.NextBound(boundWindow)
	if !due {
		return nil
	}
	if err := n.store.Identity().ExtendBound(bound); err != nil {
		return err
	}
	n.clock.SetBound(bound)
	return nil
}

// heard follows a stamp that could not be adopted: if only the bound was in the
// way, it is raised at once, so that the next frame is heard.
func (n *node) heard() {
	if n.raising {
		return
	}
	n.raising = true
	n.after(n.syncLatency(), func() {
		n.raising = false
		if err := n.extendBound(); err != nil {
			n.sim.fail("extend bound of %s: %v", n.id, err)
		}
	})
}

// execute queues a read job; jobs of one moment run in order, a little later.
func (n *node) execute(job func()) {
	n.after(between(n.rand, 0, 300*time.Microsecond), job)
}

// receiveSnapshot is the receiving end of a snapshot stream.
func (n *node) receiveSnapshot(h *metapb.SnapshotHeader, chunks [][]byte, done func(error)) {
	if n.table == nil {
		done(errLink)
		return
	}
	if err := n.clock.Update(hlc.Timestamp(h.Stamp)); err != nil {
		n.heard()
		done(err)
		return
	}
	a, err := n.table.AdmitSnapshot(h)
	if err != nil {
		n.sim.count("snapshots_refused")
		done(err)
		return
	}
	for _, c := range chunks {
		if err = a.Incoming.Add(c); err != nil {
			break
		}
	}
	if err == nil {
		err = a.Incoming.Finish()
	}
	if err != nil {
		a.Abandon()
		done(err)
		return
	}
	n.sim.checker.arrived[arrival{n.id, ids.RangeID(h.RangeId)}] = true
	subsumes := n.others(h.Descriptor_)
	a.Deliver(func(err error) {
		if err == nil {
			n.sim.count("snapshots_installed")
			if subsumes {
				n.sim.count("snapshots_that_subsumed")
			}
		}
		done(err)
	})
}

// pause stops the process as SIGSTOP does; resume lets it go on with all that
// happened meanwhile.
func (n *node) pause() { n.paused = true }

func (n *node) resume() {
	n.paused = false
	waiting := n.deferred
	n.deferred = nil
	for _, f := range waiting {
		n.after(0, f)
	}
	n.wake()
}
