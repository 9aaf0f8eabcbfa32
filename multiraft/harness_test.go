package multiraft

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// The harness drives several hosts on simulated stores from one goroutine.
// Replica id r lives on node r % 100, so that a node can have successors.

const (
	startIndex = 10 // where every log begins
	startTerm  = 5
)

func nodeOf(r ids.ReplicaID) ids.NodeID { return ids.NodeID(r % 100) }

// packet is what travels on the wire: messages, or a snapshot (run).
type packet struct {
	from, to ids.NodeID
	messages []Message
	snapshot func() // delivers
}

type cluster struct {
	t     testing.TB
	nodes map[ids.NodeID]*node
	order []ids.NodeID
	wire  []packet
	// drop filters what is sent.
	drop func(from, to ids.NodeID, m *Message) bool
	// snapshots deliver once more what was sent.
	snapshots []func()
	dead      map[ids.ReplicaID]bool        // gone for ever, known to all
	gone      map[ids.RangeID]ids.ReplicaID // replicas below are gone, known to all
	seals     func([]byte) bool             // GroupConfig.Seals
}

type node struct {
	c        *cluster
	id       ids.NodeID
	fs       *vfs.MemFS
	store    *store.Store
	host     *Host
	machines map[ids.RangeID]*machine
	jobs     []func()
	// receiving are the ends of snapshot streams whose receiver may crash.
	receiving []func(error)
	holdSync  bool // settle does not complete syncs
	holdJobs  bool // settle does not run background jobs
	down      bool
	goneSeen  []string
	tune      func(*Config)
	onGone    func(ids.RangeID, ids.ReplicaID)
	onAdd     func(*machine)
}

func newCluster(t testing.TB, n int, tune func(*Config)) *cluster {
	c := &cluster{t: t, nodes: make(map[ids.NodeID]*node), gone: map[ids.RangeID]ids.ReplicaID{}}
	for i := 1; i <= n; i++ {
		c.addNode(ids.NodeID(i), tune)
	}
	t.Cleanup(func() {
		for _, id := range c.order {
			c.nodes[id].close()
		}
	})
	return c
}

func (c *cluster) addNode(id ids.NodeID, tune func(*Config)) *node {
	n := &node{c: c, id: id, fs: vfs.NewCrashableMem(), tune: tune}
	c.nodes[id] = n
	c.order = append(c.order, id)
	n.open(true)
	return n
}

func (n *node) open(create bool) {
	n.c.t.Helper()
	draws := uint64(n.id) << 32
	s, err := store.Open(store.Options{
		Dir: "data", FS: n.fs, Create: create, Simulated: true, ReserveBytes: 1,
		CacheBytes: 1 << 20, MemTableBytes: 1 << 20,
		Logger: slog.New(slog.DiscardHandler),
		Fatal:  func(msg string) { panic("store of node gave up: " + msg) },
		Random: func() uint64 { draws++; return draws },
	})
	if err != nil {
		n.c.t.Fatal(err)
	}
	n.store = s
	cfg := Config{
		Node: n.id, Store: s, Transport: n, Shards: 2,
		Logger:     slog.New(slog.DiscardHandler),
		Background: func(job func()) { n.jobs = append(n.jobs, job) },
		Gone: func(r ids.RangeID, id ids.ReplicaID) (ids.ReplicaID, bool) {
			next := n.c.gone[r]
			if n.c.dead[id] {
				return id + 1, true
			}
			return next, id < next
		},
		OnGone: func(r ids.RangeID, next ids.ReplicaID) {
			n.goneSeen = append(n.goneSeen, fmt.Sprintf("range %d below %d", r, next))
			if n.onGone != nil {
				n.onGone(r, next)
			}
		},
	}
	if n.tune != nil {
		n.tune(&cfg)
	}
	n.host, err = NewHost(cfg)
	if err != nil {
		n.c.t.Fatal(err)
	}
	n.machines = make(map[ids.RangeID]*machine)
	n.down = false
}

func (n *node) close() {
	if n.store == nil {
		return
	}
	for i := range n.host.shards {
		for n.host.CompleteSync(i) {
		}
	}
	if err := n.store.Close(); err != nil {
		n.c.t.Error(err)
	}
	n.store = nil
}

// crash loses what was not synced and leaves the node down.
func (n *node) crash() {
	clone := n.fs.CrashClone(vfs.CrashCloneCfg{})
	n.close()
	n.fs, n.down, n.jobs = clone, true, nil
	for _, done := range n.receiving {
		done(errors.New("stream broke"))
	}
	n.receiving = nil
}

// restart opens the store again and adds the replicas that are in it.
func (n *node) restart() {
	n.open(false)
	all, err := n.store.State().Replicas()
	if err != nil {
		n.c.t.Fatal(err)
	}
	for _, rs := range all {
		n.addReplica(rs, false)
	}
}

// Send puts messages on the wire.
func (n *node) Send(to ids.NodeID, msgs []Message) bool {
	var kept []Message
	for i := range msgs {
		if n.c.drop == nil || !n.c.drop(n.id, to, &msgs[i]) {
			kept = append(kept, msgs[i])
		}
	}
	if len(kept) > 0 {
		n.c.wire = append(n.c.wire, packet{from: n.id, to: to, messages: kept})
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
		if err != nil {
			n.c.t.Fatal(err)
		}
		chunks = append(chunks, bytes.Clone(chunk))
	}
	o.Close()
	told := false
	deliver := func() {
		n.c.nodes[to].takeSnapshot(h, chunks, func(err error) {
			if !told { // a duplicate is not reported
				told = true
				done(err)
			}
		})
	}
	n.c.snapshots = append(n.c.snapshots, deliver)
	n.c.wire = append(n.c.wire, packet{from: n.id, to: to, snapshot: deliver})
}

// takeSnapshot receives a snapshot, adding an uninitialised group for it.
func (n *node) takeSnapshot(
	h *metapb.SnapshotHeader, chunks [][]byte, done func(error),
) {
	if n.down || n.c.dead[ids.ReplicaID(h.GetToReplica())] {
		done(errors.New("node is down or replica is dead"))
		return
	}
	in, err := n.store.ReceiveSnapshot(h)
	if err != nil {
		n.c.t.Fatal(err)
	}
	for _, chunk := range chunks {
		if err := in.Add(chunk); err != nil {
			n.c.t.Fatal(err)
		}
	}
	if err := in.Finish(); err != nil {
		n.c.t.Fatal(err)
	}
	r := ids.RangeID(h.GetRangeId())
	if n.machines[r] == nil {
		n.addGroup(GroupConfig{Range: r, Replica: ids.ReplicaID(h.GetToReplica())})
	}
	n.receiving = append(n.receiving, done)
	n.host.DeliverSnapshot(in, func(installed bool, err error) {
		n.machines[r].installs = append(n.machines[r].installs, fmt.Sprint(installed, err))
		done(err)
	})
}

// addGroup adds a group with a fresh machine.
func (n *node) addGroup(gc GroupConfig) *machine {
	m := &machine{n: n, r: gc.Range, index: gc.Applied, conf: gc.Conf}
	if n.onAdd != nil {
		n.onAdd(m)
	}
	gc.Machine, gc.Born, gc.Seals = m, func(g *Group) { m.g = g }, n.c.seals
	g, err := n.host.AddGroup(gc)
	if err != nil {
		n.c.t.Fatal(err)
	}
	m.g = g
	n.machines[gc.Range] = m
	return m
}

func (n *node) addReplica(rs *store.ReplicaState, campaign bool) *machine {
	conf := confState(rs.Applied.GetConf())
	m := n.addGroup(GroupConfig{
		Range:   ids.RangeID(rs.Descriptor.GetRangeId()),
		Replica: rs.Replica, Applied: ids.Index(rs.Applied.GetIndex()),
		Conf: conf, Peers: peersOf(conf), Campaign: campaign,
	})
	m.hash = rs.Applied.GetFingerprint()
	return m
}

func peersOf(cs *raftpb.ConfState) map[ids.ReplicaID]ids.NodeID {
	peers := make(map[ids.ReplicaID]ids.NodeID)
	for _, set := range [][]uint64{cs.Voters, cs.VotersOutgoing, cs.Learners, cs.LearnersNext} {
		for _, id := range set {
			peers[ids.ReplicaID(id)] = nodeOf(ids.ReplicaID(id))
		}
	}
	return peers
}

// stage writes a new replica into a node's store, without adding its group.
func (n *node) stage(r ids.RangeID, self ids.ReplicaID, voters ...uint64) *store.ReplicaState {
	n.c.t.Helper()
	rs := &store.ReplicaState{
		Replica:    self,
		Descriptor: &metapb.RangeDescriptor{RangeId: uint64(r), Start: key(r), End: key(r + 1)},
		Applied: &metapb.AppliedState{
			Index: startIndex, Term: startTerm, Conf: &metapb.ConfState{Voters: voters}},
	}
	b := n.store.NewBatch()
	err := errors.Join(
		n.store.State().PutDescriptor(b, r, self, rs.Descriptor),
		n.store.State().PutApplied(b, r, rs.Applied),
		n.store.Log().InitialGroup(b, r, startIndex, startTerm))
	if err != nil {
		n.c.t.Fatal(err)
	}
	p, err := n.store.CommitSync(b)
	if err != nil {
		n.c.t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		n.c.t.Fatal(err)
	}
	b.Close()
	return rs
}

func key(r ids.RangeID) []byte { return fmt.Appendf([]byte{'u'}, "%08d", r) }

// bootstrap starts a range with one voter on each of the given nodes; the
// replica ids are the nodes' ids.
func (c *cluster) bootstrap(r ids.RangeID, voters ...uint64) {
	for _, v := range voters {
		n := c.nodes[ids.NodeID(v)]
		n.addReplica(n.stage(r, ids.ReplicaID(v), voters...), false)
	}
}

// poll runs all shards of a node until they have nothing to do. It does not
// complete syncs.
func (n *node) poll() {
	for busy := true; busy; {
		busy = false
		for i := range n.host.shards {
			if work, _ := n.host.PendingWork(i); work {
				n.host.Poll(i)
				busy = true
			}
		}
	}
}

// sync completes all syncs in flight of a node and polls.
func (n *node) sync() {
	for i := range n.host.shards {
		for n.host.CompleteSync(i) {
		}
	}
	n.poll()
}

// deliver hands over everything that is on the wire now.
func (c *cluster) deliver() {
	wire := c.wire
	c.wire = nil
	for _, p := range wire {
		c.deliverPacket(p)
	}
}

func (c *cluster) deliverPacket(p packet) {
	to := c.nodes[p.to]
	if p.snapshot != nil {
		p.snapshot()
		return
	}
	if to == nil || to.down {
		return
	}
	to.host.Receive(Frame{From: p.from, Messages: p.messages})
}

// settle runs everything until nothing moves any more.
func (c *cluster) settle() {
	for range 10_000 {
		for _, id := range c.order {
			n := c.nodes[id]
			if n.down {
				continue
			}
			n.poll()
			if !n.holdSync {
				n.sync()
			}
			if jobs := n.jobs; !n.holdJobs {
				n.jobs = nil
				for _, job := range jobs {
					job()
				}
			}
		}
		if len(c.wire) == 0 && !c.busy() {
			return
		}
		c.deliver()
	}
	c.t.Fatal("the cluster does not come to rest")
}

func (c *cluster) busy() bool {
	for _, id := range c.order {
		n := c.nodes[id]
		if n.down {
			continue
		}
		if len(n.jobs) > 0 && !n.holdJobs {
			return true
		}
		for i := range n.host.shards {
			work, syncs := n.host.PendingWork(i)
			if work || syncs > 0 && !n.holdSync {
				return true
			}
		}
	}
	return false
}

// tick ticks all nodes and settles, so many times.
func (c *cluster) tick(times int) {
	for range times {
		for _, id := range c.order {
			if n := c.nodes[id]; !n.down {
				n.host.Tick()
			}
		}
		c.settle()
	}
}

// do runs f as a task of a group and polls until it has run.
func (m *machine) do(f func()) {
	m.n.c.t.Helper()
	if err := m.g.Enqueue(TaskFunc(f), 0); err != nil {
		m.n.c.t.Fatal(err)
	}
	m.n.poll()
}

// elect makes a node the leader of a range. It waits out the followers' belief
// in an earlier leader with ticks of that node alone.
func (c *cluster) elect(r ids.RangeID, id ids.NodeID) *machine {
	c.t.Helper()
	c.settle()
	m := c.nodes[id].machines[r]
	for range 5 {
		m.do(m.g.Campaign)
		c.settle()
		if m.status().IsLeader {
			return m
		}
		c.tick(10)
		for _, other := range c.order {
			l := c.nodes[other].machines[r]
			if l != nil && !l.n.down && l.status().IsLeader {
				l.do(func() { l.g.TransferLeader(m.g.cfg.Replica) })
				c.settle()
			}
		}
	}
	c.t.Fatalf("node %d cannot lead range %d", id, r)
	return nil
}

func (m *machine) status() Status { return m.g.Status() }

// agree checks that all given replicas applied the same, after the tick with
// which followers hear of the last commit index.
func (c *cluster) agree(r ids.RangeID, nodes ...ids.NodeID) {
	c.t.Helper()
	c.tick(1)
	first := c.nodes[nodes[0]].machines[r]
	for _, id := range nodes[1:] {
		if m := c.nodes[id].machines[r]; m.hash != first.hash || m.index != first.index {
			c.t.Fatalf("range %d: node %d is at %d (%x), node %d at %d (%x)",
				r, nodes[0], first.index, first.hash, id, m.index, m.hash)
		}
	}
}
