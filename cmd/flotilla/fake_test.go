package main

import (
	"context"
	"flag"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/<name>.txt.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (-update writes it anew)\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

// fakeAdmin answers as a test says; what it does not say is not implemented.
type fakeAdmin struct {
	adminpb.UnimplementedAdminServer
	addr string

	mu         sync.Mutex
	asked      []string // what was asked for, in order
	nodes      []*adminpb.NodeProgress
	looks      int // at nodes
	change     func(f *fakeAdmin)
	refuse     map[uint64]string // standings of nodes
	operate    func(*adminpb.OperateRequest) (*adminpb.OperateReply, error)
	operators  func(*adminpb.OperatorsRequest) *adminpb.OperatorsReply
	rules      *metapb.RuleSet
	setRules   func(*adminpb.SetRulesRequest) *adminpb.SetRulesReply
	paused     string
	collecting bool
	ranges     map[uint64]*adminpb.RangeInfo
	split      func(*adminpb.SplitRangeRequest) *adminpb.SplitRangeReply
	explain    func(*adminpb.ExplainRequest) (*adminpb.ExplainReply, error)
}

// newFake starts a fake and a shell that talks to it.
func newFake(t *testing.T) (*fakeAdmin, *shell) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeAdmin{addr: l.Addr().String()}
	g := grpc.NewServer()
	adminpb.RegisterAdminServer(g, f)
	var running sync.WaitGroup
	running.Go(func() { _ = g.Serve(l) })
	t.Cleanup(func() { g.Stop(); running.Wait() })
	return f, &shell{t, f.addr}
}

// note remembers what was asked for, and locks until the answer is made.
func (f *fakeAdmin) note(what string) func() {
	f.mu.Lock()
	f.asked = append(f.asked, what)
	return f.mu.Unlock
}

// progress is a node in the fake.
func progress(id uint64, s metapb.NodeStanding) *adminpb.NodeProgress {
	return &adminpb.NodeProgress{Status: &adminpb.NodeStatus{
		Node: &metapb.NodeDescriptor{NodeId: id, Address: "10.0.0.1:7001"}, Live: true, Standing: s,
		Replicas: 100, Leaders: 30,
	}}
}

func (f *fakeAdmin) find(id uint64) *adminpb.NodeProgress {
	for _, n := range f.nodes {
		if n.GetStatus().GetNode().GetNodeId() == id {
			return n
		}
	}
	return nil
}

// Status implements the service.
func (f *fakeAdmin) Status(
	_ context.Context, r *adminpb.StatusRequest,
) (*adminpb.StatusReply, error) {
	if r.GetLocalOnly() {
		return &adminpb.StatusReply{ClusterId: 7, AnsweredBy: 1}, nil
	}
	defer f.note("status")()
	reply := &adminpb.StatusReply{ClusterId: 7, AnsweredBy: 1, Ranges: 12, Tolerates: 1,
		ReplicationFactor: 3, Ready: true, PausedBy: f.paused,
		Collecting: f.collecting}
	for _, n := range f.nodes {
		reply.Nodes = append(reply.Nodes, n.GetStatus())
	}
	return reply, nil
}

// Nodes implements the service; change happens before each answer.
func (f *fakeAdmin) Nodes(
	context.Context, *adminpb.NodesRequest,
) (*adminpb.NodesReply, error) {
	defer f.note("nodes")()
	f.looks++
	if f.change != nil {
		f.change(f)
	}
	return &adminpb.NodesReply{Nodes: f.nodes}, nil
}

// SetStanding implements the service.
func (f *fakeAdmin) SetStanding(
	_ context.Context, r *adminpb.SetStandingRequest,
) (*adminpb.SetStandingReply, error) {
	defer f.note(standingName(r.GetStanding()))()
	n := f.find(r.GetNodeId())
	if n == nil {
		return nil, status.Errorf(codes.NotFound, "n%d is not a node of this cluster", r.GetNodeId())
	}
	if why := f.refuse[r.GetNodeId()]; why != "" {
		return nil, status.Error(codes.FailedPrecondition, why)
	}
	n.Status.Standing = r.GetStanding()
	return &adminpb.SetStandingReply{Node: n}, nil
}

// Operate implements the service.
func (f *fakeAdmin) Operate(
	_ context.Context, r *adminpb.OperateRequest,
) (*adminpb.OperateReply, error) {
	defer f.note("operate")()
	return f.operate(r)
}

// Operators implements the service.
func (f *fakeAdmin) Operators(
	_ context.Context, r *adminpb.OperatorsRequest,
) (*adminpb.OperatorsReply, error) {
	defer f.note("operators")()
	return f.operators(r), nil
}

// Explain implements the service.
func (f *fakeAdmin) Explain(
	_ context.Context, r *adminpb.ExplainRequest,
) (*adminpb.ExplainReply, error) {
	defer f.note("explain")()
	return f.explain(r)
}

// Pause implements the service.
func (f *fakeAdmin) Pause(
	_ context.Context, r *adminpb.PauseRequest,
) (*adminpb.PauseReply, error) {
	defer f.note("pause")()
	f.paused = ""
	if r.GetPaused() {
		f.paused = r.GetBy()
	}
	return &adminpb.PauseReply{Settings: &metapb.PlacementSettings{
		Paused: r.GetPaused(), PausedBy: f.paused,
	}}, nil
}

// GetRules implements the service.
func (f *fakeAdmin) GetRules(
	context.Context, *adminpb.GetRulesRequest,
) (*adminpb.GetRulesReply, error) {
	defer f.note("get rules")()
	return &adminpb.GetRulesReply{Rules: f.rules}, nil
}

// SetRules implements the service.
func (f *fakeAdmin) SetRules(
	_ context.Context, r *adminpb.SetRulesRequest,
) (*adminpb.SetRulesReply, error) {
	what := "set rules"
	if r.GetDryRun() {
		what = "try rules"
	}
	defer f.note(what)()
	if r.GetRules().GetVersion() != f.rules.GetVersion() {
		return nil, status.Errorf(codes.Aborted, "the rules have version %d by now, not %d",
			f.rules.GetVersion(), r.GetRules().GetVersion())
	}
	reply := f.setRules(r)
	if !r.GetDryRun() && len(reply.GetFaults()) == 0 {
		f.rules = r.GetRules()
		f.rules.Version++
		reply.Rules = f.rules
	}
	return reply, nil
}

// SplitRange implements the service.
func (f *fakeAdmin) SplitRange(
	_ context.Context, r *adminpb.SplitRangeRequest,
) (*adminpb.SplitRangeReply, error) {
	defer f.note("split range")()
	return f.split(r), nil
}

// ShowRange implements the service.
func (f *fakeAdmin) ShowRange(
	_ context.Context, r *adminpb.ShowRangeRequest,
) (*adminpb.ShowRangeReply, error) {
	defer f.note("show range")()
	info := f.ranges[r.GetRangeId()]
	if info == nil {
		return nil, status.Errorf(codes.NotFound, "no such range is known: r%d", r.GetRangeId())
	}
	return &adminpb.ShowRangeReply{Range: info}, nil
}

// aRange is a range in the fake, on n1 to n3.
func aRange(id uint64, start, end string) *adminpb.RangeInfo {
	d := &metapb.RangeDescriptor{
		RangeId: id, Generation: 9, Start: kv.UserKey(nil, []byte(start)),
		End: kv.UserKey(nil, []byte(end)),
	}
	for n := range uint64(3) {
		d.Replicas = append(d.Replicas, &metapb.Replica{NodeId: n + 1, ReplicaId: n + 1})
	}
	return &adminpb.RangeInfo{
		Descriptor_: d, LeaderNode: 2,
		Stats: &metapb.RangeStats{Keys: 5, Versions: 6, KeyBytes: 1 << 20, ValueBytes: 30 << 20},
	}
}
