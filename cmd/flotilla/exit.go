package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/flotilla-kv/flotilla/client"
)

// The exit codes, which scripts rely on. They stand in the help of the root.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitUnavailable = 5
	exitUnknown     = 6
	exitUnhealthy   = 10
)

// usageError says that the command line is wrong.
type usageError struct{ text string }

// Error returns the text.
func (e usageError) Error() string { return e.text }

// unhealthyError says that the cluster answers and is not healthy.
type unhealthyError struct{ text string }

// Error returns the text.
func (e unhealthyError) Error() string { return e.text }

// exitCode is the one place where errors become codes.
func exitCode(err error) int {
	var usage usageError
	var unhealthy unhealthyError
	switch {
	case errors.As(err, &usage), errors.Is(err, client.ErrInvalid):
		return exitUsage
	case errors.As(err, &unhealthy):
		return exitUnhealthy
	case errors.Is(err, client.ErrNotFound):
		return exitNotFound
	case errors.Is(err, client.ErrConflict):
		return exitConflict
	case errors.Is(err, client.ErrUnknownOutcome):
		return exitUnknown
	case errors.Is(err, client.ErrUnavailable):
		return exitUnavailable
	default:
		return exitError
	}
}

// complain says on stderr what went wrong, and what to do next.
func (a *app) complain(err error, code int) {
	mark, plain := "", ""
	if a.colourful() {
		mark, plain = "\x1b[31m", "\x1b[0m"
	}
	text := strings.ReplaceAll(err.Error(), "\n", " ")
	fmt.Fprintf(a.stderr, "%sflotilla:%s %s\n", mark, plain, text)
	if code == exitUnknown {
		fmt.Fprintln(a.stderr,
			"  It may have been applied: read the key before you repeat the command.")
	}
}

// colourful says whether stderr is a terminal that may show colours.
func (a *app) colourful() bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(a.stderr)
}

// isTerminal says whether a person is looking.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
