package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	c.nodes[1].kill()
	time.Sleep(1500 * time.Millisecond)
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
	ranges := c.flotilla("-o", "json", "ranges", "ls")
	if n := strings.Count(ranges.stdout, `"generation"`); n < 4 {
		t.Errorf("only %d ranges: nothing split\n%s", n, ranges.stdout)
	}
}
