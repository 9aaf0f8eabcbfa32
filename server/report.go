package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Pace and bounds of reports.
const (
	reportEvery    = 100 * time.Millisecond // at most this often when something changed
	heartbeatEvery = time.Second
	startingEvery  = 200 * time.Millisecond // heartbeats until placement knows this node
	reportTimeout  = 2 * time.Second
	// maxFactsPerReport and maxReportKeyBytes bound the facts of a report; the
	// rest goes with the next. Keys are the part of a fact that may be large.
	maxFactsPerReport = 8192
	maxReportKeyBytes = 4 << 20
	// maxDriverTries bounds the nodes asked for the driver in one round.
	maxDriverTries = 8
)

// reporter tells the driver what changed here and carries its orders out.
type reporter struct {
	n *node

	wake chan struct{} // a fact came

	mu    sync.Mutex
	dirty map[ids.RangeID]*metapb.RangeFact // newest fact of each range; at most one a range

	// The rest belongs to run.
	full     bool // everything is to be told
	parts    parts
	draining bool // has been told
	usage    usage
	lastSent time.Time
	search   search
}

func newReporter(n *node) *reporter {
	return &reporter{
		n: n, wake: make(chan struct{}, wakeSlots),
		dirty: map[ids.RangeID]*metapb.RangeFact{}, full: true,
		search: search{heard: time.Now()},
	}
}

// fact notes a change; called on shards, never blocks.
func (r *reporter) fact(f *metapb.RangeFact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirty[ids.RangeID(f.GetDescriptor_().GetRangeId())] = f
	wake(r.wake)
}

// take returns what has changed, in order of range id.
func (r *reporter) take() []*metapb.RangeFact {
	r.mu.Lock()
	defer r.mu.Unlock()
	facts := make([]*metapb.RangeFact, 0, len(r.dirty))
	for _, f := range r.dirty {
		facts = append(facts, f)
	}
	slices.SortFunc(facts, func(a, b *metapb.RangeFact) int {
		return cmp.Compare(a.GetDescriptor_().GetRangeId(), b.GetDescriptor_().GetRangeId())
	})
	facts = facts[:fitting(facts)]
	for _, f := range facts {
		delete(r.dirty, ids.RangeID(f.GetDescriptor_().GetRangeId()))
	}
	return facts
}

// fitting is how many of the facts go into one report, at least one of some.
func fitting(facts []*metapb.RangeFact) int {
	bytes := 0
	for i, f := range facts {
		bytes += len(f.GetDescriptor_().GetStart()) + len(f.GetDescriptor_().GetEnd())
		if i == maxFactsPerReport || i > 0 && bytes > maxReportKeyBytes {
			return i
		}
	}
	return len(facts)
}

// parts cut a full report into messages of a bounded size.
type parts struct {
	next uint32              // the part that is sent next
	rest []*metapb.RangeFact // what is left to send; nothing before part 0
}

// fill makes r the next part; all is asked for the facts at the first one.
func (p *parts) fill(r *metapb.NodeReport, all func() []*metapb.RangeFact) {
	if p.next == 0 {
		p.rest = all()
	}
	r.Full, r.Part, r.Facts = true, p.next, p.rest[:fitting(p.rest)]
	r.More = len(r.Facts) < len(p.rest)
}

// sent goes on after r was answered, and begins anew after the last part or if
// r was lost: whether it arrived is not known then.
func (p *parts) sent(r *metapb.NodeReport, answered bool) {
	if !answered || !r.GetMore() {
		*p = parts{}
		return
	}
	p.next, p.rest = p.next+1, p.rest[len(r.GetFacts()):]
}

// takeAll returns what this node leads, which makes up for all that has changed.
// What changed is forgotten first: a fact that is older than the full report must
// not follow it.
func (r *reporter) takeAll() []*metapb.RangeFact {
	r.mu.Lock()
	clear(r.dirty)
	r.mu.Unlock()
	return r.n.table.Facts()
}

// putBack keeps facts of a report that did not arrive, unless newer ones came.
func (r *reporter) putBack(facts []*metapb.RangeFact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range facts {
		id := ids.RangeID(f.GetDescriptor_().GetRangeId())
		if _, newer := r.dirty[id]; !newer {
			r.dirty[id] = f
		}
	}
}

// due returns how long the next report has to wait: not at all when something
// changed, else for the next heartbeat.
func (r *reporter) due() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.dirty) > 0 || r.parts.next > 0 || r.draining != r.n.draining.Load() {
		return 0
	}
	if !r.n.ready.Load() {
		return startingEvery - time.Since(r.lastSent)
	}
	return heartbeatEvery - time.Since(r.lastSent)
}

// run reports until ctx ends: at once what changed, if nothing was sent within
// reportEvery. An idle node wakes for its heartbeats only.
func (r *reporter) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if wait := r.due(); wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-r.wake:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		r.round(ctx)
		pause(ctx, reportEvery)
	}
	return nil
}

// round sends one report. Facts are counted as told only when it was answered.
func (r *reporter) round(ctx context.Context) {
	r.lastSent = time.Now()
	report := r.compose()
	reply, tried, err := r.n.report(ctx, report)
	if err != nil {
		if !report.Full {
			r.putBack(report.Facts)
		}
		r.parts.sent(report, false)
		if ctx.Err() != nil {
			return
		}
		if !r.n.ready.Load() {
			r.n.s.notice.say(fmt.Sprintf("waiting: %v finds nobody who leads the system range; "+
				"tried %s", r.n.self, strings.Join(tried, ", ")))
		}
		r.lookForOthers(ctx)
		return
	}
	r.search.heard = time.Now()
	r.parts.sent(report, true)
	// A driver that has not heard every part of a full report wants another.
	r.full = report.More || reply.GetWantFull()
	r.n.learn(reply.GetNodes(), reply.GetSystemRange())
	if r.n.heardStanding(reply.Standing); r.n.retiring() {
		return
	}
	for _, o := range reply.GetOrders() {
		r.n.order(o)
	}
	if _, registered := r.n.registry.resolve(r.n.self); registered {
		r.n.becameReady()
	}
}

func (r *reporter) compose() *metapb.NodeReport {
	n := r.n
	replicas, leaders := n.table.Counts()
	report := &metapb.NodeReport{
		Node:      n.s.descriptor(n.self),
		DiskBytes: n.diskTotal.Load(), DiskFreeBytes: n.diskFree.Load(),
		Replicas: uint32(replicas), Leaders: uint32(leaders),
		ReadOnly: n.store.ReadOnly(), Draining: n.draining.Load(),
		Version: n.cfg.Version, UptimeSeconds: time.Since(n.s.began).Seconds(),
		UsedBytes: n.diskUsed.Load(),
		CpuLoad:   r.usage.sample(time.Since(n.s.began), processorTime()),
	}
	r.draining = report.Draining
	if r.full {
		r.parts.fill(report, r.takeAll)
	} else {
		report.Facts = r.take()
	}
	return report
}

// learn takes news about nodes; a record that cannot be saved is only slower
// to find the others after a restart.
func (n *node) learn(nodes []*metapb.NodeDescriptor, system *metapb.RangeDescriptor) {
	if err := n.registry.learn(nodes, system); err != nil {
		n.cfg.Logger.Warn("node registry not saved", "error", err)
	}
}

// order carries out one step of placement. A refusal is only logged: placement
// sees by the facts what has become of its order.
func (n *node) order(o *metapb.Order) {
	n.table.Order(o, func(err error) {
		if err != nil {
			n.cfg.Logger.Debug("order refused", "range", o.GetRangeId(), "op", o.GetKind().String(),
				"node", o.GetNodeId(), "error", err)
		}
	})
}

// report brings a report to whoever drives placement. On failure tried says in
// words who was asked.
func (n *node) report(
	ctx context.Context, r *metapb.NodeReport,
) (reply *metapb.NodeReportReply, tried []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	tried, err = n.atDriver(ctx, func(at ids.NodeID) (redirect ids.NodeID, err error) {
		if at == n.self {
			reply, err = n.reportHere(ctx, r)
			return 0, err
		}
		control, _, err := n.transport.Control(at)
		if err != nil {
			return 0, err
		}
		reply, err = control.Report(ctx, r)
		return ids.NodeID(reply.GetRedirectNode()), err
	})
	return reply, tried, err
}

// reportHere gives a report to this node's driver. Unlike other questions it is
// taken while the driver still reads its registry.
func (n *node) reportHere(
	ctx context.Context, r *metapb.NodeReport,
) (*metapb.NodeReportReply, error) {
	return askOwner(ctx, n.driver, func(
		d *placement.Driver, now time.Duration, reply func(*metapb.NodeReportReply, error),
	) {
		reply(d.Report(now, r), nil)
	})
}

// systemLeader is the node that this one believes to lead the system range, 0 if
// it does not know.
func (n *node) systemLeader() ids.NodeID {
	_, leader, ok := n.table.Route([]byte{kv.SystemPrefix})
	if !ok {
		return 0
	}
	return leader
}

// errNoDriver says that nobody drives placement as far as this node can tell.
var errNoDriver = errors.New("no node answers for the system range")

// atDriver calls ask with one node after the other, likeliest first, until one
// answers as the driver: without error and without naming another.
func (n *node) atDriver(
	ctx context.Context, ask func(at ids.NodeID) (redirect ids.NodeID, err error),
) (tried []string, err error) {
	nodes := n.registry.drivers(n.systemLeader())
	if len(nodes) == 0 {
		nodes = []ids.NodeID{n.self} // the founder before it has registered
	}
	for i := 0; i < len(nodes) && i < maxDriverTries; i++ {
		at := nodes[i]
		redirect, err := ask(at)
		if err == nil && redirect == 0 {
			n.registry.drives(at)
			return nil, nil
		}
		if decided(err) {
			return nil, err
		}
		addr, _ := n.registry.resolve(at)
		switch {
		case err != nil:
			tried = append(tried, fmt.Sprintf("%v %s (%s)", at, addr, inWords(err)))
		default:
			tried = append(tried, fmt.Sprintf("%v %s (sends to %v)", at, addr, redirect))
			if !slices.Contains(nodes, redirect) {
				nodes = slices.Insert(nodes, i+1, redirect)
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return tried, fmt.Errorf("%w: tried %s", errNoDriver, strings.Join(tried, ", "))
}
