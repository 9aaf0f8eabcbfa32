package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/rpc"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/store/rowcache"
)

// nodeCollector reads every figure of the node when it is asked. No figure has
// a label per range: their number is unbounded, and detail is to be had from
// the Admin service.
type nodeCollector struct{ s *Server }

// Describe declares nothing: what is collected depends on how far the node is.
func (c *nodeCollector) Describe(chan<- *prometheus.Desc) {}

// Collect sends all figures; any goroutine.
func (c *nodeCollector) Collect(ch chan<- prometheus.Metric) {
	e := emitter{ch}
	e.labelled("build_info", "Always 1; the labels say what runs.", prometheus.GaugeValue, 1,
		[]string{"version", "commit"}, c.s.cfg.Version, c.s.cfg.Commit)
	n := c.s.node.Load()
	e.gauge("ready", "Whether this node serves.", truth(n != nil && n.ready.Load()))
	e.store(c.s.store.Metrics())
	if n == nil {
		return
	}
	replicas, leaders := n.table.Counts()
	e.gauge("replicas", "Replicas on this node.", float64(replicas))
	e.gauge("leaders", "Ranges that this node leads.", float64(leaders))
	e.gauge("disk_total_bytes", "Size of the disk.", float64(n.diskTotal.Load()))
	e.gauge("disk_free_bytes", "Free space on the disk.", float64(n.diskFree.Load()))
	e.gauge("clock_ahead_seconds", "Lead of the hybrid clock over the wall clock.",
		float64(n.clock.Peek().Wall()-c.s.clock.Wall())/1e3)
	e.gauge("clock_step_seconds", "Step of the wall clock that this node does not follow.",
		c.s.clock.Step().Seconds())
	c.s.clocks.emitClock(e)
	e.transport(n.transport.Metrics())
	e.raft(n.host.Metrics())
	e.support(n)
	e.rowCache(n.table.RowCache())
	e.placement(n)
	e.comparisons(n.table)
	e.requests(&n.kv.metrics)
}

type emitter struct{ ch chan<- prometheus.Metric }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("flotilla_"+name, help, labels, nil)
}

func (e emitter) labelled(
	name, help string, t prometheus.ValueType, v float64, labels []string, values ...string,
) {
	e.ch <- prometheus.MustNewConstMetric(desc(name, help, labels...), t, v, values...)
}

func (e emitter) gauge(name, help string, v float64) {
	e.labelled(name, help, prometheus.GaugeValue, v, nil)
}

func (e emitter) total(name, help string, v uint64) {
	e.labelled(name+"_total", help, prometheus.CounterValue, float64(v), nil)
}

func (e emitter) store(m store.Metrics) {
	buckets, sum := map[float64]uint64{}, uint64(0)
	for i := range store.SyncBuckets - 1 {
		sum += m.SyncBuckets[i]
		buckets[store.SyncBucketBound(i).Seconds()] = sum
	}
	e.ch <- prometheus.MustNewConstHistogram(
		desc("store_sync_seconds", "Time of a commit until it was durable."),
		m.Syncs, m.SyncLatency.Seconds(), buckets)
	e.total("store_commits", "Batches committed.", m.Commits)
	e.total("store_commit_bytes", "Bytes of committed batches.", m.CommitBytes)
	e.total("store_wal_bytes", "Bytes written to the write-ahead log.", m.WALBytes)
	e.total("store_compactions", "Compactions.", m.Compactions)
	e.total("store_flushes", "Memtable flushes.", m.Flushes)
	e.total("store_write_stalls", "Write stalls begun.", m.WriteStalls)
	e.total("store_disk_slow", "Disk operations that took very long.", m.DiskSlow)
	e.total("store_background_errors", "Flushes and compactions that failed.", m.BackgroundError)
	e.total("store_entry_cache_hits", "Log reads answered by the entry cache.", m.EntryCacheHits)
	e.total("store_entry_cache_misses", "Log reads that went to the engine.", m.EntryCacheMisses)
	e.total("store_block_cache_hits", "Block reads answered by the cache.",
		uint64(max(m.BlockCacheHits, 0)))
	e.total("store_block_cache_misses", "Block reads that went to disk.",
		uint64(max(m.BlockCacheMisses, 0)))
	e.gauge("store_block_cache_bytes", "Bytes in the block cache.", float64(m.BlockCacheBytes))
	e.gauge("store_entry_cache_bytes", "Bytes in the entry cache.", float64(m.EntryCacheBytes))
	e.gauge("store_compaction_debt_bytes", "Bytes that compaction has yet to move.",
		float64(m.CompactionDebt))
	e.gauge("store_read_amplification", "Levels that a lookup may visit.", float64(m.ReadAmp))
	e.gauge("store_l0_sublevels", "Depth of level 0.", float64(m.L0Sublevels))
	e.gauge("store_memtable_bytes", "Bytes in memtables.", float64(m.MemTableBytes))
	e.gauge("store_disk_bytes", "Bytes of the engine on disk.", float64(m.DiskBytes))
	e.gauge("store_read_only", "Whether writes are refused for lack of disk space.",
		truth(m.ReadOnly))
}

func (e emitter) rowCache(s rowcache.Stats) {
	e.total("row_cache_hits", "Gets answered by the cache of hot rows.", s.Hits)
	e.total("row_cache_misses", "Gets that it could not answer.", s.Misses)
	e.total("row_cache_stale", "Of these, because the row had been written since.", s.Stale)
	e.total("row_cache_ahead", "Of these, because the row is above the reader's timestamp.",
		s.Ahead)
	e.gauge("row_cache_bytes", "Bytes of hot rows kept.", float64(s.Bytes))
}

func (e emitter) transport(m rpc.Metrics) {
	e.total("raft_frames_sent", "Frames sent to peers.", m.FramesOut)
	e.total("raft_frames_received", "Frames received from peers.", m.FramesIn)
	e.total("raft_messages_sent", "Raft messages sent.", m.MessagesOut)
	e.total("raft_messages_received", "Raft messages received.", m.MessagesIn)
	e.total("raft_messages_dropped", "Raft messages refused or lost with a stream.", m.Dropped)
	e.total("raft_sent_bytes", "Bytes of raft frames sent.", m.BytesOut)
	e.total("raft_received_bytes", "Bytes of frames received from peers.", m.BytesIn)
	e.total("raft_frames_rejected", "Frames with a bad checksum, form or stamp.", m.Rejected)
	e.total("raft_streams_lost", "Raft streams to peers that broke.", m.StreamsLost)
	e.total("support_requests_sent", "Requests for support sent.", m.SupportRequestsSent)
	e.total("support_requests_answered", "Requests for support answered.",
		m.SupportRequestsAnswered)
	e.total("support_unsent", "Support datagrams that the system did not take.",
		m.SupportUnsent)
	e.total("support_unheard", "Support datagrams that were not heard.", m.SupportRefused)
	e.total("snapshots_sent", "Snapshots that their receivers took.", m.SnapshotsSent)
	e.total("snapshots_received", "Snapshots taken from peers.", m.SnapshotsReceived)
	e.total("snapshot_sent_bytes", "Bytes of snapshots sent.", m.SnapshotBytesOut)
}

func (e emitter) requests(m *kvMetrics) {
	e.gauge("client_streams", "Open client streams.", float64(m.streams.Load()))
	for v := range verbs {
		verb, count := kv.Verb(v).String(), uint64(0)
		for c := range codesKnown {
			if k := m.count[v][c].Load(); k > 0 {
				e.labelled("requests_total", "Requests answered.", prometheus.CounterValue,
					float64(k), []string{"verb", "code"}, verb, kv.Code(c).String())
			}
		}
		buckets := map[float64]uint64{}
		for i := range latencyBuckets {
			count += m.buckets[v][i].Load()
			buckets[bucketBound(i)] = count
		}
		if count += m.buckets[v][latencyBuckets].Load(); count == 0 {
			continue
		}
		e.ch <- prometheus.MustNewConstHistogram(
			desc("request_seconds", "Time from reading a request to its answer.", "verb"),
			count, float64(m.nanos[v].Load())/1e9, buckets, verb)
	}
}
