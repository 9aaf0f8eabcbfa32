package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

const operateHelp = `The command waits until it is done, or has failed. It may be interrupted: the
cluster goes on, and flotilla placement ops shows how far it is.`

// operation asks placement for operators and waits until they have ended.
type operation struct {
	app      *app
	noWait   bool
	interval time.Duration

	tenure  uint64   // of the driver that began them
	ids     []uint64 // of the operators that were begun
	ended   []operatorReport
	scatter uint64 // the scatter that was begun; 0: none
}

func (o *operation) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.noWait, "no-wait", false, "only begin it")
	cmd.Flags().DurationVar(&o.interval, "interval", 500*time.Millisecond,
		"between two looks at the cluster")
}

// run asks for what prepare returns.
func (o *operation) run(
	ctx context.Context,
	prepare func(context.Context, *client.Client) (*adminpb.OperateRequest, error),
) error {
	if o.interval <= 0 {
		return usageError{"--interval must be positive"}
	}
	err := o.app.stream(ctx, func(
		ctx context.Context, c *client.Client, alive func(),
	) error {
		request, err := prepare(ctx, c)
		if err != nil {
			return err
		}
		reply, err := ask(ctx, c, func(
			ctx context.Context, admin adminpb.AdminClient,
		) (*adminpb.OperateReply, error) {
			return admin.Operate(ctx, request)
		})
		if err != nil {
			return err
		}
		return o.follow(ctx, c, alive, reply)
	})
	if ctx.Err() != nil && (len(o.ids) > 0 || o.scatter != 0) {
		return errors.New("interrupted: the cluster goes on with it; flotilla placement ops shows it")
	}
	return err
}

// follow says what was begun, and waits for its end.
func (o *operation) follow(
	ctx context.Context, c *client.Client, alive func(), reply *adminpb.OperateReply,
) error {
	o.tenure, o.scatter = reply.GetTenure(), reply.GetScatter().GetId()
	if len(reply.GetOperators()) == 0 && o.scatter == 0 {
		return o.nothing(reply.GetNote())
	}
	o.app.talk("begun  %s", describeAll(reply.GetOperators()))
	if note := reply.GetNote(); note != "" {
		o.app.talk("note   %s", note)
	}
	if o.noWait {
		return o.print(reply.GetOperators())
	}
	for _, x := range reply.GetOperators() {
		o.ids = append(o.ids, x.GetId())
	}
	if o.scatter != 0 {
		return o.watchScatter(ctx, c, alive)
	}
	if err := o.wait(ctx, c, alive); err != nil {
		return err
	}
	return o.sumUp()
}

// nothing says why nothing was begun. As JSON that is a stream of no operators.
func (o *operation) nothing(note string) error {
	o.app.talk("OK  %s", orElse(note, "it is so already"))
	return nil
}

func (o *operation) print(all []*adminpb.Operator) error {
	if o.app.isJSON() {
		return o.app.jsonOperators(all)
	}
	return nil
}

// describeAll is one operator in words, or how many there are.
func describeAll(all []*adminpb.Operator) string {
	if len(all) != 1 {
		return plural(len(all), "operator")
	}
	r := newOperatorReport(all[0])
	return fmt.Sprintf("operator %d on r%d: %s", r.ID, r.Range, strings.Join(r.Steps, ", "))
}

// maxListed is how many operators are asked for at once.
const maxListed = 100_000

// wait looks at the operators that run until none of ours is among them, and notes
// how ours ended.
func (o *operation) wait(ctx context.Context, c *client.Client, alive func()) error {
	show := time.Now()
	for {
		running, err := fetchOperators(ctx, c, &adminpb.OperatorsRequest{Limit: maxListed})
		switch {
		case err != nil && ctx.Err() == nil && errors.Is(err, client.ErrUnavailable):
			// Placement moves to another node: ask again, as long as --timeout allows.
		case err != nil:
			return err
		default:
			alive()
			left := o.among(running)
			if len(left) == 0 {
				return o.outcome(ctx, c)
			}
			if time.Since(show) >= progressRarely {
				show = time.Now()
				o.app.talk("runs   %d of %s left; %s", len(left),
					plural(len(o.ids), "operator"), left[0].step())
			}
		}
		if err := o.pause(ctx); err != nil {
			return err
		}
	}
}

// pause is between two looks.
func (o *operation) pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return &client.Error{
			Verb: "watch operators", Kind: client.ErrUnavailable, Cause: ctx.Err(),
			Detail: "the cluster did not say how far it is",
		}
	case <-time.After(o.interval):
		return nil
	}
}

// elsewhere says whether another term of office answers than the one that began: its
// ids are not ours. Nodes of an earlier version do not tell.
func (o *operation) elsewhere(r *adminpb.OperatorsReply) bool {
	return o.tenure != 0 && r.GetTenure() != 0 && r.GetTenure() != o.tenure
}

// among picks ours.
func (o *operation) among(r *adminpb.OperatorsReply) (ours []operatorReport) {
	if o.elsewhere(r) {
		return nil
	}
	for _, x := range r.GetOperators() {
		if slices.Contains(o.ids, x.GetId()) {
			ours = append(ours, newOperatorReport(x))
		}
	}
	return ours
}

func (o *operation) outcome(ctx context.Context, c *client.Client) error {
	history, err := fetchOperators(ctx, c,
		&adminpb.OperatorsRequest{History: true, Limit: maxListed})
	o.ended = o.among(history)
	return err
}

// sumUp says how it ended. Operators of which nothing is known any more were in the
// hands of a node that has handed placement over.
func (o *operation) sumUp() error {
	var failed []string
	for _, e := range o.ended {
		if o.app.isJSON() {
			if err := o.app.json(e); err != nil {
				return err
			}
		}
		if e.Outcome != "done" {
			failed = append(failed, fmt.Sprintf("operator %d on r%d %s: %s", e.ID, e.Range,
				e.Outcome, orElse(e.Error, "no reason is known")))
		}
	}
	switch lost := len(o.ids) - len(o.ended); {
	case len(failed) > 0:
		return fmt.Errorf("%d of %s did not succeed: %s", len(failed),
			plural(len(o.ids), "operator"), strings.Join(failed[:min(len(failed), maxTold)], "; "))
	case lost > 0:
		return fmt.Errorf("the outcome of %s is not known: another node drives placement now; "+
			"flotilla ranges show tells what is", plural(lost, "operator"))
	}
	o.app.talk("OK  %s done", plural(len(o.ended), "operator"))
	return nil
}

// maxTold is how many failures an error tells.
const maxTold = 3

func (a *app) mergeCommand() *cobra.Command {
	o := operation{app: a}
	cmd := &cobra.Command{
		Use:   "merge LEFT [RIGHT]",
		Short: "Merge a range with its right neighbour",
		Long: `Merge a range with its right neighbour, which RIGHT may name to be sure. The copies
of the neighbour move to where those of the range are, and then it is absorbed.

` + operateHelp,
		Example: `  flotilla ranges merge r42
  flotilla ranges merge r42 r57`,
		Args: rangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			left, err := rangeID(args[0])
			if err != nil {
				return err
			}
			right := uint64(0)
			if len(args) == 2 {
				if right, err = rangeID(args[1]); err != nil {
					return err
				}
			}
			return o.run(cmd.Context(), func(
				ctx context.Context, c *client.Client,
			) (*adminpb.OperateRequest, error) {
				if right != 0 {
					if err := areNeighbours(ctx, c, left, right); err != nil {
						return nil, err
					}
				}
				return &adminpb.OperateRequest{
					RangeId: left, What: &adminpb.OperateRequest_Merge{Merge: &adminpb.MergeWith{}},
				}, nil
			})
		},
	}
	o.flags(cmd)
	return cmd
}

// areNeighbours says whether right begins where left ends. What changes until the
// order arrives, the cluster finds out by itself.
func areNeighbours(ctx context.Context, c *client.Client, left, right uint64) error {
	show := func(id uint64) (*adminpb.ShowRangeReply, error) {
		return ask(ctx, c, func(
			ctx context.Context, admin adminpb.AdminClient,
		) (*adminpb.ShowRangeReply, error) {
			return admin.ShowRange(ctx, &adminpb.ShowRangeRequest{RangeId: id})
		})
	}
	l, err := show(left)
	if err != nil {
		return err
	}
	r, err := show(right)
	if err != nil {
		return err
	}
	end := l.GetRange().GetDescriptor_().GetEnd()
	if start := r.GetRange().GetDescriptor_().GetStart(); !slices.Equal(start, end) {
		return fmt.Errorf("r%d and r%d are not neighbours: r%d ends at %s, r%d begins at %s",
			left, right, left, quoteKey(end), right, quoteKey(start))
	}
	return nil
}

func (a *app) relocateCommand() *cobra.Command {
	o := operation{app: a}
	cmd := &cobra.Command{
		Use:   "relocate RANGE NODE...",
		Short: "Move a range's copies to exactly these nodes; the first one leads",
		Long: `Move a range's copies to exactly these nodes; the first one leads. Their number and
their nodes must be what the rule of the range allows. Placement may move the
range again later: a rule says where ranges belong, this command only where one
is now.

` + operateHelp,
		Example: `  flotilla ranges relocate r42 n4 n2 n5`,
		Args:    rangeArgs(2, maxNodeArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := rangeID(args[0])
			if err != nil {
				return err
			}
			nodes, err := nodeIDs(args[1:])
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), func(
				context.Context, *client.Client,
			) (*adminpb.OperateRequest, error) {
				return &adminpb.OperateRequest{RangeId: id, What: &adminpb.OperateRequest_Relocate{
					Relocate: &adminpb.Relocate{Nodes: nodes},
				}}, nil
			})
		},
	}
	o.flags(cmd)
	return cmd
}

func (a *app) transferCommand() *cobra.Command {
	o := operation{app: a}
	cmd := &cobra.Command{
		Use:   "transfer RANGE NODE",
		Short: "Let a range be led by its replica on another node",
		Long: `Let a range be led by its replica on another node. Placement may move the leader
again later, for the sake of balance or of a rule.

` + operateHelp,
		Example: `  flotilla ranges transfer r2 n3`,
		Args:    exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := rangeID(args[0])
			if err != nil {
				return err
			}
			node, err := nodeID(args[1])
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), func(
				context.Context, *client.Client,
			) (*adminpb.OperateRequest, error) {
				return &adminpb.OperateRequest{RangeId: id, What: &adminpb.OperateRequest_Transfer{
					Transfer: &adminpb.TransferTo{NodeId: node},
				}}, nil
			})
		},
	}
	o.flags(cmd)
	return cmd
}
