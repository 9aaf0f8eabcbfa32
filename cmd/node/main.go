// Command flotilla-node runs one node of a Flotilla cluster.
//
// Exit codes: 0 stopped as asked, also when the node was decommissioned while it
// ran; 1 error; 2 wrong usage; 3 the cluster had decommissioned the node before it
// was started, which no restart will change. An error is one line on stderr that
// names the thing and the remedy. The Go runtime ends the process with 2, too, when
// an invariant is broken, after it has printed which one, with its numbers, and the
// goroutines; the store ends it with 7 when the disk no longer keeps a promise.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/server"
)

const (
	exitError   = 1
	exitUsage   = 2
	exitRetired = 3
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal stops gracefully; a second one finds the default handler
	// again and ends the process at once.
	defer context.AfterFunc(ctx, stop)()
	root := command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "flotilla-node: "+usage.Error())
		return exitUsage
	}
	fmt.Fprintln(os.Stderr, "flotilla-node: "+oneLine(err))
	if errors.Is(err, server.ErrDecommissioned) {
		return exitRetired
	}
	return exitError
}

// oneLine keeps an error on one line.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// usageError is an error in how the command was called.
type usageError struct{ error }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "flotilla-node",
		Short: "Run a node of a Flotilla cluster",
		Example: "  flotilla-node start --data /var/lib/flotilla --init\n" +
			"  flotilla-node start --data /var/lib/flotilla --listen 10.0.0.2:7001 " +
			"--join 10.0.0.1:7001",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ""
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				hint = fmt.Sprintf(", did you mean %q?", s[0])
			}
			return usageError{fmt.Errorf("unknown command %q%s (flotilla-node --help lists all)",
				args[0], hint)}
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (%s --help lists all flags)", err, cmd.CommandPath())}
	})
	root.AddCommand(startCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version and commit",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := readBuild()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "flotilla-node %s (%s) %s\n",
				b.version, b.commit, b.platform)
			return err
		},
	}
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usageError{fmt.Errorf("%s takes no arguments, but %q was given",
		cmd.CommandPath(), args[0])}
}
