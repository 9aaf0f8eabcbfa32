// Command flotilla-loadtest loads a store, Flotilla or etcd, and says what it
// took: see package loadtest for what is measured and how.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/client"
)

// Exit codes, the same as those of the command line.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitUnavailable = 5
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "flotilla-loadtest: %v (see flotilla-loadtest --help)\n", err)
		return exitUsage
	case errors.Is(err, client.ErrUnavailable) || errors.Is(err, errNothingSucceeded) ||
		status.Code(err) == codes.Unavailable || status.Code(err) == codes.DeadlineExceeded:
		fmt.Fprintf(os.Stderr, "flotilla-loadtest: %v\n", err)
		return exitUnavailable
	default:
		fmt.Fprintf(os.Stderr, "flotilla-loadtest: %v\n", err)
		return exitError
	}
}

// errNothingSucceeded says that a run ended without one successful operation.
var errNothingSucceeded = errors.New("no operation succeeded; the errors are listed above")

// usageError is a mistake in the command.
type usageError struct{ error }

// Unwrap returns the mistake.
func (u usageError) Unwrap() error { return u.error }
