package sim

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A script is a story, one command a line:
//
//	# words for the reader
//	world nodes=3 ranges=60
//	----
//	what came of it
//
//	add nodes=1
//	----
//	...
//
// Arguments are name=value or bare words. Lines that are indented belong to the
// command above. What stands between ---- and the next blank line is output: Play
// drops it and writes it anew.
const outputMark = "----"

// errNoWorld says that a script does not begin with its world.
var errNoWorld = errors.New("the first command of a script makes the world")

// command is one command of a script.
type command struct {
	verb  string
	raw   string            // all behind the verb
	words []string          // bare
	named map[string]string // name=value; what is taken is deleted
	body  []string
	bad   error // the first argument that could not be understood
}

func parseCommand(line string, body []string) *command {
	fields := strings.Fields(line)
	c := &command{verb: fields[0], named: make(map[string]string), body: body}
	c.raw = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), c.verb))
	for _, f := range fields[1:] {
		if name, value, ok := strings.Cut(f, "="); ok {
			c.named[name] = value
		} else {
			c.words = append(c.words, f)
		}
	}
	return c
}

// take returns a named argument and counts it as understood.
func (c *command) take(name string) (value string, ok bool) {
	value, ok = c.named[name]
	delete(c.named, name)
	return value, ok
}

func (c *command) fail(name, value string) {
	if c.bad == nil {
		c.bad = fmt.Errorf("%s: %s=%s cannot be understood", c.verb, name, value)
	}
}

func (c *command) text(name, otherwise string) string {
	if v, ok := c.take(name); ok {
		return v
	}
	return otherwise
}

func (c *command) list(name string) []string {
	if v, ok := c.take(name); ok && v != "" {
		return strings.Split(v, ",")
	}
	return nil
}

func (c *command) count(name string, otherwise int) int {
	return argument(c, name, otherwise, strconv.Atoi)
}

// number reads 0.25, and 25% as the same.
func (c *command) number(name string, otherwise float64) float64 {
	return argument(c, name, otherwise, parseNumber)
}

func (c *command) time(name string, otherwise time.Duration) time.Duration {
	return argument(c, name, otherwise, time.ParseDuration)
}

func (c *command) size(name string, otherwise int64) int64 {
	return int64(argument(c, name, float64(otherwise), parseNumber))
}

// argument takes an argument, or what is to be if it is not given.
func argument[T any](c *command, name string, otherwise T, parse func(string) (T, error)) T {
	text, ok := c.take(name)
	if !ok {
		return otherwise
	}
	v, err := parse(text)
	if err != nil {
		c.fail(name, text)
	}
	return v
}

// check reports arguments that were not understood.
func (c *command) check() error {
	if c.bad != nil {
		return c.bad
	}
	for name := range c.named { // order-free: one is as good as another
		return fmt.Errorf("%s does not know %s=", c.verb, name)
	}
	return nil
}

// parseNumber reads 12, 0.5, 25%, 3K, 64M, 2G and 1T; the letters are powers of 1024.
func parseNumber(v string) (float64, error) {
	factor := 1.0
	if v != "" {
		switch last := v[len(v)-1]; last {
		case '%':
			factor = 0.01
		case 'K', 'M', 'G', 'T':
			for range strings.IndexByte("KMGT", last) + 1 {
				factor *= 1024
			}
		}
	}
	if factor != 1 {
		v = v[:len(v)-1]
	}
	n, err := strconv.ParseFloat(v, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", v)
	}
	return n * factor, nil
}

// Play runs a script and returns it with the output of every command below it, and
// the world as it is at the end. The error is the first thing that was not as the
// script demands; the output up to there is returned with it.
func Play(script string) (trace string, w *World, err error) {
	var out strings.Builder
	lines := strings.Split(strings.TrimRight(script, "\n"), "\n")
	p := &player{}
	for len(lines) > 0 {
		line := lines[0]
		lines = lines[1:]
		fmt.Fprintln(&out, line)
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var body []string
		for len(lines) > 0 && strings.HasPrefix(lines[0], "  ") {
			body = append(body, strings.TrimSpace(lines[0]))
			fmt.Fprintln(&out, lines[0])
			lines = lines[1:]
		}
		if len(lines) > 0 && lines[0] == outputMark {
			end := slices.Index(lines, "")
			if end < 0 {
				end = len(lines)
			}
			lines = lines[end:]
		}
		text, err := p.do(parseCommand(line, body))
		if text = strings.TrimRight(text, "\n"); text != "" {
			fmt.Fprintf(&out, "%s\n%s\n", outputMark, text)
		}
		if err != nil {
			return out.String(), p.w, fmt.Errorf("%q: %w", line, err)
		}
	}
	return out.String(), p.w, nil
}
