package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"regexp"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// operatorReport is a plan for one range, as JSON.
type operatorReport struct {
	ID          uint64   `json:"id"`
	Range       uint64   `json:"range"`
	Kind        string   `json:"kind"`
	Reason      string   `json:"reason"`
	Steps       []string `json:"steps"`
	At          uint32   `json:"at"` // the step that runs; as many as there are: done
	AgeSeconds  float64  `json:"age_seconds"`
	TookSeconds float64  `json:"took_seconds"`
	Outcome     string   `json:"outcome"` // running, done, failed
	Error       string   `json:"error,omitempty"`
}

func newOperatorReport(o *adminpb.Operator) operatorReport {
	return operatorReport{
		ID: o.GetId(), Range: o.GetRangeId(), Kind: o.GetKind(), Reason: o.GetReason(),
		Steps: append([]string{}, o.GetSteps()...), At: o.GetAt(),
		AgeSeconds: o.GetAgeSeconds(), TookSeconds: o.GetTookSeconds(),
		Outcome: o.GetOutcome(), Error: o.GetError(),
	}
}

// step is the step that runs, in words.
func (o *operatorReport) step() string {
	if int(o.At) >= len(o.Steps) {
		return "done"
	}
	return fmt.Sprintf("%d/%d %s", o.At+1, len(o.Steps), o.Steps[o.At])
}

func (a *app) placementCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "placement",
		Short: "Where ranges live and why: operators, rules, explanations",
		Example: `  flotilla placement ops
  flotilla placement explain r42
  flotilla placement rules get`,
	})
	cmd.AddCommand(
		a.opsCommand(), a.historyCommand(), a.explainCommand(), a.pauseCommand(),
		a.resumeCommand(), a.rulesCommand(),
	)
	return cmd
}

// operatorFlags are the flags of ops and history.
type operatorFlags struct {
	limit uint32
	of    string
}

func (f *operatorFlags) add(cmd *cobra.Command) {
	cmd.Flags().Uint32Var(&f.limit, "limit", defaultOperators, "list so many at most")
	cmd.Flags().StringVar(&f.of, "range", "", "only those of this range")
}

// defaultOperators is how many operators are listed.
const defaultOperators = 100

func (f *operatorFlags) request(history bool) (*adminpb.OperatorsRequest, error) {
	r := &adminpb.OperatorsRequest{History: history, Limit: f.limit}
	if f.limit == 0 {
		return nil, usageError{"--limit 0: it must be positive"}
	}
	if f.of != "" {
		id, err := rangeID(f.of)
		if err != nil {
			return nil, err
		}
		r.RangeId = id
	}
	return r, nil
}

func (a *app) opsCommand() *cobra.Command {
	var f operatorFlags
	cmd := &cobra.Command{
		Use:   "ops",
		Short: "List the operators that run: which range, which step, and why",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.listOperators(cmd.Context(), &f, false)
		},
	}
	f.add(cmd)
	return cmd
}

func (a *app) historyCommand() *cobra.Command {
	var f operatorFlags
	cmd := &cobra.Command{
		Use:   "history",
		Short: "List the operators that ended, newest first, with their outcome",
		Long: `List the operators that ended, newest first. The node that drives placement keeps
the last thousand in memory; another one that takes over begins anew.`,
		Example: `  flotilla placement history --range r42`,
		Args:    exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.listOperators(cmd.Context(), &f, true)
		},
	}
	f.add(cmd)
	return cmd
}

func (a *app) listOperators(ctx context.Context, f *operatorFlags, history bool) error {
	request, err := f.request(history)
	if err != nil {
		return err
	}
	return a.with(ctx, func(ctx context.Context, c *client.Client) error {
		reply, err := fetchOperators(ctx, c, request)
		if err != nil {
			return err
		}
		if history {
			err = a.printHistory(reply.GetOperators())
		} else {
			err = a.printOperators(reply.GetOperators())
		}
		if n := uint64(len(reply.GetOperators())); n < reply.GetTotal() {
			a.talk("%d of %d shown; --limit shows more", n, reply.GetTotal())
		}
		return err
	})
}

func fetchOperators(
	ctx context.Context, c *client.Client, request *adminpb.OperatorsRequest,
) (*adminpb.OperatorsReply, error) {
	return ask(ctx, c, func(
		ctx context.Context, admin adminpb.AdminClient,
	) (*adminpb.OperatorsReply, error) {
		return admin.Operators(ctx, request)
	})
}

// printOperators prints those that run.
func (a *app) printOperators(all []*adminpb.Operator) error {
	if a.isJSON() {
		return a.jsonOperators(all)
	}
	if len(all) == 0 {
		a.talk("no operator runs")
		return nil
	}
	return a.table("ID\tRANGE\tKIND\tAGE\tSTEP\tWHY", func(add func(string, ...any)) {
		for _, x := range all {
			o := newOperatorReport(x)
			add("%d\tr%d\t%s\t%s\t%s\t%s", o.ID, o.Range, o.Kind, secondsText(o.AgeSeconds),
				o.step(), o.Reason)
		}
	})
}

// printHistory prints those that ended.
func (a *app) printHistory(all []*adminpb.Operator) error {
	if a.isJSON() {
		return a.jsonOperators(all)
	}
	if len(all) == 0 {
		a.talk("no operator has ended since this node drives placement")
		return nil
	}
	return a.table("ID\tRANGE\tKIND\tBEGUN\tTOOK\tOUTCOME\tWHY", func(add func(string, ...any)) {
		for _, x := range all {
			o := newOperatorReport(x)
			if o.Error != "" {
				o.Reason += " (" + o.Outcome + ": " + o.Error + ")"
			}
			add("%d\tr%d\t%s\t%s ago\t%s\t%s\t%s", o.ID, o.Range, o.Kind,
				secondsText(o.AgeSeconds), durationText(o.TookSeconds), o.Outcome, o.Reason)
		}
	})
}

func (a *app) jsonOperators(all []*adminpb.Operator) error {
	for _, o := range all {
		if err := a.json(newOperatorReport(o)); err != nil {
			return err
		}
	}
	return nil
}

// rangeArgument matches what is meant as a range and not as a key.
var rangeArgument = regexp.MustCompile(`^r?[1-9][0-9]*$`)

func (a *app) explainCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "explain RANGE|KEY",
		Short: "Say why a range is where it is, and why it does or does not move",
		Long: `Say why a range is where it is: why each copy stands on its node, why it leads
where it leads, what moves or does not move, and why it was split or merged. r42
and 42 are ranges, anything else is a key; a key of that form is given by --key.`,
		Example: `  flotilla placement explain r42
  flotilla placement explain user/7
  flotilla placement explain --key r42`,
		Args: rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			request := &adminpb.ExplainRequest{}
			switch {
			case (len(args) == 1) == (key != ""):
				return usageError{"give either a RANGE, a KEY or --key"}
			case len(args) == 1 && rangeArgument.MatchString(args[0]):
				if request.RangeId, err = rangeID(args[0]); err != nil {
					return err
				}
			case len(args) == 1:
				key = args[0]
			}
			if key != "" {
				request.Key = kv.UserKey(nil, []byte(key))
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := ask(ctx, c, func(
					ctx context.Context, admin adminpb.AdminClient,
				) (*adminpb.ExplainReply, error) {
					return admin.Explain(ctx, request)
				})
				if err != nil {
					return err
				}
				return a.printExplanation(r)
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the range that holds this key")
	return cmd
}

func (a *app) printExplanation(reply *adminpb.ExplainReply) error {
	r := newRangeReport(reply.GetRange())
	if a.isJSON() {
		return a.json(struct {
			Range rangeReport `json:"range"`
			Lines []string    `json:"lines"`
		}{r, append([]string{}, reply.GetLines()...)})
	}
	indent := ""
	for _, line := range reply.GetLines() {
		fmt.Fprintf(a.stdout, "%s%s\n", indent, line)
		indent = "  "
	}
	return nil
}

func (a *app) pauseCommand() *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use:   "pause",
		Short: "Let placement begin nothing: no repair, no move, no merge",
		Long: `Let placement begin nothing: no repair, no move, no merge. Operators that run end
as they would, ranges are split as before, and what is asked for by hand is done.
The cluster stays so, over restarts too, until flotilla placement resume.`,
		Example: `  flotilla placement pause --why "switch s7 is replaced"`,
		Args:    exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			by := whoAmI()
			if why != "" {
				by += ": " + why
			}
			return a.setPaused(cmd.Context(), true, by)
		},
	}
	cmd.Flags().StringVar(&why, "why", "", "the reason, for those who wonder")
	return cmd
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume",
		Short: "Let placement work again after pause",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.setPaused(cmd.Context(), false, whoAmI())
		},
	}
}

// whoAmI names the person at the keyboard, as well as that is known.
func whoAmI() string {
	name := "somebody"
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil && host != "" {
		name += "@" + host
	}
	return name
}

func (a *app) setPaused(ctx context.Context, paused bool, by string) error {
	return a.with(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := ask(ctx, c, func(
			ctx context.Context, admin adminpb.AdminClient,
		) (*adminpb.PauseReply, error) {
			return admin.Pause(ctx, &adminpb.PauseRequest{Paused: paused, By: by})
		})
		if err != nil {
			return err
		}
		return a.printSettings(r.GetSettings())
	})
}

func (a *app) printSettings(s *metapb.PlacementSettings) error {
	switch {
	case a.isJSON():
		return a.json(struct {
			Paused   bool   `json:"paused"`
			PausedBy string `json:"paused_by,omitempty"`
		}{s.GetPaused(), s.GetPausedBy()})
	case s.GetPaused():
		a.talk("OK  placement is paused by %s", s.GetPausedBy())
	default:
		a.talk("OK  placement works")
	}
	return nil
}
