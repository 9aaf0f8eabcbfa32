package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/loadtest"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

const (
	// adminPause is between two attempts of an order that was refused.
	adminPause = 200 * time.Millisecond
	// listPause is between two looks at the directory.
	listPause = 500 * time.Millisecond
	// quietLists is how many looks in a row must show leaders that are spread.
	quietLists = 2
	// spreadPatience is how long spread goes on without coming nearer to its end.
	spreadPatience = time.Minute
	// spreadSlack is what one node may lead above its share, in percent.
	spreadSlack = 3
	// maxParallel bounds the orders that are under way at once.
	maxParallel = 1024
)

// listRetry is the pause before a list with gaps is asked for again.
const listRetry = 100 * time.Millisecond

// listRanges lists the ranges of users' keys, page by page, until they tile the
// keyspace: placement that has just moved to another node still learns of them.
func listRanges(ctx context.Context, c *client.Client) (all []*adminpb.RangeInfo, err error) {
	for {
		all, err = listOnce(ctx, c)
		if err != nil || tiles(all) {
			return all, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the list of ranges has gaps: %w", ctx.Err())
		case <-time.After(listRetry):
		}
	}
}

func listOnce(ctx context.Context, c *client.Client) (all []*adminpb.RangeInfo, err error) {
	request := &adminpb.ListRangesRequest{Start: []byte{kv.UserPrefix}, End: []byte{kv.EndPrefix}}
	for {
		var page []*adminpb.RangeInfo
		err := c.Admin(ctx, func(ctx context.Context, a adminpb.AdminClient) error {
			reply, err := a.ListRanges(ctx, request)
			page = reply.GetRanges()
			return err
		})
		if err != nil || len(page) == 0 {
			return all, err
		}
		for _, r := range page {
			if _, inside := kv.StripUserKey(r.GetDescriptor_().GetStart()); inside {
				all = append(all, r)
			}
		}
		last := page[len(page)-1].GetDescriptor_().GetEnd()
		if bytes.Compare(last, request.End) >= 0 || bytes.Compare(last, request.Start) <= 0 {
			return all, nil
		}
		request.Start = last
	}
}

// tiles says whether no key is missing between the ranges and after them.
func tiles(all []*adminpb.RangeInfo) bool {
	at := []byte{kv.UserPrefix}
	for _, r := range all {
		d := r.GetDescriptor_()
		if bytes.Compare(d.GetStart(), at) > 0 {
			return false
		}
		at = d.GetEnd()
	}
	return bytes.Compare(at, []byte{kv.EndPrefix}) >= 0
}

// userRanges lists the ranges that hold users' keys, by users' keys.
func userRanges(ctx context.Context, c *client.Client) ([]loadtest.Range, error) {
	listed, err := listRanges(ctx, c)
	var all []loadtest.Range
	for _, r := range listed {
		d := r.GetDescriptor_()
		start, _ := kv.StripUserKey(d.GetStart())
		one := loadtest.Range{
			ID: ids.RangeID(d.GetRangeId()), Start: start, Leader: ids.NodeID(r.GetLeaderNode()),
		}
		if end, bounded := kv.StripUserKey(d.GetEnd()); bounded {
			one.End = end
		}
		all = append(all, one)
	}
	return all, err
}

// rangeFlags are the flags of what changes the ranges.
type rangeFlags struct {
	ranges   int
	parallel int
	spread   bool
	wait     time.Duration
}

func presplitCommand(f *flags) *cobra.Command {
	var r rangeFlags
	c := &cobra.Command{
		Use:   "presplit",
		Short: "Split the keys of the load into equal ranges",
		Long: `Split the keys of the load (--key-prefix, not --ordered-keys) into equal ranges, the
middle first, then the middles of the halves, many at once. What is split already is
left alone, so an interrupted run can be repeated.

Split when every range has all its copies (flotilla status says so): both halves of a
range with three copies have three at once, while copies that are added afterwards are
added range by range.`,
		Example: "  flotilla-loadtest presplit --ranges 1000 --spread",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.with(c, f, func(ctx context.Context, cl *client.Client) error {
				began := time.Now()
				keys := loadtest.SplitKeys(f.keyPrefix, r.ranges)
				made, err := presplit(ctx, cl, keys, r.parallel)
				if err != nil {
					return err
				}
				err = f.say(map[string]any{
					"type": "presplit", "ranges": r.ranges, "splits": made,
					"seconds": time.Since(began).Seconds(),
				}, "%d splits in %.1f s", made, time.Since(began).Seconds())
				if err != nil || !r.spread {
					return err
				}
				return spread(ctx, cl, f, &r)
			})
		},
	}
	c.Flags().IntVar(&r.ranges, "ranges", 1000, "how many ranges there shall be")
	c.Flags().BoolVar(&r.spread, "spread", false, "and spread the leaders, see spread")
	r.register(c)
	return c
}

func spreadCommand(f *flags) *cobra.Command {
	var r rangeFlags
	c := &cobra.Command{
		Use:   "spread",
		Short: "Move leaders until every node leads its share",
		Long: `Move leaders until every node that has replicas leads its share. The cluster does so
by itself, a few at a time; measurements do not wait for that.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.with(c, f, func(ctx context.Context, cl *client.Client) error {
				return spread(ctx, cl, f, &r)
			})
		},
	}
	r.register(c)
	return c
}

func (r *rangeFlags) register(c *cobra.Command) {
	c.Flags().IntVar(&r.parallel, "parallel", 32, "orders under way at once")
	c.Flags().DurationVar(&r.wait, "wait", 5*time.Minute, "how long it may take")
}

// with checks the flags and runs f with a client.
func (r *rangeFlags) with(
	c *cobra.Command, f *flags, do func(ctx context.Context, cl *client.Client) error,
) error {
	if err := f.complete(c.Flags()); err != nil {
		return err
	}
	switch {
	case f.store != storeFlotilla:
		return usageError{fmt.Errorf("--store %q has no ranges", f.store)}
	case c.Flags().Lookup("ranges") != nil && r.ranges < 1:
		return usageError{fmt.Errorf("--ranges %d: at least 1", r.ranges)}
	case r.parallel < 1 || r.parallel > maxParallel:
		return usageError{fmt.Errorf("--parallel %d: 1 to %d", r.parallel, maxParallel)}
	}
	ctx, cancel := context.WithTimeout(c.Context(), r.wait)
	defer cancel()
	cl, err := client.Open(ctx, f.endpoints)
	if err != nil {
		return err
	}
	err = do(ctx, cl)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("not done within --wait %v: %w", r.wait, err)
	}
	return errors.Join(err, cl.Close())
}

// say prints an object, or a line.
func (f *flags) say(object map[string]any, format string, args ...any) error {
	if f.output == "json" {
		return json.NewEncoder(os.Stdout).Encode(object)
	}
	_, err := fmt.Fprintf(os.Stdout, format+"\n", args...)
	return err
}

// presplit splits at the keys at which no range begins yet.
func presplit(
	ctx context.Context, c *client.Client, keys [][]byte, parallel int,
) (made int, err error) {
	there, err := userRanges(ctx, c)
	if err != nil {
		return 0, err
	}
	begins := make(map[string]bool, len(there))
	for i := range there {
		begins[string(there[i].Start)] = true
	}
	keys = slices.DeleteFunc(keys, func(k []byte) bool { return begins[string(k)] })
	for _, level := range loadtest.Bisect(keys) {
		var group errgroup.Group
		group.SetLimit(parallel)
		for _, k := range level {
			group.Go(func() error { return splitAt(ctx, c, kv.UserKey(nil, k)) })
		}
		if err := group.Wait(); err != nil {
			return made, fmt.Errorf("after %d splits: %w", made, err)
		}
		made += len(level)
	}
	return made, nil
}

// splitAt tries until a range begins at the key. A leader that is being moved
// refuses, and a split may be done though its answer was lost.
func splitAt(ctx context.Context, c *client.Client, key []byte) error {
	for {
		err := c.Admin(ctx, func(ctx context.Context, a adminpb.AdminClient) error {
			_, err := a.SplitRange(ctx, &adminpb.SplitRangeRequest{Key: key})
			return err
		})
		if err == nil || beginsAt(ctx, c, key) {
			return nil
		}
		select {
		case <-time.After(adminPause):
		case <-ctx.Done():
			return err
		}
	}
}

// beginsAt says whether a range begins at the key, as far as is known.
func beginsAt(ctx context.Context, c *client.Client, key []byte) (yes bool) {
	err := c.Admin(ctx, func(ctx context.Context, a adminpb.AdminClient) error {
		reply, err := a.Lookup(ctx, &adminpb.LookupRequest{Start: key})
		for _, r := range reply.GetRanges() {
			yes = yes || bytes.Equal(r.GetDescriptor_().GetStart(), key)
		}
		return err
	})
	return err == nil && yes
}

// move is one order to hand a leader over.
type move struct {
	id uint64
	to ids.NodeID
}

// spread moves leaders until every node leads its share, and every range has one.
func spread(ctx context.Context, c *client.Client, f *flags, r *rangeFlags) error {
	began, ordered := time.Now(), 0
	fewest, better := math.MaxInt, began
	for quiet := 0; ; {
		listed, err := listRanges(ctx, c)
		if err != nil {
			return err
		}
		moves, led, even := moves(listed)
		if quiet++; !even {
			quiet = 0
		}
		if quiet == quietLists {
			object := map[string]any{
				"type": "spread", "ranges": len(listed), "ordered": ordered,
				"seconds": time.Since(began).Seconds(),
			}
			text := ""
			for _, n := range slices.Sorted(maps.Keys(led)) {
				object[n.String()] = led[n]
				text += fmt.Sprintf(" %v: %d", n, led[n])
			}
			return f.say(object, "%d ranges led by%s, %d leaders moved in %.1f s", len(listed), text,
				ordered, time.Since(began).Seconds())
		}
		if len(moves) < fewest {
			fewest, better = len(moves), time.Now()
		}
		if time.Since(better) > spreadPatience {
			return fmt.Errorf("spread leaders: %d of %d ranges must still move and none has for %v; "+
				"is a node down? (flotilla status)", len(moves), len(listed), spreadPatience)
		}
		var group errgroup.Group
		group.SetLimit(r.parallel)
		for _, m := range moves {
			group.Go(func() error {
				// One that is refused is ordered again after the next look.
				_ = c.Admin(ctx, func(ctx context.Context, a adminpb.AdminClient) error {
					_, err := a.TransferLeader(ctx, &adminpb.TransferLeaderRequest{
						RangeId: m.id, ToNode: uint64(m.to),
					})
					return err
				})
				return nil
			})
		}
		ordered += len(moves)
		_ = group.Wait()
		select {
		case <-time.After(listPause):
		case <-ctx.Done():
			return fmt.Errorf("ranges led by node: %v: %w", led, ctx.Err())
		}
	}
}

// moves says which leaders to move where. even: every range has a leader, and no
// node leads much more than its share.
func moves(ranges []*adminpb.RangeInfo) (orders []move, led map[ids.NodeID]int, even bool) {
	led = make(map[ids.NodeID]int)
	lost := false
	for _, r := range ranges {
		for _, p := range r.GetDescriptor_().GetReplicas() {
			led[ids.NodeID(p.GetNodeId())] += 0
		}
		if leader := ids.NodeID(r.GetLeaderNode()); leader != 0 {
			led[leader]++
		} else {
			lost = true
		}
	}
	share := (len(ranges) + len(led) - 1) / max(len(led), 1)
	most := 0
	for _, n := range led {
		most = max(most, n)
	}
	even = !lost && most <= share+1+share*spreadSlack/100
	planned := maps.Clone(led)
	for _, r := range ranges {
		leader := ids.NodeID(r.GetLeaderNode())
		if leader == 0 || planned[leader] <= share {
			continue
		}
		to := slices.MinFunc(slices.Sorted(maps.Keys(planned)), func(a, b ids.NodeID) int {
			return cmp.Compare(planned[a], planned[b])
		})
		if planned[to] >= share {
			break
		}
		planned[leader]--
		planned[to]++
		orders = append(orders, move{id: r.GetDescriptor_().GetRangeId(), to: to})
	}
	return orders, led, even
}
