package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func operators() []*adminpb.Operator {
	return []*adminpb.Operator{
		{
			Id: 17, RangeId: 42, Kind: "repair", Reason: "n3 has been silent for 5 min 3 s",
			Steps: []string{"add a learner on n4", "wait until n4 has caught up", "n4 votes for n3"},
			At:    1, AgeSeconds: 12.3, Outcome: "running",
		},
		{
			Id: 18, RangeId: 7, Kind: "balance-leaders", Reason: "n1 leads 9, n2 leads 3",
			Steps: []string{"n2 leads"}, AgeSeconds: 1, Outcome: "running",
		},
	}
}

func TestOperatorsAreListedWithStepsAndReasons(t *testing.T) {
	t.Parallel()
	f, s := newFake(t)
	var asked *adminpb.OperatorsRequest
	f.operators = func(r *adminpb.OperatorsRequest) *adminpb.OperatorsReply {
		asked = r
		all := operators()
		if r.GetHistory() {
			all[0].Outcome, all[0].TookSeconds, all[0].Error = "failed", 61.5, "n4 went silent"
			all[1].Outcome, all[1].TookSeconds, all[1].At = "done", 0.25, 1
		}
		return &adminpb.OperatorsReply{Operators: all, Total: 5}
	}
	golden(t, "ops", s.want(exitOK, "", "placement", "ops"))
	golden(t, "ops.json", s.want(exitOK, "", "placement", "ops", "-o", "json"))
	golden(t, "history", s.want(exitOK, "", "placement", "history", "--range", "r7", "--limit", "9"))
	if asked.GetRangeId() != 7 || asked.GetLimit() != 9 || !asked.GetHistory() {
		t.Errorf("asked for %v", asked)
	}
	f.operators = func(*adminpb.OperatorsRequest) *adminpb.OperatorsReply {
		return &adminpb.OperatorsReply{}
	}
	if out := s.want(exitOK, "", "placement", "ops"); out != "" {
		t.Errorf("no operator: %q", out)
	}
}

func TestExplainTakesARangeOrAKey(t *testing.T) {
	t.Parallel()
	f, s := newFake(t)
	var asked *adminpb.ExplainRequest
	f.explain = func(r *adminpb.ExplainRequest) (*adminpb.ExplainReply, error) {
		asked = r
		if r.GetRangeId() == 99 {
			return nil, status.Error(codes.NotFound, "no such range is known: r99")
		}
		return &adminpb.ExplainReply{Range: aRange(42, "user/", "user/7"), Lines: []string{
			`r42 holds keys from "user/" to "user/7": 31.0 MiB`,
			"rule default: 3 copies, apart by zone",
			"n2 leads: preferred by nobody, as good as any",
		}}, nil
	}
	for arg, want := range map[string]*adminpb.ExplainRequest{
		"r42": {RangeId: 42}, "42": {RangeId: 42}, "user/7": {Key: kv.UserKey(nil, []byte("user/7"))},
		"r42x": {Key: kv.UserKey(nil, []byte("r42x"))}, "r0": {Key: kv.UserKey(nil, []byte("r0"))},
	} {
		s.want(exitOK, "", "placement", "explain", arg)
		if asked.GetRangeId() != want.GetRangeId() || string(asked.GetKey()) != string(want.GetKey()) {
			t.Errorf("%s asks for %v", arg, asked)
		}
	}
	golden(t, "explain", s.want(exitOK, "", "placement", "explain", "--key", "r42"))
	if string(asked.GetKey()) != string(kv.UserKey(nil, []byte("r42"))) {
		t.Errorf("--key asks for %v", asked)
	}
	golden(t, "explain.json", s.want(exitOK, "", "placement", "explain", "r42", "-o", "json"))
	s.want(exitNotFound, "", "placement", "explain", "r99")
}

func TestPauseSaysByWhomAndWhy(t *testing.T) {
	t.Parallel()
	f, s := newFake(t)
	code, _, errOut := s.run("", "placement", "pause", "--why", "new switch")
	if code != exitOK || !strings.HasSuffix(f.paused, ": new switch") ||
		!strings.HasPrefix(errOut, "OK  placement is paused by ") {
		t.Errorf("exit %d, by %q: %s", code, f.paused, errOut)
	}
	if out := s.want(exitOK, "", "placement", "resume", "-o", "json"); out != "{\"paused\":false}\n" {
		t.Errorf("resume: %s", out)
	}
}

// fileOf writes a file for a command line.
func fileOf(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rules.json")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func someRules() *metapb.RuleSet {
	return &metapb.RuleSet{Version: 4, Rules: []*metapb.Rule{
		{Name: "default", Replicas: 3, Spread: "zone"},
		{
			Name: "eu", Prefix: []byte("eu/"), Replicas: 5, Require: []string{"region=eu"},
			Forbid: []string{"disk=slow", "zone=eu-9"}, Leaders: []string{"zone=eu-1", "zone=eu-2"},
		},
		{Name: "raw", Prefix: []byte{0xff, 0}, Replicas: 1},
	}}
}

func TestRulesThatWereGotCanBeSet(t *testing.T) {
	t.Parallel()
	f, s := newFake(t)
	f.rules = someRules()
	f.setRules = func(*adminpb.SetRulesRequest) *adminpb.SetRulesReply {
		return &adminpb.SetRulesReply{}
	}
	golden(t, "rules_get", s.want(exitOK, "", "placement", "rules", "get"))
	text := s.want(exitOK, "", "placement", "rules", "get", "-o", "json")
	golden(t, "rules_get.json", text)
	code, _, errOut := s.run(text, "placement", "rules", "set", "-")
	if code != exitOK || !slices.Equal(f.asked[2:], []string{"try rules", "set rules"}) {
		t.Fatalf("exit %d, asked %v: %s", code, f.asked, errOut)
	}
	want := someRules()
	if f.rules.GetVersion() != 5 || len(f.rules.GetRules()) != 3 {
		t.Fatalf("stored %v", f.rules)
	}
	for i, r := range f.rules.GetRules() {
		if r.String() != want.GetRules()[i].String() {
			t.Errorf("stored %v, want %v", r, want.GetRules()[i])
		}
	}
	// The same file again: somebody has changed the rules meanwhile.
	code, _, errOut = s.run(text, "placement", "rules", "set", "-")
	if code == exitOK || !strings.Contains(errOut, "the rules have version 5 by now, not 4") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

const twoRules = `{"rules": [{"name": "default", "prefix": "", "replicas": 3}]}`

func TestRulesThatMoveDataWantYes(t *testing.T) {
	t.Parallel()
	f, s := newFake(t)
	f.rules = someRules()
	f.setRules = func(*adminpb.SetRulesRequest) *adminpb.SetRulesReply {
		return &adminpb.SetRulesReply{
			Rules: f.rules, RangesAffected: 12, ReplicasToMove: 14, BytesToMove: 700 << 20,
			LeadersToMove: 1, Warnings: []string{"rule default spreads by zone, but there is one"},
			Examples: []string{"r7: n3 -> n4, which requires region=eu"},
		}
	}
	path := fileOf(t, twoRules)
	golden(t, "rules_check", s.want(exitOK, "", "placement", "rules", "check", path))
	golden(t, "rules_check.json", s.want(exitOK, "", "placement", "rules", "check", path, "-o", "json"))
	code, out, errOut := s.run("", "placement", "rules", "set", path)
	if code != exitUsage || out != "" || slices.Contains(f.asked, "set rules") {
		t.Errorf("exit %d, asked %v: %s", code, f.asked, errOut)
	}
	golden(t, "rules_set", errOut)
	out = s.want(exitOK, "", "placement", "rules", "set", path, "--yes", "-o", "json")
	var p previewReport
	if err := json.Unmarshal([]byte(out), &p); err != nil || !p.Stored || p.Version != 5 {
		t.Errorf("%v: %s", err, out)
	}
}

func TestRefusedRulesChangeNothingAndSayWhy(t *testing.T) {
	t.Parallel()
	f, s := newFake(t)
	f.rules = someRules()
	f.setRules = func(*adminpb.SetRulesRequest) *adminpb.SetRulesReply {
		return &adminpb.SetRulesReply{Faults: []string{"rule x: 2 replicas: ask for 1, 3, 5 or 7",
			"rule y requires zone=a and zone=b"}}
	}
	path := fileOf(t, twoRules)
	for _, verb := range []string{"check", "set"} {
		code, out, errOut := s.run("", "placement", "rules", verb, path)
		if code != exitError || out != "" || !strings.Contains(errOut, "the rules are refused, nothing "+
			"is changed: rule x: 2 replicas: ask for 1, 3, 5 or 7; rule y requires") {
			t.Errorf("%s: exit %d: %s", verb, code, errOut)
		}
	}
	if slices.Contains(f.asked, "set rules") {
		t.Errorf("asked %v", f.asked)
	}
}

func TestMalformedRulesNameTheLine(t *testing.T) {
	t.Parallel()
	s := &shell{t, "127.0.0.1:1"}
	for _, x := range []struct{ text, want string }{
		{"", "line 1"},
		{"{\n\"rules\": [\n{,", "line 3"},
		{"{\"rules\": []}\n{}", "something follows the JSON object"},
		{"{\n\"ruels\": []}", `unknown field "ruels"`},
		{"{\"rules\": [\n{\"name\": \"a\", \"prefix\": \"\", \"replicas\": \"3\"}]}", "line 2"},
		{`{"rules": [{"name": "a", "replicas": 3}]}`, `rule 1 (a): no prefix and no prefix_b64`},
		{`{"rules": [{"name": "a", "prefix_b64": "?", "replicas": 3}]}`, "prefix_b64"},
		{`{"rules": [{"name": "a", "prefix": "", "replicas": -3}]}`, "replicas"},
	} {
		code, out, errOut := s.run(x.text, "placement", "rules", "check", "-")
		if code != exitError || out != "" || !strings.Contains(errOut, x.want) ||
			strings.Count(errOut, "\n") != 1 {
			t.Errorf("%q: exit %d, %s", x.text, code, errOut)
		}
	}
	if code, _, errOut := s.run("", "placement", "rules", "set", "/nowhere/rules.json"); code != exitError {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestMalformedCommandLinesOfPlacementAndRanges(t *testing.T) {
	t.Parallel()
	s := &shell{t, "127.0.0.1:1"}
	for _, line := range []string{
		"placement explian r1", "placement explain", "placement explain r1 --key a",
		"placement explain a b", "placement ops now", "placement ops --limit 0",
		"placement ops --limit -1", "placement history --range x", "placement pause now",
		"placement rules", "placement rules gett", "placement rules set", "placement rules get x",
		"placement rules check a b",
		"ranges merge", "ranges merge x", "ranges merge r1 y", "ranges merge r1 r2 r3",
		"ranges merge r1 --interval 0s", "ranges relocate r1", "ranges relocate x n1",
		"ranges relocate r1 n1 n1", "ranges relocate r1 r2", "ranges scatter",
		"ranges scatter --all --prefix a", "ranges scatter r1", "ranges transfer r1",
		"ranges transfer x n2", "ranges transfer r1 x", "ranges transfer r1 n2 --interval 0s",
		"ranges split r1 --until -1s", "ranges split r1 --until soon", "ranges split --until 1h",
	} {
		code, _, errOut := s.run("", strings.Fields(line)...)
		if line == "placement rules" { // it helps
			code = exitUsage
			errOut = "\n"
		}
		if code != exitUsage || strings.Count(errOut, "\n") != 1 {
			t.Errorf("%s: exit %d: %s", line, code, errOut)
		}
	}
}

func TestMergeWaitsForItsOperatorAndTellsHowItEnded(t *testing.T) {
	t.Parallel()
	f, s := newFake(t)
	f.ranges = map[uint64]*adminpb.RangeInfo{
		42: aRange(42, "a", "m"), 43: aRange(43, "m", "q"), 44: aRange(44, "q", "z"),
	}
	var got *adminpb.OperateRequest
	f.operate = func(r *adminpb.OperateRequest) (*adminpb.OperateReply, error) {
		got = r
		return &adminpb.OperateReply{Operators: operators()[:1]}, nil
	}
	outcome, looks := "done", 0
	f.operators = func(r *adminpb.OperatorsRequest) *adminpb.OperatorsReply {
		reply := &adminpb.OperatorsReply{}
		if looks++; r.GetHistory() {
			reply.Operators = operators()[:1]
			reply.Operators[0].Outcome = outcome
			if outcome != "done" {
				reply.Operators[0].Error = "n2 does not follow"
			}
		} else if looks < 3 {
			reply.Operators = operators()
		}
		return reply
	}
	code, _, errOut := s.run("", "ranges", "merge", "r42", "r43", "--interval", "1ms")
	if code != exitOK || got.GetRangeId() != 42 || got.GetMerge() == nil {
		t.Errorf("exit %d, asked for %v", code, got)
	}
	golden(t, "merge", errOut)
	got = nil
	code, _, errOut = s.run("", "ranges", "merge", "r42", "r44")
	if code != exitError || got != nil || !strings.Contains(errOut,
		`r42 and r44 are not neighbours: r42 ends at "m", r44 begins at "q"`) {
		t.Errorf("exit %d, asked for %v: %s", code, got, errOut)
	}
	s.want(exitNotFound, "", "ranges", "merge", "r42", "r45")
	outcome = "failed"
	code, _, errOut = s.run("", "ranges", "merge", "r42", "--interval", "1ms")
	if code != exitError || !strings.Contains(errOut,
		"1 of 1 operator did not succeed: operator 17 on r42 failed: n2 does not follow") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestRelocateAndScatterAskForWhatTheLineSays(t *testing.T) {
	t.Parallel()
	f, s := newFake(t)
	var got *adminpb.OperateRequest
	f.operate = func(r *adminpb.OperateRequest) (*adminpb.OperateReply, error) {
		got = r
		if len(r.GetRelocate().GetNodes()) == 4 {
			return nil, status.Error(codes.FailedPrecondition, "refused: rule default wants 3 copies")
		}
		return &adminpb.OperateReply{Note: "its copies are there already"}, nil
	}
	_, _, errOut := s.run("", "ranges", "relocate", "r42", "n4", "2", "n5")
	if got.GetRangeId() != 42 || !slices.Equal(got.GetRelocate().GetNodes(), []uint64{4, 2, 5}) ||
		errOut != "OK  its copies are there already\n" {
		t.Errorf("asked for %v: %s", got, errOut)
	}
	code, _, errOut := s.run("", "ranges", "relocate", "r42", "1", "2", "3", "4")
	if code != exitError || errOut != "flotilla: refused: rule default wants 3 copies\n" {
		t.Errorf("exit %d: %s", code, errOut)
	}
	for line, want := range map[string]string{
		"--prefix user/": "\x20user/ \x20user0", "--all": "\x20 \x21", "--start a": "\x20a \x21",
	} {
		s.want(exitOK, "", append([]string{"ranges", "scatter"}, strings.Fields(line)...)...)
		x := got.GetScatter()
		if string(x.GetStart())+" "+string(x.GetEnd()) != want || got.GetRangeId() != 0 {
			t.Errorf("%s asks for %q to %q", line, x.GetStart(), x.GetEnd())
		}
	}
}
