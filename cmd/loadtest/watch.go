package main

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

// watchColumns returns the columns of what watch writes and plot reads.
func watchColumns() []string {
	return []string{
		"seconds", "node", "live", "standing", "leaders", "replicas", "bytes",
		"cpu_micros_per_second", "operators",
	}
}

func watchCommand(f *flags) *cobra.Command {
	every := time.Second
	c := &cobra.Command{
		Use:   "watch",
		Short: "Write as CSV what every node leads and holds, again and again",
		Long: `Write as CSV, every second, what every node leads and holds, as placement sees it.
It ends with --duration, or when it is interrupted. plot makes a picture of it.`,
		Example: "  flotilla-loadtest watch --duration 5m > moves.csv",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			bounded := c.Flags().Changed("duration")
			if err := f.complete(c.Flags()); err != nil {
				return err
			}
			if every <= 0 {
				return usageError{fmt.Errorf("--every %v: more than nothing", every)}
			}
			conn, err := client.Open(c.Context(), f.endpoints)
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx := c.Context()
			if bounded {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, f.duration)
				defer cancel()
			}
			return watch(ctx, conn, every, c.OutOrStdout())
		},
	}
	c.Flags().DurationVar(&every, "every", every, "time between two looks")
	return c
}

// watch looks until ctx ends. A look that fails is left out: whoever drives
// placement may just have been killed.
func watch(ctx context.Context, c *client.Client, every time.Duration, out io.Writer) error {
	w := csv.NewWriter(out)
	if err := w.Write(watchColumns()); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for began := time.Now(); ; {
		at := time.Since(began)
		nodes, operators, err := look(ctx, c)
		if err == nil {
			for _, n := range nodes {
				if err := w.Write(watchRow(at, n, operators)); err != nil {
					return fmt.Errorf("write: %w", err)
				}
			}
			w.Flush()
			if err := w.Error(); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func look(
	ctx context.Context, c *client.Client,
) (nodes []*adminpb.NodeProgress, operators uint64, err error) {
	err = c.Admin(ctx, func(ctx context.Context, a adminpb.AdminClient) error {
		reply, err := a.Nodes(ctx, &adminpb.NodesRequest{})
		if err != nil {
			return err
		}
		running, err := a.Operators(ctx, &adminpb.OperatorsRequest{Limit: 1})
		nodes, operators = reply.GetNodes(), running.GetTotal()
		return err
	})
	return nodes, operators, err
}

func watchRow(at time.Duration, n *adminpb.NodeProgress, operators uint64) []string {
	s := n.GetStatus()
	standing := strings.ToLower(strings.TrimPrefix(s.GetStanding().String(), "NODE_STANDING_"))
	return []string{
		strconv.FormatFloat(at.Seconds(), 'f', 2, 64), fmt.Sprintf("n%d", s.GetNode().GetNodeId()),
		strconv.FormatBool(s.GetLive()), standing,
		strconv.FormatUint(uint64(s.GetLeaders()), 10),
		strconv.FormatUint(uint64(s.GetReplicas()), 10),
		strconv.FormatUint(s.GetReplicaBytes(), 10),
		strconv.FormatUint(s.GetCpuMicrosPerSecond(), 10), strconv.FormatUint(operators, 10),
	}
}
