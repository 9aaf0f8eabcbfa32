package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
)

func (a *app) exportCommand() *cobra.Command {
	var s span
	var format, path string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write keys and values to a file, in key order, as of one instant",
		Long: `Write keys and values in key order, as they were at one instant, in a format
that kv import reads back byte for byte. --timeout bounds the time without
progress.`,
		Example: `  flotilla kv export > all.tsv
  flotilla kv export --prefix user/ --format jsonl --out users.jsonl`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			write, _, err := formatOf(format)
			if err != nil {
				return err
			}
			start, end, _, err := s.bounds()
			if err != nil {
				return err
			}
			out, closeOut, err := a.openOutput(path)
			if err != nil {
				return err
			}
			began := time.Now()
			n, err := a.dump(cmd.Context(), out, write, start, end, nil)
			if err := errors.Join(err, closeOut()); err != nil {
				return fmt.Errorf("%w (%s exported so far)", err, plural(n, "record"))
			}
			a.talk("exported %s in %.1f s", plural(n, "record"), time.Since(began).Seconds())
			return nil
		},
	}
	s.flags(cmd, "")
	cmd.Flags().StringVar(&format, "format", "tsv", "tsv or jsonl")
	cmd.Flags().StringVar(&path, "out", "-", "the file to write")
	return cmd
}

// outputBuffer is between a scan and its output.
const outputBuffer = 1 << 20

// dump writes a span of keys.
func (a *app) dump(
	ctx context.Context, out io.Writer, write rowWriter, start, end []byte,
	opts []client.ScanOption,
) (n int64, err error) {
	err = a.stream(ctx, func(ctx context.Context, c *client.Client, alive func()) error {
		w := bufio.NewWriterSize(out, outputBuffer)
		for row, err := range c.Scan(ctx, start, end, opts...) {
			if err != nil {
				return errors.Join(err, w.Flush())
			}
			alive()
			if err := write(w, row); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			n++
		}
		return w.Flush()
	})
	return n, err
}
