package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tidwall/btree"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// The pace of the world: what server and ranges do, rounded up to ticks.
const (
	tick           = 50 * time.Millisecond
	driverEvery    = 250 * time.Millisecond
	reportEvery    = 250 * time.Millisecond // at most this often when something changed
	heartbeatEvery = time.Second
	maintainEvery  = time.Second
	electionAfter  = 400 * time.Millisecond
	// currentAfter is how long a voter that was down takes to have the whole log.
	currentAfter = time.Second
	// sampleEvery is the time between two samples for plots.
	sampleEvery = 2 * time.Second
	// maxSamples bounds the samples that a world keeps; later ones are dropped.
	maxSamples = 20_000
	// systemID is the range that holds placement's state.
	systemID = ids.RangeID(1)
	// clusterID is the same in every world.
	clusterID = 7
)

// Sizes in bytes.
const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// NodeSpec describes a node. Zero values mean the defaults.
type NodeSpec struct {
	Region, Zone string  // locality; empty: none
	Disk         int64   // bytes, default 1 TiB
	In, Out      int64   // bytes per second for snapshots, default 128 and 64 MiB
	Cores        float64 // processors for what ranges serve, default 4
}

func (s NodeSpec) withDefaults() NodeSpec {
	if s.Disk <= 0 {
		s.Disk = 1024 * gib
	}
	if s.In <= 0 {
		s.In = 128 * mib
	}
	if s.Out <= 0 {
		s.Out = 64 * mib
	}
	if s.Cores <= 0 {
		s.Cores = 4
	}
	return s
}

// Config describes a world at its beginning. Zero values mean the defaults.
type Config struct {
	Seed    uint64
	Nodes   []NodeSpec // default: three
	Tenants []string   // prefixes of keys, each with the same share of ranges; default one
	Ranges  int        // default 30
	// RangeBytes is the mean size of a range at first, default 16 MiB. Skew 0 makes
	// all ranges equal; 1 makes a few very large, up to RangeSize, and most small.
	RangeBytes int64
	Skew       float64
	RangeSize  int64         // ranges above it split, default 64 MiB
	Factor     int           // copies of a range, default 3
	DeadAfter  time.Duration // default 5 minutes
	MergeBelow int64         // 0: ranges are not merged
	MergeAfter time.Duration // default 1 h
}

func (c Config) withDefaults() Config {
	if len(c.Nodes) == 0 {
		c.Nodes = make([]NodeSpec, 3)
	}
	if c.Ranges <= 0 {
		c.Ranges = 30
	}
	if c.RangeBytes <= 0 {
		c.RangeBytes = 16 * mib
	}
	if c.RangeSize <= 0 {
		c.RangeSize = 64 * mib
	}
	if c.Factor <= 0 {
		c.Factor = 3
	}
	if c.DeadAfter <= 0 {
		c.DeadAfter = 5 * time.Minute
	}
	if c.MergeAfter <= 0 {
		c.MergeAfter = time.Hour
	}
	return c
}

// World is a cluster on paper, at some virtual time. It belongs to one goroutine.
type World struct {
	cfg  Config
	rng  *rand.Rand
	now  time.Duration
	keys keyspace
	kv   *systemKV

	nodes   []*node // by id, which counts from 1
	ranges  map[ids.RangeID]*simRange
	byStart btree.Map[string, *simRange] // users' ranges

	driver    ids.NodeID // who drives; 0: nobody
	cutOff    bool       // nobody reaches placement
	nextDrive time.Duration
	nextTidy  time.Duration // of maintenance

	vacant    btree.Set[ids.RangeID] // ranges without a leader
	changing  btree.Set[ids.RangeID] // with a change under way
	learning  btree.Set[ids.RangeID] // with learners
	active    btree.Set[ids.RangeID] // with a load, or one that still decays
	transfers []*transfer
	workloads []*workload
	flaps     []*flap

	rules    []*metapb.Rule // in force; nil: the default alone
	standing map[ids.NodeID]metapb.NodeStanding

	tally      tally
	least      least
	watch      watcher
	violations []string

	samples    []Sample
	nextSample time.Duration
}

// New makes a world in which every range has its copies and placement drives.
func New(cfg Config) (*World, error) {
	cfg = cfg.withDefaults()
	w := &World{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 1)), keys: newKeyspace(cfg.Tenants),
		ranges:   make(map[ids.RangeID]*simRange),
		standing: make(map[ids.NodeID]metapb.NodeStanding),
	}
	w.kv = &systemKV{rows: make(map[string]placement.KeyValue), away: w.systemAway}
	w.watch.reset()
	w.tally.reset()
	if _, err := w.add(cfg.Nodes[0]); err != nil { // the founder: no join gave it its id
		return nil, err
	}
	w.insert(&simRange{
		id: systemID, leader: 1, term: 1, bytes: 64 * kib,
		desc: &metapb.RangeDescriptor{
			RangeId: uint64(systemID), Start: systemStart(), End: w.keys.key(0), Generation: 1,
			NextReplicaId: 2, Replicas: []*metapb.Replica{{NodeId: 1, ReplicaId: 1}},
		},
	})
	w.follow()
	for _, spec := range cfg.Nodes[1:] {
		if _, err := w.add(spec); err != nil {
			return nil, err
		}
	}
	return w, w.populate()
}

// Now is the virtual time since the world began.
func (w *World) Now() time.Duration { return w.now }

// Run lets time pass.
func (w *World) Run(d time.Duration) {
	for end := w.now + d; w.now < end; {
		w.step()
	}
}

func (w *World) node(id ids.NodeID) *node {
	if id == 0 || int(id) > len(w.nodes) {
		return nil
	}
	return w.nodes[id-1]
}

func (w *World) up(id ids.NodeID) bool { n := w.node(id); return n != nil && n.up }

// step is one tick.
func (w *World) step() {
	w.now += tick
	if len(w.flaps) > 0 {
		w.flaps = slices.DeleteFunc(w.flaps, func(f *flap) bool { return f.step(w) })
	}
	w.copyBytes()
	w.settle()
	if w.now >= w.nextTidy {
		w.nextTidy = w.now + maintainEvery
		w.maintain()
	}
	if w.now >= w.nextDrive {
		w.nextDrive = w.now + driverEvery
		w.drive()
	}
	for _, n := range w.nodes {
		if n.up && w.now >= n.nextReport {
			n.nextReport = w.now + reportEvery
			w.report(n)
		}
	}
	if w.now >= w.nextSample && len(w.samples) < maxSamples {
		w.nextSample = w.now + sampleEvery
		w.samples = append(w.samples, w.Sample())
	}
}

// settle finishes what was waiting for its time: elections, joint configurations,
// merges.
func (w *World) settle() {
	if w.vacant.Len() > 0 {
		for _, id := range w.vacant.Keys() {
			w.elect(w.ranges[id])
		}
	}
	if w.changing.Len() > 0 {
		for _, id := range w.changing.Keys() {
			if r := w.ranges[id]; r != nil && r.change != nil && w.now >= r.change.due {
				w.finish(r)
			}
		}
	}
}

// drive has the leader of range 1 drive, and lets it.
func (w *World) drive() {
	w.follow()
	if w.driver == 0 {
		return
	}
	w.node(w.driver).driver.Step(w.now)
	w.observe()
}

// follow makes whoever leads range 1 the driver.
func (w *World) follow() {
	leader := w.ranges[systemID].leader
	if w.cutOff || !w.up(leader) {
		leader = 0
	}
	if leader == w.driver {
		return
	}
	if old := w.node(w.driver); old != nil {
		old.driver.SetActive(false, w.now)
	}
	w.driver = leader
	w.watch.tenure()
	if leader != 0 {
		w.node(leader).driver.SetActive(true, w.now)
	}
}

func (w *World) systemAway() bool {
	return w.cutOff || !w.up(w.ranges[systemID].leader)
}

// driving returns the active driver, nil if there is none.
func (w *World) driving() *placement.Driver {
	if w.driver == 0 || w.cutOff || !w.up(w.driver) {
		return nil
	}
	return w.node(w.driver).driver
}

func (w *World) newDriver(id ids.NodeID) *placement.Driver {
	return placement.NewDriver(placement.Config{
		Self: id, ClusterID: clusterID, KV: w.kv, ReplicationFactor: w.cfg.Factor,
		DeadAfter: w.cfg.DeadAfter, RangeSize: w.cfg.RangeSize,
		MergeBelow: w.cfg.MergeBelow, MergeAfter: w.cfg.MergeAfter,
	})
}

// add adds a node through the driver, as a join does; the first one founds.
func (w *World) add(spec NodeSpec) (*node, error) {
	spec = spec.withDefaults()
	id := ids.NodeID(len(w.nodes) + 1)
	n := newNode(id, spec, w.now)
	if id > 1 {
		d := w.driving()
		if d == nil {
			return nil, fmt.Errorf("a node cannot join: nobody drives placement")
		}
		joining := n.describe()
		joining.NodeId = 0
		var failure error
		d.Join(&adminpb.JoinRequest{Node: joining}, func(r *adminpb.JoinReply, err error) {
			if failure = err; err == nil && ids.NodeID(r.GetNodeId()) != id {
				failure = fmt.Errorf("the cluster calls it n%d, the world %v", r.GetNodeId(), id)
			}
		})
		if failure != nil {
			return nil, fmt.Errorf("add %v: %w", id, failure)
		}
	}
	n.driver = w.newDriver(id)
	w.nodes = append(w.nodes, n)
	return n, nil
}

// populate makes the first ranges, with their copies where an even spread over
// zones puts them.
func (w *World) populate() error {
	system := w.ranges[systemID]
	w.hold(system, false)
	system.desc = w.place(systemID, systemStart(), w.keys.key(0))
	w.hold(system, true)
	per := max(1, w.cfg.Ranges/len(w.keys.tenants))
	for i := range len(w.keys.tenants) * per {
		tenant, j := position(i/per), position(i%per)
		from := tenant*offsets + j*offsets/position(per)
		to := tenant*offsets + (j+1)*offsets/position(per)
		id, err := w.newID(w.nodes[0])
		if err != nil {
			return err
		}
		if i == 0 {
			id = 2
		}
		r := &simRange{id: id, term: 1, bytes: w.firstSize(), from: from, to: to,
			desc: w.place(id, w.keys.key(from), w.keys.key(to))}
		r.leader = w.firstLeader(r)
		w.insert(r)
	}
	for _, n := range w.nodes {
		n.full = true
	}
	return nil
}

func (w *World) firstSize() int64 {
	if w.cfg.Skew <= 0 {
		return w.cfg.RangeBytes
	}
	// A long tail: with skew 1 one range in ten is above twice the mean.
	u := 1 - w.rng.Float64()
	size := float64(w.cfg.RangeBytes) * (0.2 + 0.3*(1/(u+0.02)-1)*w.cfg.Skew)
	return min(int64(size), w.cfg.RangeSize)
}

// place returns a descriptor with copies on the emptiest nodes, as far apart as can
// be: by region, then by zone.
func (w *World) place(id ids.RangeID, start, end []byte) *metapb.RangeDescriptor {
	d := &metapb.RangeDescriptor{RangeId: uint64(id), Start: start, End: end, Generation: 1}
	order := slices.Clone(w.nodes)
	fill := func(n *node) float64 { return float64(n.bytes) / float64(n.spec.Disk) }
	slices.SortStableFunc(order, func(a, b *node) int {
		switch {
		case fill(a) < fill(b):
			return -1
		case fill(a) > fill(b):
			return 1
		}
		return 0
	})
	for len(d.Replicas) < min(w.cfg.Factor, len(w.nodes)) {
		var best *node
		nearest := 0
		for _, n := range order {
			near := w.nearness(d, n)
			if replicaOn(d, n.id) == nil && (best == nil || near < nearest) {
				best, nearest = n, near
			}
		}
		d.Replicas = append(d.Replicas, &metapb.Replica{
			NodeId: uint64(best.id), ReplicaId: uint64(len(d.Replicas) + 1),
		})
	}
	d.NextReplicaId = uint64(len(d.Replicas) + 1)
	return d
}

// nearness is how many copies of d are in the region of a node, and in its zone.
func (w *World) nearness(d *metapb.RangeDescriptor, n *node) (near int) {
	for _, p := range d.Replicas {
		o := w.node(ids.NodeID(p.GetNodeId()))
		if n.spec.Region != "" && o.spec.Region == n.spec.Region {
			near += len(w.nodes)
		}
		if n.spec.Zone != "" && o.spec.Zone == n.spec.Zone {
			near++
		}
	}
	return near
}

// firstLeader picks the copy whose node leads the fewest.
func (w *World) firstLeader(r *simRange) ids.NodeID {
	best := w.node(ids.NodeID(r.desc.Replicas[0].GetNodeId()))
	for _, p := range r.desc.Replicas[1:] {
		if n := w.node(ids.NodeID(p.GetNodeId())); len(n.leads) < len(best.leads) {
			best = n
		}
	}
	return best.id
}

// newID takes a range id from the node's block, which it refills from the driver.
// A range that splits while placement is away lives on what it has.
func (w *World) newID(n *node) (ids.RangeID, error) {
	if d := w.driving(); d != nil && n.idsEnd-n.ids < idsLow {
		d.AllocateIDs(n.id, idsBlock, func(first uint64, count uint32, err error) {
			if err == nil {
				n.ids, n.idsEnd = ids.RangeID(first), ids.RangeID(first)+ids.RangeID(count)
			}
		})
	}
	if n.ids == n.idsEnd {
		return 0, fmt.Errorf("%v has no range ids left", n.id)
	}
	n.ids++
	return n.ids - 1, nil
}
