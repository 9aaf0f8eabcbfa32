package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/flotilla-kv/flotilla/loadtest"
)

const (
	endpointsVariable = "FLOTILLA_ENDPOINTS"
	defaultEndpoint   = "127.0.0.1:7001"
	defaultEtcd       = "127.0.0.1:2379"
	// etcdConnections is what etcd needs to show what it can.
	etcdConnections = 32

	storeFlotilla, storeEtcd = "flotilla", "etcd"
)

// flags are all flags of the command.
type flags struct {
	store        string
	endpoints    []string
	connections  int
	clients      int
	duration     time.Duration
	warmup       time.Duration
	operations   int64
	rate         float64
	records      uint64
	from         uint64
	valueSize    int
	compressible float64
	keyPrefix    string
	ordered      bool
	distribution string
	seed         uint64
	timeout      time.Duration
	serverPIDs   []int
	output       string
}

func (f *flags) register(s *pflag.FlagSet) {
	s.StringVar(&f.store, "store", storeFlotilla, "what to drive: flotilla or etcd")
	s.StringSliceVar(&f.endpoints, "endpoints", nil,
		"host:port of nodes, separated by commas (or "+endpointsVariable+
			"; default "+defaultEndpoint+", etcd "+defaultEtcd+")")
	s.IntVar(&f.connections, "connections", 0,
		"connections: Flotilla 1 client, with a stream to every node; etcd 32")
	s.IntVar(&f.clients, "clients", 64, "operations in flight at most")
	s.DurationVar(&f.duration, "duration", 0,
		"measured time, after the warm-up (default 10s unless --ops is given)")
	s.DurationVar(&f.warmup, "warmup", 0, "time before, which is not measured")
	s.Int64Var(&f.operations, "ops", 0, "measured operations at most (0: no limit)")
	s.Float64Var(&f.rate, "rate", 0,
		"operations per second, latency from the intended start (0: as fast as clients can)")
	s.Uint64Var(&f.records, "records", 100_000, "records that are loaded")
	s.IntVar(&f.valueSize, "value-size", 256, "bytes of a value")
	s.Float64Var(&f.compressible, "compressible", 0, "share of each value that is zeros, 0 to 1")
	s.StringVar(&f.keyPrefix, "key-prefix", "user", "what all keys begin with")
	s.BoolVar(&f.ordered, "ordered-keys", false,
		"keys in the order of records (default: scattered by a hash)")
	s.StringVar(&f.distribution, "distribution", "",
		"zipfian, uniform or latest (default: the workload's)")
	s.Uint64Var(&f.seed, "seed", 0, "of all random choices (default: drawn, and printed)")
	s.DurationVar(&f.timeout, "timeout", 10*time.Second, "of one operation")
	s.IntSliceVar(&f.serverPIDs, "server-pids", nil,
		"process ids of servers on this machine: their processor time per operation is reported")
	s.StringVarP(&f.output, "output", "o", "table", "table or json (one object a line)")
	s.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "read-your-key-prefix" { // scripts call it so too
			name = "key-prefix"
		}
		return pflag.NormalizedName(name)
	})
}

// complete fills in what was not given, and refuses what is wrong before
// anything is opened.
func (f *flags) complete(s *pflag.FlagSet) error {
	if f.store != storeFlotilla && f.store != storeEtcd {
		return usageError{fmt.Errorf("--store %q: flotilla or etcd", f.store)}
	}
	if f.output != "table" && f.output != "json" {
		return usageError{fmt.Errorf("--output %q: table or json", f.output)}
	}
	if !s.Changed("seed") {
		f.seed = rand.Uint64()
	}
	if f.duration == 0 && f.operations == 0 {
		f.duration = 10 * time.Second
	}
	if len(f.endpoints) > 0 {
		return nil
	}
	switch listed := os.Getenv(endpointsVariable); {
	case f.store == storeEtcd:
		f.endpoints = []string{defaultEtcd}
	case listed != "":
		f.endpoints = strings.Split(listed, ",")
	default:
		f.endpoints = []string{defaultEndpoint}
	}
	return nil
}

// config is what the flags say.
func (f *flags) config(w loadtest.Workload, s *pflag.FlagSet) loadtest.Config {
	said := make(map[string]string)
	s.VisitAll(func(flag *pflag.Flag) { said[flag.Name] = flag.Value.String() })
	said["endpoints"] = strings.Join(f.endpoints, ",") // also when they were not a flag
	return loadtest.Config{
		Workload: w, Distribution: loadtest.Distribution(f.distribution),
		Clients: f.clients, Duration: f.duration, Operations: f.operations, Warmup: f.warmup,
		Rate: f.rate, Records: f.records, ValueSize: f.valueSize, Compressible: f.compressible,
		KeyPrefix: f.keyPrefix, OrderedKeys: f.ordered, Seed: f.seed, Timeout: f.timeout,
		ServerPIDs:  f.serverPIDs,
		Environment: loadtest.DescribeEnvironment("", said),
	}
}
