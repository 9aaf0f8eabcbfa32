package server

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const (
	active          = metapb.NodeStanding_NODE_STANDING_ACTIVE
	drained         = metapb.NodeStanding_NODE_STANDING_DRAINING
	decommissioning = metapb.NodeStanding_NODE_STANDING_DECOMMISSIONING
	decommissioned  = metapb.NodeStanding_NODE_STANDING_DECOMMISSIONED
)

// listener is a node that only hears what it stands for, and what it has said.
func listener() (n *node, said *[]string) {
	said = &[]string{}
	cfg := Config{Notice: func(line string) { *said = append(*said, line) }}.WithDefaults()
	s := &Server{cfg: cfg, notice: &notices{out: cfg.Notice}}
	return &node{s: s, cfg: &s.cfg, self: 4, retired: make(chan struct{})}, said
}

func TestANodeThatIsDecommissionedWhileItRunsStopsAsAsked(t *testing.T) {
	t.Parallel()
	n, said := listener()
	n.heardStanding(nil) // a driver that has not read it yet
	for _, s := range []metapb.NodeStanding{active, drained, active, decommissioning} {
		n.heardStanding(s.Enum())
		if n.standing() != s || n.retiring() {
			t.Fatalf("told %v: stands as %v, retiring %v", s, n.standing(), n.retiring())
		}
	}
	n.heardStanding(decommissioned.Enum())
	n.heardStanding(decommissioned.Enum())
	if !n.retiring() || n.farewell() != nil {
		t.Fatalf("retiring %v, ends with %v", n.retiring(), n.farewell())
	}
	if len(*said) != 1 || !strings.Contains((*said)[0], "n4 has been decommissioned") {
		t.Fatalf("said %q", *said)
	}
	n.heardStanding(active.Enum()) // an answer that was late
	n.heardStanding(decommissioned.Enum())
}

func TestANodeThatWasDecommissionedBeforeItBeganEndsWithTheRemedy(t *testing.T) {
	t.Parallel()
	n, _ := listener()
	n.heardStanding(nil)
	n.heardStanding(decommissioned.Enum())
	err := n.farewell()
	if !n.retiring() || !errors.Is(err, ErrDecommissioned) ||
		!strings.Contains(err.Error(), "an empty directory") {
		t.Fatalf("retiring %v, ends with %v", n.retiring(), err)
	}
}

func TestProcessorLoadIsAveragedOverTheWindow(t *testing.T) {
	t.Parallel()
	var u usage
	if got := u.sample(time.Second, time.Minute); got != 0 {
		t.Fatalf("out of one sample: %v", got)
	}
	// Two processors busy: after the window 1-1/e of it has arrived, in whatever steps.
	now, cpu := time.Second, time.Minute
	for range 100 {
		now, cpu = now+usageWindow/100, cpu+2*usageWindow/100
		u.sample(now, cpu)
	}
	if want := 2 * (1 - 1/math.E); math.Abs(u.load-want) > 1e-9 {
		t.Fatalf("%v after the window, want %v", u.load, want)
	}
	for range 10 {
		now, cpu = now+usageWindow, cpu+2*usageWindow
		u.sample(now, cpu)
	}
	if math.Abs(u.load-2) > 1e-3 {
		t.Fatalf("%v in the long run, want 2", u.load)
	}
	if got := u.sample(now, cpu+time.Hour); got != u.load {
		t.Fatalf("no time has passed: %v", got)
	}
	if processorTime() == 0 {
		t.Error("this process has used no time at all")
	}
}

func TestRefusalsHaveTheirCodes(t *testing.T) {
	t.Parallel()
	wrapped := func(err error) error { return fmt.Errorf("drain n4: %w: because", err) }
	for _, c := range []struct {
		err   error
		code  codes.Code
		final bool // no other node is asked
	}{
		{nil, codes.OK, false},
		{wrapped(placement.ErrRefused), codes.FailedPrecondition, true},
		{wrapped(placement.ErrUnknownRange), codes.NotFound, true},
		{wrapped(placement.ErrUnknownNode), codes.NotFound, true},
		{wrapped(placement.ErrAskAgain), codes.Unavailable, false},
		{errNotDriver, codes.Unavailable, false},
		{bad("no id"), codes.InvalidArgument, true},
		{status.Error(codes.NotFound, waitsItself), codes.NotFound, false},
		{status.Error(codes.Unimplemented, "an older node"), codes.Unimplemented, false},
	} {
		got := adminVerdict(c.err)
		if status.Code(got) != c.code || decided(got) != c.final {
			t.Errorf("%v: code %v, final %v", c.err, status.Code(got), decided(got))
		}
		if c.err != nil && !strings.Contains(got.Error(), status.Convert(c.err).Message()) {
			t.Errorf("%v has become %v", c.err, got)
		}
	}
}

func TestRequestsThatNoDriverCouldAnswerAreRefusedAtTheDoor(t *testing.T) {
	t.Parallel()
	a := &adminService{} // nothing is asked
	ctx := t.Context()
	for name, ask := range map[string]func() error{
		"no node": func() error {
			_, err := a.SetStanding(ctx, &adminpb.SetStandingRequest{Standing: drained})
			return err
		},
		"a standing that nobody can ask for": func() error {
			_, err := a.SetStanding(ctx,
				&adminpb.SetStandingRequest{NodeId: 1, Standing: decommissioned})
			return err
		},
		"a standing of the future": func() error {
			_, err := a.SetStanding(ctx, &adminpb.SetStandingRequest{NodeId: 1, Standing: 77})
			return err
		},
		"nothing to do": func() error {
			_, err := a.Operate(ctx, &adminpb.OperateRequest{RangeId: 2})
			return err
		},
		"no range to merge": func() error {
			_, err := a.Operate(ctx, &adminpb.OperateRequest{
				What: &adminpb.OperateRequest_Merge{Merge: &adminpb.MergeWith{}},
			})
			return err
		},
		"nowhere to go": func() error {
			_, err := a.Operate(ctx, &adminpb.OperateRequest{
				RangeId: 2, What: &adminpb.OperateRequest_Relocate{Relocate: &adminpb.Relocate{}},
			})
			return err
		},
		"an empty span": func() error {
			_, err := a.Operate(ctx, &adminpb.OperateRequest{What: &adminpb.OperateRequest_Scatter{
				Scatter: &adminpb.Scatter{Start: []byte("b"), End: []byte("a")},
			}})
			return err
		},
		"a range and a span": func() error {
			_, err := a.Operate(ctx, &adminpb.OperateRequest{
				RangeId: 2, What: &adminpb.OperateRequest_Scatter{Scatter: &adminpb.Scatter{}},
			})
			return err
		},
		"nobody to lead": func() error {
			_, err := a.Operate(ctx, &adminpb.OperateRequest{
				RangeId: 2, What: &adminpb.OperateRequest_Transfer{Transfer: &adminpb.TransferTo{}},
			})
			return err
		},
		"nothing to explain": func() error {
			_, err := a.Explain(ctx, &adminpb.ExplainRequest{})
			return err
		},
		"no rules": func() error {
			_, err := a.SetRules(ctx, &adminpb.SetRulesRequest{})
			return err
		},
	} {
		if err := ask(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}
