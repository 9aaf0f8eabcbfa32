package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/server"
)

// flags are the flags of start before they become a server.Config.
type flags struct {
	cfg        server.Config
	cluster    string
	node       uint64
	rangeSize  size
	maxValue   size
	cache      size
	leaseReads bool
	rowCache   size
	reserve    size
	mergeBelow size
	logFormat  string
	logLevel   string
}

func startCommand() *cobra.Command {
	f := &flags{}
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Start a node and serve until SIGTERM",
		Long: "Start a node and serve until SIGTERM.\n\n" +
			"The first node of a new cluster is started with --init, the others with --join. A\n" +
			"node that has its identity needs neither: it finds the others from its records.\n" +
			"Every flag can also be given in the environment: --max-value-size as\n" +
			"FLOTILLA_MAX_VALUE_SIZE, and so on. A flag wins over the environment.",
		Example: "  flotilla-node start --data d1 --listen 127.0.0.1:7001 --http 127.0.0.1:7081 --init\n" +
			"  flotilla-node start --data d2 --listen 127.0.0.1:7002 --http 127.0.0.1:7082 " +
			"--join 127.0.0.1:7001",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config(cmd.Flags(), cmd.ErrOrStderr())
			if err != nil {
				return usageError{err}
			}
			return serve(cmd.Context(), cfg, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f.register(cmd.Flags())
	return cmd
}

func (f *flags) register(fs *pflag.FlagSet) {
	d := server.Config{}.WithDefaults()
	f.rangeSize, f.maxValue = size(d.RangeSize), size(d.MaxValueBytes)
	f.cache, f.rowCache = size(d.CacheBytes), size(server.DefaultRowCacheBytes)
	f.mergeBelow = size(server.DefaultMergeBelow)
	c := &f.cfg
	fs.SortFlags = false
	fs.StringVar(&c.Data, "data", "", "directory of the store (required)")
	fs.StringVar(&c.Listen, "listen", d.Listen, "host:port for clients and other nodes (TCP; other nodes use UDP on it, too)")
	fs.StringVar(&c.Advertise, "advertise", "", "host:port that others are told (default: --listen)")
	fs.StringVar(&c.HTTP, "http", d.HTTP, "host:port for metrics and health")
	fs.BoolVar(&c.Init, "init", false, "create a new cluster if the directory is empty")
	fs.StringSliceVar(&c.Join, "join", nil, "addresses of nodes of the cluster to join")
	fs.StringVar(&f.cluster, "cluster", "", "cluster id that the directory must belong to")
	fs.Uint64Var(&f.node, "node", 0, "node id that the directory must belong to")
	fs.StringSliceVar(&c.Locality, "locality", nil, "where the node stands: region=eu,zone=a")
	fs.Var(&f.rangeSize, "range-size", "size above which ranges are split")
	fs.Var(&f.maxValue, "max-value-size", "largest value that is accepted")
	fs.Var(&f.cache, "cache-size", "memory for cached blocks")
	fs.Var(&f.rowCache, "row-cache-size", "memory for hot rows in front of the blocks (0: none)")
	fs.Var(&f.reserve, "reserve", "disk space to keep free (0: the default, 512MiB)")
	fs.IntVar(&c.ReplicationFactor, "replication", d.ReplicationFactor, "copies of every range")
	f.registerPlacement(fs, d)
	fs.DurationVar(&c.GCWindow, "gc-window", d.GCWindow, "how long old versions are kept")
	fs.DurationVar(&c.CheckEvery, "check-every", d.CheckEvery,
		"how often the node compares one of the ranges that it leads, and that were written\n"+
			"to, with its other copies: a node whose copy differs from most stops (negative: never)")
	fs.DurationVar(&c.DrainTimeout, "drain-timeout", d.DrainTimeout,
		"how long a stop hands leaders over, for as long as others take them; whatever runs\n"+
			"the node should wait longer before it kills it")
	fs.DurationVar(&c.SupportDuration, "support-duration", d.SupportDuration,
		"how long other nodes elect nobody in place of this node's leaders after each of its\n"+
			"requests, and so how long after its death they begin: this time, less up to one\n"+
			"interval (50ms to 3s)")
	fs.DurationVar(&c.SupportInterval, "support-interval", d.SupportInterval,
		"time between requests for support, at most a third of the duration: shorter finds\n"+
			"failures no sooner, but more of them may be late before this node counts as dead")
	fs.BoolVar(&f.leaseReads, "lease-reads", true,
		"read locally under a lease; false: every read asks a quorum, to see what that costs")
	fs.IntVar(&c.Shards, "shards", 0, "workers that drive raft groups (0: one per two cores)")
	fs.IntVar(&c.ReadWorkers, "read-workers", d.ReadWorkers, "goroutines that run reads")
	fs.StringVar(&f.logFormat, "log-format", "text", "text or json")
	fs.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
}

// registerPlacement registers what decides how many ranges there are and when their
// copies are replaced. Whichever node drives placement goes by its own: they should be
// the same everywhere.
func (f *flags) registerPlacement(fs *pflag.FlagSet, d server.Config) {
	c := &f.cfg
	fs.DurationVar(&c.DeadAfter, "dead-after", d.DeadAfter,
		"a node that is gone for longer is replaced: its copies are made anew elsewhere (at\n"+
			"least 6s); one that comes back earlier is welcomed without a copy. This flag and the\n"+
			"merge flags should be the same on every node")
	fs.Var(&f.mergeBelow, "merge-below",
		"neighbouring ranges that are smaller than this together, and cold, are merged; at\n"+
			"most half of --range-size, a quarter of it if this is not given (0: never)")
	fs.DurationVar(&c.MergeAfter, "merge-after", d.MergeAfter,
		"how long they must have been small and cold")
	fs.DurationVar(&c.LoadSplitCPU, "load-split-cpu", d.LoadSplitCPU,
		"processor time per second above which a range is split where its load halves\n"+
			"(negative: never)")
	fs.Float64Var(&c.LoadSplitOps, "load-split-ops", d.LoadSplitOps,
		"requests per second above which it is split so (negative: never)")
}

// config returns the validated configuration; the error names every fault.
func (f *flags) config(fs *pflag.FlagSet, logs io.Writer) (server.Config, error) {
	var faults []string
	fault := func(err error) {
		if err != nil {
			faults = append(faults, strings.Split(err.Error(), "\n")...)
		}
	}
	fault(fromEnvironment(fs, os.LookupEnv))
	fault(noTime(fs))
	c := f.cfg
	c.RangeSize, c.MaxValueBytes = int64(f.rangeSize), int(f.maxValue)
	c.CacheBytes, c.ReserveBytes = int64(f.cache), int64(f.reserve)
	c.RowCacheBytes, c.QuorumReads = int64(f.rowCache), !f.leaseReads
	if c.MergeBelow = int64(f.mergeBelow); !fs.Changed("merge-below") {
		c.MergeBelow = min(c.MergeBelow, c.RangeSize/server.MergeShare)
	}
	if c.LoadSplitOps == 0 {
		fault(errors.New("--load-split-ops is 0, which would split every range (leave it out " +
			"for the default; -1: never)"))
	}
	c.Node = ids.NodeID(f.node)
	if f.cluster != "" {
		id, err := strconv.ParseUint(f.cluster, 16, 64)
		if err != nil || id == 0 {
			fault(fmt.Errorf("--cluster %q is not a cluster id (16 hexadecimal digits)", f.cluster))
		}
		c.Cluster = id
	}
	logger, err := newLogger(logs, f.logFormat, f.logLevel)
	fault(err)
	c.Logger = logger
	b := readBuild()
	c.Version, c.Commit = b.version, b.commit
	c = c.WithDefaults()
	fault(c.Validate())
	if len(faults) > 0 {
		return c, fmt.Errorf("%s", strings.Join(faults, "; "))
	}
	return c, nil
}

func newLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	opts := &slog.HandlerOptions{}
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q is not debug, info, warn or error", level)
	}
	opts.Level = l
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q is not text or json", format)
}

// serve runs the node. The start block goes to out, what it waits for to talk.
func serve(ctx context.Context, cfg server.Config, out, talk io.Writer) error {
	var mu sync.Mutex
	say := func(w io.Writer, text string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(w, text)
	}
	cfg.Notice = func(line string) { say(talk, line) }
	cfg.Ready = func(i server.Info) { say(out, startBlock(i)) }
	s, err := server.New(cfg)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := s.Run(ctx); err != nil {
		return err
	}
	cfg.Logger.Info("stopped", "uptime", time.Since(began).Round(time.Second))
	return nil
}

// startBlock is what a node prints when it serves.
func startBlock(i server.Info) string {
	state := fmt.Sprintf("%s; %d replicas, %d led", i.Origin, i.Replicas, i.Leaders)
	nodes := strings.Join(i.Nodes, ",")
	if nodes == "" {
		nodes = i.Client
	}
	return fmt.Sprintf("node %v ready in %.1f s      flotilla %s (%s)\n"+
		"  client     %-22s http    http://%s (metrics, health)\n"+
		"  data       %-22s %s\n"+
		"  cluster    %016x       nodes   %s",
		i.Node, i.Took.Seconds(), i.Version, i.Commit,
		i.Client, i.HTTP, i.Data, state, i.Cluster, nodes)
}
