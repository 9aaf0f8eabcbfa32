package placement

import (
	"errors"
	"log/slog"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Config configures the driver. Zero values mean the defaults.
type Config struct {
	Self      ids.NodeID
	ClusterID uint64
	KV        KV
	// ReplicationFactor is the number of voters per range, default 3. An even
	// number counts as the odd one below: it survives no more failures.
	ReplicationFactor int
	// DeadAfter is how long a node may be silent before its replicas are
	// replaced, default 5 minutes.
	DeadAfter time.Duration
	// SuspectAfter is how long a node may be silent before it counts as failed
	// and gets nothing new, default 3 s. Nodes should report several times in it.
	SuspectAfter time.Duration
	MaxMoves     int // operators that change replicas at a time, default 4
	// MaxTransfers is how many leaders move at a time, default 8; in a cluster of
	// many ranges more do, see rangesPerTransfer.
	MaxTransfers int
	// RangeSize is the size in bytes at which ranges split, default 64 MiB. They do
	// that by themselves: here it only serves to say why.
	RangeSize int64
	// MergeBelow is the size in bytes below which two neighbours together may be
	// merged; 0: never (DefaultMergeBelow is what nodes are started with).
	MergeBelow int64
	// MergeAfter is for how long neighbours must have been small, cold and unchanged
	// before they are merged, default 1 hour.
	MergeAfter time.Duration
	// Wall tells the time of day in milliseconds, for what people have set an end to;
	// no safety rests on it. Default: the time that the owner brings.
	Wall func() int64
	// Later runs a function soon on the owner's goroutine, after what waits there
	// already, so that a long walk keeps nobody waiting. It need not run any more when
	// the owner ends. Default: at once.
	Later  func(func())
	Logger *slog.Logger // default: none
}

// DefaultMergeBelow is a quarter of the size at which ranges split: what was merged
// is not split again by the next few writes.
const DefaultMergeBelow = 16 << 20

// The defaults of Config, and bounds of one Step.
const (
	defaultReplicationFactor = 3
	defaultDeadAfter         = 5 * time.Minute
	defaultSuspectAfter      = 3 * time.Second
	defaultMaxMoves          = 4
	defaultMaxTransfers      = 8
	defaultRangeSize         = 64 << 20
	defaultMergeAfter        = time.Hour

	// rangesPerTransfer is for how many ranges one leader moves at a time. A node
	// that comes back takes over a third of all leaders of a small cluster; a few
	// at a time, tens of thousands would take hours.
	rangesPerTransfer = 512

	// maxChecks bounds the ranges that one Step checks; the others keep their place.
	maxChecks = 500
	// maxBegun bounds the operators that one Step begins for what ranges need. Each looks
	// at every node for the best one: with a thousand nodes 80 microseconds or so.
	maxBegun = 250
	// maxPaced bounds those of them that turn out to wait for other copies: the ones
	// behind them would most likely wait, too.
	maxPaced = 64
	// maxMergeLooks bounds the small ranges whose time has come that one Step looks at.
	maxMergeLooks = 100
	// restAfter is the rest of a range whose operator failed, doubled with each
	// further failure up to maxRestDoublings times.
	restAfter        = 10 * time.Second
	maxRestDoublings = 5
	// nodesRepeats is how often the list of nodes goes to a node after a change
	// (a reply can be lost), nodesAfter how long until it goes there anyway.
	nodesRepeats = 3
	nodesAfter   = 30 * time.Second
	// recountAfter is how long a node's count of leaders may differ from ours
	// before it is asked for everything.
	recountAfter = 30 * time.Second
)

func (cfg Config) withDefaults() Config {
	if cfg.ReplicationFactor <= 0 {
		cfg.ReplicationFactor = defaultReplicationFactor
	}
	if cfg.SuspectAfter <= 0 {
		cfg.SuspectAfter = defaultSuspectAfter
	}
	if cfg.DeadAfter <= 0 {
		cfg.DeadAfter = defaultDeadAfter
	}
	cfg.DeadAfter = max(cfg.DeadAfter, 2*cfg.SuspectAfter)
	if cfg.MaxMoves <= 0 {
		cfg.MaxMoves = defaultMaxMoves
	}
	if cfg.MaxTransfers <= 0 {
		cfg.MaxTransfers = defaultMaxTransfers
	}
	if cfg.RangeSize <= 0 {
		cfg.RangeSize = defaultRangeSize
	}
	if cfg.MergeAfter <= 0 {
		cfg.MergeAfter = defaultMergeAfter
	}
	if cfg.Later == nil {
		cfg.Later = func(f func()) { f() }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg
}

// Driver runs on every node and acts only while that node leads range 1. Not
// safe for concurrent use: its owner (a goroutine of server, or the simulator)
// calls every method, and KV calls back on that same goroutine.
type Driver struct {
	cfg Config
	log *slog.Logger

	active  bool
	tenure  uint64 // names it: ids of operators mean something within one only
	loading bool   // the registry is being read
	loaded  bool   // and has been read
	trouble string // why it has not, in words

	cluster  *cluster // of this tenure; empty while not active
	edits    *editor  // of this tenure
	planning bool     // all nodes that are alive have told what they lead

	standingOpen bool // the standing of a node is being changed
	readTwice    bool // what people have set was read a second time
	previews     []*preview
	counts       counts
}

// NewDriver makes a driver that is not active.
func NewDriver(cfg Config) *Driver {
	d := &Driver{cfg: cfg.withDefaults()}
	d.log = d.cfg.Logger
	d.reset(0)
	d.edits.closed = true
	return d
}

func (d *Driver) reset(now time.Duration) {
	d.cluster = newCluster(d.cfg, now)
	d.edits = &editor{kv: d.cfg.KV}
	d.loading, d.loaded, d.planning, d.trouble = false, false, false, ""
	d.standingOpen, d.readTwice = false, false
}

// SetActive says whether this node leads range 1. Becoming active forgets all
// that was cached, reads the registry and asks every node for a full report.
// Ceasing to be active fails every open request with ErrAskAgain.
func (d *Driver) SetActive(active bool, now time.Duration) {
	if d.active == active {
		return
	}
	d.active = active
	d.edits.close()
	d.endPreviews()
	d.reset(now)
	d.edits.closed = !active
	if active {
		d.tenure = tenureOf(d.cfg.Self, d.cluster.wallNow())
		d.load(nodesFrom())
		return
	}
	d.log.Info("placement stops driving", "node", uint64(d.cfg.Self))
}

// tenureOf names a term of office: by who drives, and since when, in milliseconds.
// Nothing but the fate of what people watch is decided by it.
func tenureOf(self ids.NodeID, wall int64) uint64 {
	const nodeAt = 46 // below it is room for more than 2,000 years
	return uint64(self)<<nodeAt | uint64(wall)&(1<<nodeAt-1) | 1
}

func nodesFrom() []byte {
	start, _ := nodeSpan()
	return start
}

// Active says whether the driver drives and has read its registry.
func (d *Driver) Active() bool { return d.active && d.loaded }

// Step advances the driver: finishes and times out operators, plans new ones,
// tries again what range 1 refused. Called a few times a second with monotonic
// time; cost grows with what changed. If it was not called for longer than
// SuspectAfter the driver counts as having been away: it hardly holds against nodes
// what it could not hear.
func (d *Driver) Step(now time.Duration) {
	if !d.active {
		return
	}
	d.cluster.advanceTo(now)
	d.edits.retry()
	if !d.loaded {
		if !d.loading {
			d.load(nodesFrom())
		}
		return
	}
	d.advanceAll()
	if !d.planning {
		d.planning = d.cluster.complete()
	}
	d.reread()
	if !d.planning {
		d.cluster.reviewSome()
		return
	}
	d.depart()
	d.plan()
}

// Report takes a node's report and answers it with orders for that node, for
// ranges that it leads. It keeps parts of the report, which must not be changed
// afterwards. While not active the answer is empty: the owner fills in where
// the driver is.
func (d *Driver) Report(now time.Duration, r *metapb.NodeReport) *metapb.NodeReportReply {
	reply := &metapb.NodeReportReply{}
	if !d.active || r.GetNode().GetNodeId() == 0 {
		return reply
	}
	c := d.cluster
	c.advanceTo(now)
	n := c.node(ids.NodeID(r.GetNode().GetNodeId()))
	if !d.believes(n, r.GetNode()) {
		if n.gone() {
			reply.Standing = n.standing.Enum()
		}
		return reply
	}
	wasDead := n.phase == phaseDead
	if c.heard(n, r); wasDead && n.phase > phaseDead {
		d.relieve(n)
	}
	for _, f := range r.GetFacts() {
		c.learn(n.id, f)
	}
	if r.GetFull() && n.told.take(r) {
		c.disown(n, n.told.leads)
		n.told, n.wantFull = fullReport{}, false
		if !n.full {
			n.full = true
			c.usable()
		}
	}
	for _, f := range r.GetFacts() {
		if op := c.holder[ids.RangeID(f.GetDescriptor_().GetRangeId())]; op != nil {
			d.advance(op)
		}
	}
	d.answer(n, r, reply)
	return reply
}

// believes says whether a report can be taken for that of a registered node,
// and has the registry follow what is new in it. What comes from another store
// or from an earlier life of the node is dropped.
func (d *Driver) believes(n *node, desc *metapb.NodeDescriptor) bool {
	switch {
	case !d.loaded:
		return true // facts are merged by generation and term, whoever brings them
	case n.desc == nil:
		d.enquire(n, desc)
		return true
	case n.gone():
		if d.cluster.now-n.lookupAt >= lookupPause {
			n.lookupAt = d.cluster.now
			d.log.Warn("report refused", "node", uint64(n.id), "error", d.departed(n.id))
		}
		return false
	case n.desc.GetStoreId() != desc.GetStoreId():
		if d.cluster.now-n.lookupAt >= lookupPause {
			n.lookupAt = d.cluster.now
			d.log.Warn("report refused", "node", uint64(n.id), "error", sameStore(n.desc, desc))
		}
		return false
	case desc.GetLife() < n.desc.GetLife():
		return false
	case news(n.desc, desc) && !n.editing:
		n.editing = true
		if desc.GetLife() > n.desc.GetLife() {
			n.wantFull = true // it began anew
		}
		d.describe(desc, false, func(err error) { d.described(n, err) })
	}
	return true
}

// enquire looks up a node that reports but is not in the registry as we know
// it: another driver may have registered it since we read it, or it is the
// founder of the cluster, which never joined.
func (d *Driver) enquire(n *node, desc *metapb.NodeDescriptor) {
	if n.editing || d.cluster.now-n.lookupAt < lookupPause {
		return
	}
	n.editing, n.lookupAt = true, d.cluster.now
	done := func(err error) { d.described(n, err) }
	if n.id == founderNode {
		d.claimFounder(desc, done)
		return
	}
	d.describe(desc, false, done)
}

func (d *Driver) described(n *node, err error) {
	n.editing = false
	if err != nil && !errors.Is(err, ErrAskAgain) {
		d.log.Warn("descriptor not written", "node", uint64(n.id), "error", err)
	}
}

// answer fills the reply to a report.
func (d *Driver) answer(n *node, r *metapb.NodeReport, reply *metapb.NodeReportReply) {
	c := d.cluster
	if int(r.GetLeaders()) == n.leads.Len() {
		n.agreed = c.now
	} else if c.now-n.agreed >= recountAfter {
		// Something was lost on the way: reason enough to compare everything.
		n.agreed, n.wantFull = c.now, true
	}
	reply.WantFull = n.wantFull
	reply.RegistryVersion = uint64(c.registryVersion)
	if n.nodesSent != c.registryVersion {
		n.nodesSent, n.sends = c.registryVersion, 0
	}
	if n.sends < nodesRepeats || c.now-n.sentAt >= nodesAfter {
		reply.Nodes = c.descriptors()
		n.sends, n.sentAt = n.sends+1, c.now
	}
	reply.SystemRange = d.systemRange()
	if d.loaded {
		reply.Standing = n.standing.Enum()
	}
	n.ops.Scan(func(_ uint64, op *operator) bool {
		if order := op.orderFor(c, n.id); order != nil {
			reply.Orders = append(reply.Orders, order)
		}
		return true
	})
}

// systemRange returns the newest descriptor of range 1 that is known here.
func (d *Driver) systemRange() *metapb.RangeDescriptor {
	if r := d.cluster.dir.byID[systemRange]; r != nil {
		return r.desc
	}
	return nil
}
