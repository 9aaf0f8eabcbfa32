package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/loadtest"
)

const (
	// listTimeout bounds a look at the ranges.
	listTimeout = 20 * time.Second
	// openPatience bounds an attempt to reach nodes that may not run yet, openPause
	// is between two.
	openPatience = time.Second
	openPause    = 10 * time.Millisecond
)

func probeCommand(f *flags) *cobra.Command {
	var config loadtest.ProbeConfig
	var victim uint64
	c := &cobra.Command{
		Use:   "probe",
		Short: "Read and write every range in turn, and say how long each did not serve",
		Long: `Read and write every range in turn, at a given rate over all, with one read and one
write of a range in flight at most, and say how long each range did not serve: the truth
lies between its longest wait (from when an operation was meant to start to the next
success) and its longest gap (between two successes). They differ by the period at most
with which the range is asked, ranges / rate; --dense ranges are asked more often.

After --warmup and --calm it says that it is ready (with -o json, a line {"type":"ready"}):
break something then. What was seen before and after is told apart.`,
		Example: "  flotilla-loadtest probe --victim 2 --duration 10s & sleep 6; scripts/cluster kill 2",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.complete(c.Flags()); err != nil {
				return err
			}
			config.Victim = ids.NodeID(victim)
			config.Warmup, config.Duration, config.Timeout = f.warmup, f.duration, f.timeout
			config.ValueSize, config.Seed, config.ServerPIDs = f.valueSize, f.seed, f.serverPIDs
			if err := config.Validate(); err != nil {
				return usageError{err}
			}
			s, err := open(c.Context(), f)
			if err != nil {
				return err
			}
			err = probe(c.Context(), config, s, f)
			return errors.Join(err, s.Close())
		},
	}
	c.Flags().Float64Var(&config.ReadRate, "read-rate", 3000, "reads per second over all ranges")
	c.Flags().Float64Var(&config.WriteRate, "write-rate", 1000, "writes per second over all ranges")
	c.Flags().IntVar(&config.Dense, "dense", 0, "so many ranges are asked more often")
	c.Flags().DurationVar(&config.DenseEvery, "dense-every", 10*time.Millisecond,
		"how often these are read, and written")
	c.Flags().Uint64Var(&victim, "victim", 0,
		"node whose ranges are reported apart, and are the dense ones")
	c.Flags().DurationVar(&config.Calm, "calm", 3*time.Second, "time before --duration")
	return c
}

func probe(
	ctx context.Context, config loadtest.ProbeConfig, s loadtest.Store, f *flags,
) (err error) {
	lister, ok := s.(loadtest.RangeLister)
	if !ok {
		return usageError{fmt.Errorf("--store %q has no ranges", f.store)}
	}
	list, cancel := context.WithTimeout(ctx, listTimeout)
	config.Ranges, err = lister.Ranges(list)
	cancel()
	if err != nil {
		return fmt.Errorf("list ranges: %w", err)
	}
	var out loadtest.ProbeReporter = loadtest.TableProbes{Out: os.Stdout}
	if f.output == "json" {
		out = loadtest.JSONProbes{Encoder: json.NewEncoder(os.Stdout)}
	}
	return loadtest.Probe(ctx, config, s, out)
}

func reachCommand(f *flags) *cobra.Command {
	var ranges int
	var wait time.Duration
	c := &cobra.Command{
		Use:   "reach",
		Short: "Read a key of every range until all have answered, and say how long it took",
		Long: `Read a key of each of the ranges that presplit has made until all have answered, and
say how long the first, half of them and all took. Nodes need not run yet.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.complete(c.Flags()); err != nil {
				return err
			}
			if ranges < 1 || f.store != storeFlotilla {
				return usageError{fmt.Errorf("--ranges %d of --store %s", ranges, f.store)}
			}
			ctx, cancel := context.WithTimeout(c.Context(), wait)
			defer cancel()
			return reach(ctx, f, ranges)
		},
	}
	c.Flags().IntVar(&ranges, "ranges", 1000, "how many ranges presplit has made")
	c.Flags().DurationVar(&wait, "wait", 5*time.Minute, "how long it may take")
	return c
}

// reach reads each range until it answers.
func reach(ctx context.Context, f *flags, ranges int) error {
	began := time.Now()
	var cl *client.Client
	for cl == nil {
		opened, err := client.Open(ctx, f.endpoints, client.WithOpenTimeout(openPatience))
		if err != nil && ctx.Err() != nil {
			return err
		}
		if cl = opened; err != nil {
			cl = nil
			time.Sleep(openPause)
		}
	}
	keys := append([][]byte{[]byte(f.keyPrefix)}, loadtest.SplitKeys(f.keyPrefix, ranges)...)
	var answered atomic.Int64
	var mu sync.Mutex
	var first, half, all time.Duration
	var group sync.WaitGroup
	for _, k := range keys {
		group.Go(func() {
			for ctx.Err() == nil {
				call, cancel := context.WithTimeout(ctx, f.timeout)
				_, err := cl.Get(call, k)
				cancel()
				if err != nil && !errors.Is(err, client.ErrNotFound) {
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				all = time.Since(began)
				switch answered.Add(1) {
				case 1:
					first = all
				case int64(ranges+1) / 2:
					half = all
				}
				return
			}
		})
	}
	group.Wait()
	err := f.say(map[string]any{
		"type": "reach", "ranges": ranges, "answered": answered.Load(),
		"first_s": first.Seconds(), "half_s": half.Seconds(), "all_s": all.Seconds(),
	}, "%d of %d ranges answered: the first after %.2f s, half after %.2f s, the last after %.2f s",
		answered.Load(), ranges, first.Seconds(), half.Seconds(), all.Seconds())
	if err == nil && answered.Load() < int64(ranges) {
		err = fmt.Errorf("%d ranges did not answer: %w", int64(ranges)-answered.Load(),
			client.ErrUnavailable)
	}
	return errors.Join(err, cl.Close())
}
