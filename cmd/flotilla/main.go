package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// app is one run of the command.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	// global flags
	endpoints string
	timeout   time.Duration
	output    string

	running bool // the command line was understood, a command runs
}

// run runs one command line and returns its exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{stdin: in, stdout: out, stderr: errOut}
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	if !a.running {
		code = exitUsage
	}
	a.complain(err, code)
	return code
}

const rootHelp = `flotilla talks to a Flotilla cluster.

Endpoints come from --endpoints, else FLOTILLA_ENDPOINTS, else the file
.cluster/endpoints in this directory or one above it, else 127.0.0.1:7001.
Every global flag can be given as FLOTILLA_<FLAG>. Data goes to stdout,
everything else to stderr.

Exit codes:
  0  done                      4  conflict: a compare failed
  1  error                     5  unavailable: the cluster did not serve it
  2  wrong usage               6  outcome unknown: a write may have been applied
  3  not found                10  unhealthy (health only)`

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "flotilla",
		Short: "The command line of a Flotilla cluster",
		Long:  rootHelp,
		Example: `  flotilla kv put hello world
  flotilla kv scan --prefix user/ -o json
  flotilla status
  flotilla health --wait 30s
  flotilla nodes drain n2
  flotilla placement explain user/7`,
		SilenceUsage:               true,
		SilenceErrors:              true,
		SuggestionsMinimumDistance: suggestionDistance,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.endpoints, "endpoints", "", "addresses of nodes, host:port, with commas")
	flags.DurationVar(&a.timeout, "timeout", 10*time.Second,
		"how long one request may take, retries included")
	flags.StringVarP(&a.output, "output", "o", "table", "table or json")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := a.fromEnvironment(cmd); err != nil {
			return err
		}
		a.running = true
		return nil
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Sprintf("%v (%s --help lists all flags)", err, cmd.CommandPath())}
	})
	group(root)
	root.AddCommand(
		a.kvCommand(), a.statusCommand(), a.healthCommand(), a.nodesCommand(), a.rangesCommand(),
		a.placementCommand(), a.versionCommand(),
	)
	return root
}

// suggestionDistance is how many letters may be wrong in a did-you-mean.
const suggestionDistance = 2

// group makes a command that only holds others: it helps, and says what it does
// not know instead of helping silently.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.SuggestionsMinimumDistance = suggestionDistance
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text += fmt.Sprintf("; did you mean %q?", near[0])
		}
		return usageError{text + fmt.Sprintf(" (%s --help lists them)", cmd.CommandPath())}
	}
	return cmd
}
