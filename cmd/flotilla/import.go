package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
)

const (
	// maxLineBytes bounds a line of an import: the largest value, escaped.
	maxLineBytes = 72 << 20
	// writerQueue is how many lines wait for one writer.
	writerQueue = 4
	// progressEvery is between two progress lines on a terminal, progressRarely
	// elsewhere.
	progressEvery  = time.Second
	progressRarely = 10 * time.Second
)

// importer is one import. Lines go to a writer by the hash of their key, so
// that of two lines with one key the later one wins.
type importer struct {
	app     *app
	parse   rowParser
	window  int
	skip    int64
	began   time.Time
	shown   time.Time
	width   int // of the progress line on the terminal
	seed    maphash.Seed
	writers sync.WaitGroup

	mu struct {
		sync.Mutex
		records, bytes int64 // acknowledged
		failedLine     int64 // the first line whose write failed; 0: none
		failed         error
	}
}

// importLine is a parsed line.
type importLine struct {
	number     int64
	key, value []byte
}

func (a *app) importCommand() *cobra.Command {
	var format string
	im := &importer{app: a, seed: maphash.MakeSeed()}
	cmd := &cobra.Command{
		Use:   "import [FILE|-]",
		Short: "Write keys and values from a file, many at a time",
		Long: `Write keys and values from a file, or from stdin.

tsv    key, tab, value; tab, newline and backslash in them are \t, \n and \\
jsonl  {"key":"…","value":"…"}; for bytes that are not text, key_b64, value_b64

Each write takes effect once, however often it is retried inside. If a line is
malformed the import stops: all lines before it are written. If a write fails,
the message says with which --skip-lines the import can go on.`,
		Example: `  flotilla kv import users.tsv
  flotilla kv export --format jsonl | flotilla --endpoints other:7001 kv import --format jsonl`,
		Args: rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if _, im.parse, err = formatOf(format); err != nil {
				return err
			}
			if im.window < 1 || im.window > maxWindow || im.skip < 0 {
				return usageError{fmt.Sprintf(
					"--window is between 1 and %d, --skip-lines not negative", maxWindow)}
			}
			in := a.stdin
			if len(args) == 1 && args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close() //nolint:errcheck // only read
				in = f
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			return errors.Join(im.run(cmd.Context(), c, in), c.Close())
		},
	}
	cmd.Flags().StringVar(&format, "format", "tsv", "tsv or jsonl")
	cmd.Flags().IntVar(&im.window, "window", defaultWindow, "writes in flight at most")
	cmd.Flags().Int64Var(&im.skip, "skip-lines", 0, "leave out so many lines at the beginning")
	return cmd
}

const (
	defaultWindow = 256
	maxWindow     = 1 << 14
)

// run feeds the writers, and sums up.
func (im *importer) run(ctx context.Context, c *client.Client, in io.Reader) error {
	im.began = time.Now()
	im.shown = im.began
	queues := make([]chan importLine, im.window)
	for i := range queues {
		q := make(chan importLine, writerQueue)
		queues[i] = q
		im.writers.Go(func() { im.write(ctx, c, q) })
	}
	line, err := im.feed(ctx, in, queues)
	for _, q := range queues {
		close(q)
	}
	im.writers.Wait()
	return im.sumUp(line, err)
}

// feed reads lines until the end, a malformed line, or a failed write. It
// returns the number of the last line read.
func (im *importer) feed(
	ctx context.Context, in io.Reader, queues []chan importLine,
) (number int64, err error) {
	r := bufio.NewReaderSize(in, 1<<20)
	for {
		line, err := readLine(r)
		if errors.Is(err, io.EOF) {
			return number, nil
		}
		number++
		if err != nil && !errors.Is(err, errLongLine) {
			im.fail(number, fmt.Errorf("cannot read on: %w", err))
			return number, nil
		}
		if err == nil && number <= im.skip {
			continue
		}
		var key, value []byte
		if err == nil {
			key, value, err = im.parse(line)
		}
		if err == nil && len(key) == 0 {
			err = errEmptyKey
		}
		if err == nil && len(key) > client.MaxKeyBytes {
			err = fmt.Errorf("the key has %d bytes, the limit is %d", len(key), client.MaxKeyBytes)
		}
		if err != nil {
			return number, err
		}
		q := queues[maphash.Bytes(im.seed, key)%uint64(len(queues))]
		select {
		case q <- importLine{number, bytes.Clone(key), bytes.Clone(value)}:
		case <-ctx.Done():
			im.fail(number, ctx.Err())
			return number, nil
		}
		if im.progress() {
			return number, nil // a write failed: sumUp tells
		}
	}
}

var errLongLine = fmt.Errorf("the line has more than %d bytes", maxLineBytes)

// readLine returns the next line without its newline; it is valid until the
// next call. The last line may lack the newline.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		long := bytes.Clone(line)
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(long) > maxLineBytes {
				return nil, errLongLine
			}
			line, err = r.ReadSlice('\n')
			long = append(long, line...)
		}
		line = long
	}
	if err != nil && (!errors.Is(err, io.EOF) || len(line) == 0) {
		return nil, err
	}
	return bytes.TrimSuffix(line, []byte{'\n'}), nil
}

// write is one writer. After a failure lines beyond the failed one are left
// out; those before it are written still, so that the import can go on there.
func (im *importer) write(ctx context.Context, c *client.Client, q chan importLine) {
	for l := range q {
		if f := im.failedAt(); f != 0 && f < l.number {
			continue
		}
		if err := im.put(ctx, c, l); err != nil {
			im.fail(l.number, err)
			continue
		}
		im.mu.Lock()
		im.mu.records++
		im.mu.bytes += int64(len(l.key) + len(l.value))
		im.mu.Unlock()
	}
}

// fail notes the failure of a line, if it is the first line that failed.
func (im *importer) fail(line int64, err error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.mu.failedLine == 0 || line < im.mu.failedLine {
		im.mu.failedLine, im.mu.failed = line, err
	}
}

func (im *importer) put(ctx context.Context, c *client.Client, l importLine) error {
	ctx, cancel := context.WithTimeout(ctx, im.app.timeout)
	defer cancel()
	_, err := c.Put(ctx, l.key, l.value)
	return err
}

// failedAt is the first line that failed, 0 if none has.
func (im *importer) failedAt() int64 {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.mu.failedLine
}

// progress shows how far it is, now and then, and says whether a write failed.
func (im *importer) progress() (failed bool) {
	if im.failedAt() != 0 {
		return true
	}
	every := progressRarely
	if isTerminal(im.app.stderr) {
		every = progressEvery
	}
	now := time.Now()
	if now.Sub(im.shown) < every {
		return false
	}
	im.shown = now
	if isTerminal(im.app.stderr) {
		text := im.sofar(now)
		fmt.Fprintf(im.app.stderr, "\r%-*s", im.width, text)
		im.width = max(im.width, len(text))
	} else {
		im.app.talk("%s", im.sofar(now))
	}
	return false
}

// sofar is the progress in words.
func (im *importer) sofar(now time.Time) string {
	im.mu.Lock()
	defer im.mu.Unlock()
	seconds := max(now.Sub(im.began).Seconds(), 1e-3)
	return fmt.Sprintf("%d records, %.1f MB in %.1f s: %.0f records/s, %.1f MB/s",
		im.mu.records, float64(im.mu.bytes)/1e6, seconds,
		float64(im.mu.records)/seconds, float64(im.mu.bytes)/1e6/seconds)
}

// sumUp says what became of the import. Writers have ended.
func (im *importer) sumUp(line int64, malformed error) error {
	if im.width > 0 {
		fmt.Fprintf(im.app.stderr, "\r%-*s\r", im.width, "")
	}
	im.mu.Lock()
	records, failedLine, failed := im.mu.records, im.mu.failedLine, im.mu.failed
	im.mu.Unlock()
	switch {
	case failedLine != 0:
		return fmt.Errorf("import stopped at line %d: %w; %s written, all before that line and "+
			"perhaps some behind it; go on with --skip-lines %d",
			failedLine, failed, plural(records, "record"), failedLine-1)
	case malformed != nil:
		return fmt.Errorf("line %d is malformed: %w; imported %s, which is all before it",
			line, malformed, plural(records, "record"))
	}
	im.app.talk("imported %s", im.sofar(time.Now()))
	if im.app.isJSON() {
		return im.app.json(struct {
			Records int64 `json:"records"`
			Bytes   int64 `json:"bytes"`
			Lines   int64 `json:"lines"`
		}{records, im.mu.bytes, line})
	}
	return nil
}
