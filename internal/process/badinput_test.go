package process

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// expectLine demands an exit code and one line on stderr with all of some words.
func (r result) expectLine(t *testing.T, code int, words ...string) {
	t.Helper()
	line := strings.TrimSuffix(r.stderr, "\n")
	if r.code != code || line == "" || strings.Contains(line, "\n") {
		t.Errorf("exit %d, want %d with one line on stderr:\n%s", r.code, code, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(line, w) {
			t.Errorf("the error does not say %q:\n%s", w, r.stderr)
		}
	}
}

// TestBadInputToTheCommandLine: one line that names the thing and the remedy,
// the documented exit code, and nothing lost.
func TestBadInputToTheCommandLine(t *testing.T) {
	c := startCluster(t, 1)
	if r := c.flotilla("kv", "put", "kept", "value"); r.code != 0 {
		t.Fatalf("put: %s", r.stderr)
	}
	long := strings.Repeat("k", 64<<10)
	for _, x := range []struct {
		name  string
		in    string
		args  []string
		code  int
		words []string
	}{
		{"no such flag", "", []string{"kv", "get", "a", "--bogus"}, 2, []string{"--bogus", "--help"}},
		{"no such verb", "", []string{"kv", "gett"}, 2, []string{`did you mean "get"`}},
		{"empty key", "", []string{"kv", "put", "", "v"}, 2, []string{"the key is empty"}},
		{"key of 64 KiB", "", []string{"kv", "put", long, "v"}, 1,
			[]string{"65536 bytes", "limit is 65535"}},
		{"value of 9 MiB", strings.Repeat("v", 9<<20), []string{"kv", "put", "big", "-"}, 1,
			[]string{`put "big"`, "9437184 bytes", "limit is 8388608", "--max-value-size"}},
		{"no such key", "", []string{"kv", "get", "none"}, 3, []string{`get "none"`}},
		{"lost compare", "", []string{"kv", "cas", "kept", "x", "--if-absent"}, 4, []string{"kept"}},
		{"negative limit", "", []string{"kv", "scan", "--limit", "-1"}, 2, []string{"--limit"}},
		{"no endpoint named", "", []string{"--endpoints", "", "kv", "get", "a"}, 2,
			[]string{"--endpoints is empty"}},
		{"HTTP port", "", []string{"--endpoints", c.nodes[0].http, "kv", "get", "a"}, 5,
			[]string{c.nodes[0].http, "--http"}},
		{"nobody there", "", []string{"--endpoints", "127.0.0.1:1", "kv", "get", "a"}, 5,
			[]string{"127.0.0.1:1 (connection refused)", "scripts/cluster up"}},
		{"transfer to a stranger", "", []string{"ranges", "transfer", "r2", "n9"}, 1,
			[]string{"r2", "n9", "n1"}},
		{"import without a tab", "i1\t1\ni2\nlost\t3\n", []string{"kv", "import"}, 1,
			[]string{"line 2", "no tab", "imported 1 record"}},
		{"import of an empty key", "i3\t1\n\t2\n", []string{"kv", "import"}, 1,
			[]string{"line 2", "empty", "imported 1 record"}},
		{"import of broken JSON", `{"key":"i4","value":"1"}` + "\n[1]\n",
			[]string{"kv", "import", "--format", "jsonl"}, 1,
			[]string{"line 2", "array", "imported 1 record"}},
		{"import of a directory", "", []string{"kv", "import", c.nodes[0].data}, 1,
			[]string{c.nodes[0].data, "is a directory"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			c.flotillaInput(x.in, x.args...).expectLine(t, x.code, x.words...)
		})
	}
	want := "i1\t1\ni3\t1\ni4\t1\nkept\tvalue\n"
	if r := c.flotilla("kv", "export"); r.stdout != want {
		t.Errorf("left behind:\n%swant:\n%s", r.stdout, want)
	}
}

// TestKeysOfAnyBytesComeBackTheSame writes awkward keys and values in both
// formats, exports, deletes, imports and compares.
func TestKeysOfAnyBytesComeBackTheSame(t *testing.T) {
	c := startCluster(t, 1)
	in := `{"key":"tab\tnewline\nback\\slash","value":"\u0000\r\n\t"}` + "\n" +
		`{"key_b64":"AAEJCv8=","value_b64":"/////w=="}` + "\n" +
		`{"key":"empty","value":""}` + "\n"
	if r := c.flotillaInput(in, "kv", "import", "--format", "jsonl"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	if r := c.flotilla("kv", "get", "--raw", "tab\tnewline\nback\\slash"); r.stdout != "\x00\r\n\t" {
		t.Errorf("get: %q", r.stdout)
	}
	for _, format := range []string{"tsv", "jsonl"} {
		before := c.flotilla("kv", "export", "--format", format).stdout
		if strings.Count(before, "\n") != 3 {
			t.Fatalf("%s: exported %q", format, before)
		}
		c.flotilla("kv", "del", "--all")
		if r := c.flotillaInput(before, "kv", "import", "--format", format); r.code != 0 {
			t.Fatal(r.stderr)
		}
		if after := c.flotilla("kv", "export", "--format", format).stdout; after != before {
			t.Errorf("%s: %q became %q", format, before, after)
		}
	}
}

// TestADirectoryThatIsNotWhatTheFlagsSay is refused and left as it is.
func TestADirectoryThatIsNotWhatTheFlagsSay(t *testing.T) {
	c := startCluster(t, 1)
	n, dir, free := c.nodes[0], t.TempDir(), ports(t, 2)
	start := func(data string, flags ...string) result {
		return run(t, "", binary(t, "flotilla-node"), append([]string{
			"start", "--data", data, "--listen", free[0], "--http", free[1]}, flags...)...)
	}
	start(n.data).expectLine(t, 1, n.data, "in use by another process", "its own directory")
	run(t, "", binary(t, "flotilla-node"), "start", "--data", filepath.Join(dir, "new"), "--init",
		"--listen", n.listen, "--http", free[1]).expectLine(t, 1, n.listen, "in use", "--listen")
	start(filepath.Join(dir, "none")).expectLine(t, 1, "no store here", "--init", "--join")
	start(filepath.Join(dir, "none"), "--bogus").expectLine(t, 2, "--bogus", "--help")
	// A wrong --cluster registers nobody there.
	start(filepath.Join(dir, "lost"), "--join", n.listen, "--cluster", "1").
		expectLine(t, 1, n.listen, "0000000000000001")
	if r := c.flotilla("-o", "json", "nodes", "ls"); strings.Count(r.stdout, `"id"`) != 1 {
		t.Errorf("a refused node was registered: %s", r.stdout)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(file, "--init").expectLine(t, 1, file, "not a directory")
	start(dir, "--init").expectLine(t, 1, "file", "empty directory")
	if err := n.stop(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	start(n.data, "--cluster", "1").expectLine(t, 1, "belongs to cluster", "--cluster")
	start(n.data, "--node", "7").expectLine(t, 1, "belongs to n1", "--node 1")
	other := startCluster(t, 1)
	start(n.data, "--join", other.nodes[0].listen).
		expectLine(t, 1, n.data, "another cluster", "--join")
	if os.Geteuid() != 0 { // root reads everything
		if err := os.Chmod(n.data, 0); err != nil {
			t.Fatal(err)
		}
		start(n.data).expectLine(t, 1, n.data, "permission")
		if err := os.Chmod(n.data, 0o755); err != nil { //nolint:gosec // as it was
			t.Fatal(err)
		}
	}
	n.start()
	c.healthy(30 * time.Second)
}

// TestDamagedFilesAreFoundAtTheStart damages copies of a killed node's
// directory. Either the node finds everything, or it refuses in one line.
func TestDamagedFilesAreFoundAtTheStart(t *testing.T) {
	c := startCluster(t, 1)
	n := c.nodes[0]
	for i := range 50 {
		if r := c.flotilla("kv", "put", fmt.Sprintf("k%02d", i), strings.Repeat("v", 5000)); r.code != 0 {
			t.Fatal(r.stderr)
		}
		if i == 0 {
			time.Sleep(3 * time.Second) // the records that recognise a lost tail move on
		}
	}
	n.kill()
	pristine := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(pristine, os.DirFS(n.data)); err != nil {
		t.Fatal(err)
	}
	logs, _ := filepath.Glob(filepath.Join(pristine, "engine", "*.log"))
	biggest := ""
	for size := int64(0); len(logs) > 0; logs = logs[1:] {
		if s, err := os.Stat(logs[0]); err == nil && s.Size() > size {
			biggest, size = filepath.Base(logs[0]), s.Size()
		}
	}
	for _, x := range []struct {
		name  string
		files []string
		at    float64
	}{
		{"both identity records", []string{"IDENTITY-A", "IDENTITY-B"}, 0.02},
		{"the log, early", []string{"engine/" + biggest}, 0.1},
		{"the log, in the middle", []string{"engine/" + biggest}, 0.5},
	} {
		dir := filepath.Join(t.TempDir(), "data")
		if err := os.CopyFS(dir, os.DirFS(pristine)); err != nil {
			t.Fatal(err)
		}
		for _, f := range x.files {
			flip(t, filepath.Join(dir, f), x.at)
		}
		free := ports(t, 2)
		r := run(t, "", binary(t, "flotilla-node"), "start", "--data", dir,
			"--listen", free[0], "--http", free[1])
		t.Log(x.name)
		r.expectLine(t, 1, dir, "move the directory away", "join as a new node")
	}
	n.start()
	c.healthy(30 * time.Second)
	if r := c.flotilla("kv", "scan", "--keys-only"); strings.Count(r.stdout, "\n") != 50 {
		t.Errorf("%d keys of 50", strings.Count(r.stdout, "\n"))
	}
}

// flip changes a bit of a file, at a share of its length.
func flip(t *testing.T, path string, at float64) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[int(float64(len(data))*at)] ^= 0x40
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestANodeThatWasWipedOrRolledBackDoesNotVote: a wiped one joins as a new
// node; an old copy of a directory is refused by the others, and says so.
func TestANodeThatWasWipedOrRolledBackDoesNotVote(t *testing.T) {
	c := startCluster(t, 3)
	n := c.nodes[2]
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(n.data)); err != nil {
		t.Fatal(err)
	}
	// A life that no peer has met cannot be told from the one after a rollback:
	// let this one be met before it ends.
	n.logPath += "-second"
	n.start()
	n.awaitLog("raft stream opened", 30*time.Second)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(n.data); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(n.data, os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.awaitLog("a peer refuses this node", 20*time.Second)
	n.kill()
	n.logPath += "-wiped" // the first join stands in the old one
	if err := os.RemoveAll(n.data); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.awaitLog("joined the cluster; 0 replicas", 20*time.Second)
	if r := c.flotilla("-o", "json", "nodes", "ls"); strings.Count(r.stdout, `"id"`) != 4 {
		t.Errorf("the wiped node is not a fourth one: %s", r.stdout)
	}
}

// awaitLog waits until the node has said something.
func (p *process) awaitLog(words string, limit time.Duration) {
	p.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		data, _ := os.ReadFile(p.logPath)
		if strings.Contains(string(data), words) {
			return
		}
		if time.Now().After(end) {
			p.showLog()
			p.t.Fatalf("node %d does not say %q", p.id, words)
		}
	}
}

// TestIdleConnectionsAndGarbageHarmNobody: a node with few open files refuses
// connections beyond its bound and goes on serving those that it has.
func TestIdleConnectionsAndGarbageHarmNobody(t *testing.T) {
	c := startCluster(t, 1)
	cl := c.open()
	few := run(t, "", "sh", "-c", `ulimit -n 64; exec "$0" "$@"`,
		binary(t, "flotilla-node"), "start", "--init", "--data", filepath.Join(t.TempDir(), "d"),
		"--listen", ports(t, 1)[0], "--http", ports(t, 1)[0])
	few.expectLine(t, 1, "64 files", "ulimit -n")
	const idle = 300
	for i := range idle {
		conn, err := net.Dial("tcp", c.nodes[0].listen)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		switch i % 3 {
		case 0:
			_, _ = conn.Write([]byte("garbage that is no preface\r\n\r\n"))
		case 1: // a frame that says it has 16 MB
			_, _ = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x01"))
		}
	}
	if _, err := cl.Put(t.Context(), []byte("k"), []byte("v")); err != nil {
		t.Errorf("a client that was there before: %v", err)
	}
	if r := c.flotilla("kv", "get", "k"); r.code != 0 || r.stdout != "v\n" {
		t.Errorf("a new client: exit %d, %s%s", r.code, r.stdout, r.stderr)
	}
}
