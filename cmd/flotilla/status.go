package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

// statusReport is what status and health print as JSON.
type statusReport struct {
	Health            string       `json:"health"` // healthy, degraded, unavailable
	ClusterID         string       `json:"cluster_id"`
	AnsweredBy        uint64       `json:"answered_by"`
	LiveNodes         int          `json:"live_nodes"`
	Nodes             []nodeReport `json:"nodes"`
	Ranges            uint64       `json:"ranges"`
	UnderReplicated   uint64       `json:"under_replicated"`
	Leaderless        uint64       `json:"leaderless"`
	ReplicationFactor uint32       `json:"replication_factor"`
	Tolerates         uint32       `json:"tolerates"`
	Operators         uint64       `json:"operators"`
	PausedBy          string       `json:"paused_by,omitempty"` // placement is paused
	Problems          []string     `json:"problems"`
	// Notes are what is worth knowing and keeps the cluster healthy all the same.
	Notes   []string        `json:"notes,omitempty"`
	Leases  []leaseReport   `json:"leases,omitempty"`
	Support []supportReport `json:"support,omitempty"`
}

// nodeReport is a node as JSON.
type nodeReport struct {
	ID            uint64   `json:"id"`
	Address       string   `json:"address"`
	HTTPAddress   string   `json:"http_address"`
	Locality      []string `json:"locality,omitempty"`
	Live          bool     `json:"live"`
	SilentSeconds float64  `json:"silent_seconds"`
	Replicas      uint32   `json:"replicas"`
	Leaders       uint32   `json:"leaders"`
	DiskBytes     uint64   `json:"disk_bytes"`
	DiskFreeBytes uint64   `json:"disk_free_bytes"`
	ReadOnly      bool     `json:"read_only"`
	Version       string   `json:"version,omitempty"`
	UptimeSeconds float64  `json:"uptime_seconds,omitempty"`
	// Standing is what was asked of the node: active, draining, decommissioning,
	// decommissioned.
	Standing string `json:"standing"`
	// What its replicas hold, and per second, what the ranges that it leads cost.
	ReplicaBytes uint64          `json:"replica_bytes"`
	CPUMicros    uint64          `json:"cpu_micros_per_second"`
	BytesWritten uint64          `json:"write_bytes_per_second"`
	BytesRead    uint64          `json:"read_bytes_per_second"`
	Progress     *progressReport `json:"progress,omitempty"`
}

// fetchStatus asks the cluster how it is, and with support also what its nodes
// know of the promises between them.
func fetchStatus(ctx context.Context, c *client.Client, support bool) (*statusReport, error) {
	r, err := ask(ctx, c, func(
		ctx context.Context, admin adminpb.AdminClient,
	) (*adminpb.StatusReply, error) {
		return admin.Status(ctx, &adminpb.StatusRequest{Support: support})
	})
	if err != nil {
		return nil, err
	}
	s := &statusReport{
		ClusterID: fmt.Sprintf("%016x", r.GetClusterId()), AnsweredBy: r.GetAnsweredBy(),
		Ranges: r.GetRanges(), UnderReplicated: r.GetUnderReplicated(),
		Leaderless: r.GetLeaderless(), ReplicationFactor: r.GetReplicationFactor(),
		Tolerates: r.GetTolerates(), Operators: r.GetOperators(), PausedBy: r.GetPausedBy(),
		Problems: r.GetProblems(), Nodes: []nodeReport{},
	}
	for _, n := range r.GetNodes() {
		report := newNodeReport(n)
		if report.Live && !report.gone() {
			s.LiveNodes++
		}
		s.Nodes = append(s.Nodes, report)
	}
	s.addSupport(r.GetNodes())
	s.judge(r.GetReady())
	return s, nil
}

func newNodeReport(n *adminpb.NodeStatus) nodeReport {
	d := n.GetNode()
	return nodeReport{
		ID: d.GetNodeId(), Address: d.GetAddress(), HTTPAddress: d.GetHttpAddress(),
		Locality: d.GetLocality(), Live: n.GetLive(), SilentSeconds: n.GetSilentSeconds(),
		Replicas: n.GetReplicas(), Leaders: n.GetLeaders(), DiskBytes: n.GetDiskBytes(),
		DiskFreeBytes: n.GetDiskFreeBytes(), ReadOnly: n.GetReadOnly(),
		Version: n.GetVersion(), UptimeSeconds: n.GetUptimeSeconds(),
		Standing: standingName(n.GetStanding()), ReplicaBytes: n.GetReplicaBytes(),
		CPUMicros: n.GetCpuMicrosPerSecond(), BytesWritten: n.GetWriteBytesPerSecond(),
		BytesRead: n.GetReadBytesPerSecond(),
	}
}

// gone says that a node was decommissioned: it is not missed.
func (n *nodeReport) gone() bool { return n.Standing == decommissioned }

// members counts the nodes that are not gone.
func (s *statusReport) members() (count int) {
	for _, n := range s.Nodes {
		if !n.gone() {
			count++
		}
	}
	return count
}

// judge puts the state into one word.
func (s *statusReport) judge(ready bool) {
	switch {
	case s.Leaderless > 0 || len(s.Nodes) == 0 || s.Ranges == 0:
		s.Health = "unavailable"
	case len(s.Problems) > 0 || s.UnderReplicated > 0 || s.LiveNodes < s.members() || !ready:
		s.Health = "degraded"
	default:
		s.Health = "healthy"
	}
	if s.Problems == nil {
		s.Problems = []string{}
	}
}

// headline is the state in one line.
func (s *statusReport) headline() string {
	if s.Ranges == 0 {
		return fmt.Sprintf("%s  node n%d answers, but does not know the cluster's state", s.Health,
			s.AnsweredBy)
	}
	silent, tolerates := "", plural(s.Tolerates, "node failure")
	for _, n := range s.Nodes {
		if !n.Live && !n.gone() {
			silent += fmt.Sprintf(", n%d silent for %s", n.ID, secondsText(n.SilentSeconds))
		}
	}
	if silent != "" {
		silent = " (" + strings.TrimPrefix(silent, ", ") + ")"
		tolerates = strings.Replace(tolerates, "node", "more node", 1)
	}
	return fmt.Sprintf(
		"%s  %d of %s live%s · tolerates %s · %s, %d under-replicated, %d leaderless",
		s.Health, s.LiveNodes, plural(s.members(), "node"), silent, tolerates,
		plural(s.Ranges, "range"), s.UnderReplicated, s.Leaderless)
}

// secondsText is how long ago something was, in whole seconds that have passed, as the
// nodes' own sentences count them.
func secondsText(s float64) string {
	d := time.Duration(s * float64(time.Second)).Truncate(time.Second)
	if d == 0 {
		return "<1s"
	}
	return d.String()
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "How the cluster is, on one screen",
		Long: `How the cluster is, on one screen.

LEASES are the ranges whose leader reads without asking a quorum, of those that the
node leads. ELECTIONS WON includes those of leaders that were handed over, STARTED
does not. PROMISES WITHDRAWN are the ends of support for other nodes: they fell
silent, or were restarted, or fell silent while nothing here rested on them (unused).`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				s, err := fetchStatus(ctx, c, true)
				if err != nil {
					return err
				}
				if a.isJSON() {
					return a.json(s)
				}
				return a.printStatus(s)
			})
		},
	}
}

func (a *app) printStatus(s *statusReport) error {
	fmt.Fprintln(a.stdout, s.headline())
	for _, p := range s.Problems {
		fmt.Fprintf(a.stdout, "          %s\n", p)
	}
	for _, n := range s.Notes {
		fmt.Fprintf(a.stdout, "note      %s\n", n)
	}
	if s.PausedBy != "" {
		fmt.Fprintf(a.stdout, "paused    placement repairs and moves nothing, by %s; "+
			"flotilla placement resume ends that\n", s.PausedBy)
	}
	if s.Operators > 0 {
		fmt.Fprintf(a.stdout, "moving    %s in progress (flotilla placement ops)\n",
			plural(s.Operators, "change"))
	}
	if s.Health == "degraded" && s.Ranges > 0 {
		works := "reads and writes work"
		for _, n := range s.Nodes {
			if n.ReadOnly {
				works = "reads work, writes only where the leader's disk has room"
			}
		}
		fmt.Fprintln(a.stdout, "          every known range has a leader: "+works)
	}
	if next := s.next(); next != "" {
		fmt.Fprintf(a.stdout, "next      %s\n", next)
	}
	if err := a.printNodes(s.Nodes); err != nil {
		return err
	}
	return a.printSupport(s)
}

// next says what would help.
func (s *statusReport) next() string {
	var start, away []string
	for _, n := range s.Nodes {
		if !n.Live && !n.gone() {
			start = append(start, fmt.Sprintf("start n%d (%s)", n.ID, n.Address))
			away = append(away, fmt.Sprintf("n%d", n.ID))
		}
	}
	if len(start) == 0 {
		return ""
	}
	return strings.Join(start, ", ") + "; if gone for good: flotilla nodes decommission " +
		strings.Join(away, " ")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// healthPause is between two questions of health --wait.
const healthPause = 200 * time.Millisecond

func (a *app) healthCommand() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Exit 0 if the cluster is healthy, 10 if it is not, 5 if it does not answer",
		Long: `Exit 0 if the cluster is healthy: all its nodes live, every range led and fully
replicated. Exit 10 if it answers and is not healthy, 5 if nothing answers. If
several endpoints are given, as many nodes must be known.

The node that answers first hears from every node with which it shares ranges, so a
node that has just died is not called live.`,
		Example: `  flotilla health --wait 30s`,
		Args:    exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			began := time.Now()
			for {
				s, err := a.checkHealth(cmd.Context())
				if exitCode(err) == exitUsage {
					return err
				}
				if err == nil && a.isJSON() {
					return a.json(s)
				}
				if err == nil {
					fmt.Fprintln(a.stdout, s.headline())
					return nil
				}
				if time.Since(began)+healthPause > wait || cmd.Context().Err() != nil {
					return err
				}
				time.Sleep(healthPause)
			}
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "ask until it is healthy, for so long")
	return cmd
}

// checkHealth returns an unhealthyError, or why nothing answers.
func (a *app) checkHealth(ctx context.Context) (s *statusReport, err error) {
	endpoints, _, err := a.endpointList()
	if err != nil {
		return nil, err
	}
	err = a.with(ctx, func(ctx context.Context, c *client.Client) error {
		if s, err = fetchStatus(ctx, c, false); err != nil {
			return err
		}
		switch {
		case s.Health != "healthy":
			return unhealthyError{strings.Join(append([]string{s.headline()}, s.Problems...), "; ")}
		case s.members() < len(endpoints):
			return unhealthyError{fmt.Sprintf("%s, but %s were named", s.headline(),
				plural(len(endpoints), "endpoint"))}
		}
		return nil
	})
	return s, err
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and the commit",
		Args:  exactArgs(0),
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Commit  string `json:"commit"`
				Go      string `json:"go"`
			}{"(devel)", "unknown", runtime.Version()}
			if info, ok := debug.ReadBuildInfo(); ok {
				v.Version = orElse(info.Main.Version, v.Version)
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v.Commit = s.Value
					}
				}
			}
			if a.isJSON() {
				return a.json(v)
			}
			_, err := fmt.Fprintf(a.stdout, "flotilla %s (%.12s) %s\n", v.Version, v.Commit, v.Go)
			return err
		},
	}
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
