package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// world is a small cluster in virtual time: nodes that report, ranges that
// elect leaders and obey orders as ranges do.
type world struct {
	t      *testing.T
	rng    *rand.Rand
	now    time.Duration
	kv     *memKV
	nodes  []*simNode
	ranges map[ids.RangeID]*simRange
	driver ids.NodeID // who drives
	loss   float64    // of reports, and of replies

	executed map[metapb.OrderKind]int
	swaps    int // promotions that took another's vote
	refused  int
	sent     int
	config   Config // of drivers to come
	lastID   ids.RangeID
}

type simNode struct {
	id      ids.NodeID
	desc    *metapb.NodeDescriptor
	d       *Driver
	up      bool
	full    bool // the next report is full
	next    time.Duration
	dirty   map[ids.RangeID]bool
	noSnaps bool // learners here never catch up
	started time.Duration
}

type simRange struct {
	desc    *metapb.RangeDescriptor
	leader  ids.NodeID
	term    uint64
	caught  map[uint64]time.Duration // when a learner will have caught up
	told    map[uint64]bool
	vacant  time.Duration // time without a leader
	pairFor time.Duration // longest time with exactly two voters
	pair    time.Duration

	bytes         int64
	cpu           uint64
	writes, reads float64
	hot           string // why it is not split
}

const tick = 100 * time.Millisecond

func newWorld(t *testing.T, seed uint64, userRanges int) *world {
	t.Helper()
	t.Logf("seed %d", seed)
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), kv: newMemKV(), driver: 1, lastID: 5000,
		ranges: make(map[ids.RangeID]*simRange), executed: make(map[metapb.OrderKind]int),
	}
	w.addRange(1, []byte{0x10}, []byte{0x20})
	for i := range userRanges {
		start := []byte{0x20, byte(i >> 8), byte(i)}
		end := []byte{0x20, byte((i + 1) >> 8), byte(i + 1)}
		if i == 0 {
			start = []byte{0x20}
		}
		if i == userRanges-1 {
			end = []byte{0x21}
		}
		w.addRange(ids.RangeID(i+2), start, end)
	}
	n := w.start(1)
	n.d.SetActive(true, w.now)
	return w
}

func (w *world) addRange(id ids.RangeID, start, end []byte) {
	w.ranges[id] = &simRange{
		desc: &metapb.RangeDescriptor{
			RangeId: uint64(id), Start: start, End: end, Generation: 1, NextReplicaId: 2,
			Replicas: []*metapb.Replica{{NodeId: 1, ReplicaId: 1}},
		},
		leader: 1, term: 1, bytes: 20 << 20,
		caught: make(map[uint64]time.Duration), told: make(map[uint64]bool),
	}
}

// start adds a node whose store is numbered like itself.
func (w *world) start(id ids.NodeID) *simNode {
	n := &simNode{id: id, up: true, full: true, dirty: make(map[ids.RangeID]bool), started: w.now}
	n.desc = &metapb.NodeDescriptor{
		NodeId: uint64(id), StoreId: 1000 + uint64(id), Address: fmt.Sprintf("h%d:1", id), Life: 1,
	}
	cfg := w.config
	cfg.Self, cfg.ClusterID, cfg.KV, cfg.DeadAfter = id, 7, w.kv, time.Minute
	n.d = NewDriver(cfg)
	w.nodes = append(w.nodes, n)
	return n
}

// join adds a node by a join through the driver.
func (w *world) join(locality ...string) *simNode {
	w.t.Helper()
	var id ids.NodeID
	store := uint64(1000 + len(w.nodes) + 1)
	w.node(w.driver).d.Join(&adminpb.JoinRequest{
		Node: &metapb.NodeDescriptor{StoreId: store, Address: "new:1", Life: 1, Locality: locality},
	}, func(r *adminpb.JoinReply, err error) {
		if err != nil {
			w.t.Fatal(err)
		}
		id = ids.NodeID(r.GetNodeId())
	})
	n := w.start(id)
	n.desc.StoreId, n.desc.Locality = store, locality
	return n
}

func (w *world) node(id ids.NodeID) *simNode {
	for _, n := range w.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

func (w *world) isUp(id uint64) bool { n := w.node(ids.NodeID(id)); return n != nil && n.up }

// moveDriver lets another node drive, as if range 1 had a new leader.
func (w *world) moveDriver(to ids.NodeID) {
	w.node(w.driver).d.SetActive(false, w.now)
	w.driver = to
	w.node(to).d.SetActive(true, w.now)
}

func (w *world) run(d time.Duration) {
	for end := w.now + d; w.now < end; w.now += tick {
		w.step()
	}
}

// runUntil runs until ok, and fails after limit.
func (w *world) runUntil(limit time.Duration, what string, ok func() bool) {
	w.t.Helper()
	for end := w.now + limit; w.now < end; w.now += tick {
		w.step()
		if ok() {
			return
		}
	}
	w.dump()
	w.t.Fatalf("not within %v: %s", limit, what)
}

func (w *world) dump() {
	d := w.node(w.driver).d
	w.t.Log(d.Status(w.now))
	for _, id := range w.ids() {
		w.t.Logf("%v leader %v term %d %v", id, w.ranges[id].leader, w.ranges[id].term,
			w.ranges[id].desc.GetReplicas())
	}
	d.cluster.ops.Scan(func(_ uint64, op *operator) bool {
		w.t.Logf("running at %d: %v", op.at, op)
		return true
	})
}

func (w *world) ids() []ids.RangeID {
	var all []ids.RangeID
	for id := range w.ranges {
		all = append(all, id)
	}
	slices.Sort(all)
	return all
}

func (w *world) step() {
	for _, id := range w.ids() {
		w.live(w.ranges[id])
	}
	for _, n := range w.nodes {
		if n.up {
			n.d.Step(w.now)
		}
	}
	for _, n := range w.nodes {
		if n.up && w.now >= n.next {
			n.next = w.now + 400*time.Millisecond + time.Duration(w.rng.IntN(3))*tick
			w.report(n)
		}
	}
}

// live lets a range elect and its learners catch up.
func (w *world) live(r *simRange) {
	voters := r.voters()
	quorum := 0
	for _, v := range voters {
		if w.isUp(v) {
			quorum++
		}
	}
	if len(voters) == 2 {
		r.pair += tick
		r.pairFor = max(r.pairFor, r.pair)
	} else {
		r.pair = 0
	}
	if quorum <= len(voters)/2 {
		r.leader = 0
		return
	}
	if r.leader == 0 || !w.isUp(uint64(r.leader)) {
		if r.vacant += tick; r.vacant < time.Second {
			return
		}
		for r.leader = 0; !w.isUp(uint64(r.leader)); {
			r.leader = ids.NodeID(voters[w.rng.IntN(len(voters))])
		}
		r.term++
		w.tell(r)
	}
	r.vacant = 0
	for _, p := range r.desc.GetReplicas() {
		id := p.GetReplicaId()
		if at, ok := r.caught[id]; ok && !r.told[id] && w.now >= at && w.isUp(p.GetNodeId()) &&
			!w.node(ids.NodeID(p.GetNodeId())).noSnaps {
			r.told[id] = true
			w.tell(r)
		}
	}
}

func (r *simRange) voters() []uint64 {
	var voters []uint64
	for _, p := range r.desc.GetReplicas() {
		if p.GetRole() == roleVoter {
			voters = append(voters, p.GetNodeId())
		}
	}
	return voters
}

func (w *world) tell(r *simRange) {
	if r.leader != 0 {
		w.node(r.leader).dirty[ids.RangeID(r.desc.GetRangeId())] = true
	}
}

func (w *world) report(n *simNode) {
	msg := &metapb.NodeReport{Node: n.desc, Full: n.full, DiskBytes: 1 << 40,
		DiskFreeBytes: 1 << 39, UptimeSeconds: (w.now - n.started).Seconds()}
	for _, id := range w.ids() {
		r := w.ranges[id]
		for _, p := range r.desc.GetReplicas() {
			if p.GetNodeId() == uint64(n.id) {
				msg.Replicas++
			}
		}
		if r.leader != n.id {
			continue
		}
		msg.Leaders++
		if n.full || n.dirty[id] {
			f := &metapb.RangeFact{Descriptor_: r.desc, LeaderNode: uint64(n.id), Term: r.term,
				Stats: &metapb.RangeStats{ValueBytes: r.bytes}, CpuMicrosPerSecond: r.cpu,
				WritesPerSecond: r.writes, ReadsPerSecond: r.reads, HotBecause: r.hot}
			for _, p := range r.desc.GetReplicas() {
				if r.told[p.GetReplicaId()] && p.GetRole() == roleLearner {
					f.CaughtUp = append(f.CaughtUp, p.GetReplicaId())
				}
			}
			msg.Facts = append(msg.Facts, f)
		}
	}
	driver := w.node(w.driver)
	if !driver.up || w.rng.Float64() < w.loss {
		return
	}
	reply := driver.d.Report(w.now, msg)
	w.sent += len(reply.GetOrders())
	if w.rng.IntN(8) == 0 {
		verify(w.t, driver.d.cluster)
	}
	if w.rng.Float64() < w.loss {
		return // the node must say it all again
	}
	clear(n.dirty)
	n.full = reply.GetWantFull()
	for _, o := range reply.GetOrders() {
		w.obey(n, o)
	}
}

func (w *world) allHave(voters int) func() bool {
	return func() bool {
		for _, r := range w.ranges {
			if len(r.voters()) != voters || len(r.desc.GetReplicas()) != voters {
				return false
			}
		}
		return true
	}
}

// spread returns the least and the largest number of leaders of nodes that are up.
func (w *world) spread() (least, most int) {
	count := make(map[ids.NodeID]int)
	for _, r := range w.ranges {
		count[r.leader]++
	}
	least = len(w.ranges)
	for _, n := range w.nodes {
		if n.up {
			least, most = min(least, count[n.id]), max(most, count[n.id])
		}
	}
	return least, most
}

func (w *world) even() bool { least, most := w.spread(); return most-least <= 2 }

// quiet runs for a long time and fails if anything moves.
func (w *world) quiet(d time.Duration) {
	w.t.Helper()
	before, writes := w.sent, w.kv.writes
	w.run(d)
	if w.sent != before || w.kv.writes != writes {
		w.dump()
		w.t.Fatalf("%d orders and %d writes in a cluster at rest", w.sent-before,
			w.kv.writes-writes)
	}
}
