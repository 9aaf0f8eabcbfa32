package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

func (a *app) scatterCommand() *cobra.Command {
	var s span
	o := operation{app: a}
	cmd := &cobra.Command{
		Use:   "scatter",
		Short: "Spread the leaders and copies of a span's ranges evenly over the nodes",
		Long: `Spread the leaders and copies of the ranges of a span evenly over the nodes that
their rules allow: after a split of what will be hot, or before a load begins. Not
all of it can begin at once. The command waits until the span is even, and says what
has moved; it ends with an error if placement gives up before, since what is left
could not be moved for two minutes, or after half an hour.

` + operateHelp,
		Example: `  flotilla ranges scatter --prefix user/
  flotilla ranges scatter --all`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			start, end, given, err := s.bounds()
			switch {
			case err != nil:
				return err
			case !given:
				return usageError{"give --prefix, --start or --end, or --all"}
			}
			scatter := &adminpb.Scatter{Start: kv.UserKey(nil, start), End: []byte{kv.EndPrefix}}
			if len(end) > 0 {
				scatter.End = kv.UserKey(nil, end)
			}
			return o.run(cmd.Context(), func(
				context.Context, *client.Client,
			) (*adminpb.OperateRequest, error) {
				return &adminpb.OperateRequest{
					What: &adminpb.OperateRequest_Scatter{Scatter: scatter},
				}, nil
			})
		},
	}
	s.flags(cmd, "scatter")
	o.flags(cmd)
	return cmd
}

// scatterReport is how far a scatter has come, as JSON.
type scatterReport struct {
	ID            uint64 `json:"id"`
	Ranges        uint64 `json:"ranges"`
	Waiting       uint64 `json:"waiting"` // ranges that could stand better, and do not move yet
	Running       uint64 `json:"running"` // operators
	LeadersMoved  uint64 `json:"leaders_moved"`
	ReplicasMoved uint64 `json:"replicas_moved"`
	BytesMoved    uint64 `json:"bytes_moved"`
	Failed        uint64 `json:"failed"` // operators; what they were to move was tried again
	Ended         bool   `json:"ended"`
	Why           string `json:"why,omitempty"` // it ended before the span was even
}

func newScatterReport(p *adminpb.ScatterProgress) scatterReport {
	return scatterReport{
		ID: p.GetId(), Ranges: p.GetRanges(), Waiting: p.GetWaiting(), Running: p.GetRunning(),
		LeadersMoved: p.GetLeadersMoved(), ReplicasMoved: p.GetReplicasMoved(),
		BytesMoved: p.GetBytesMoved(), Failed: p.GetFailed(), Ended: p.GetEnded(), Why: p.GetWhy(),
	}
}

// moved says what moved.
func (s *scatterReport) moved() string {
	return fmt.Sprintf("%s and %s (%s) moved", plural(s.LeadersMoved, "leader"),
		plural(s.ReplicasMoved, "replica"), bytesText(int64(s.BytesMoved)))
}

// watchScatter looks at a scatter until it has ended.
func (o *operation) watchScatter(ctx context.Context, c *client.Client, alive func()) error {
	show := time.Now()
	for {
		reply, err := fetchOperators(ctx, c,
			&adminpb.OperatorsRequest{ScatterId: o.scatter, Limit: 1})
		s := newScatterReport(reply.GetScatter())
		switch {
		case err != nil && ctx.Err() == nil && errors.Is(err, client.ErrUnavailable):
			// Placement moves to another node: ask again, as long as --timeout allows.
		case err != nil:
			return err
		case o.elsewhere(reply) || reply.GetScatter() == nil:
			return errors.New("another node drives placement now and does not go on with the " +
				"scatter: the same command does the rest")
		case s.Ended && s.Running == 0:
			return o.scattered(s)
		default:
			alive()
			if time.Since(show) >= progressRarely {
				show = time.Now()
				o.app.talk("runs   %s so far; %s, %s to go", s.moved(),
					plural(s.Running, "operator"), plural(s.Waiting, "range"))
			}
		}
		if err := o.pause(ctx); err != nil {
			return err
		}
	}
}

// scattered says how a scatter ended.
func (o *operation) scattered(s scatterReport) error {
	if o.app.isJSON() {
		if err := o.app.json(s); err != nil {
			return err
		}
	}
	if s.Why != "" {
		return fmt.Errorf("the span is not even: %s; %s", s.Why, s.moved())
	}
	o.app.talk("OK  %s spread evenly: %s", plural(s.Ranges, "range"), s.moved())
	return nil
}
