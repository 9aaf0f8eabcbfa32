package sim

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var (
	update = flag.Bool("update", false, "write the traces of the scenarios into their files")
	csv    = flag.String("csv", "", "a directory for the samples of every scenario")
)

// Every script in testdata is a story with its demands; its trace is part of it.
func TestScenarios(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			trace, w, err := Play(string(script))
			if *csv != "" && w != nil {
				writeSamples(t, filepath.Join(*csv, name+".csv"), w)
			}
			switch {
			case err != nil:
				t.Fatalf("%v\n%s", err, trace)
			case *update:
				if err := os.WriteFile(file, []byte(trace), 0o644); err != nil {
					t.Fatal(err)
				}
			case trace != string(script):
				t.Errorf("another trace than in %s: see what differs by running with -update\n%s",
					file, firstDifference(trace, string(script)))
			}
		})
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return "got  " + g[i] + "\nwant " + w[i]
		}
	}
	return "one is longer"
}

func writeSamples(t *testing.T, file string, w *World) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := WriteCSV(f, w.Samples()); err != nil {
		t.Fatal(err)
	}
}

// The same seed gives the same trace: what decides nothing must not be drawn from
// the order of a map.
func TestTheSameSeedGivesTheSameTrace(t *testing.T) {
	t.Parallel()
	const script = `world nodes=4 zones=a,b,c ranges=60 skew=1 seed=7
load users reads=30000 writes=10000 cpu=60 noise=40%
add nodes=2 zones=a,b
run 2m
kill n2
run 7m
start n2
run 3m
nodes
`
	first, _, err := Play(script)
	if err != nil {
		t.Fatalf("%v\n%s", err, first)
	}
	second, _, err := Play(script)
	if err != nil || first != second {
		t.Fatalf("%v\n%s", err, firstDifference(second, first))
	}
}

func TestAScriptThatDemandsTooMuchFails(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"run 5s",
		"world nodes=3\nexpect moves >= 1",
		"world nodes=3\nexpect wonders = 1",
		"world nodes=3\nadd\nconverge within=1s bytes=1%",
		"world nodes=3\nkill n9",
		"world nodes=3 colour=red",
		"world nodes=3\nrun soon",
		"world nodes=three",
		"world nodes=3\nadd\nquiet 1m",
	} {
		if trace, _, err := Play(bad); err == nil {
			t.Errorf("nothing is wrong with\n%s\n%s", bad, trace)
		}
	}
}
