package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// decommissioned is the standing of a node that left for good.
const decommissioned = "decommissioned"

func standingName(s metapb.NodeStanding) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "NODE_STANDING_"))
}

// nodeID parses n3 or 3.
func nodeID(text string) (uint64, error) {
	id, err := strconv.ParseUint(strings.TrimPrefix(text, "n"), 10, 64)
	if err != nil || id == 0 {
		return 0, usageError{fmt.Sprintf("%q is not a node; it is written n3 or 3", text)}
	}
	return id, nil
}

// nodeIDs parses nodes, each named once.
func nodeIDs(args []string) ([]uint64, error) {
	var all []uint64
	for _, text := range args {
		id, err := nodeID(text)
		switch {
		case err != nil:
			return nil, err
		case slices.Contains(all, id):
			return nil, usageError{fmt.Sprintf("n%d is named twice", id)}
		}
		all = append(all, id)
	}
	return all, nil
}

func (a *app) nodesCommand() *cobra.Command {
	cmd := group(&cobra.Command{Use: "nodes", Short: "The nodes of the cluster"})
	cmd.AddCommand(
		a.nodesLsCommand(), a.drainCommand(), a.undrainCommand(), a.decommissionCommand(),
	)
	return cmd
}

func (a *app) nodesLsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the nodes: state, replicas, leaders, data and load",
		Long: `List the nodes. DATA is what their replicas hold, LOAD what the ranges that they
lead cost: processor time in cores, and bytes written and read a second. Nodes
that are on their way out show what is left.`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				s, err := fetchStatus(ctx, c, false)
				if err != nil {
					return err
				}
				if err := s.addProgress(ctx, c); errors.Is(err, client.ErrUnavailable) {
					a.talk("what is left on nodes is not known now: %v", err)
				} else if err != nil {
					return err
				}
				if a.isJSON() {
					return a.json(s.Nodes)
				}
				if err := a.printNodes(s.Nodes); err != nil {
					return err
				}
				a.printProgress(s.Nodes)
				return nil
			})
		},
	}
}

// addProgress asks how far nodes are that are on their way out, if there are any.
func (s *statusReport) addProgress(ctx context.Context, c *client.Client) error {
	leaving := func(n nodeReport) bool {
		return n.Standing == "draining" || n.Standing == "decommissioning"
	}
	if !slices.ContainsFunc(s.Nodes, leaving) {
		return nil
	}
	all, err := fetchProgress(ctx, c)
	if err != nil {
		return err
	}
	for i := range s.Nodes {
		if n := &s.Nodes[i]; leaving(*n) {
			n.Progress = find(all, n.ID)
		}
	}
	return nil
}

// printProgress says below the table how far nodes are.
func (a *app) printProgress(nodes []nodeReport) {
	for _, n := range nodes {
		if n.Progress != nil {
			fmt.Fprintf(a.stdout, "n%d %s: %s\n", n.ID, n.Standing, n.Progress.left())
			for _, why := range n.Progress.Stuck {
				fmt.Fprintf(a.stdout, "   stuck: %s\n", why)
			}
		}
	}
}

// state is how a node is, in a word or two.
func (n *nodeReport) state() string {
	state := "live"
	switch {
	case n.gone():
		return decommissioned
	case !n.Live:
		state = "silent " + secondsText(n.SilentSeconds)
	case n.ReadOnly:
		state = "read-only"
	}
	if n.Standing != "active" && n.Standing != "" {
		state += ", " + n.Standing
	}
	return state
}

// load is what a node's leaders cost.
func (n *nodeReport) load() string {
	return fmt.Sprintf("%.2f cores, %s/s", float64(n.CPUMicros)/1e6,
		bytesText(int64(n.BytesWritten+n.BytesRead)))
}

// printNodes prints the table of nodes; where they stand only if any node says so.
func (a *app) printNodes(nodes []nodeReport) error {
	located := slices.ContainsFunc(nodes, func(n nodeReport) bool { return len(n.Locality) > 0 })
	header := "NODE\tADDRESS\tHTTP\tSTATE\tREPLICAS\tLEADERS\tDATA\tLOAD\tDISK FREE\tVERSION"
	if located {
		header += "\tLOCALITY"
	}
	return a.table(header, func(add func(string, ...any)) {
		for _, n := range nodes {
			free, where := "-", ""
			if n.DiskBytes > 0 {
				free = fmt.Sprintf("%s of %s", bytesText(int64(n.DiskFreeBytes)),
					bytesText(int64(n.DiskBytes)))
			}
			if located {
				where = "\t" + orDash(strings.Join(n.Locality, ","))
			}
			add("n%d\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s%s", n.ID, n.Address,
				orDash(n.HTTPAddress), n.state(), n.Replicas, n.Leaders,
				bytesText(int64(n.ReplicaBytes)), n.load(), free, orDash(n.Version), where)
		}
	})
}

func (a *app) drainCommand() *cobra.Command {
	w := watcher{app: a, want: metapb.NodeStanding_NODE_STANDING_DRAINING}
	cmd := &cobra.Command{
		Use:   "drain NODE...",
		Short: "Move all leaders off nodes, before they are stopped for a while",
		Long: `Move all leaders off nodes: they keep their replicas, lead nothing and are given
nothing new. So a node can be stopped without anybody waiting for an election.
The cluster refuses what would leave nobody to lead.

` + watchHelp,
		Example: `  flotilla nodes drain n2
  flotilla nodes undrain n2`,
		Args: atLeastOneNode,
		RunE: func(cmd *cobra.Command, args []string) error { return w.run(cmd.Context(), args) },
	}
	w.flags(cmd)
	return cmd
}

func (a *app) decommissionCommand() *cobra.Command {
	w := watcher{app: a, want: metapb.NodeStanding_NODE_STANDING_DECOMMISSIONING}
	cmd := &cobra.Command{
		Use:   "decommission NODE...",
		Short: "Move all replicas off nodes, which then are out of the cluster for good",
		Long: `Move all leaders and replicas off nodes, to others that the placement rules allow.
When a node holds nothing it is decommissioned: the cluster no longer counts it,
and it does not come back but with an empty directory, as a new node. A node that
is dead can be decommissioned, too. The cluster refuses what would leave fewer
nodes than a rule wants copies, or lose data.

` + watchHelp,
		Example: `  flotilla nodes decommission n4 n5
  flotilla nodes decommission n3 --no-wait`,
		Args: atLeastOneNode,
		RunE: func(cmd *cobra.Command, args []string) error { return w.run(cmd.Context(), args) },
	}
	w.flags(cmd)
	return cmd
}

func (a *app) undrainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "undrain NODE...",
		Short: "Let nodes lead and hold ranges again",
		Long: `Let nodes lead and hold ranges again that were drained, or are being decommissioned.
It does not bring back a node that is decommissioned already.`,
		Example: `  flotilla nodes undrain n2`,
		Args:    atLeastOneNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			nodes, err := nodeIDs(args)
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				all, err := a.setStanding(ctx, c, nodes, metapb.NodeStanding_NODE_STANDING_ACTIVE)
				if err != nil {
					return err
				}
				return a.finish(all)
			})
		},
	}
}

// atLeastOneNode wants a node or more.
func atLeastOneNode(cmd *cobra.Command, args []string) error {
	return rangeArgs(1, maxNodeArgs)(cmd, args)
}

// maxNodeArgs bounds the nodes of one command line.
const maxNodeArgs = 1000

// setStanding asks for a standing of each node in turn. What was set before one was
// refused stays set, and the error says so.
func (a *app) setStanding(
	ctx context.Context, c *client.Client, nodes []uint64, want metapb.NodeStanding,
) (all []progressReport, err error) {
	var set []string
	for _, id := range nodes {
		r, err := ask(ctx, c, func(
			ctx context.Context, admin adminpb.AdminClient,
		) (*adminpb.SetStandingReply, error) {
			return admin.SetStanding(ctx,
				&adminpb.SetStandingRequest{NodeId: id, Standing: want})
		})
		if err != nil && len(set) > 0 {
			return nil, fmt.Errorf("n%d: %w (accepted before it: %s)", id, err,
				strings.Join(set, ", "))
		}
		if err != nil {
			return nil, fmt.Errorf("n%d: %w", id, err)
		}
		set = append(set, fmt.Sprintf("n%d", id))
		all = append(all, newProgressReport(r.GetNode()))
	}
	return all, nil
}

// finish says what nodes are now: words, or an object per line.
func (a *app) finish(all []progressReport) error {
	for _, p := range all {
		if a.isJSON() {
			if err := a.json(p); err != nil {
				return err
			}
			continue
		}
		switch {
		case p.Standing == "draining" && p.done():
			a.talk("OK  n%d is drained: it leads nothing", p.Node)
		case p.done():
			a.talk("OK  n%d is %s", p.Node, p.Standing)
		default:
			a.talk("OK  n%d is %s: %s", p.Node, p.Standing, p.left())
		}
	}
	return nil
}
