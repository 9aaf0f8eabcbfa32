package process

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestImportSurvivesAKillAndExportsTheSameBytes imports records while ranges
// split and one node is killed with -9 and restarted, exports them and
// compares byte for byte. Every record has exactly one version.
func TestImportSurvivesAKillAndExportsTheSameBytes(t *testing.T) {
	c := startCluster(t, 3, "--range-size", "262144")
	const records = 30_000
	var in strings.Builder
	for i := range records {
		fmt.Fprintf(&in, "word/%06d\tvalue %d of a record that takes some bytes \\t\\\\ %x\n",
			i, i, i*2654435761)
	}
	file := filepath.Join(t.TempDir(), "in.tsv")
	if err := os.WriteFile(file, []byte(in.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary(t, "flotilla"), "--endpoints", strings.Join(c.endpoints(), ","),
		"kv", "import", file)
	var talk strings.Builder
	cmd.Stderr, cmd.Stdout = &talk, &talk
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(700 * time.Millisecond)
	running := func() bool { return syscall.Kill(cmd.Process.Pid, 0) == nil && cmd.ProcessState == nil }
	if !running() {
		t.Error("the import was over before the kill")
	}
	c.nodes[1].kill()
	time.Sleep(time.Second)
	c.nodes[1].start()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("import: %v\n%s", err, talk.String())
	}
	c.healthy(60 * time.Second)
	out := c.flotilla("kv", "export")
	if out.code != 0 {
		t.Fatalf("export: exit %d\n%s", out.code, out.stderr)
	}
	if out.stdout != in.String() {
		t.Errorf("export differs: %d bytes instead of %d", len(out.stdout), in.Len())
	}
	checkVersions(t, c, records)
	ranges := c.flotilla("-o", "json", "ranges", "ls")
	if n := strings.Count(ranges.stdout, `"generation"`); n < 4 {
		t.Errorf("only %d ranges: nothing split\n%s", n, ranges.stdout)
	}
}

// checkVersions waits until the directory, which hears of a range at rest
// exactly, tells as many keys and versions as there are records.
func checkVersions(t *testing.T, c *cluster, records int) {
	t.Helper()
	keys, versions := 0, 0
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		keys, versions = 0, 0
		out := c.flotilla("-o", "json", "ranges", "ls").stdout
		for line := range strings.Lines(out) {
			var r struct {
				ID, Keys, Versions int
			}
			if json.Unmarshal([]byte(line), &r) == nil && r.ID != 1 {
				keys, versions = keys+r.Keys, versions+r.Versions
			}
		}
		if keys == records && versions == records {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
	t.Errorf("%d keys and %d versions of %d records", keys, versions, records)
}
