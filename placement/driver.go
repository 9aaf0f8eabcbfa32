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
	Logger       *slog.Logger // default: none
}

// The defaults of Config, and bounds of one Step.
const (
	defaultReplicationFactor = 3
	defaultDeadAfter         = 5 * time.Minute
	defaultSuspectAfter      = 3 * time.Second
	defaultMaxMoves          = 4
	defaultMaxTransfers      = 8

	// rangesPerTransfer is for how many ranges one leader moves at a time. A node
	// that comes back takes over a third of all leaders of a small cluster; a few
	// at a time, tens of thousands would take hours.
	rangesPerTransfer = 512

	// maxChecks bounds the ranges that one Step checks; the others keep their place.
	maxChecks = 1000
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
	loading bool   // the registry is being read
	loaded  bool   // and has been read
	trouble string // why it has not, in words

	cluster  *cluster // of this tenure; empty while not active
	edits    *editor  // of this tenure
	planning bool     // all nodes that are alive have told what they lead
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
	d.reset(now)
	d.edits.closed = !active
	if active {
		d.load(nodesFrom())
		return
	}
	d.log.Info("placement stops driving", "node", uint64(d.cfg.Self))
}

func nodesFrom() []byte {
	start, _ := nodeSpan()
	return start
}

// Active says whether the driver drives and has read its registry.
func (d *Driver) Active() bool { return d.active && d.loaded }

// Step advances the driver: finishes and times out operators, plans new ones,
// tries again what range 1 refused. Called a few times a second with monotonic
// time; cost grows with what changed.
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
	if d.planning {
		d.plan()
	}
}

// advanceAll looks after the running operators.
func (d *Driver) advanceAll() {
	var all []*operator
	d.cluster.ops.Scan(func(_ ids.RangeID, op *operator) bool {
		all = append(all, op)
		return true
	})
	for _, op := range all {
		d.advance(op)
	}
}

// advance moves one operator on and ends it if it is done or hopeless.
func (d *Driver) advance(op *operator) {
	c := d.cluster
	r := c.dir.byID[op.id]
	result, why := op.advance(c, r)
	if result == running {
		return
	}
	c.ops.Delete(op.id)
	c.unbalanced = true
	if result == failed {
		d.log.Warn("operator failed", "range", uint64(op.id), "op", op.String(), "error", why)
	} else {
		d.log.Info("operator done", "range", uint64(op.id), "op", op.String())
	}
	if r == nil {
		return
	}
	switch {
	case result == failed:
		c.giveRest(r, restAfter<<min(r.failures, maxRestDoublings))
		r.failures++
		r.avoid = 0
		if k := op.steps[op.at].kind; k == addLearner || k == catchUp {
			r.avoid = op.steps[op.at].node
		}
	default:
		r.failures, r.avoid = 0, 0
		if op.from != 0 {
			// The next transfer of this range has time; repair does not wait.
			c.giveRest(r, restAfter)
		}
	}
	c.review(r)
}

// plan starts operators within the limits: first what ranges need, then what
// evens out leaders.
func (d *Driver) plan() {
	c := d.cluster
	moves, transfers := 0, 0
	c.ops.Scan(func(_ ids.RangeID, op *operator) bool {
		if op.from != 0 {
			transfers++
		} else {
			moves++
		}
		return true
	})
	pending := false
	for looks := 0; looks < maxChecks && moves < d.cfg.MaxMoves; looks++ {
		r := c.nextNeedy()
		if r == nil {
			break
		}
		if !pending {
			c.influence()
			pending = true
		}
		if op := checkReplicas(c, r); op != nil {
			d.begin(op)
			c.expect(op)
			moves++
		}
	}
	limit := max(d.cfg.MaxTransfers, len(c.dir.byID)/rangesPerTransfer)
	if transfers >= limit || !c.unbalanced && c.now < c.balanceAt {
		return
	}
	c.influence()
	ops, stuck := spreadLeaders(c, limit-transfers)
	c.offset += maxLooks
	c.unbalanced, c.balanceAt = false, farAway
	if stuck {
		c.balanceAt = c.now + lookAgain
	}
	for _, op := range ops {
		d.begin(op)
	}
}

// farAway is a time that never comes.
const farAway = -never

// nextNeedy takes the next range to be checked, the most urgent first.
func (c *cluster) nextNeedy() *rangeState {
	for i := range c.attention {
		for {
			id, ok := c.attention[i].PopMin()
			if !ok {
				break
			}
			if _, busy := c.ops.Get(id); !busy {
				return c.dir.byID[id]
			}
		}
	}
	return nil
}

func (d *Driver) begin(op *operator) {
	op.begun = d.cluster.now
	d.cluster.ops.Set(op.id, op)
	d.log.Info("operator begins", "range", uint64(op.id), "op", op.String())
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
		return reply
	}
	c.heard(n, r)
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
		if op, ok := c.ops.Get(ids.RangeID(f.GetDescriptor_().GetRangeId())); ok {
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
	c.ops.Scan(func(id ids.RangeID, op *operator) bool {
		if order := op.orderFor(c, c.dir.byID[id], n.id); order != nil {
			reply.Orders = append(reply.Orders, order)
		}
		return true
	})
}

// systemRange returns the newest descriptor of range 1 that is known here.
func (d *Driver) systemRange() *metapb.RangeDescriptor {
	if r := d.cluster.dir.byID[1]; r != nil {
		return r.desc
	}
	return nil
}
