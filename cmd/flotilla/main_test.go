package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/flotilla-kv/flotilla/client/clienttest"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// shell runs command lines against a cluster in memory.
type shell struct {
	t         *testing.T
	endpoints string
}

func newShell(t *testing.T) (*shell, *clienttest.Server) {
	s := clienttest.Start(t, 3)
	return &shell{t, strings.Join(s.Endpoints(), ",")}, s
}

// run runs a command line with input.
func (s *shell) run(in string, args ...string) (code int, out, errOut string) {
	s.t.Helper()
	var o, e bytes.Buffer
	args = append([]string{"--endpoints", s.endpoints}, args...)
	code = run(s.t.Context(), args, strings.NewReader(in), &o, &e)
	return code, o.String(), e.String()
}

// want runs a command line that must end with a code, and returns its stdout.
func (s *shell) want(code int, in string, args ...string) string {
	s.t.Helper()
	got, out, errOut := s.run(in, args...)
	if got != code {
		s.t.Fatalf("flotilla %q: exit %d, want %d\n%s%s", args, got, code, out, errOut)
	}
	return out
}

func TestKeysAndTheirExitCodes(t *testing.T) {
	t.Parallel()
	s, _ := newShell(t)
	s.want(exitOK, "", "kv", "put", "hello", "world")
	if out := s.want(exitOK, "", "kv", "get", "hello"); out != "world\n" {
		t.Errorf("get: %q", out)
	}
	s.want(exitOK, "from\x00stdin", "kv", "put", "raw", "-")
	if out := s.want(exitOK, "", "kv", "get", "raw", "--raw"); out != "from\x00stdin" {
		t.Errorf("get --raw: %q", out)
	}
	s.want(exitNotFound, "", "kv", "get", "none")
	s.want(exitConflict, "", "kv", "cas", "hello", "x", "--if-absent")
	s.want(exitOK, "", "kv", "cas", "hello", "you", "--if-value", "world")
	s.want(exitOK, "", "kv", "cas", "hello", "--delete", "--if-exists")
	s.want(exitNotFound, "", "kv", "get", "hello")
	s.want(exitUsage, "", "kv", "cas", "hello", "x")
	s.want(exitUsage, "", "kv", "put", "hello")
	s.want(exitUsage, "", "kv", "get", "a", "--nonsense")
	s.want(exitUsage, "", "kv", "get", "a", "-o", "xml")
	s.want(exitUsage, "", "kv", "put", "", "empty")
	s.want(exitUsage, "", "kv", "scan", "--limit", "-1")
	out := s.want(exitOK, "", "kv", "get", "raw", "-o", "json")
	if !strings.HasPrefix(out, `{"key":"raw","value":"from\u0000stdin","version":`) {
		t.Errorf("get -o json: %q", out)
	}
}

func TestScanAndDeleteSpans(t *testing.T) {
	t.Parallel()
	s, cluster := newShell(t)
	for _, k := range []string{"a", "user/1", "user/2", "user/3", "z"} {
		s.want(exitOK, "", "kv", "put", k, "v\t"+k)
	}
	cluster.Split("user/2")
	if out := s.want(exitOK, "", "kv", "scan", "user/"); out !=
		"user/1\tv\\tuser/1\nuser/2\tv\\tuser/2\nuser/3\tv\\tuser/3\n" {
		t.Errorf("scan: %q", out)
	}
	if out := s.want(exitOK, "", "kv", "scan", "--reverse", "--limit", "2", "--keys-only"); out !=
		"z\nuser/3\n" {
		t.Errorf("scan --reverse: %q", out)
	}
	s.want(exitUsage, "", "kv", "del")
	s.want(exitOK, "", "kv", "del", "--prefix", "user/")
	if out := s.want(exitOK, "", "kv", "scan", "--keys-only"); out != "a\nz\n" {
		t.Errorf("after del --prefix: %q", out)
	}
	if out := s.want(exitOK, "", "kv", "del", "--all", "-o", "json"); out != "{\"deleted\":2}\n" {
		t.Errorf("del --all: %q", out)
	}
}

func TestImportThenExportGivesBackEveryByte(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, rng.IntN(n))
		for i := range b {
			b[i] = "\t\n\\\r\x00aé\xff\"<"[rng.IntN(11)]
		}
		return b
	}
	s, cluster := newShell(t)
	cluster.Split("0150")
	cluster.Split("0333")
	var lines strings.Builder
	for n := range 500 {
		row := record{}
		row.Key, row.KeyB64 = textOrBase64(append(fmt.Appendf(nil, "%04d", n), random(20)...))
		row.Value, row.ValueB64 = textOrBase64(random(60))
		if err := (&app{stdout: &lines}).json(row); err != nil {
			t.Fatal(err)
		}
	}
	s.want(exitOK, lines.String(), "kv", "import", "--format", "jsonl")
	first := s.want(exitOK, "", "kv", "export", "--format", "jsonl")
	if first != lines.String() {
		t.Fatal("jsonl: export differs from what was imported")
	}
	tsv := s.want(exitOK, "", "kv", "export")
	other, _ := newShell(t)
	other.want(exitOK, tsv, "kv", "import", "-")
	if again := other.want(exitOK, "", "kv", "export"); again != tsv {
		t.Error("tsv: export differs from what was imported")
	}
	if again := other.want(exitOK, "", "kv", "export", "--format", "jsonl"); again != first {
		t.Error("the formats do not mean the same")
	}
}

func TestImportSaysWhichLineIsMalformedAndWhatIsWritten(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ name, format, line, why string }{
		{"tab", "tsv", "no tab here", "no tab between key and value"},
		{"tabs", "tsv", "a\tb\tc", "a second tab"},
		{"escape", "tsv", `a\x` + "\tb", `unknown escape \x`},
		{"backslash", "tsv", "a\tb\\", "a lone backslash"},
		{"key", "tsv", "\tb", "the key is empty"},
		{"json", "jsonl", "{", "not a JSON object"},
		{"field", "jsonl", `{"key":"a","vlaue":"b"}`, "vlaue"},
		{"both", "jsonl", `{"key":"a","key_b64":"YQ==","value":""}`, "both key and key_b64"},
		{"none", "jsonl", `{"key":"a"}`, "no value and no value_b64"},
		{"base64", "jsonl", `{"key":"a","value_b64":"?"}`, "value_b64"},
		{"surrogate", "jsonl", `{"key":"a","value":"\ud800"}`, "broken"},
		{"bytes", "jsonl", "{\"key\":\"a\",\"value\":\"\xff\"}", "not valid UTF-8"},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			s, _ := newShell(t)
			good := "k1\tv\nk2\tv\n"
			if x.format == "jsonl" {
				good = `{"key":"k1","value":"v"}` + "\n" + `{"key":"k2","value":"v"}` + "\n"
			}
			code, _, errOut := s.run(good+x.line+"\n"+good, "kv", "import", "--format", x.format)
			if code != exitError || !strings.Contains(errOut, "line 3 is malformed: ") ||
				!strings.Contains(errOut, x.why) || !strings.Contains(errOut, "imported 2 records") {
				t.Errorf("exit %d: %s", code, errOut)
			}
			if out := s.want(exitOK, "", "kv", "scan", "--keys-only"); out != "k1\nk2\n" {
				t.Errorf("written: %q", out)
			}
		})
	}
}

func TestFailedImportGoesOnWhereItSays(t *testing.T) {
	t.Parallel()
	s, cluster := newShell(t)
	var puts atomic.Int64
	cluster.Fates(func(_ int, r *kv.Request) clienttest.Fate {
		if r.Verb == kv.VerbPut && puts.Add(1) > 50 {
			return clienttest.Refuse
		}
		return clienttest.Serve
	})
	var lines strings.Builder
	for n := range 200 {
		fmt.Fprintf(&lines, "k%03d\t%d\n", n, n)
	}
	code, _, errOut := s.run(lines.String(), "kv", "import", "--window", "8", "--timeout", "100ms")
	var skip int
	_, hint, _ := strings.Cut(errOut, "--skip-lines ")
	if _, err := fmt.Sscan(hint, &skip); err != nil || code != exitUnavailable {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	cluster.Fates(nil)
	s.want(exitOK, lines.String(), "kv", "import", "--skip-lines", fmt.Sprint(skip))
	if out := s.want(exitOK, "", "kv", "export"); out != lines.String() {
		t.Errorf("after going on at %d the keys differ", skip)
	}
}

func TestLaterLineOfAKeyWins(t *testing.T) {
	t.Parallel()
	s, _ := newShell(t)
	var lines strings.Builder
	for n := range 300 {
		fmt.Fprintf(&lines, "k%d\t%d\n", n%3, n)
	}
	s.want(exitOK, lines.String(), "kv", "import")
	if out := s.want(exitOK, "", "kv", "export"); out != "k0\t297\nk1\t298\nk2\t299\n" {
		t.Errorf("export: %q", out)
	}
}

func TestStatusHealthNodesAndRanges(t *testing.T) {
	t.Parallel()
	s, cluster := newShell(t)
	s.want(exitOK, "", "ranges", "split", "--at", "m")
	out := s.want(exitOK, "", "ranges", "ls")
	for _, want := range []string{"RANGE", "r2", "r3", `"m"`, "∞", "n1* n2 n3"} {
		if !strings.Contains(out, want) {
			t.Errorf("ranges ls lacks %q:\n%s", want, out)
		}
	}
	if out = s.want(exitOK, "", "ranges", "ls", "-o", "json"); strings.Count(out, "\n") != 2 ||
		!strings.Contains(out, `"id":3,"start":"\"m\"","end":"∞","generation":2,"leader":1`) {
		t.Errorf("ranges ls -o json:\n%s", out)
	}
	if out = s.want(exitOK, "", "health"); !strings.HasPrefix(out, "healthy  3 of 3 nodes live") {
		t.Errorf("health: %s", out)
	}
	s.want(exitOK, "", "nodes", "ls")
	cluster.Stop(3)
	s.want(exitUnhealthy, "", "health")
	if out = s.want(exitOK, "", "status"); !strings.Contains(out, "degraded  2 of 3 nodes live") ||
		!strings.Contains(out, "next      start n3") {
		t.Errorf("status: %s", out)
	}
}

func TestUnreachableClusterNamesEndpointsAndRemedy(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	_ = l.Close()
	s := &shell{t, dead}
	code, out, errOut := s.run("", "--timeout", "50ms", "kv", "get", "k")
	if code != exitUnavailable || out != "" || strings.Count(errOut, "\n") != 1 ||
		!strings.Contains(errOut, dead+" (connection refused)") ||
		!strings.Contains(errOut, "scripts/cluster up") {
		t.Errorf("exit %d, %q: %s", code, out, errOut)
	}
}

func TestDidYouMean(t *testing.T) {
	t.Parallel()
	s := &shell{t, "127.0.0.1:1"}
	for _, x := range []struct {
		args []string
		want string
	}{
		{[]string{"kv", "gett"}, `did you mean "get"?`},
		{[]string{"statsu"}, `did you mean "status"?`},
	} {
		if code, _, errOut := s.run("", x.args...); code != exitUsage ||
			!strings.Contains(errOut, x.want) {
			t.Errorf("%q: exit %d: %s", x.args, code, errOut)
		}
	}
}

func TestEndpointsComeFromFlagThenEnvironmentThenProfile(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, ".cluster"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, ".cluster", "endpoints")
	if err := os.WriteFile(file, []byte("p:1,p:2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(deep)
	seen := func(args ...string) string {
		a := &app{}
		root := a.rootCommand()
		root.SetArgs(append(args, "version"))
		root.SetOut(&bytes.Buffer{})
		a.stdout = &bytes.Buffer{}
		if err := root.Execute(); err != nil {
			t.Fatal(err)
		}
		list, _, err := a.endpointList()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(list, " ")
	}
	if got := seen(); got != "p:1 p:2" {
		t.Errorf("profile: %q", got)
	}
	t.Setenv("FLOTILLA_ENDPOINTS", "e:1")
	if got := seen(); got != "e:1" {
		t.Errorf("environment: %q", got)
	}
	if got := seen("--endpoints", "f:1"); got != "f:1" {
		t.Errorf("flag: %q", got)
	}
}

func TestPrefixEnd(t *testing.T) {
	t.Parallel()
	for prefix, want := range map[string]string{
		"a": "b", "a\xff": "b", "\xff\xff": "", "a\x00": "a\x01",
	} {
		if got := prefixEnd([]byte(prefix)); string(got) != want {
			t.Errorf("prefixEnd(%q) = %q, want %q", prefix, got, want)
		}
	}
}
