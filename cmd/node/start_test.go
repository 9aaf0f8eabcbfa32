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

func mentions(err error, text string) bool {
	return err != nil && strings.Contains(err.Error(), text)
}
