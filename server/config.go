package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/support"
)

// Defaults of Config.
const (
	DefaultListen            = "127.0.0.1:7001"
	DefaultHTTP              = "127.0.0.1:7081"
	DefaultRangeSize         = 64 << 20
	DefaultCacheBytes        = 256 << 20
	DefaultRowCacheBytes     = 64 << 20
	DefaultReplicationFactor = 3
	DefaultDeadAfter         = 5 * time.Minute
	DefaultMergeBelow        = DefaultRangeSize / MergeShare
	DefaultMergeAfter        = time.Hour
	DefaultLoadSplitCPU      = 100 * time.Millisecond
	DefaultLoadSplitOps      = 2500
	DefaultGCWindow          = 10 * time.Minute
	DefaultCheckEvery        = time.Minute
	DefaultDrainTimeout      = 20 * time.Second
	DefaultSupportDuration   = 250 * time.Millisecond
	DefaultSupportInterval   = support.DefaultInterval

	// MergeShare: ranges are merged by default when both together have this part of
	// the size at which they are split, so that no merge is soon undone.
	MergeShare = 4

	minRangeSize = 64 << 10
	// minDeadAfter is twice the silence after which a node gets nothing new: who
	// comes back sooner was never missed.
	minDeadAfter = 6 * time.Second
	minCache     = 1 << 20
	maxValue     = 16 << 20 // a value must fit an entry, an entry a frame
	maxLocality  = 16

	// A shorter promise would end at every delay of a busy machine. A longer one
	// would keep the ranges of a dead node without a leader for as long, and a clock
	// that passed its ceiling might lead by more than peers adopt (R9k).
	minSupport = 50 * time.Millisecond
	maxSupport = maxAhead - wallOffset
	// minSupportInterval keeps requests from costing more than what they replace.
	minSupportInterval = 5 * time.Millisecond
	// requestsPerSupport: of so many requests in a row one may be late or lost.
	requestsPerSupport = 3
)

// Config is everything that can be set about a node. Zero values mean the
// defaults named; Validate says what is wrong.
type Config struct {
	// Listen is where gRPC is served, host:port. Default 127.0.0.1:7001.
	Listen string
	// Advertise is the address that other nodes and clients are told; default
	// Listen. It must be set when Listen has no host.
	Advertise string
	// HTTP is where metrics, health and profiles are served; default 127.0.0.1:7081.
	HTTP string
	// Data is the directory of the store; it has no default.
	Data string
	// Init creates a new cluster if Data is empty and no address in Join knows one.
	Init bool
	// Join are addresses of nodes of the cluster to join; they are used while
	// Data is empty, and later when no known node answers.
	Join []string
	// Cluster and Node are what Data must belong to; 0: whatever it says.
	Cluster uint64
	Node    ids.NodeID
	// Locality says where the node stands, key=value from large to small.
	Locality []string

	RangeSize     int64 // ranges above it are split; bytes, default 64 MiB
	MaxValueBytes int   // larger values are refused; default 8 MiB
	CacheBytes    int64 // block cache; default 256 MiB
	RowCacheBytes int64 // cache of hot rows; 0: none, the program's default is DefaultRowCacheBytes
	QuorumReads   bool  // every read asks a quorum, to measure what leases save
	ReserveBytes  int64 // disk kept free; 0: the store's default
	Shards        int   // workers that drive the raft groups; 0: one per two cores
	ReadWorkers   int   // goroutines that run reads; default GOMAXPROCS
	// ReplicationFactor is how many copies placement keeps of every range; default 3.
	ReplicationFactor int
	// DeadAfter is how long a node may be silent before its replicas are replaced;
	// default 5 minutes.
	DeadAfter time.Duration
	// MergeBelow: two neighbours that have fewer bytes together, and little to do, are
	// merged; at most half of RangeSize. 0: never, the program's default is
	// DefaultMergeBelow.
	MergeBelow int64
	// MergeAfter is how long they must have been so; default 1 hour.
	MergeAfter time.Duration
	// LoadSplitCPU is the processor time per second, and LoadSplitOps the requests per
	// second, above which a range is split where its load halves. 0: the defaults,
	// 100 ms and 2500; negative: never.
	LoadSplitCPU time.Duration
	LoadSplitOps float64

	// CheckEvery is how often a node compares one of the ranges that it leads and that
	// were written to with its other replicas; default 1 minute, negative: never.
	CheckEvery time.Duration

	GCWindow     time.Duration // how long old versions are kept; default 10 minutes
	DrainTimeout time.Duration // how long a graceful stop hands over leaders; default 20 s

	// SupportDuration is how long the other nodes promise to elect nobody in place
	// of this node's leaders after each request; default 250 ms. When this node
	// falls silent they begin to elect after that time, less up to one interval.
	// At least 50 ms, at most 3 s.
	SupportDuration time.Duration
	// SupportInterval is between requests; default 75 ms, at most a third of
	// SupportDuration.
	SupportInterval time.Duration

	// suspectAfter is placement's, 0 its default: for tests that cannot wait.
	suspectAfter time.Duration

	Logger  *slog.Logger
	Version string // shown in status and metrics
	Commit  string
	// Notice is told in one line what a node waits for, and Ready once when it
	// serves. Both may be nil; they are called on goroutines of Run.
	Notice func(line string)
	Ready  func(Info)
}

// Info is what a node says of itself when it is ready.
type Info struct {
	Node     ids.NodeID
	Cluster  uint64
	Client   string // address for clients and nodes
	HTTP     string // address of HTTP
	Data     string
	Origin   string // how it came to its identity: initialised, joined, restarted
	Nodes    []string
	Replicas int
	Leaders  int
	Took     time.Duration
	Version  string
	Commit   string
}

// WithDefaults returns the configuration with every default filled in.
func (c Config) WithDefaults() Config {
	setDefault(&c.Listen, DefaultListen)
	setDefault(&c.HTTP, DefaultHTTP)
	setDefault(&c.RangeSize, DefaultRangeSize)
	setDefault(&c.MaxValueBytes, kv.DefaultMaxValueBytes)
	setDefault(&c.CacheBytes, DefaultCacheBytes)
	setDefault(&c.ReadWorkers, runtime.GOMAXPROCS(0))
	setDefault(&c.ReplicationFactor, DefaultReplicationFactor)
	setDefault(&c.DeadAfter, DefaultDeadAfter)
	setDefault(&c.MergeAfter, DefaultMergeAfter)
	setDefault(&c.LoadSplitCPU, DefaultLoadSplitCPU)
	setDefault(&c.LoadSplitOps, DefaultLoadSplitOps)
	setDefault(&c.GCWindow, DefaultGCWindow)
	setDefault(&c.CheckEvery, DefaultCheckEvery)
	setDefault(&c.DrainTimeout, DefaultDrainTimeout)
	setDefault(&c.SupportDuration, DefaultSupportDuration)
	setDefault(&c.SupportInterval, DefaultSupportInterval)
	setDefault(&c.Version, "unreleased")
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Notice == nil {
		c.Notice = func(string) {}
	}
	if c.Ready == nil {
		c.Ready = func(Info) {}
	}
	return c
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Validate returns nil, or one error that joins every fault of a configuration
// with its defaults filled in, each naming its flag.
func (c Config) Validate() error {
	var faults []error
	fault := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	fault(c.Data != "", "--data is missing: give the directory of the store")
	host, listens := c.address(&faults, "--listen", c.Listen, true)
	c.address(&faults, "--http", c.HTTP, true)
	if c.Advertise != "" {
		c.address(&faults, "--advertise", c.Advertise, false)
	} else {
		ip := net.ParseIP(host)
		fault(!listens || host != "" && (ip == nil || !ip.IsUnspecified()),
			"--listen %s names no host that others can reach: add --advertise HOST:PORT", c.Listen)
	}
	for _, a := range c.Join {
		c.address(&faults, "--join", a, false)
	}
	fault(len(c.Locality) <= maxLocality, "--locality has %d tiers, at most %d are allowed",
		len(c.Locality), maxLocality)
	for _, l := range c.Locality {
		k, v, ok := strings.Cut(l, "=")
		fault(ok && k != "" && v != "", "--locality %q is not key=value", l)
	}
	fault(c.RangeSize >= minRangeSize, "--range-size is %d bytes, at least %d are needed",
		c.RangeSize, minRangeSize)
	fault(c.MaxValueBytes > 0 && c.MaxValueBytes <= maxValue,
		"--max-value-size is %d bytes, it must lie between 1 and %d", c.MaxValueBytes, maxValue)
	fault(c.CacheBytes >= minCache, "--cache-size is %d bytes, at least %d are needed",
		c.CacheBytes, minCache)
	fault(c.RowCacheBytes == 0 || c.RowCacheBytes >= minCache,
		"--row-cache-size is %d bytes, it must be 0 or at least %d", c.RowCacheBytes, minCache)
	fault(c.ReplicationFactor > 0 && c.ReplicationFactor%2 == 1,
		"--replication is %d, it must be odd", c.ReplicationFactor)
	fault(c.DeadAfter >= minDeadAfter, "--dead-after is %v, at least %v are needed: who is back "+
		"sooner was never missed", c.DeadAfter, minDeadAfter)
	fault(c.MergeBelow >= 0 && c.MergeBelow <= c.RangeSize/2,
		"--merge-below is %d bytes, it must lie between 0 (never) and half of --range-size, %d",
		c.MergeBelow, c.RangeSize/2)
	fault(c.MergeAfter > 0, "--merge-after is %v, it must be positive", c.MergeAfter)
	fault(c.GCWindow > 0, "--gc-window is %v, it must be positive", c.GCWindow)
	fault(c.DrainTimeout > 0, "--drain-timeout is %v, it must be positive", c.DrainTimeout)
	fault(c.SupportDuration >= minSupport && c.SupportDuration <= maxSupport,
		"--support-duration is %v, it must lie between %v and %v: clocks may be moved ahead by as "+
			"much, and by more they would refuse one another",
		c.SupportDuration, minSupport, maxSupport)
	fault(c.SupportInterval >= minSupportInterval &&
		c.SupportInterval*requestsPerSupport <= c.SupportDuration,
		"--support-interval is %v, it must lie between %v and a third of --support-duration, %v",
		c.SupportInterval, minSupportInterval, c.SupportDuration/requestsPerSupport)
	fault(c.Shards >= 0, "--shards is %d, it must not be negative", c.Shards)
	fault(c.ReadWorkers > 0, "--read-workers is %d, at least 1 is needed", c.ReadWorkers)
	return errors.Join(faults...)
}

// address checks host:port and returns the host. Listening may leave the host
// out and take port 0.
func (c Config) address(faults *[]error, flag, addr string, listening bool) (host string, ok bool) {
	host, port, err := net.SplitHostPort(addr)
	switch {
	case err != nil:
		*faults = append(*faults, fmt.Errorf("%s %q is not host:port", flag, addr))
	case port == "" || !listening && (host == "" || port == "0"):
		*faults = append(*faults, fmt.Errorf("%s %q lacks a host or a port", flag, addr))
	default:
		ok = true
	}
	return host, ok
}
