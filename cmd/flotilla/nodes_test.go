package main

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const (
	active          = metapb.NodeStanding_NODE_STANDING_ACTIVE
	draining        = metapb.NodeStanding_NODE_STANDING_DRAINING
	decommissioning = metapb.NodeStanding_NODE_STANDING_DECOMMISSIONING
	left            = metapb.NodeStanding_NODE_STANDING_DECOMMISSIONED
)

func threeNodes(t *testing.T) (*fakeAdmin, *shell) {
	f, s := newFake(t)
	f.nodes = []*adminpb.NodeProgress{progress(1, active), progress(2, active), progress(3, active)}
	f.refuse = map[uint64]string{}
	return f, s
}

func TestDrainWaitsUntilANodeLeadsNothing(t *testing.T) {
	t.Parallel()
	f, s := threeNodes(t)
	n := f.find(2)
	n.LeadersLeft, n.LeadersMost, n.SecondsLeft = 30, 30, 12
	f.change = func(f *fakeAdmin) {
		if n.Status.Standing == draining && n.LeadersLeft > 0 {
			n.LeadersLeft -= 10
		}
	}
	code, out, errOut := s.run("", "nodes", "drain", "n2", "--interval", "1ms")
	if code != exitOK || out != "" || !slices.Contains(f.asked, "draining") {
		t.Errorf("exit %d, %q, asked %v", code, out, f.asked)
	}
	golden(t, "drain", errOut)
	// Again: it is so already, and nobody is asked to change anything.
	f.asked = nil
	out = s.want(exitOK, "", "nodes", "drain", "2", "-o", "json")
	if slices.Contains(f.asked, "draining") {
		t.Errorf("asked again: %v", f.asked)
	}
	golden(t, "drain.json", out)
	s.want(exitOK, "", "nodes", "undrain", "n2")
	if n.Status.Standing != active {
		t.Errorf("n2 is %v", n.Status.Standing)
	}
}

func TestDecommissionGoesOnWhereItWasInterrupted(t *testing.T) {
	t.Parallel()
	f, s := threeNodes(t)
	n := f.find(3)
	n.ReplicasLeft, n.ReplicasMost, n.BytesLeft = 100, 100, 5<<30
	ctx, cancel := context.WithCancel(t.Context())
	f.change = func(f *fakeAdmin) {
		if f.looks == 3 {
			cancel() // somebody presses ^C
		}
	}
	var out, errOut bytes.Buffer
	args := []string{"--endpoints", f.addr, "nodes", "decommission", "n3", "--interval", "1ms"}
	if code := run(ctx, args, nil, &out, &errOut); code != exitError ||
		!strings.Contains(errOut.String(), "interrupted: the cluster goes on with it") {
		t.Fatalf("exit %d: %s", code, errOut.String())
	}
	f.mu.Lock()
	f.asked = nil
	f.change = func(*fakeAdmin) {
		n.ReplicasLeft, n.BytesLeft = n.ReplicasLeft/2, n.BytesLeft/2
		if n.ReplicasLeft == 0 {
			n.Status.Standing = left
		}
	}
	f.mu.Unlock()
	_, _, text := s.run("", "nodes", "decommission", "n3", "--interval", "1ms")
	golden(t, "decommission", text)
	if slices.Contains(f.asked, "decommissioning") {
		t.Error("the second run asked for it again")
	}
	if code, _, text := s.run("", "nodes", "decommission", "n3"); code != exitOK ||
		text != "OK  n3 is decommissioned\n" {
		t.Errorf("when it is done, exit %d: %s", code, text)
	}
}

func TestWhatIsStuckEndsWithThatReason(t *testing.T) {
	t.Parallel()
	f, s := threeNodes(t)
	n := f.find(3)
	n.ReplicasLeft, n.ReplicasMost = 7, 100
	n.Stuck = []string{"r12: no node is allowed by rule eu"}
	code, _, errOut := s.run("", "nodes", "decommission", "n3", "--interval", "1ms",
		"--stuck-after", "5ms")
	if code != exitError {
		t.Errorf("exit %d", code)
	}
	golden(t, "stuck", errOut)
	n.Status.Standing = active
	f.change = func(f *fakeAdmin) {
		if f.looks%4 == 0 {
			n.Status.Standing = active // somebody runs undrain meanwhile
		}
	}
	n.LeadersLeft = 3
	code, _, errOut = s.run("", "nodes", "drain", "n3", "--interval", "1ms")
	if code != exitError || !strings.Contains(errOut, "n3 is active now: somebody else has asked") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestARefusalIsToldAndSaysWhatWasAccepted(t *testing.T) {
	t.Parallel()
	f, s := threeNodes(t)
	f.refuse[3] = "refused: rule default wants 3 copies, 2 nodes would remain"
	code, _, errOut := s.run("", "nodes", "decommission", "n2", "n3", "--no-wait")
	if code != exitError || errOut != "flotilla: n3: refused: rule default wants 3 copies, 2 nodes "+
		"would remain (accepted before it: n2)\n" {
		t.Errorf("exit %d: %s", code, errOut)
	}
	if code, _, errOut = s.run("", "nodes", "drain", "n9"); code != exitNotFound {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestANodeThatHasJustTakenOverPlacementIsNotBelieved(t *testing.T) {
	t.Parallel()
	f, s := threeNodes(t)
	n := f.find(2)
	n.LeadersLeft, n.LeadersMost = 5, 5
	all := f.nodes
	f.change = func(f *fakeAdmin) {
		switch f.looks {
		case 3: // nobody drives
			f.nodes = nil
		case 4: // somebody does, and does not know what n2 leads
			f.nodes, f.collecting, n.LeadersLeft = all, true, 0
		case 6:
			f.collecting, n.LeadersLeft = false, 4
		case 8:
			n.LeadersLeft = 0
		}
	}
	s.want(exitOK, "", "nodes", "drain", "n2", "--interval", "1ms")
	if f.looks != 8 {
		t.Errorf("drained at the look %d", f.looks)
	}
}

func TestADrainIsNotDoneAsLongAsNobodyKnowsWhatIsLeft(t *testing.T) {
	t.Parallel()
	f, s := threeNodes(t)
	n := f.find(2)
	n.LeadersLeft, n.LeadersMost = 5, 5
	f.change = func(f *fakeAdmin) {
		switch f.looks {
		case 3: // another node drives; in the status of the cluster all seems well
			n.LeadersLeft, n.LeadersMost, n.Unknown = 0, 0, true
			n.Stuck = []string{"not all nodes have told the new driver"}
		case 6:
			n.LeadersLeft, n.LeadersMost, n.Unknown, n.Stuck = 4, 4, false, nil
		case 8:
			n.LeadersLeft = 0
		}
	}
	s.want(exitOK, "", "nodes", "drain", "n2", "--interval", "1ms")
	if f.looks != 8 {
		t.Errorf("drained at the look %d", f.looks)
	}
	n.Unknown = true
	out := s.want(exitOK, "", "nodes", "ls")
	if !strings.Contains(out, "n2 draining: what is left is not known yet\n") {
		t.Errorf("nodes ls:\n%s", out)
	}
	out = s.want(exitOK, "", "nodes", "ls", "-o", "json")
	if !strings.Contains(out, `"unknown":true`) {
		t.Errorf("nodes ls -o json:\n%s", out)
	}
	n.Stuck = []string{"not all nodes have told the new driver"}
	code, _, errOut := s.run("", "nodes", "drain", "n2", "--interval", "1ms",
		"--stuck-after", "5ms")
	if code != exitError || !strings.Contains(errOut,
		"n2 is stuck with what is left is not known yet: not all nodes have told") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestMalformedCommandLinesOfNodes(t *testing.T) {
	t.Parallel()
	s := &shell{t, "127.0.0.1:1"}
	for _, line := range []string{
		"nodes drain", "nodes drain x", "nodes drain n0", "nodes drain n1 1", "nodes drain -1",
		"nodes decommission", "nodes undrain", "nodes undrain r1", "nodes ls n1",
		"nodes drain n1 --interval 0s", "nodes drain n1 --stuck-after -1s",
		"nodes drain 18446744073709551616", "nodes dran n1",
	} {
		if code, out, errOut := s.run("", strings.Fields(line)...); code != exitUsage || out != "" ||
			strings.Count(errOut, "\n") != 1 {
			t.Errorf("%s: exit %d, %q: %s", line, code, out, errOut)
		}
	}
}

func TestNodesAndStatusShowStandingAndLoad(t *testing.T) {
	t.Parallel()
	f, s := threeNodes(t)
	f.paused = "ann@desk: switch s7 is replaced"
	for i, n := range f.nodes {
		n.Status.Node.Locality = []string{"region=eu", "zone=" + string(rune('a'+i))}
		n.Status.ReplicaBytes, n.Status.CpuMicrosPerSecond = 12<<30, 420_000
		n.Status.WriteBytesPerSecond, n.Status.ReadBytesPerSecond = 3<<20, 1<<20
		n.Status.DiskBytes, n.Status.DiskFreeBytes, n.Status.Version = 1<<40, 1<<39, "v0.4.0"
	}
	f.nodes[1].Status.Standing = decommissioning
	f.nodes[1].ReplicasLeft, f.nodes[1].ReplicasMost = 12, 100
	f.nodes[1].BytesLeft, f.nodes[1].SecondsLeft = 3<<20, 75
	f.nodes[1].Stuck = []string{"r7 has lost a copy elsewhere: that is repaired first"}
	gone := progress(4, left)
	gone.Status.Live, gone.Status.Replicas, gone.Status.Leaders = false, 0, 0
	f.nodes = append(f.nodes, gone)
	golden(t, "nodes_ls", s.want(exitOK, "", "nodes", "ls"))
	golden(t, "nodes_ls.json", s.want(exitOK, "", "nodes", "ls", "-o", "json"))
	golden(t, "status", s.want(exitOK, "", "status"))
	// A node that left for good is not missed.
	if out := s.want(exitOK, "", "health"); !strings.HasPrefix(out, "healthy  3 of 3 nodes live") {
		t.Errorf("health: %s", out)
	}
	f.nodes[0].Status.Live, f.nodes[0].Status.SilentSeconds = false, 42
	out := s.want(exitOK, "", "status")
	if !strings.Contains(out, "next      start n1 (10.0.0.1:7001); if gone for good: "+
		"flotilla nodes decommission n1\n") {
		t.Errorf("status:\n%s", out)
	}
}

func TestBarsOfATerminalAreDrawnOverAndElsewhereLinesAreRare(t *testing.T) {
	t.Parallel()
	all := []progressReport{
		{Node: 2, Standing: "draining", LeadersLeft: 3, LeadersMost: 12, SecondsLeft: 4},
		{Node: 13, Standing: "decommissioning", ReplicasLeft: 90, ReplicasMost: 100, BytesLeft: 9 << 20},
	}
	var out bytes.Buffer
	b := &bars{out: &out, terminal: true, width: 80, last: map[uint64]string{}}
	b.draw(all)
	all[0].LeadersLeft = 0
	b.draw(all)
	golden(t, "bars", strings.ReplaceAll(out.String(), "\x1b", "<esc>"))
	out.Reset()
	b = &bars{out: &out, shown: time.Now(), last: map[uint64]string{}}
	b.draw(all)
	b.draw(all)
	if lines := strings.Count(out.String(), "\n"); lines != 2 {
		t.Errorf("%d lines:\n%s", lines, out.String())
	}
}
