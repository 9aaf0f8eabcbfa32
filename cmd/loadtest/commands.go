package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/loadtest"
)

// suggestionDistance is how many letters may be wrong in a did-you-mean.
const suggestionDistance = 2

// openTimeout bounds how long the store may take to answer at first.
const openTimeout = 15 * time.Second

func newRoot() *cobra.Command {
	var f flags
	root := &cobra.Command{
		Use:   "flotilla-loadtest",
		Short: "Load a store and tell the truth about it",
		Long: `flotilla-loadtest drives Flotilla, or etcd, with the workloads of YCSB.

With --rate the loop is open: latency counts from when an operation was meant to
start, so a store that stalls cannot hide it. Without, every client starts its
next operation when the one before has ended. Errors are counted by kind, and the
longest time without a success is printed, overall and by range.`,
		Example: `  flotilla-loadtest load --records 1000000
  flotilla-loadtest run ycsb-b --rate 5000 --duration 30s
  flotilla-loadtest run put --clients 512 --warmup 5s -o json
  flotilla-loadtest run get --store etcd --endpoints 127.0.0.1:2379
  flotilla-loadtest presplit --ranges 1000 --spread && flotilla-loadtest probe`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ""
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				hint = fmt.Sprintf("; did you mean %q?", near[0])
			}
			return usageError{fmt.Errorf("unknown command %q%s", args[0], hint)}
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SuggestionsMinimumDistance = suggestionDistance
	f.register(root.PersistentFlags())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(loadCommand(&f), runCommand(&f), presplitCommand(&f), spreadCommand(&f),
		probeCommand(&f), reachCommand(&f), watchCommand(&f), plotCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and the commit",
		Args:  noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			version, commit := "unreleased", "unknown"
			if info, ok := debug.ReadBuildInfo(); ok {
				version = cmp.Or(info.Main.Version, version)
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						commit = s.Value
					}
				}
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "flotilla-loadtest %s (%.12s) %s\n",
				version, commit, runtime.Version())
			return err
		},
	}
}

func loadCommand(f *flags) *cobra.Command {
	c := &cobra.Command{
		Use:     "load",
		Short:   "Insert the records that workloads read",
		Example: "  flotilla-loadtest load --records 1000000 --value-size 256",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.complete(c.Flags()); err != nil {
				return err
			}
			// How much there is to do is the number of records; the rest of
			// the flags count as they do for a workload.
			config := f.config(loadtest.Workload{Distribution: loadtest.Uniform}, c.Flags())
			if err := config.Validate(); err != nil {
				return usageError{err}
			}
			s, err := open(c.Context(), f)
			if err != nil {
				return err
			}
			result, next, err := loadtest.Load(c.Context(), config, f.from, s, reporter(f))
			if err = errors.Join(err, s.Close()); err != nil {
				return err
			}
			if next < f.records {
				return fmt.Errorf("load: interrupted after %d records; go on with --from %d",
					result.Total.Count, next)
			}
			return nil
		},
	}
	c.Flags().Uint64Var(&f.from, "from", 0, "first record: resumes a load that was interrupted")
	return c
}

func runCommand(f *flags) *cobra.Command {
	c := &cobra.Command{
		Use:   "run WORKLOAD",
		Short: "Run a workload over the loaded records",
		Long: `Run a workload over the loaded records:

  ycsb-a   half reads, half updates           ycsb-d   95 % reads of the latest, 5 % inserts
  ycsb-b   95 % reads, 5 % updates            ycsb-e   95 % scans of 1 to 100 rows, 5 % inserts
  ycsb-c   reads                              ycsb-f   half reads, half read-modify-writes
  put      updates, uniform                   get      reads, uniform`,
		Example: "  flotilla-loadtest run ycsb-a --clients 256 --duration 1m --warmup 5s",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("run takes one workload: ycsb-a to ycsb-f, put or get")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			w, err := loadtest.FindWorkload(args[0])
			if err != nil {
				return usageError{err}
			}
			if err := f.complete(c.Flags()); err != nil {
				return err
			}
			config := f.config(w, c.Flags())
			if err := config.Validate(); err != nil {
				return usageError{err}
			}
			s, err := open(c.Context(), f)
			if err != nil {
				return err
			}
			result, err := loadtest.Run(c.Context(), config, s, reporter(f))
			if err = errors.Join(err, s.Close()); err != nil {
				return err
			}
			if result.Total.Count == 0 {
				return errNothingSucceeded
			}
			return nil
		},
	}
	for _, w := range loadtest.Workloads() {
		c.ValidArgs = append(c.ValidArgs, w.Name)
	}
	return c
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}

func reporter(f *flags) loadtest.Reporter {
	if f.output == "json" {
		return loadtest.JSONReporter{Encoder: json.NewEncoder(os.Stdout)}
	}
	return &loadtest.TableReporter{Out: os.Stdout}
}

func open(ctx context.Context, f *flags) (loadtest.Store, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if f.store == storeEtcd {
		connections := f.connections
		if connections == 0 {
			connections = etcdConnections
		}
		return loadtest.OpenEtcd(ctx, f.endpoints, connections)
	}
	return loadtest.OpenFlotilla(ctx, f.endpoints, f.connections, userRanges)
}
