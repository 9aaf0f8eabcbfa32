package scripts

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// benchScripts are the programs of scripts/bench.
func benchScripts(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("bench")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode()&0o111 != 0 && !e.IsDir() {
			all = append(all, filepath.Join("bench", e.Name()))
		}
	}
	if len(all) == 0 {
		t.Fatal("no scripts")
	}
	return all
}

// exit runs a command and returns all it said and its exit code.
func exit(name string, args ...string) (string, int) {
	cmd := exec.Command(name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		return err.Error(), -1
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func TestBenchScriptsSayWhatTheyDoAndRefuseWhatTheyDoNotKnow(t *testing.T) {
	t.Parallel()
	for _, script := range append(benchScripts(t), "bench/lib") {
		if out, code := exit("bash", "-n", script); code != 0 {
			t.Errorf("%s: %s", script, out)
		}
	}
	for _, script := range benchScripts(t) {
		name := filepath.Base(script)
		if out, code := exit(script, "--help"); code != 0 || !strings.Contains(out, "usage: scripts/bench/"+name) {
			t.Errorf("%s --help exits with %d:\n%s", name, code, out)
		}
		if out, code := exit(script, "--no-such-flag", "1"); code != 2 {
			t.Errorf("%s exits with %d on a flag that it does not have:\n%s", name, code, out)
		}
	}
}

// TestTheTableOfTheBenchScriptsShowsMedianAndWorst calls the function that every
// one of them prints its figures with.
func TestTheTableOfTheBenchScriptsShowsMedianAndWorst(t *testing.T) {
	t.Parallel()
	results := filepath.Join(t.TempDir(), "results.jsonl")
	lines := `{"type":"environment","of":"x","ms":99}
{"type":"probe","of":"all","ms":3,"ops":10,"lost":null}
{"type":"probe","of":"all","ms":1,"ops":30,"lost":null}
{"type":"probe","of":"all","ms":250.4,"ops":20,"lost":null}
{"type":"probe","of":"dense","ms":0.25,"ops":1}
{"type":"probe","of":"dense","ms":0.75,"ops":2}
`
	if err := os.WriteFile(results, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	out, code := exit("bash", "-c",
		`root=.. ; source bench/lib; results=$0; table probe of "ms -ops lost"`, results)
	if code != 0 {
		t.Fatal(out)
	}
	rows := strings.Split(strings.TrimSpace(out), "\n")
	want := []string{
		"of runs ms ops lost", "all 3 3 / 250 20 / 10 - / -", "dense 2 0.50 / 0.75 1.50 / 1 - / -",
	}
	for i, row := range rows {
		if i >= len(want) || strings.Join(strings.Fields(row), " ") != want[i] {
			t.Errorf("row %d is %q", i, row)
		}
	}
}
