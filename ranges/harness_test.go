package ranges

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// world is a cluster of real stores and hosts in one goroutine: messages, disk
// syncs and jobs happen when settle lets them.
type world struct {
	t      testing.TB
	nodes  []*node // index is the node id; 0 is nil
	wire   []packet
	drop   func(from, to ids.NodeID, m *multiraft.Message) bool
	wall   int64
	nextID ids.RangeID
	seq    uint64
	tune   func(*Config)
	// lease says which leases are held; nil: none. What a real one needs is the
	// business of multiraft; stories here say themselves who holds one.
	lease   func(n *node, r *Replica, term ids.Term, ts hlc.Timestamp) multiraft.LeaseState
	noSnaps bool
	snaps   int
}

type packet struct {
	to    ids.NodeID
	frame multiraft.Frame
	run   func()
}

type node struct {
	w        *world
	id       ids.NodeID
	fs       *vfs.MemFS
	store    *store.Store
	clock    *hlc.Hybrid
	host     *multiraft.Host
	table    *Table
	jobs     []func()
	holdJobs bool
	down     bool
	ahead    int64 // of the world's wall clock, in milliseconds
	facts    []*metapb.RangeFact

	committed func() // after each commit to the store
}

func (w *world) Wall() int64              { return w.wall }
func (w *world) Monotonic() time.Duration { return time.Duration(w.wall) * time.Millisecond }

// Wall is the world's, but for the node's own error.
func (n *node) Wall() int64              { return n.w.wall + n.ahead }
func (n *node) Monotonic() time.Duration { return n.w.Monotonic() }

func newWorld(t testing.TB, n int, tune func(*Config)) *world {
	w := &world{t: t, wall: 1_000_000, nextID: 100, tune: tune, nodes: make([]*node, n+1)}
	for i := 1; i <= n; i++ {
		nd := &node{w: w, id: ids.NodeID(i), fs: vfs.NewCrashableMem()}
		w.nodes[i] = nd
		nd.open(true)
	}
	t.Cleanup(func() {
		for _, n := range w.nodes[1:] {
			n.close()
		}
	})
	return w
}

// oneNode is a bootstrapped cluster of one.
func oneNode(t testing.TB, tune func(*Config)) *world {
	w := newWorld(t, 1, tune)
	w.bootstrap()
	return w
}

// threeNodes is a cluster of three with every range on all of them.
func threeNodes(t testing.TB, tune func(*Config)) *world {
	w := newWorld(t, 3, tune)
	w.bootstrap()
	for _, r := range []ids.RangeID{1, 2} {
		w.addVoter(r, 2)
		w.addVoter(r, 3)
	}
	return w
}

func (w *world) bootstrap() {
	w.t.Helper()
	must(w.t, Bootstrap(w.nodes[1].store, 1))
	for _, n := range w.nodes[1:] {
		must(w.t, n.table.Start(n.host))
	}
	w.settle()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (n *node) open(create bool) {
	t := n.w.t
	t.Helper()
	draws := uint64(n.id) << 32
	blockCache := int64(1 << 20)
	if _, ok := t.(*testing.B); ok {
		blockCache = 256 << 20 // what is measured is not the want of it
	}
	s, err := store.Open(store.Options{
		Dir: "data", FS: n.fs, Create: create, Simulated: true, ReserveBytes: 1,
		CacheBytes: blockCache, MemTableBytes: 4 << 20,
		Logger: slog.New(slog.DiscardHandler),
		Fatal:  func(msg string) { panic("store gave up: " + msg) },
		Random: func() uint64 { draws++; return draws },
		AfterCommit: func() {
			if n.committed != nil {
				n.committed()
			}
		},
	})
	must(t, err)
	n.store = s
	start := hlc.New(n.w.wall, 0)
	if n.clock != nil {
		start = n.clock.Peek()
	}
	n.clock = hlc.NewHybrid(n, start, time.Hour)
	n.clock.SetBound(hlc.MaxTimestamp)
	cfg := Config{
		Node: n.id, Store: s, Clock: n.clock, Physical: n.w,
		Logger:      testLogger(n),
		Execute:     func(job func()) { n.jobs = append(n.jobs, job) },
		NextRangeID: func() (ids.RangeID, bool) { n.w.nextID++; return n.w.nextID, true },
		OnFact:      func(f *metapb.RangeFact) { n.facts = append(n.facts, f) },
	}
	if n.w.tune != nil {
		n.w.tune(&cfg)
	}
	n.table, err = New(cfg)
	must(t, err)
	n.table.lease = func(
		r *Replica, term ids.Term, ts hlc.Timestamp,
	) multiraft.LeaseState {
		if n.w.lease == nil {
			return multiraft.LeaseNone
		}
		return n.w.lease(n, r, term, ts)
	}
	n.host, err = multiraft.NewHost(multiraft.Config{
		Node: n.id, Store: s, Clock: n.clock, Transport: n, Shards: 2,
		Logger:     cfg.Logger,
		Background: func(job func()) { n.jobs = append(n.jobs, job) },
		Gone:       n.table.Gone,
		OnGone:     n.table.OnGone,
		OnHalted:   n.table.OnHalted,
	})
	must(t, err)
	n.down = false
}

func (n *node) close() {
	if n.store == nil {
		return
	}
	for i := range n.host.Shards() {
		for n.host.CompleteSync(i) {
		}
	}
	must(n.w.t, n.store.Close())
	n.store = nil
}

// crash loses what was not synced; restart brings the node back.
func (n *node) crash() {
	clone := n.fs.CrashClone(vfs.CrashCloneCfg{})
	n.close()
	n.fs, n.down, n.jobs = clone, true, nil
}

func (n *node) restart() {
	n.open(false)
	must(n.w.t, n.table.Start(n.host))
}

// Send puts a frame on the wire.
func (n *node) Send(to ids.NodeID, msgs []multiraft.Message) bool {
	var kept []multiraft.Message
	for i := range msgs {
		if n.w.drop == nil || !n.w.drop(n.id, to, &msgs[i]) {
			kept = append(kept, msgs[i])
		}
	}
	if len(kept) > 0 {
		n.w.wire = append(n.w.wire, packet{to: to, frame: multiraft.Frame{
			From: n.id, Stamp: n.clock.Peek(), Messages: kept,
		}})
	}
	return true
}

// SendSnapshot reads the snapshot at once and puts it on the wire.
func (n *node) SendSnapshot(
	to ids.NodeID, h *metapb.SnapshotHeader, o *store.OutgoingSnapshot, done func(error),
) {
	var chunks [][]byte
	for {
		chunk, err := o.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(n.w.t, err)
		chunks = append(chunks, bytes.Clone(chunk))
	}
	o.Close()
	n.w.snaps++
	n.w.wire = append(n.w.wire, packet{to: to, run: func() {
		n.w.nodes[to].takeSnapshot(h, chunks, done)
	}})
}

func (n *node) takeSnapshot(h *metapb.SnapshotHeader, chunks [][]byte, done func(error)) {
	if n.down || n.w.noSnaps {
		done(errors.New("no way"))
		return
	}
	a, err := n.table.AdmitSnapshot(h)
	if err != nil {
		done(err)
		return
	}
	for _, c := range chunks {
		must(n.w.t, a.Incoming.Add(c))
	}
	must(n.w.t, a.Incoming.Finish())
	a.Deliver(done)
}

// step does all that can be done now on a node and says whether there was anything.
func (n *node) step() (busy bool) {
	if n.down {
		return false
	}
	for i := range n.host.Shards() {
		if work, syncs := n.host.PendingWork(i); work || syncs > 0 {
			busy = true
		}
		n.host.Poll(i)
		for n.host.CompleteSync(i) {
		}
	}
	if n.holdJobs {
		return busy
	}
	jobs := n.jobs
	n.jobs = nil
	for _, job := range jobs {
		busy = true
		job()
	}
	return busy
}

// settle lets everything happen that needs no time to pass.
func (w *world) settle() {
	w.t.Helper()
	for range 20_000 {
		busy := false
		for _, n := range w.nodes[1:] {
			busy = n.step() || busy
		}
		wire := w.wire
		w.wire = nil
		for _, p := range wire {
			busy = true
			if n := w.nodes[p.to]; p.run != nil {
				p.run()
			} else if !n.down {
				n.host.Receive(p.frame)
			}
		}
		if !busy {
			return
		}
	}
	w.t.Fatal("the cluster does not settle")
}

// tick lets time pass.
func (w *world) tick(n int) {
	w.t.Helper()
	for range n {
		w.wall += 100
		for _, n := range w.nodes[1:] {
			if !n.down {
				n.host.Tick()
			}
		}
		w.settle()
	}
}

// maintain lets maintenance run everywhere until it has nothing urgent to do.
func (w *world) maintain(times int) {
	w.t.Helper()
	for range times {
		w.wall += 1000
		for _, n := range w.nodes[1:] {
			if !n.down {
				n.table.Maintain()
			}
		}
		w.settle()
	}
}

// leader returns the node that leads a range, ticking until there is one.
func (w *world) leader(r ids.RangeID) *node {
	w.t.Helper()
	for range 200 {
		for _, n := range w.nodes[1:] {
			if !n.down && n.table.Leads(r) {
				return n
			}
		}
		w.tick(1)
	}
	w.dump()
	w.t.Fatalf("%v has no leader", r)
	return nil
}

// order carries an order out on the leader.
func (w *world) order(o *metapb.Order) error {
	w.t.Helper()
	var result error
	called := false
	w.leader(ids.RangeID(o.GetRangeId())).table.Order(o, func(err error) {
		result, called = err, true
	})
	w.settle()
	if !called {
		w.t.Fatalf("order %v was not answered", o)
	}
	return result
}

func (w *world) descriptor(r ids.RangeID) *metapb.RangeDescriptor {
	w.t.Helper()
	return w.leader(r).table.replica(r).descriptor()
}

// addVoter adds a learner on a node, lets it catch up and promotes it.
func (w *world) addVoter(r ids.RangeID, to ids.NodeID) ids.ReplicaID {
	w.t.Helper()
	must(w.t, w.order(&metapb.Order{
		RangeId: uint64(r), Kind: metapb.OrderKind_ORDER_KIND_ADD_LEARNER, NodeId: uint64(to),
	}))
	w.tick(10)
	id := replicaOn(w.descriptor(r), to).GetReplicaId()
	must(w.t, w.order(&metapb.Order{
		RangeId: uint64(r), Kind: metapb.OrderKind_ORDER_KIND_PROMOTE, ReplicaId: id,
	}))
	w.tick(2)
	if isJoint(w.descriptor(r)) {
		w.t.Fatalf("%v stays joint", r)
	}
	return ids.ReplicaID(id)
}

// removeReplica demotes and removes a replica.
func (w *world) removeReplica(r ids.RangeID, id ids.ReplicaID) {
	w.t.Helper()
	must(w.t, w.order(&metapb.Order{
		RangeId: uint64(r), Kind: metapb.OrderKind_ORDER_KIND_DEMOTE, ReplicaId: uint64(id),
	}))
	w.tick(2)
	must(w.t, w.order(&metapb.Order{
		RangeId: uint64(r), Kind: metapb.OrderKind_ORDER_KIND_REMOVE_LEARNER, ReplicaId: uint64(id),
	}))
	w.tick(2)
}

func (w *world) transfer(r ids.RangeID, to ids.NodeID) {
	w.t.Helper()
	must(w.t, w.order(&metapb.Order{
		RangeId: uint64(r), Kind: metapb.OrderKind_ORDER_KIND_TRANSFER_LEADER, NodeId: uint64(to),
	}))
	for range 50 {
		w.tick(1)
		if w.nodes[to].table.Leads(r) {
			return
		}
	}
	w.t.Fatalf("leadership of %v did not move to %v", r, to)
}
