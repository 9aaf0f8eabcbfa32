package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
)

func (a *app) kvCommand() *cobra.Command {
	cmd := group(&cobra.Command{Use: "kv", Short: "Read and write keys"})
	cmd.AddCommand(
		a.getCommand(), a.putCommand(), a.delCommand(), a.casCommand(), a.scanCommand(),
		a.importCommand(), a.exportCommand(),
	)
	return cmd
}

func (a *app) getCommand() *cobra.Command {
	var raw bool
	var at uint64
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key (exit code 3 if there is none)",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				var opts []client.GetOption
				if at != 0 {
					opts = append(opts, client.AtVersion(client.Version(at)))
				}
				r, err := c.Get(ctx, []byte(args[0]), opts...)
				switch {
				case err != nil:
					return err
				case a.isJSON():
					return a.json(newRecord([]byte(args[0]), r.Value, r.Version))
				case raw:
					_, err = a.stdout.Write(r.Value)
				default:
					_, err = fmt.Fprintf(a.stdout, "%s\n", r.Value)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&raw, "raw", false, "print no newline after the value")
	cmd.Flags().Uint64Var(&at, "at", 0, "read what was there at this version")
	return cmd
}

func (a *app) putCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "put KEY VALUE",
		Short: "Write a value; VALUE - is read from stdin",
		Example: `  flotilla kv put hello world
  flotilla kv put photo - < photo.jpg`,
		Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := a.valueOf(args[1])
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				version, err := c.Put(ctx, []byte(args[0]), value)
				if err != nil {
					return err
				}
				return a.written(args[0], version)
			})
		},
	}
}

// maxStdinValue bounds a value read from stdin; nodes allow less.
const maxStdinValue = 32 << 20

// valueOf is an argument, or stdin if that is "-".
func (a *app) valueOf(arg string) ([]byte, error) {
	if arg != "-" {
		return []byte(arg), nil
	}
	value, err := io.ReadAll(io.LimitReader(a.stdin, maxStdinValue+1))
	if err == nil && len(value) > maxStdinValue {
		err = fmt.Errorf("the value has more than %d bytes", maxStdinValue)
	}
	if err != nil {
		return nil, fmt.Errorf("read the value from stdin: %w", err)
	}
	return value, nil
}

// written says that a write was done.
func (a *app) written(key string, version client.Version) error {
	if a.isJSON() {
		return a.json(newRecord([]byte(key), nil, version))
	}
	a.talk("OK  version %d", version)
	return nil
}

func (a *app) delCommand() *cobra.Command {
	var s span
	cmd := &cobra.Command{
		Use:   "del [KEY]",
		Short: "Delete a key, or all keys of a span",
		Example: `  flotilla kv del hello
  flotilla kv del --prefix user/`,
		Args: rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			start, end, given, err := s.bounds()
			if err != nil {
				return err
			}
			if given == (len(args) == 1) {
				return usageError{"give either a KEY, or --prefix, --start or --end, or --all"}
			}
			if given {
				return a.deleteSpan(cmd.Context(), start, end)
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				version, err := c.Delete(ctx, []byte(args[0]))
				if err != nil {
					return err
				}
				return a.written(args[0], version)
			})
		},
	}
	s.flags(cmd, "delete")
	return cmd
}

func (a *app) deleteSpan(ctx context.Context, start, end []byte) error {
	return a.with(ctx, func(ctx context.Context, c *client.Client) error {
		n, err := c.DeleteRange(ctx, start, end)
		switch {
		case err != nil && n > 0:
			return fmt.Errorf("%w (%s deleted so far)", err, plural(n, "key"))
		case err != nil:
			return err
		case a.isJSON():
			return a.json(struct {
				Deleted int64 `json:"deleted"`
			}{n})
		}
		a.talk("OK  %s deleted", plural(n, "key"))
		return nil
	})
}

func (a *app) casCommand() *cobra.Command {
	var value, valueSet = "", "if-value"
	var version uint64
	var absent, exists, remove bool
	cmd := &cobra.Command{
		Use:   "cas KEY [VALUE]",
		Short: "Write a value if a compare holds (exit code 4 if not)",
		Example: `  flotilla kv cas lock me --if-absent
  flotilla kv cas counter 8 --if-value 7
  flotilla kv cas lock --if-value me --delete`,
		Args: rangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if remove == (len(args) == 2) {
				return usageError{"give either a VALUE or --delete"}
			}
			var opts []client.CompareOption
			flags := cmd.Flags()
			if flags.Changed(valueSet) {
				opts = append(opts, client.IfValue([]byte(value)))
			}
			if flags.Changed("if-version") {
				opts = append(opts, client.IfVersion(client.Version(version)))
			}
			if absent {
				opts = append(opts, client.IfAbsent())
			}
			if exists {
				opts = append(opts, client.IfExists())
			}
			if len(opts) != 1 {
				return usageError{
					"give one of --if-value, --if-version, --if-absent and --if-exists",
				}
			}
			var next []byte
			if remove {
				opts = append(opts, client.ThenDelete())
			} else {
				var err error
				if next, err = a.valueOf(args[1]); err != nil {
					return err
				}
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				v, err := c.CompareAndSwap(ctx, []byte(args[0]), nil, next, opts...)
				if err != nil {
					return err
				}
				return a.written(args[0], v)
			})
		},
	}
	cmd.Flags().StringVar(&value, valueSet, "", "if the value is this")
	cmd.Flags().Uint64Var(&version, "if-version", 0, "if the newest version is this")
	cmd.Flags().BoolVar(&absent, "if-absent", false, "if there is no such key")
	cmd.Flags().BoolVar(&exists, "if-exists", false, "if there is such a key")
	cmd.Flags().BoolVar(&remove, "delete", false, "delete the key instead of writing a value")
	return cmd
}

func (a *app) scanCommand() *cobra.Command {
	var s span
	var limit int
	var reverse, keysOnly bool
	cmd := &cobra.Command{
		Use:   "scan [PREFIX]",
		Short: "Print keys and values in order, as of one instant",
		Long: `Print keys and values in order, as of one instant: a line per key, with a tab
between key and value, tab, newline and backslash written as \t, \n and \\.
With -o json an object per line: key, value, version (key_b64, value_b64 if it
is not text).`,
		Example: `  flotilla kv scan user/ --limit 10
  flotilla kv scan --start a --end b --reverse -o json`,
		Args: rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if s.prefix != "" {
					return usageError{"give PREFIX either as argument or as --prefix"}
				}
				s.prefix = args[0]
			}
			start, end, _, err := s.bounds()
			if err != nil {
				return err
			}
			if limit < 0 {
				return usageError{fmt.Sprintf("--limit %d: it must not be negative", limit)}
			}
			opts := []client.ScanOption{client.WithLimit(limit)}
			if reverse {
				opts = append(opts, client.Reverse())
			}
			if keysOnly {
				opts = append(opts, client.KeysOnly())
			}
			format := writeTSV
			if keysOnly {
				format = writeKey
			}
			if a.isJSON() {
				format = writeVersioned
			}
			_, err = a.dump(cmd.Context(), a.stdout, format, start, end, opts)
			return err
		},
	}
	s.flags(cmd, "")
	cmd.Flags().IntVar(&limit, "limit", 0, "print so many keys at most (0: all)")
	cmd.Flags().BoolVar(&reverse, "reverse", false, "from the last key to the first")
	cmd.Flags().BoolVar(&keysOnly, "keys-only", false, "leave the values out")
	return cmd
}

// span is a span of keys as flags have it.
type span struct {
	prefix, start, end string
	all                bool
}

// flags adds the flags; verb, if not empty, adds --all for verbs that must not
// take everything by oversight.
func (s *span) flags(cmd *cobra.Command, verb string) {
	cmd.Flags().StringVar(&s.prefix, "prefix", "", "keys that begin so")
	cmd.Flags().StringVar(&s.start, "start", "", "first key")
	cmd.Flags().StringVar(&s.end, "end", "", "the key after the last one")
	if verb != "" {
		cmd.Flags().BoolVar(&s.all, "all", false, verb+" every key of the cluster")
	}
}

// bounds returns the span, and whether any flag gave one.
func (s *span) bounds() (start, end []byte, given bool, err error) {
	switch {
	case s.prefix != "" && (s.start != "" || s.end != ""), s.all && (s.prefix+s.start+s.end) != "":
		return nil, nil, false, usageError{
			"--prefix, --start with --end, and --all exclude each other",
		}
	case s.prefix != "":
		return []byte(s.prefix), prefixEnd([]byte(s.prefix)), true, nil
	}
	return []byte(s.start), []byte(s.end), s.all || s.start != "" || s.end != "", nil
}

// prefixEnd returns the first key behind all that begin with a prefix; nil if
// there is none.
func prefixEnd(prefix []byte) []byte {
	end := append([]byte{}, prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// openOutput is stdout for "-" or "".
func (a *app) openOutput(path string) (io.Writer, func() error, error) {
	if path == "" || path == "-" {
		return a.stdout, func() error { return nil }, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, nil, err
	}
	return f, f.Close, nil
}
