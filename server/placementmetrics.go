package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/ranges"
)

// scrapePatience is how long a scrape waits for the owner of the driver.
const scrapePatience = 500 * time.Millisecond

// driven is what the driver tells to metrics. Its parts are not changed any more.
type driven struct {
	status *adminpb.StatusReply
	counts []placement.Count
	tokens []placement.Tokens
}

// placement sends what this node knows of placement. The state of the cluster comes
// from the driver's node only; each figure of a node has that node as its label, and
// none has a range. It is worked out when it is asked for.
func (e emitter) placement(n *node) {
	e.gauge("node_standing", "What the cluster wants of this node: 0 active, 1 draining, "+
		"2 being decommissioned, 3 decommissioned.", float64(n.standing()))
	e.total("range_load_splits", "Ranges that this node has split because of their load.",
		n.table.LoadSplits())
	e.total("range_merges", "Ranges that this node has merged into their left neighbours.",
		n.table.Merges())
	e.freezes(n)
	ctx, cancel := context.WithTimeout(context.Background(), scrapePatience)
	defer cancel()
	d, err := askDriver(ctx, n.driver, func(
		d *placement.Driver, now time.Duration, reply func(driven, error),
	) {
		reply(driven{d.Status(now), d.Counts(), d.Tokens()}, nil)
	})
	e.gauge("placement_drives", "Whether this node drives placement.", truth(err == nil))
	if err != nil {
		return
	}
	e.operators(d)
	s := d.status
	e.gauge("placement_collecting", "Whether some node has not told yet what it leads.",
		truth(s.GetCollecting()))
	e.gauge("placement_paused", "Whether placement was paused.", truth(s.GetPausedBy() != ""))
	e.gauge("placement_ranges", "Ranges of the cluster.", float64(s.GetRanges()))
	e.gauge("placement_under_replicated", "Ranges with fewer live copies than they should have.",
		float64(s.GetUnderReplicated()))
	e.gauge("placement_leaderless", "Ranges without a leader.", float64(s.GetLeaderless()))
	e.gauge("placement_tolerates", "Failures of nodes that every range survives.",
		float64(s.GetTolerates()))
	for _, node := range s.GetNodes() {
		e.placed(node)
	}
}

// freezes sends for how long merges that this node led kept writes waiting.
func (e emitter) freezes(n *node) {
	left, right := n.table.MergeFreezes()
	for i, f := range [...]ranges.Freezes{left, right} {
		buckets, sum := map[float64]uint64{}, uint64(0)
		for b := range ranges.FreezeBuckets - 1 {
			sum += f.Buckets[b]
			buckets[ranges.FreezeBound(b).Seconds()] = sum
		}
		e.ch <- prometheus.MustNewConstHistogram(desc("merge_freeze_seconds",
			"Time for which the writes of one half of a merge that this node led waited.", "half"),
			f.Count, f.Sum.Seconds(), buckets, [...]string{"left", "right"}[i])
	}
}

// operators sends how many operators there were, by kind, and what they use.
func (e emitter) operators(d driven) {
	e.gauge("placement_operators", "Operators that run.", float64(d.status.GetOperators()))
	for _, c := range d.counts {
		count := func(what, help string, v uint64) {
			e.labelled("placement_operators_"+what+"_total", help, prometheus.CounterValue,
				float64(v), []string{"kind"}, c.Kind)
		}
		count("begun", "Operators begun by this node.", c.Begun)
		count("done", "Of these, those that came to their end.", c.Done)
		count("failed", "Of these, those that could not.", c.Failed)
		count("cancelled", "Of these, those that became pointless.", c.Cancelled)
	}
	for _, t := range d.tokens {
		use := func(name, help string, v int) {
			e.labelled("placement_node_"+name, help, prometheus.GaugeValue, float64(v),
				[]string{"node"}, t.Node.String())
		}
		use("receiving", "Copies under way to the node.", t.Receiving)
		use("sending", "Copies under way from the node.", t.Sending)
	}
}

// placed sends what placement knows of a node.
func (e emitter) placed(s *adminpb.NodeStatus) {
	name := ids.NodeID(s.GetNode().GetNodeId()).String()
	node := func(what, help string, v float64) {
		e.labelled("placement_node_"+what, help, prometheus.GaugeValue, v, []string{"node"}, name)
	}
	if s.GetStanding() == metapb.NodeStanding_NODE_STANDING_DECOMMISSIONED {
		return
	}
	node("live", "Whether the node reports.", truth(s.GetLive()))
	node("standing", "What the cluster wants of the node, as in node_standing.",
		float64(s.GetStanding()))
	node("leaders", "Ranges that the node leads.", float64(s.GetLeaders()))
	node("replicas", "Replicas on the node.", float64(s.GetReplicas()))
	node("replica_bytes", "Keys and values of its replicas.", float64(s.GetReplicaBytes()))
	node("cpu_seconds_per_second", "Processor time of the ranges that it leads.",
		float64(s.GetCpuMicrosPerSecond())/1e6)
	node("write_bytes_per_second", "Bytes written to the ranges that it leads.",
		float64(s.GetWriteBytesPerSecond()))
	node("read_bytes_per_second", "Bytes read from the ranges that it leads.",
		float64(s.GetReadBytesPerSecond()))
}
