package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

const (
	defaultEndpoint = "127.0.0.1:7001"
	// openPatience bounds the first contact: who cannot be reached in that
	// time is most likely not there.
	openPatience = 2 * time.Second
)

// fromEnvironment fills in what no flag has set, and checks the result.
func (a *app) fromEnvironment(cmd *cobra.Command) error {
	var fault error
	cmd.Root().PersistentFlags().VisitAll(func(f *pflag.Flag) {
		name := "FLOTILLA_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		v, set := os.LookupEnv(name)
		if f.Changed && f.Name == "endpoints" && f.Value.String() == "" && fault == nil {
			// An unset variable of a script must not mean another cluster.
			fault = usageError{"--endpoints is empty: name nodes as host:port, or leave it out"}
		}
		if f.Changed || !set || v == "" {
			return
		}
		if err := f.Value.Set(v); err != nil && fault == nil {
			fault = usageError{fmt.Sprintf("%s=%q: %v", name, v, err)}
		}
	})
	switch {
	case fault != nil:
		return fault
	case a.output != "table" && a.output != "json":
		return usageError{fmt.Sprintf("--output %q: it is table or json", a.output)}
	case a.timeout <= 0:
		return usageError{fmt.Sprintf("--timeout %v: it must be positive", a.timeout)}
	}
	return nil
}

// endpointList says where to find the cluster, and who said so.
func (a *app) endpointList() (list []string, source string, err error) {
	text, source := a.endpoints, "--endpoints or FLOTILLA_ENDPOINTS"
	if text == "" {
		if text, source, err = profile(); err != nil {
			return nil, "", err
		}
	}
	if text == "" {
		text, source = defaultEndpoint, "the default"
	}
	list = strings.FieldsFunc(text, func(r rune) bool {
		return r == ',' || r == ' ' || r == '\n' || r == '\r' || r == '\t'
	})
	if len(list) == 0 {
		return nil, "", usageError{source + " names no endpoint"}
	}
	return list, source, nil
}

// profile reads .cluster/endpoints of this directory or the nearest one above.
func profile() (text, source string, err error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", "", nil // nowhere to look is no profile
	}
	for {
		path := filepath.Join(dir, ".cluster", "endpoints")
		data, err := os.ReadFile(path)
		if err == nil {
			return string(data), path, nil
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return "", "", fmt.Errorf("read the profile: %w", err)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", "", nil
		}
		dir = parent
	}
}

// connect opens a client.
func (a *app) connect(ctx context.Context) (*client.Client, error) {
	list, source, err := a.endpointList()
	if err != nil {
		return nil, err
	}
	c, err := client.Open(ctx, list, client.WithOpenTimeout(min(a.timeout, openPatience)))
	switch {
	case errors.Is(err, client.ErrInvalid):
		return nil, usageError{fmt.Sprintf("%v (from %s)", err, source)}
	case errors.Is(err, client.ErrUnavailable):
		return nil, unreachable{err, source}
	}
	return c, err
}

// unreachable is a cluster that does not answer, with the remedy.
type unreachable struct {
	err    error
	source string
}

// Error names the endpoints, why, and what to do.
func (u unreachable) Error() string {
	text := u.err.Error()
	if e, ok := errors.AsType[*client.Error](u.err); ok {
		text = "cannot reach the cluster: " + e.Detail
	}
	return text + "; start one with scripts/cluster up, or name its nodes with --endpoints" +
		" (these came from " + u.source + ")"
}

// Unwrap keeps the kind.
func (u unreachable) Unwrap() error { return u.err }

// with runs a command with a client, within the time limit.
func (a *app) with(
	ctx context.Context, f func(context.Context, *client.Client) error,
) (err error) {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return f(ctx, c)
}

// stream is with for commands that take as long as they make progress: alive
// must be called for every step, and ctx ends when that is not for --timeout.
func (a *app) stream(
	ctx context.Context, f func(ctx context.Context, c *client.Client, alive func()) error,
) (err error) {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(a.timeout, func() { cancel(context.DeadlineExceeded) })
	defer timer.Stop()
	return f(ctx, c, func() { timer.Reset(a.timeout) })
}

// ask calls the Admin service of whichever node answers.
func ask[T any](
	ctx context.Context, c *client.Client,
	call func(context.Context, adminpb.AdminClient) (T, error),
) (reply T, err error) {
	err = c.Admin(ctx, func(ctx context.Context, admin adminpb.AdminClient) (err error) {
		reply, err = call(ctx, admin)
		return err
	})
	return reply, adminError(err)
}

// exactArgs is cobra.ExactArgs with a text that shows the usage.
func exactArgs(n int) cobra.PositionalArgs { return rangeArgs(n, n) }

// rangeArgs wants between least and most arguments.
func rangeArgs(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return usageError{fmt.Sprintf("usage: %s (%s --help tells more)",
				cmd.UseLine(), cmd.CommandPath())}
		}
		return nil
	}
}
