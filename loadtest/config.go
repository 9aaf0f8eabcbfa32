package loadtest

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// Config describes a run.
type Config struct {
	Workload     Workload
	Distribution Distribution // "": the workload's
	Clients      int          // operations in flight at most
	// Duration is the measured time, after the warm-up; 0: until Operations
	// are done.
	Duration   time.Duration
	Operations int64 // measured operations at most; 0: no limit
	Warmup     time.Duration
	// Rate is operations a second over all clients; above 0 the loop is open.
	Rate         float64
	Records      uint64 // that have been loaded
	ValueSize    int    // bytes
	Compressible float64
	KeyPrefix    string
	OrderedKeys  bool
	Seed         uint64
	Timeout      time.Duration // of one operation
	ServerPIDs   []int         // whose processor time is summed
	Environment  Environment
}

// Bounds of a run.
const (
	maxClients   = 1 << 17
	maxValueSize = 32 << 20
	maxRate      = 1e8
)

// Validate says what is wrong with a configuration, by the names of its flags.
func (c *Config) Validate() error {
	var problems []string
	refuse := func(wrong bool, format string, args ...any) {
		if wrong {
			problems = append(problems, fmt.Sprintf(format, args...))
		}
	}
	refuse(c.Clients < 1 || c.Clients > maxClients, "--clients %d: 1 to %d", c.Clients, maxClients)
	refuse(c.Records < 1, "--records %d: at least 1", c.Records)
	refuse(c.ValueSize < 0 || c.ValueSize > maxValueSize, "--value-size %d: 0 to %d",
		c.ValueSize, maxValueSize)
	refuse(!(c.Rate >= 0 && c.Rate <= maxRate), "--rate %v: 0 (closed loop) to %v", c.Rate,
		float64(maxRate))
	refuse(!(c.Compressible >= 0 && c.Compressible <= 1), "--compressible %v: 0 to 1",
		c.Compressible)
	refuse(c.Duration < 0 || c.Warmup < 0, "a duration below 0")
	refuse(c.Operations < 0 || c.Operations > math.MaxInt32<<16, "--ops %d", c.Operations)
	refuse(c.Timeout <= 0, "--timeout %v: above 0", c.Timeout)
	refuse(c.Duration == 0 && c.Operations == 0, "neither --duration nor --ops says when to end")
	switch c.distribution() {
	case Uniform, Zipfian, Latest:
	default:
		refuse(true, "--distribution %q: zipfian, uniform or latest", c.Distribution)
	}
	if len(problems) > 0 {
		return errors.New(strings.Join(problems, "; "))
	}
	return nil
}

func (c *Config) distribution() Distribution {
	if c.Distribution == "" {
		return c.Workload.Distribution
	}
	return c.Distribution
}

func (c *Config) keys() keyspace { return keyspace{prefix: c.KeyPrefix, ordered: c.OrderedKeys} }

// loop names the loop as the output does.
func (c *Config) loop() string {
	if c.Rate > 0 {
		return "open"
	}
	return "closed"
}
