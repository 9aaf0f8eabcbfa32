package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// envPrefix begins every environment variable.
const envPrefix = "FLOTILLA_"

// envName is the variable of a flag: --max-value-size is FLOTILLA_MAX_VALUE_SIZE.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fromEnvironment sets every flag that was not given from its variable, if that
// is set; the error names every bad one.
func fromEnvironment(fs *pflag.FlagSet, lookup func(string) (string, bool)) error {
	var faults []error
	fs.VisitAll(func(f *pflag.Flag) {
		value, ok := lookup(envName(f.Name))
		if !ok || f.Changed || f.Name == "help" {
			return
		}
		if err := fs.Set(f.Name, value); err != nil {
			faults = append(faults,
				fmt.Errorf("%s=%q is not a valid --%s", envName(f.Name), value, f.Name))
		}
	})
	return errors.Join(faults...)
}

// noTime refuses durations of zero that were asked for: server.Config takes zero for
// "not set", and the node would run with the default instead. The error names every
// such flag. It wants the flags of the environment to be set.
func noTime(fs *pflag.FlagSet) error {
	var faults []error
	fs.Visit(func(f *pflag.Flag) {
		if d, err := fs.GetDuration(f.Name); err == nil && d == 0 {
			faults = append(faults, fmt.Errorf(
				"--%s is 0, which is no time at all (leave it out for the default, %s)",
				f.Name, f.DefValue))
		}
	})
	return errors.Join(faults...)
}

// size is a number of bytes that people write: 512KiB, 64MiB, 2GiB or 1000.
type size int64

var _ pflag.Value = (*size)(nil)

// units are the suffixes, longest first.
func units() []struct {
	suffix string
	bytes  int64
} {
	return []struct {
		suffix string
		bytes  int64
	}{
		{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
		{"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
	}
}

// Set parses a size.
func (s *size) Set(text string) error {
	number, factor := strings.TrimSpace(text), int64(1)
	for _, u := range units() {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, factor = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || n < 0 || n*float64(factor) > 1<<62 {
		return fmt.Errorf("%q is not a size such as 64MiB", text)
	}
	*s = size(n * float64(factor))
	return nil
}

// String returns the size as people write it.
func (s *size) String() string {
	for _, u := range units()[:3] {
		if int64(*s) >= u.bytes && int64(*s)%u.bytes == 0 {
			return strconv.FormatInt(int64(*s)/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

// Type is what help shows.
func (s *size) Type() string { return "size" }
