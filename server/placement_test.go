package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// running is a node of this process that may end before the test does.
type running struct {
	*adminService
	cfg   Config
	stop  context.CancelFunc
	ended chan struct{}
	err   error // after ended
}

func run(t *testing.T, cfg Config) *running {
	t.Helper()
	log := &logLines{}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	ready := make(chan struct{})
	cfg.Ready = func(Info) { close(ready) }
	cfg.DrainTimeout = time.Second
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cfg.Listen, cfg.HTTP = s.Addr(), s.HTTPAddr()
	r := &running{cfg: cfg, stop: cancel, ended: make(chan struct{})}
	go func() {
		r.err = s.Run(ctx)
		close(r.ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.ended
		if t.Failed() {
			t.Logf("node at %s ended with %v:\n%s", cfg.Listen, r.err, log.b.String())
		}
	})
	select {
	case <-ready:
		r.adminService = &adminService{n: s.node.Load()}
	case <-r.ended:
	}
	return r
}

// startNodes starts a cluster in this process.
func startNodes(t *testing.T, count int) []*running {
	t.Helper()
	var nodes []*running
	for range count {
		cfg := testConfig(t)
		cfg.CheckEvery = time.Second
		// A node may be given leaders twice this long after its start.
		cfg.suspectAfter = 2 * time.Second
		// A busy machine must not end a promise in these stories.
		cfg.SupportDuration, cfg.SupportInterval = 3*time.Second, 100*time.Millisecond
		if len(nodes) > 0 {
			cfg.Init, cfg.Join = false, []string{nodes[0].cfg.Listen}
		}
		r := run(t, cfg)
		if r.adminService == nil {
			t.Fatalf("the node ended before it served: %v", r.err)
		}
		nodes = append(nodes, r)
	}
	return nodes
}

func inUsers(key string) []byte { return kv.UserKey(nil, []byte(key)) }

// split cuts the users' keys into so many ranges.
func (r *running) split(t *testing.T, count int) {
	t.Helper()
	for i := 1; i < count; i++ {
		key := inUsers(fmt.Sprintf("k%02d", i))
		eventually(t, "split", func(ctx context.Context) error {
			if _, err := r.SplitRange(ctx, &adminpb.SplitRangeRequest{Key: key}); err == nil {
				return nil
			}
			list, err := r.ListRanges(ctx, &adminpb.ListRangesRequest{Start: key})
			if err == nil && len(list.GetRanges()) > 0 &&
				bytes.Equal(list.GetRanges()[0].GetDescriptor_().GetStart(), key) {
				return nil // by an attempt whose answer was lost
			}
			return fmt.Errorf("%s is not a boundary: %w", key, err)
		})
	}
}

// healthy waits until every range has so many voters, none of them on node without,
// and nothing is wrong.
func (r *running) healthy(t *testing.T, voters int, without uint64) {
	t.Helper()
	eventually(t, "healthy", func(ctx context.Context) error {
		s, err := r.Status(ctx, &adminpb.StatusRequest{})
		if err != nil || len(s.GetProblems()) > 0 {
			return fmt.Errorf("problems %q: %w", s.GetProblems(), err)
		}
		list, err := r.ListRanges(ctx, &adminpb.ListRangesRequest{})
		if err != nil {
			return err
		}
		if gap := untiled(list.GetRanges()); gap != "" {
			return errors.New(gap)
		}
		for _, i := range list.GetRanges() {
			found := 0
			for _, p := range i.GetDescriptor_().GetReplicas() {
				if p.GetRole() == metapb.ReplicaRole_REPLICA_ROLE_VOTER && p.GetNodeId() != without {
					found++
				}
			}
			if found != voters || len(i.GetDescriptor_().GetReplicas()) != voters {
				return fmt.Errorf("range %v", i)
			}
		}
		return nil
	})
}

// untiled says where the ranges leave a gap or overlap, "" if nowhere.
func untiled(ranges []*adminpb.RangeInfo) string {
	at := []byte{kv.SystemPrefix}
	for _, i := range ranges {
		d := i.GetDescriptor_()
		if !bytes.Equal(d.GetStart(), at) {
			return fmt.Sprintf("r%d begins at %q, the one before ends at %q",
				d.GetRangeId(), d.GetStart(), at)
		}
		at = d.GetEnd()
	}
	if !bytes.Equal(at, []byte{kv.EndPrefix}) {
		return fmt.Sprintf("the last range ends at %q", at)
	}
	return ""
}

// stand asks for a standing until the cluster accepts it.
func (r *running) stand(t *testing.T, node uint64, want metapb.NodeStanding) {
	t.Helper()
	eventually(t, fmt.Sprintf("n%d becomes %v", node, want), func(ctx context.Context) error {
		reply, err := r.SetStanding(ctx,
			&adminpb.SetStandingRequest{NodeId: node, Standing: want})
		if got := reply.GetNode().GetStatus(); err == nil &&
			(got.GetStanding() != want || got.GetNode().GetNodeId() != node) {
			t.Errorf("n%d becomes %v: the answer is %v", node, want, reply)
		}
		return err
	})
}

// leads says how many ranges a node leads, as it knows itself.
func (r *running) leads() int {
	_, leaders := r.n.table.Counts()
	return leaders
}

func (r *running) progress(ctx context.Context, node uint64) (*adminpb.NodeProgress, error) {
	reply, err := r.Nodes(ctx, &adminpb.NodesRequest{})
	if err != nil {
		return nil, err
	}
	for _, p := range reply.GetNodes() {
		if p.GetStatus().GetNode().GetNodeId() == node {
			return p, nil
		}
	}
	return nil, fmt.Errorf("n%d is not in the list", node)
}

func TestANodeIsDrainedAndUndrainedAndDecommissionedToTheEnd(t *testing.T) {
	t.Parallel()
	const ranges = 6
	nodes := startNodes(t, 4)
	// The founder, which leads most and drives placement: its tasks go on elsewhere.
	first, asked := nodes[0], nodes[3]
	asked.split(t, ranges)
	asked.healthy(t, 3, 0)

	asked.stand(t, 1, drained)
	eventually(t, "n1 has given its leaders away", func(ctx context.Context) error {
		p, err := asked.progress(ctx, 1)
		if err != nil || p.GetLeadersLeft() > 0 || first.leads() > 0 ||
			first.n.standing() != drained {
			return fmt.Errorf("%v, leads %d, stands as %v: %w", p, first.leads(),
				first.n.standing(), err)
		}
		return nil
	})
	// It says so of itself, and serves on.
	own, err := first.Status(t.Context(), &adminpb.StatusRequest{LocalOnly: true})
	if err != nil || own.GetNodes()[0].GetStanding() != drained || !own.GetReady() {
		t.Fatalf("of itself it says %v, %v", own, err)
	}
	asked.stand(t, 1, active)
	eventually(t, "n1 hears that it is active", func(context.Context) error {
		if s := first.n.standing(); s != active {
			return fmt.Errorf("it stands as %v", s)
		}
		return nil
	})

	asked.stand(t, 1, decommissioning)
	select {
	case <-first.ended:
	case <-time.After(time.Minute):
		p, err := asked.progress(t.Context(), 1)
		t.Fatalf("n1 still runs; %v, %v", p, err)
	}
	if first.err != nil {
		t.Fatalf("n1 ended with %v, it stopped as it was asked to", first.err)
	}
	asked.healthy(t, 3, 1)

	again := run(t, first.cfg)
	<-again.ended
	if !errors.Is(again.err, ErrDecommissioned) {
		t.Fatalf("started again n1 ended with %v", again.err)
	}

	// Of the addresses that it remembers one is still a member's, who does not drive
	// and names the driver, at an address that n1 does not know.
	first.remembersOnly(t, nodes[slices.IndexFunc(nodes, func(r *running) bool {
		return r != first && !r.n.table.Leads(systemID)
	})])
	late := run(t, first.cfg)
	select {
	case <-late.ended:
	case <-time.After(time.Minute):
		t.Fatal("n1 waits for ever for nodes at addresses where nobody lives")
	}
	if !errors.Is(late.err, ErrDecommissioned) {
		t.Fatalf("started with old addresses n1 ended with %v", late.err)
	}
}

// remembersOnly makes a node that has ended remember one right address.
func (r *running) remembersOnly(t *testing.T, other *running) {
	t.Helper()
	st, err := store.Open(store.Options{
		Dir: r.cfg.Data, CacheBytes: r.cfg.CacheBytes, Logger: r.cfg.Logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	known, err := loadRegistry(st)
	if err == nil {
		for _, n := range known.GetNodes() {
			if n.Address = other.cfg.Listen; n.GetNodeId() != uint64(other.n.self) {
				n.Address = "127.0.0.1:1"
			}
		}
		var data []byte
		if data, err = proto.Marshal(known); err == nil {
			err = saveRegistry(st, data)
		}
	}
	if err := errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestWhatPeopleHaveSetOutlivesTheDriver(t *testing.T) {
	t.Parallel()
	nodes := startNodes(t, 3)
	asked := nodes[2]
	asked.split(t, 5)
	asked.healthy(t, 3, 0)
	var rules *metapb.RuleSet
	eventually(t, "pause and set rules", func(ctx context.Context) error {
		paused, err := asked.Pause(ctx, &adminpb.PauseRequest{Paused: true, By: "a test"})
		if err != nil || !paused.GetSettings().GetPaused() {
			return fmt.Errorf("%v: %w", paused, err)
		}
		old, err := asked.GetRules(ctx, &adminpb.GetRulesRequest{})
		if err != nil {
			return err
		}
		reply, err := asked.SetRules(ctx, &adminpb.SetRulesRequest{Rules: &metapb.RuleSet{
			Version: old.GetRules().GetVersion(),
			Rules: append(slices.Clone(old.GetRules().GetRules()),
				&metapb.Rule{Name: "single", Prefix: []byte("k03x"), Replicas: 1}),
		}})
		if rules = reply.GetRules(); err != nil || len(reply.GetFaults()) > 0 {
			return fmt.Errorf("faults %q: %w", reply.GetFaults(), err)
		}
		return nil
	})

	refusals(t, asked)

	driver := uint64(0)
	eventually(t, "another drives", func(ctx context.Context) error {
		r, err := asked.ShowRange(ctx, &adminpb.ShowRangeRequest{RangeId: 1})
		if err != nil {
			return err
		}
		if driver == 0 {
			driver = r.GetRange().GetLeaderNode()
		} else if now := r.GetRange().GetLeaderNode(); now != 0 && now != driver {
			return nil
		}
		_, err = asked.TransferLeader(ctx,
			&adminpb.TransferLeaderRequest{RangeId: 1, ToNode: driver%3 + 1})
		return fmt.Errorf("n%d still drives: %w", driver, err)
	})
	// Whoever asks first gets an answer without gaps: it waits for the new driver.
	list, err := asked.ListRanges(t.Context(), &adminpb.ListRangesRequest{})
	if gap := untiled(list.GetRanges()); err != nil || gap != "" {
		t.Errorf("right after the change: %s, %v", gap, err)
	}
	eventually(t, "the new driver knows", func(ctx context.Context) error {
		s, err := asked.Status(ctx, &adminpb.StatusRequest{})
		if err != nil || !strings.Contains(s.GetPausedBy(), "a test") {
			return fmt.Errorf("paused by %q: %w", s.GetPausedBy(), err)
		}
		got, err := asked.GetRules(ctx, &adminpb.GetRulesRequest{})
		if err != nil || got.GetRules().GetVersion() != rules.GetVersion() {
			return fmt.Errorf("rules %v, want %v: %w", got, rules, err)
		}
		return nil
	})
}

// refusals are what must be refused with its reason, and change nothing. Of three
// nodes, with three copies of every range.
func refusals(t *testing.T, r *running) {
	t.Helper()
	ctx := t.Context()
	before, err := r.ListRanges(ctx, &adminpb.ListRangesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	last := before.GetRanges()[len(before.GetRanges())-1].GetDescriptor_().GetRangeId()
	operate := func(id uint64, what *adminpb.OperateRequest) error {
		what.RangeId = id
		_, err := r.Operate(ctx, what)
		return err
	}
	relocate := func(id uint64, nodes ...uint64) error {
		return operate(id, &adminpb.OperateRequest{What: &adminpb.OperateRequest_Relocate{
			Relocate: &adminpb.Relocate{Nodes: nodes},
		}})
	}
	merge := func(id uint64) error {
		return operate(id, &adminpb.OperateRequest{What: &adminpb.OperateRequest_Merge{
			Merge: &adminpb.MergeWith{},
		}})
	}
	stand := func(node uint64, want metapb.NodeStanding) error {
		_, err := r.SetStanding(ctx, &adminpb.SetStandingRequest{NodeId: node, Standing: want})
		return err
	}
	_, unknown := r.Explain(ctx, &adminpb.ExplainRequest{RangeId: 999})
	for name, c := range map[string]struct {
		err     error
		code    codes.Code
		mention string
	}{
		"fewer nodes than copies": {stand(2, decommissioning), codes.FailedPrecondition, "n2"},
		"a node twice":            {relocate(last, 1, 2, 2), codes.FailedPrecondition, "n2"},
		"to an unknown node":      {relocate(last, 1, 2, 77), codes.NotFound, "n77"},
		"of an unknown node":      {stand(77, drained), codes.NotFound, "n77"},
		"the last range":          {merge(last), codes.FailedPrecondition, ""},
		"the system range":        {merge(1), codes.FailedPrecondition, ""},
		"an unknown range":        {merge(999), codes.NotFound, "r999"},
		"of an unknown range":     {unknown, codes.NotFound, "r999"},
	} {
		if status.Code(c.err) != c.code || !strings.Contains(c.err.Error(), c.mention) {
			t.Errorf("%s: %v, want %v that mentions %q", name, c.err, c.code, c.mention)
		}
	}
	rules, err := r.GetRules(ctx, &adminpb.GetRulesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	reply, err := r.SetRules(ctx, &adminpb.SetRulesRequest{Rules: &metapb.RuleSet{
		Version: rules.GetRules().GetVersion(),
		Rules:   []*metapb.Rule{{Name: "default", Replicas: 2}},
	}})
	if err != nil || len(reply.GetFaults()) == 0 {
		t.Errorf("two copies: %v, %v", reply, err)
	}

	after, err := r.ListRanges(ctx, &adminpb.ListRangesRequest{})
	if err != nil || len(after.GetRanges()) != len(before.GetRanges()) {
		t.Errorf("%d ranges have become %d, %v", len(before.GetRanges()),
			len(after.GetRanges()), err)
	}
	now, err := r.GetRules(ctx, &adminpb.GetRulesRequest{})
	if err != nil || now.GetRules().GetVersion() != rules.GetRules().GetVersion() {
		t.Errorf("rules %v have become %v, %v", rules, now, err)
	}
	all, err := r.Nodes(ctx, &adminpb.NodesRequest{})
	for _, p := range all.GetNodes() {
		if p.GetStatus().GetStanding() != active {
			t.Errorf("a node was changed: %v", p)
		}
	}
	if err != nil || len(all.GetNodes()) != 3 {
		t.Errorf("%d nodes, %v", len(all.GetNodes()), err)
	}
}

func TestTheLastNodeIsNotDrained(t *testing.T) {
	t.Parallel()
	only := startNodes(t, 1)[0]
	eventually(t, "refused", func(ctx context.Context) error {
		_, err := only.SetStanding(ctx, &adminpb.SetStandingRequest{NodeId: 1, Standing: drained})
		if err == nil {
			t.Fatal("the only node is drained")
		}
		if status.Code(err) != codes.FailedPrecondition {
			return err
		}
		return nil
	})
	if only.n.standing() != active {
		t.Error("and so it stands")
	}
}

func TestTheDriversNodeShowsWhatPlacementDoes(t *testing.T) {
	t.Parallel()
	only := startNodes(t, 1)[0]
	eventually(t, "paused", func(ctx context.Context) error {
		_, err := only.Pause(ctx, &adminpb.PauseRequest{Paused: true, By: "a test"})
		return err
	})
	page, err := http.Get("http://" + only.cfg.HTTP + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer page.Body.Close()
	text, err := io.ReadAll(page.Body)
	if err != nil || page.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v: %s", page.Status, err, text)
	}
	for _, line := range []string{
		"flotilla_placement_drives 1",
		"flotilla_placement_paused 1",
		"flotilla_placement_ranges 2",
		`flotilla_placement_operators_begun_total{kind="repair"} 0`,
		`flotilla_placement_operators_failed_total{kind="request"} 0`,
		`flotilla_placement_node_leaders{node="n1"} 2`,
		`flotilla_placement_node_receiving{node="n1"} 0`,
		"flotilla_node_standing 0",
		"flotilla_range_load_splits_total 0",
		"flotilla_range_merges_total 0",
	} {
		if !strings.Contains(string(text), "\n"+line+"\n") {
			t.Errorf("%s is not on the page", line)
		}
	}
}
