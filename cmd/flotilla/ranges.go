package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// systemRange is the range that holds the cluster's own state.
const systemRange = 1

// rangeReport is a range as JSON. Start and end are quoted keys of users; the
// system range has none.
type rangeReport struct {
	ID         uint64          `json:"id"`
	System     bool            `json:"system,omitempty"`
	Start      string          `json:"start"`
	End        string          `json:"end"`
	Generation uint64          `json:"generation"`
	Leader     uint64          `json:"leader"` // 0: none known
	Replicas   []replicaReport `json:"replicas"`
	SizeBytes  int64           `json:"size_bytes"`
	Keys       int64           `json:"keys"`
	Versions   int64           `json:"versions"`
	// StickyUntil: somebody asked for the split at start, and placement does not merge
	// the range into its left neighbour: "until" a time, or "for ever".
	StickyUntil string `json:"sticky_until,omitempty"`
}

// replicaReport is a replica as JSON; what follows Role is only in show.
type replicaReport struct {
	Node        uint64 `json:"node"`
	Replica     uint64 `json:"replica"`
	Role        string `json:"role"`
	RaftState   string `json:"raft_state,omitempty"`
	Term        uint64 `json:"term,omitempty"`
	Commit      uint64 `json:"commit,omitempty"`
	Applied     uint64 `json:"applied,omitempty"`
	FirstIndex  uint64 `json:"first_index,omitempty"`
	LastIndex   uint64 `json:"last_index,omitempty"`
	LogBytes    int64  `json:"log_bytes,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	Error       string `json:"error,omitempty"`
}

func newRangeReport(i *adminpb.RangeInfo) rangeReport {
	d, s := i.GetDescriptor_(), i.GetStats()
	r := rangeReport{
		ID: d.GetRangeId(), System: d.GetRangeId() == systemRange,
		Start: quoteKey(d.GetStart()), End: quoteKey(d.GetEnd()), Generation: d.GetGeneration(),
		Leader: i.GetLeaderNode(), SizeBytes: s.GetKeyBytes() + s.GetValueBytes(),
		Keys: s.GetKeys(), Versions: s.GetVersions(), Replicas: []replicaReport{},
		StickyUntil: stickyText(d.GetStickyUntil()),
	}
	if r.System {
		r.Start, r.End = "", ""
	}
	for _, p := range d.GetReplicas() {
		r.Replicas = append(r.Replicas, replicaReport{
			Node: p.GetNodeId(), Replica: p.GetReplicaId(), Role: roleName(p.GetRole()),
		})
	}
	return r
}

// stickyText says until when a split that was asked for stays, "" if nobody asked.
func stickyText(millis int64) string {
	switch millis {
	case 0:
		return ""
	case math.MaxInt64:
		return "for ever"
	}
	return "until " + time.UnixMilli(millis).UTC().Format(time.RFC3339)
}

func roleName(r metapb.ReplicaRole) string {
	return strings.ToLower(strings.ReplaceAll(
		strings.TrimPrefix(r.String(), "REPLICA_ROLE_"), "_", "-"))
}

// span shows what the range holds.
func (r *rangeReport) span() (start, end string) {
	if r.System {
		return "(system)", "(system)"
	}
	return r.Start, r.End
}

// nodes shows where the replicas are; a star marks the leader.
func (r *rangeReport) nodes() string {
	var all []string
	for _, p := range r.Replicas {
		text := fmt.Sprintf("n%d", p.Node)
		if p.Node == r.Leader {
			text += "*"
		}
		if p.Role != "voter" {
			text += "(" + p.Role + ")"
		}
		all = append(all, text)
	}
	return strings.Join(all, " ")
}

func leaderText(n uint64) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprintf("n%d", n)
}

func (a *app) rangesCommand() *cobra.Command {
	cmd := group(&cobra.Command{Use: "ranges", Short: "The ranges of the cluster"})
	cmd.AddCommand(
		a.rangesLsCommand(), a.rangesShowCommand(), a.splitCommand(), a.mergeCommand(),
		a.transferCommand(), a.relocateCommand(), a.scatterCommand(),
	)
	return cmd
}

func (a *app) rangesLsCommand() *cobra.Command {
	var s span
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the ranges in key order",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			start, end, given, err := s.bounds()
			if err != nil {
				return err
			}
			request := &adminpb.ListRangesRequest{}
			if given {
				request.Start = kv.UserKey(nil, start)
				if request.End = []byte{kv.EndPrefix}; len(end) > 0 {
					request.End = kv.UserKey(nil, end)
				}
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				all, err := everyPage(request, func() (*adminpb.ListRangesReply, error) {
					return ask(ctx, c, func(
						ctx context.Context, admin adminpb.AdminClient,
					) (*adminpb.ListRangesReply, error) {
						return admin.ListRanges(ctx, request)
					})
				})
				if err != nil {
					return err
				}
				return a.printRanges(all)
			})
		},
	}
	s.flags(cmd, "")
	return cmd
}

// everyPage asks again from where an answer ends, which holds only so many
// ranges, until there is nothing more.
func everyPage(
	request *adminpb.ListRangesRequest, ask func() (*adminpb.ListRangesReply, error),
) (all []*adminpb.RangeInfo, err error) {
	for {
		r, err := ask()
		page := r.GetRanges()
		if err != nil || len(page) == 0 {
			return all, err
		}
		all = append(all, page...)
		last := page[len(page)-1].GetDescriptor_().GetEnd()
		end := request.GetEnd()
		if len(end) == 0 {
			end = []byte{kv.EndPrefix}
		}
		if bytes.Compare(last, end) >= 0 {
			return all, nil
		}
		request.Start = last
	}
}

// printRanges prints a table, or an object per line.
func (a *app) printRanges(ranges []*adminpb.RangeInfo) error {
	if a.isJSON() {
		for _, i := range ranges {
			if err := a.json(newRangeReport(i)); err != nil {
				return err
			}
		}
		return nil
	}
	return a.table("RANGE\tSTART\tEND\tGENERATION\tLEADER\tREPLICAS\tSIZE\tKEYS\tVERSIONS",
		func(add func(string, ...any)) {
			for _, i := range ranges {
				r := newRangeReport(i)
				start, end := r.span()
				add("r%d\t%s\t%s\t%d\t%s\t%s\t%s\t%d\t%d", r.ID, start, end, r.Generation,
					leaderText(r.Leader), r.nodes(), bytesText(r.SizeBytes), r.Keys, r.Versions)
			}
		})
}

// rangeID parses r42 or 42.
func rangeID(text string) (uint64, error) {
	id, err := strconv.ParseUint(strings.TrimPrefix(text, "r"), 10, 64)
	if err != nil || id == 0 {
		return 0, usageError{fmt.Sprintf("%q is not a range; it is written r42 or 42", text)}
	}
	return id, nil
}

func (a *app) rangesShowCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "show [RANGE]",
		Short: "Show a range with each of its replicas, by its id or by a key in it",
		Example: `  flotilla ranges show r42
  flotilla ranges show --key user/7`,
		Args: rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			request := &adminpb.ShowRangeRequest{}
			switch {
			case (len(args) == 1) == (key != ""):
				return usageError{"give either a RANGE or --key"}
			case key != "":
				request.Key = kv.UserKey(nil, []byte(key))
			default:
				if request.RangeId, err = rangeID(args[0]); err != nil {
					return err
				}
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := ask(ctx, c, func(
					ctx context.Context, admin adminpb.AdminClient,
				) (*adminpb.ShowRangeReply, error) {
					return admin.ShowRange(ctx, request)
				})
				if err != nil {
					return err
				}
				return a.printRange(r)
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the range that holds this key")
	return cmd
}

func (a *app) printRange(reply *adminpb.ShowRangeReply) error {
	r := newRangeReport(reply.GetRange())
	r.Replicas = r.Replicas[:0]
	for _, p := range reply.GetReplicas() {
		r.Replicas = append(r.Replicas, replicaReport{
			Node: p.GetNodeId(), Replica: p.GetReplicaId(), Role: p.GetRole(),
			RaftState: p.GetRaftState(), Term: p.GetTerm(), Commit: p.GetCommit(),
			Applied: p.GetApplied(), FirstIndex: p.GetFirstIndex(), LastIndex: p.GetLastIndex(),
			LogBytes: p.GetLogBytes(), Fingerprint: fmt.Sprintf("%016x", p.GetFingerprint()),
			Error: p.GetError(),
		})
	}
	if a.isJSON() {
		return a.json(r)
	}
	start, end := r.span()
	fmt.Fprintf(a.stdout, "range       r%d, generation %d, leader %s\n", r.ID, r.Generation,
		leaderText(r.Leader))
	fmt.Fprintf(a.stdout, "keys        from %s to %s\n", start, end)
	fmt.Fprintf(a.stdout, "holds       %s, %s, %s\n", bytesText(r.SizeBytes),
		plural(r.Keys, "key"), plural(r.Versions, "version"))
	if r.StickyUntil != "" {
		fmt.Fprintf(a.stdout, "split off   by request, kept apart from its left neighbour %s\n",
			r.StickyUntil)
	}
	fmt.Fprintln(a.stdout)
	return a.table("NODE\tREPLICA\tROLE\tRAFT\tTERM\tCOMMIT\tAPPLIED\tLOG\tLOG SIZE\tFINGERPRINT",
		func(add func(string, ...any)) {
			for _, p := range r.Replicas {
				if p.Error != "" {
					add("n%d\t%d\t%s\t%s", p.Node, p.Replica, orDash(p.Role), p.Error)
					continue
				}
				add("n%d\t%d\t%s\t%s\t%d\t%d\t%d\t%d-%d\t%s\t%s", p.Node, p.Replica, orDash(p.Role),
					orDash(p.RaftState), p.Term, p.Commit, p.Applied, p.FirstIndex, p.LastIndex,
					bytesText(p.LogBytes), p.Fingerprint)
			}
		})
}

func (a *app) splitCommand() *cobra.Command {
	var at, until string
	cmd := &cobra.Command{
		Use:   "split [RANGE]",
		Short: "Split a range at a key, or where its middle is",
		Long: `Split a range at a key, or where its middle is. Placement leaves the two halves apart
although they are small and cold, for ever or for as long as --until says: a split
before a load comes is still there when it does. flotilla ranges merge ends that.`,
		Example: `  flotilla ranges split --at user/5
  flotilla ranges split --at user/5 --until 48h
  flotilla ranges split r2`,
		Args: rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			request := &adminpb.SplitRangeRequest{}
			if len(args) == 0 && at == "" {
				return usageError{"give a RANGE, or --at KEY, or both"}
			}
			if len(args) == 1 {
				if request.RangeId, err = rangeID(args[0]); err != nil {
					return err
				}
			}
			if at != "" {
				request.Key = kv.UserKey(nil, []byte(at))
			}
			if request.StickyMillis, err = stickyMillis(until); err != nil {
				return err
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := ask(ctx, c, func(
					ctx context.Context, admin adminpb.AdminClient,
				) (*adminpb.SplitRangeReply, error) {
					return admin.SplitRange(ctx, request)
				})
				if err != nil {
					return err
				}
				left := newRangeReport(&adminpb.RangeInfo{Descriptor_: r.GetLeft()})
				right := newRangeReport(&adminpb.RangeInfo{Descriptor_: r.GetRight()})
				if a.isJSON() {
					return a.json(map[string]rangeReport{"left": left, "right": right})
				}
				a.talk("OK  r%d [%s, %s) and r%d [%s, %s)", left.ID, left.Start, left.End,
					right.ID, right.Start, right.End)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&at, "at", "", "the first key of the right half")
	cmd.Flags().StringVar(&until, "until", ever,
		"keep the halves apart for so long, such as 48h; 0: merge them when they are small")
	return cmd
}

// ever is a time without an end.
const ever = "ever"

// stickyMillis parses how long a split stays; nil: for ever.
func stickyMillis(text string) (*uint64, error) {
	if text == ever {
		return nil, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return nil, usageError{fmt.Sprintf("--until %q: it is a time such as 48h, 0, or ever", text)}
	}
	return new(uint64(d.Milliseconds())), nil
}
