package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const watchHelp = `The command waits and shows how far it is. It may be interrupted: the cluster goes
on, and the same command shows the rest. It ends with an error when nothing has
moved for --stuck-after and placement has a reason for that.`

// progressReport says what a node still has to give, as JSON.
type progressReport struct {
	Node         uint64  `json:"node"`
	Standing     string  `json:"standing"`
	LeadersLeft  uint32  `json:"leaders_left"`
	LeadersMost  uint32  `json:"leaders_most"`
	ReplicasLeft uint32  `json:"replicas_left"`
	ReplicasMost uint32  `json:"replicas_most"`
	BytesLeft    uint64  `json:"bytes_left"`
	BytesMost    uint64  `json:"bytes_most"`
	SecondsLeft  float64 `json:"seconds_left"` // 0: not known
	// Unknown: placement has just been taken over by another node, or not all ranges
	// are known: what is left is at least what the numbers say.
	Unknown bool     `json:"unknown,omitempty"`
	Stuck   []string `json:"stuck,omitempty"`
}

func newProgressReport(p *adminpb.NodeProgress) progressReport {
	return progressReport{
		Node:     p.GetStatus().GetNode().GetNodeId(),
		Standing: standingName(p.GetStatus().GetStanding()), LeadersLeft: p.GetLeadersLeft(),
		LeadersMost: p.GetLeadersMost(), ReplicasLeft: p.GetReplicasLeft(),
		ReplicasMost: p.GetReplicasMost(), BytesLeft: p.GetBytesLeft(),
		BytesMost: p.GetBytesMost(), SecondsLeft: p.GetSecondsLeft(), Unknown: p.GetUnknown(),
		Stuck: p.GetStuck(),
	}
}

// done says whether a node is what was asked for.
func (p *progressReport) done() bool {
	switch p.Standing {
	case "draining":
		return p.LeadersLeft == 0 && !p.Unknown
	case "decommissioning":
		return false
	}
	return true
}

// share is how much of the way is gone, from 0 to 1.
func (p *progressReport) share() float64 {
	left, most := p.ReplicasLeft, p.ReplicasMost
	if p.Standing == "draining" {
		left, most = p.LeadersLeft, p.LeadersMost
	}
	switch {
	case p.done():
		return 1
	case most == 0 || left == 0 && p.Unknown:
		return 0
	}
	return 1 - float64(min(left, most))/float64(most)
}

// left says in words what is left.
func (p *progressReport) left() string {
	if p.done() {
		return "done"
	}
	if p.Unknown && p.LeadersLeft+p.ReplicasLeft == 0 {
		return "what is left is not known yet"
	}
	if p.Standing == "decommissioning" && p.ReplicasLeft == 0 {
		return "holds nothing any more, being taken out"
	}
	text := fmt.Sprintf("%d of %s left", p.LeadersLeft, plural(p.LeadersMost, "leader"))
	if p.Standing == "decommissioning" {
		text = fmt.Sprintf("%d of %s left (%s), %s", p.ReplicasLeft,
			plural(p.ReplicasMost, "replica"), bytesText(int64(p.BytesLeft)),
			plural(p.LeadersLeft, "leader"))
	}
	if p.SecondsLeft >= 1 {
		text += ", about " + secondsText(p.SecondsLeft)
	}
	if p.Unknown {
		text += ", perhaps more: not all is known yet"
	}
	return text
}

func fetchProgress(ctx context.Context, c *client.Client) ([]progressReport, error) {
	r, err := ask(ctx, c, func(
		ctx context.Context, admin adminpb.AdminClient,
	) (*adminpb.NodesReply, error) {
		return admin.Nodes(ctx, &adminpb.NodesRequest{})
	})
	if err != nil {
		return nil, err
	}
	all := []progressReport{}
	for _, p := range r.GetNodes() {
		all = append(all, newProgressReport(p))
	}
	if len(all) == 0 { // there is no cluster without nodes
		return nil, &client.Error{
			Verb: "ask for the nodes", Kind: client.ErrUnavailable,
			Detail: "placement is being handed over to another node",
		}
	}
	return all, nil
}

func find(all []progressReport, node uint64) *progressReport {
	i := slices.IndexFunc(all, func(p progressReport) bool { return p.Node == node })
	if i < 0 {
		return nil
	}
	return &all[i]
}

// watcher asks for a standing of nodes and waits until they have come to it.
type watcher struct {
	app        *app
	want       metapb.NodeStanding
	noWait     bool
	interval   time.Duration
	stuckAfter time.Duration

	nodes []uint64
	moved map[uint64]time.Time // when less was left than ever before
	least map[uint64]uint64    // so much
}

func (w *watcher) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.noWait, "no-wait", false, "only begin it")
	cmd.Flags().DurationVar(&w.interval, "interval", 500*time.Millisecond,
		"between two looks at the cluster")
	cmd.Flags().DurationVar(&w.stuckAfter, "stuck-after", time.Minute,
		"give up when nothing moves for so long and there is a reason for that")
}

// run is the command.
func (w *watcher) run(ctx context.Context, args []string) (err error) {
	if w.nodes, err = nodeIDs(args); err != nil {
		return err
	}
	if w.interval <= 0 || w.stuckAfter < 0 {
		return usageError{"--interval must be positive, --stuck-after not negative"}
	}
	w.moved, w.least = map[uint64]time.Time{}, map[uint64]uint64{}
	var last []progressReport
	err = w.app.stream(ctx, func(
		ctx context.Context, c *client.Client, alive func(),
	) (err error) {
		if last, err = w.begin(ctx, c); err != nil || w.noWait {
			return err
		}
		if over, err := w.over(ctx, c, last); err != nil || over {
			return err
		}
		last, err = w.wait(ctx, c, alive)
		return err
	})
	if ctx.Err() != nil && len(last) > 0 {
		return errors.New("interrupted: the cluster goes on with it; the same command shows " +
			"the rest, flotilla nodes undrain stops it")
	}
	if err != nil {
		return err
	}
	return w.app.finish(last)
}

// begin asks for the standing of those nodes that do not have it.
func (w *watcher) begin(ctx context.Context, c *client.Client) ([]progressReport, error) {
	now, err := fetchProgress(ctx, c)
	if err != nil {
		return nil, err
	}
	var todo []uint64
	for _, id := range w.nodes {
		if p := find(now, id); p == nil || p.Standing != standingName(w.want) && !w.past(p) {
			todo = append(todo, id)
		}
	}
	set, err := w.app.setStanding(ctx, c, todo, w.want)
	if err != nil {
		return nil, err
	}
	return w.mine(append(set, now...)), nil
}

// past says that a node is beyond what was asked for.
func (w *watcher) past(p *progressReport) bool {
	return p.Standing == decommissioned &&
		w.want == metapb.NodeStanding_NODE_STANDING_DECOMMISSIONING
}

// mine picks the nodes of the command line, in their order, the first of each.
func (w *watcher) mine(all []progressReport) []progressReport {
	var mine []progressReport
	for _, id := range w.nodes {
		if p := find(all, id); p != nil {
			mine = append(mine, *p)
		}
	}
	return mine
}

// over says whether all nodes are done. A node that has just taken over placement
// does not know yet what they lead: its word does not count. It says so itself; those of
// an earlier version say it in the status of the cluster only.
func (w *watcher) over(
	ctx context.Context, c *client.Client, all []progressReport,
) (bool, error) {
	if slices.ContainsFunc(all, func(p progressReport) bool { return !p.done() }) {
		return false, nil
	}
	r, err := ask(ctx, c, func(
		ctx context.Context, admin adminpb.AdminClient,
	) (*adminpb.StatusReply, error) {
		return admin.Status(ctx, &adminpb.StatusRequest{})
	})
	if errors.Is(err, client.ErrUnavailable) && ctx.Err() == nil {
		return false, nil
	}
	return err == nil && !r.GetCollecting() && len(r.GetNodes()) > 0, err
}

// wait looks again and again, until all nodes are done or nothing moves.
func (w *watcher) wait(
	ctx context.Context, c *client.Client, alive func(),
) (mine []progressReport, err error) {
	show := newBars(w.app)
	for {
		now, err := fetchProgress(ctx, c)
		switch {
		case err != nil && ctx.Err() == nil && errors.Is(err, client.ErrUnavailable):
			// Placement moves to another node: ask again, as long as --timeout allows.
		case err != nil:
			return mine, err
		default:
			alive()
			mine = w.mine(now)
			if err := w.check(mine); err != nil {
				return mine, err
			}
			show.draw(mine)
			if over, err := w.over(ctx, c, mine); err != nil || over {
				return mine, err
			}
			if err := w.stuck(mine, time.Now()); err != nil {
				return mine, err
			}
		}
		select {
		case <-ctx.Done():
			return mine, &client.Error{
				Verb: "watch nodes", Kind: client.ErrUnavailable, Cause: ctx.Err(),
				Detail: "the cluster did not say how far it is",
			}
		case <-time.After(w.interval):
		}
	}
}

// check ends the command when somebody else asked for something else.
func (w *watcher) check(mine []progressReport) error {
	for _, id := range w.nodes {
		p := find(mine, id)
		switch {
		case p == nil:
			return fmt.Errorf("n%d is not a node of the cluster any more", id)
		case p.Standing != standingName(w.want) && !w.past(p):
			return fmt.Errorf("n%d is %s now: somebody else has asked for that", id, p.Standing)
		}
	}
	return nil
}

// stuck is an error when no node that is not done has come further for a while, and
// each has a reason.
func (w *watcher) stuck(mine []progressReport, now time.Time) error {
	var reasons []string
	for _, p := range mine {
		if p.done() {
			continue
		}
		left := uint64(p.LeadersLeft) + uint64(p.ReplicasLeft)
		if p.Unknown { // a number that means little must not count as progress
			left = math.MaxUint64
		}
		if least, seen := w.least[p.Node]; !seen || left < least || len(p.Stuck) == 0 {
			w.least[p.Node], w.moved[p.Node] = left, now
		}
		if now.Sub(w.moved[p.Node]) < w.stuckAfter || len(p.Stuck) == 0 {
			return nil
		}
		reasons = append(reasons, fmt.Sprintf("n%d is stuck with %s: %s", p.Node, p.left(),
			strings.Join(p.Stuck, "; ")))
	}
	if len(reasons) == 0 {
		return nil
	}
	return errors.New(strings.Join(reasons, "; ") +
		" (it goes on when that changes; flotilla nodes undrain gives up)")
}
