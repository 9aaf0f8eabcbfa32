package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/ranges"
)

// maxLocalLookup bounds the ranges of an answer from local replicas alone.
const maxLocalLookup = 1000

// adminService is for people and their tools. Every node answers; what only one
// node knows is fetched from there.
type adminService struct {
	adminpb.UnimplementedAdminServer
	n *node
}

// Status tells how the cluster is, or with LocalOnly, or when nobody drives
// placement, what this node knows of itself.
func (a *adminService) Status(
	ctx context.Context, r *adminpb.StatusRequest,
) (*adminpb.StatusReply, error) {
	n := a.n
	if r.GetLocalOnly() {
		reply := n.localStatus()
		if r.GetSupport() {
			reply.Nodes[0].Support = n.supportStatus()
		}
		return reply, nil
	}
	if passedOn(ctx) {
		reply, err := n.driverStatus(ctx, r)
		if err != nil {
			return nil, adminVerdict(err)
		}
		correctLive(reply, n.self, n.support.Status())
		return reply, nil
	}
	reply, err := n.settledStatus(ctx, r)
	if err != nil {
		reply = n.localStatus()
		reply.Problems = append(reply.Problems, "placement does not answer: "+err.Error())
	}
	n.hear(ctx, reply)
	correctLive(reply, n.self, n.support.Status())
	reply.AnsweredBy, reply.Ready = uint64(n.self), n.ready.Load()
	if r.GetSupport() {
		n.addSupport(ctx, reply)
	}
	return reply, nil
}

func (n *node) localStatus() *adminpb.StatusReply {
	replicas, leaders := n.table.Counts()
	reply := &adminpb.StatusReply{
		ClusterId: n.cluster, AnsweredBy: uint64(n.self), Ready: n.ready.Load(),
		ReplicationFactor: uint32(n.cfg.ReplicationFactor),
		Nodes: []*adminpb.NodeStatus{{
			Node: n.s.descriptor(n.self), Live: true,
			Replicas: uint32(replicas), Leaders: uint32(leaders),
			DiskBytes: n.diskTotal.Load(), DiskFreeBytes: n.diskFree.Load(),
			ReadOnly: n.store.ReadOnly(), Version: n.cfg.Version,
			UptimeSeconds: time.Since(n.s.began).Seconds(), Standing: n.standing(),
		}},
	}
	if !reply.Ready {
		reply.Problems = []string{"this node is starting"}
	}
	return reply
}

// lookupPatience is how long a lookup waits for the driver, which may be on the
// node whose loss made clients look up, before this node tells what it knows.
const lookupPatience = 300 * time.Millisecond

// Lookup finds the ranges that cover a span. Without placement it answers from
// the replicas of this node, which may be only a part.
func (a *adminService) Lookup(
	ctx context.Context, r *adminpb.LookupRequest,
) (*adminpb.LookupReply, error) {
	asking, cancel := context.WithTimeout(ctx, lookupPatience)
	defer cancel()
	reply, err := fromDriver(asking, a.n, func(
		d *placement.Driver, _ time.Duration, reply func(*adminpb.LookupReply, error),
	) {
		reply(d.Lookup(r), nil)
	}, func(ctx context.Context, c adminpb.AdminClient) (*adminpb.LookupReply, error) {
		return c.Lookup(ctx, r)
	})
	if err == nil && len(reply.GetRanges()) > 0 {
		return reply, nil
	}
	if local := a.n.localLookup(r); len(local.Ranges) > 0 {
		return local, nil
	}
	if err != nil {
		return nil, adminVerdict(err)
	}
	return reply, nil
}

// localLookup walks this node's replicas from start on, as far as they go.
func (n *node) localLookup(r *adminpb.LookupRequest) *adminpb.LookupReply {
	reply := &adminpb.LookupReply{Nodes: n.registry.list()}
	if r.GetReverse() {
		return reply // the table finds by key, not by what lies before one
	}
	limit := maxLocalLookup
	if l := int(r.GetLimit()); l > 0 {
		limit = min(l, limit)
	}
	for key := r.GetStart(); len(reply.Ranges) < limit; {
		d, leader, ok := n.table.Route(key)
		if !ok {
			break
		}
		reply.Ranges = append(reply.Ranges, &adminpb.RangeInfo{
			Descriptor_: d, LeaderNode: uint64(leader),
		})
		if key = d.GetEnd(); bytes.Compare(key, r.GetEnd()) >= 0 {
			break
		}
	}
	return reply
}

// ListRanges lists the ranges of a span, in order. A driver that has just begun is
// given time to hear of them.
func (a *adminService) ListRanges(
	ctx context.Context, r *adminpb.ListRangesRequest,
) (*adminpb.ListRangesReply, error) {
	ctx, cancel := a.n.settled(ctx)
	defer cancel()
	reply, err := fromDriver(ctx, a.n, func(
		d *placement.Driver, _ time.Duration, reply func(*adminpb.ListRangesReply, error),
	) {
		reply(d.List(r), nil)
	}, func(ctx context.Context, c adminpb.AdminClient) (*adminpb.ListRangesReply, error) {
		return c.ListRanges(ctx, r)
	})
	if err != nil {
		return nil, adminVerdict(err)
	}
	return reply, nil
}

// describe asks this node's replica of a range.
func (n *node) describe(
	ctx context.Context, id ids.RangeID,
) (*adminpb.ReplicaInfo, *adminpb.RangeInfo, bool) {
	type answer struct {
		replica *adminpb.ReplicaInfo
		info    *adminpb.RangeInfo
		ok      bool
	}
	answers := make(chan answer, wakeSlots)
	n.table.Describe(id, func(r *adminpb.ReplicaInfo, i *adminpb.RangeInfo, ok bool) {
		answers <- answer{r, i, ok}
	})
	select {
	case a := <-answers:
		return a.replica, a.info, a.ok
	case <-ctx.Done():
		return nil, nil, false
	}
}

// ShowRange tells about a range and, asked of each one's node, all its replicas.
func (a *adminService) ShowRange(
	ctx context.Context, r *adminpb.ShowRangeRequest,
) (*adminpb.ShowRangeReply, error) {
	ctx, cancel := context.WithTimeout(ctx, hopTimeout)
	defer cancel()
	info, err := a.n.find(ctx, ids.RangeID(r.GetRangeId()), r.GetKey(), r.GetLocalOnly())
	if err != nil {
		return nil, err
	}
	reply := &adminpb.ShowRangeReply{Range: info}
	for _, rep := range info.GetDescriptor_().GetReplicas() {
		at := ids.NodeID(rep.GetNodeId())
		if r.GetLocalOnly() && at != a.n.self {
			continue
		}
		reply.Replicas = append(reply.Replicas, a.replica(ctx, at, info, rep))
	}
	return reply, nil
}

// replica asks the node of one replica about it; a node that does not answer
// has its reason in Error.
func (a *adminService) replica(
	ctx context.Context, at ids.NodeID, info *adminpb.RangeInfo, rep *metapb.Replica,
) *adminpb.ReplicaInfo {
	id := ids.RangeID(info.GetDescriptor_().GetRangeId())
	failed := func(why string) *adminpb.ReplicaInfo {
		return &adminpb.ReplicaInfo{
			NodeId: rep.GetNodeId(), ReplicaId: rep.GetReplicaId(), Error: why,
		}
	}
	if at == a.n.self {
		found, _, ok := a.n.describe(ctx, id)
		if !ok {
			return failed("this node has no such replica")
		}
		return found
	}
	_, admin, err := a.n.transport.Control(at)
	if err != nil {
		return failed(err.Error())
	}
	reply, err := admin.ShowRange(hop(ctx), &adminpb.ShowRangeRequest{
		RangeId: uint64(id), LocalOnly: true,
	})
	switch {
	case err != nil:
		return failed(inWords(err))
	case len(reply.GetReplicas()) == 0:
		return failed("its node has no such replica")
	}
	return reply.GetReplicas()[0]
}

// find returns what is known of a range by its id, or by a key in it if the id
// is 0: from the local replica if there is one that knows its leader, else from
// placement.
func (n *node) find(
	ctx context.Context, id ids.RangeID, key []byte, localOnly bool,
) (*adminpb.RangeInfo, error) {
	if id == 0 && len(key) == 0 {
		return nil, status.Error(codes.InvalidArgument, "name a range by its id or by a key")
	}
	if id == 0 {
		if d, _, ok := n.table.Route(key); ok {
			id = ids.RangeID(d.GetRangeId())
		}
	}
	var local *adminpb.RangeInfo
	if id != 0 {
		if _, info, ok := n.describe(ctx, id); ok {
			if local = info; localOnly || info.GetLeaderNode() != 0 {
				return info, nil
			}
		}
	}
	if localOnly {
		return nil, status.Errorf(codes.NotFound, "%v has no replica of %v", n.self, id)
	}
	info, err := n.findFar(ctx, id, key)
	if err != nil && local != nil {
		return local, nil
	}
	return info, err
}

func (n *node) findFar(
	ctx context.Context, id ids.RangeID, key []byte,
) (*adminpb.RangeInfo, error) {
	info, err := n.askRange(ctx, id, key)
	if (err == nil && info == nil || status.Code(err) == codes.NotFound) && !passedOn(ctx) {
		// A driver that has just begun may not have heard of it.
		_, _ = n.settledStatus(ctx, &adminpb.StatusRequest{})
		info, err = n.askRange(ctx, id, key)
	}
	switch {
	case err != nil:
		return nil, adminVerdict(err)
	case info == nil:
		return nil, status.Errorf(codes.NotFound, "no such range is known: %v", id)
	}
	return info, nil
}

// askRange asks the driver about a range by its id, or by a key if the id is 0.
func (n *node) askRange(
	ctx context.Context, id ids.RangeID, key []byte,
) (*adminpb.RangeInfo, error) {
	return fromDriver(ctx, n, func(
		d *placement.Driver, _ time.Duration, reply func(*adminpb.RangeInfo, error),
	) {
		if id != 0 {
			reply(d.Range(id), nil)
			return
		}
		for _, found := range d.Lookup(&adminpb.LookupRequest{Start: key, Limit: 1}).GetRanges() {
			reply(found, nil)
			return
		}
		reply(nil, nil)
	}, func(ctx context.Context, c adminpb.AdminClient) (*adminpb.RangeInfo, error) {
		reply, err := c.ShowRange(ctx, &adminpb.ShowRangeRequest{RangeId: uint64(id), Key: key})
		return reply.GetRange(), err
	})
}

// SplitRange splits a range at a key, or where its middle is; it is passed on
// to the node that leads the range. One that is only just being elected, as the right
// half of the split before, is given a moment.
func (a *adminService) SplitRange(
	ctx context.Context, r *adminpb.SplitRangeRequest,
) (*adminpb.SplitRangeReply, error) {
	if len(r.GetKey()) > 0 && r.GetKey()[0] != kv.UserPrefix {
		return nil, status.Error(codes.InvalidArgument, "only user keys can be split at")
	}
	reply, err := a.split(ctx, r)
	for end := time.Now().Add(statusPatience); status.Code(err) == codes.Unavailable; {
		if passedOn(ctx) || ctx.Err() != nil || !time.Now().Before(end) {
			break
		}
		pause(ctx, statusPause)
		reply, err = a.split(ctx, r)
	}
	return reply, err
}

// split tries once. Unavailable says that nothing was done, or that an answer was lost.
func (a *adminService) split(
	ctx context.Context, r *adminpb.SplitRangeRequest,
) (*adminpb.SplitRangeReply, error) {
	n := a.n
	id := ids.RangeID(r.GetRangeId())
	info, err := n.find(ctx, id, r.GetKey(), false)
	if err != nil {
		return nil, err
	}
	id = ids.RangeID(info.GetDescriptor_().GetRangeId())
	if at := ids.NodeID(info.GetLeaderNode()); at != n.self && !passedOn(ctx) {
		admin, err := n.leaderOf(id, at)
		if err != nil {
			return nil, err
		}
		return admin.SplitRange(hop(ctx), &adminpb.SplitRangeRequest{
			RangeId: uint64(id), Key: r.GetKey(), StickyMillis: r.StickyMillis,
		})
	}
	type answer struct {
		left, right *metapb.RangeDescriptor
		err         error
	}
	answers := make(chan answer, wakeSlots)
	until := stickyUntil(r, n.s.clock.Wall())
	n.table.SplitSticky(id, r.GetKey(), until, func(l, r *metapb.RangeDescriptor, err error) {
		answers <- answer{l, r, err}
	})
	select {
	case s := <-answers:
		if s.err != nil {
			code := codes.Aborted
			if errors.Is(s.err, ranges.ErrNotLeader) {
				code = codes.Unavailable
			}
			why := strings.TrimPrefix(s.err.Error(), fmt.Sprintf("split %v: ", id))
			return nil, status.Errorf(code, "split %v: %s", id, strings.TrimPrefix(why, "split: "))
		}
		return &adminpb.SplitRangeReply{Left: s.left, Right: s.right}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func (n *node) leaderOf(id ids.RangeID, at ids.NodeID) (adminpb.AdminClient, error) {
	if at == 0 {
		return nil, status.Errorf(codes.Unavailable, "%v has no leader at the moment", id)
	}
	_, admin, err := n.transport.Control(at)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return admin, nil
}

// stickyUntil says until when, in milliseconds of the wall clock, placement is to leave
// the halves of a split apart. Who does not say means it for ever.
func stickyUntil(r *adminpb.SplitRangeRequest, wall int64) int64 {
	switch millis := r.GetStickyMillis(); {
	case r.StickyMillis == nil || millis >= uint64(math.MaxInt64-wall):
		return math.MaxInt64
	case millis == 0:
		return 0
	default:
		return wall + int64(millis)
	}
}

// TransferLeader is Operate with a transfer that is only begun, for tools that do not
// watch operators.
func (a *adminService) TransferLeader(
	ctx context.Context, r *adminpb.TransferLeaderRequest,
) (*adminpb.TransferLeaderReply, error) {
	_, err := a.Operate(ctx, &adminpb.OperateRequest{
		RangeId: r.GetRangeId(), What: &adminpb.OperateRequest_Transfer{
			Transfer: &adminpb.TransferTo{NodeId: r.GetToNode()},
		},
	})
	if err != nil {
		return nil, err
	}
	return &adminpb.TransferLeaderReply{LeaderNode: r.GetToNode()}, nil
}
