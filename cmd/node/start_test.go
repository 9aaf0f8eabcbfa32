package main

import (
	"io"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// durations are the flags of start that take one.
func durations(fs *pflag.FlagSet) []string {
	var names []string
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Value.Type() == "duration" {
			names = append(names, f.Name)
		}
	})
	return names
}

// configure does what start does with its arguments before it starts anything.
func configure(t *testing.T, args ...string) error {
	t.Helper()
	f, fs := &flags{}, pflag.NewFlagSet("start", pflag.ContinueOnError)
	f.register(fs)
	if err := fs.Parse(append([]string{"--data", "d"}, args...)); err != nil {
		t.Fatal(err)
	}
	_, err := f.config(fs, io.Discard)
	return err
}

// Not parallel: it sets the environment.
func TestADurationOfZeroIsRefusedAndNotTakenForTheDefault(t *testing.T) {
	if err := configure(t); err != nil {
		t.Fatalf("the defaults are refused: %v", err)
	}
	fs := pflag.NewFlagSet("start", pflag.ContinueOnError)
	(&flags{}).register(fs)
	names := durations(fs)
	if len(names) < 4 {
		t.Fatalf("only %v take a duration", names)
	}
	for _, name := range names {
		want := "--" + name + " is 0"
		for _, zero := range []string{"0s", "0", "-0s"} {
			if err := configure(t, "--"+name+"="+zero); !mentions(err, want) {
				t.Errorf("--%s=%s: %v", name, zero, err)
			}
		}
		t.Run(name, func(t *testing.T) {
			t.Setenv(envName(name), "0s")
			if err := configure(t); !mentions(err, want) {
				t.Errorf("%s=0s: %v", envName(name), err)
			}
			// The flag wins over the environment.
			if err := configure(t, "--"+name+"="+fs.Lookup(name).DefValue); err != nil {
				t.Errorf("the default, given: %v", err)
			}
		})
	}
	err := configure(t, "--support-duration=0s", "--gc-window=0")
	if !mentions(err, "--support-duration is 0") || !mentions(err, "--gc-window is 0") {
		t.Errorf("two faults: %v", err)
	}
}

func TestFlagsOfPlacementAreCheckedAgainstOneAnother(t *testing.T) {
	t.Parallel()
	for text, args := range map[string][]string{
		"--dead-after is 1s":          {"--dead-after=1s"},
		"--merge-below is 41943040":   {"--merge-below=40MiB"},
		"--merge-below is 1048576":    {"--range-size=1MiB", "--merge-below=1MiB"},
		"--merge-after is -1s":        {"--merge-after=-1s"},
		"--load-split-ops is 0":       {"--load-split-ops=0"},
		"--load-split-cpu is 0":       {"--load-split-cpu=0"},
		"--replication is 4, it must": {"--replication=4"},
	} {
		if err := configure(t, args...); !mentions(err, text) {
			t.Errorf("%q: %v", args, err)
		}
	}
	for _, args := range [][]string{
		{"--range-size=1MiB"}, // what is merged follows it
		{"--range-size=1MiB", "--merge-below=512KiB"},
		{"--merge-below=0"},
		{"--load-split-cpu=-1s", "--load-split-ops=-1"},
		{"--dead-after=6s"},
	} {
		if err := configure(t, args...); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestWhatIsMergedByDefaultFollowsTheSizeOfRanges(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"": 16 << 20, "--range-size=1MiB": 256 << 10, "--range-size=1GiB": 16 << 20,
		"--merge-below=0": 0, "--merge-below=1MiB": 1 << 20,
	} {
		f, fs := &flags{}, pflag.NewFlagSet("start", pflag.ContinueOnError)
		f.register(fs)
		if err := fs.Parse([]string{"--data", "d", text}); err != nil {
			t.Fatal(err)
		}
		c, err := f.config(fs, io.Discard)
		if err != nil || c.MergeBelow != want {
			t.Errorf("%q: %d, %v; want %d", text, c.MergeBelow, err, want)
		}
	}
}

func mentions(err error, text string) bool {
	return err != nil && strings.Contains(err.Error(), text)
}
