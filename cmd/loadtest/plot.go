package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"html"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// Sizes of the picture, in pixels.
const (
	plotWidth   = 900
	panelHeight = 220
	panelGap    = 46
	leftMargin  = 70
	rightMargin = 60
	topMargin   = 48
	gridLines   = 4
)

// plotColours tell nodes apart, also for those who see few colours.
func plotColours() []string {
	return []string{
		"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933",
	}
}

// panel is one of the graphs of a picture.
type panel struct {
	column, title string
	unit          float64 // a value is divided by it
}

func panels() []panel {
	return []panel{
		{"leaders", "ranges led", 1},
		{"bytes", "MiB held (keys and values)", 1 << 20},
		{"cpu_micros_per_second", "ms of processor time per second, of the ranges led", 1000},
		{"operators", "operators that run, in all", 1},
	}
}

// series is one node's course.
type series struct {
	at     []float64            // seconds
	values map[string][]float64 // by column
}

// recording is what watch has written, and the moments that were marked.
type recording struct {
	nodes  map[string]*series
	marks  []mark
	length float64
}

// mark is a moment with a name.
type mark struct {
	at   float64
	name string
}

func plotCommand() *cobra.Command {
	var out, title string
	c := &cobra.Command{
		Use:   "plot FILE.csv",
		Short: "Make a picture (SVG) of what watch has written",
		Long: `Make a picture (SVG) of what watch has written: leaders, bytes and load of every node
over time. A line "# SECONDS TEXT" in the file marks a moment.`,
		Example: "  flotilla-loadtest plot moves.csv --out moves.svg",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("plot takes one file that watch has written")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			raw, err := os.ReadFile(args[0])
			if err != nil {
				return usageError{err}
			}
			r, err := readRecording(string(raw))
			if err != nil {
				return usageError{fmt.Errorf("%s: %w", args[0], err)}
			}
			picture := r.draw(title)
			if out == "" {
				_, err = io.WriteString(c.OutOrStdout(), picture)
				return err
			}
			if err := os.WriteFile(out, []byte(picture), 0o644); err != nil {
				return fmt.Errorf("write picture: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "file to write (default: standard output)")
	c.Flags().StringVar(&title, "title", "Leaders, bytes and load by node", "heading")
	return c
}

// readRecording reads what watch writes. Marks are lines of their own.
func readRecording(text string) (*recording, error) {
	r := &recording{nodes: make(map[string]*series)}
	var rows strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			rows.WriteString(line)
			continue
		}
		at, name, _ := strings.Cut(strings.TrimSpace(line[1:]), " ")
		seconds, err := strconv.ParseFloat(at, 64)
		if err != nil {
			return nil, fmt.Errorf("mark %q: %q is no number of seconds", strings.TrimSpace(line), at)
		}
		r.marks = append(r.marks, mark{seconds, name})
	}
	all, err := csv.NewReader(strings.NewReader(rows.String())).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("read rows: %w", err)
	}
	if len(all) < 2 || !slices.Equal(all[0], watchColumns()) {
		return nil, fmt.Errorf("it has no rows of watch under %s", strings.Join(watchColumns(), ","))
	}
	for i, row := range all[1:] {
		if err := r.add(row); err != nil {
			return nil, fmt.Errorf("row %d: %w", i+2, err)
		}
	}
	return r, nil
}

func (r *recording) add(row []string) error {
	name := row[1]
	s := r.nodes[name]
	if s == nil {
		s = &series{values: make(map[string][]float64)}
		r.nodes[name] = s
	}
	at, err := strconv.ParseFloat(row[0], 64)
	if err != nil {
		return fmt.Errorf("seconds: %w", err)
	}
	s.at = append(s.at, at)
	r.length = max(r.length, at)
	for i, column := range watchColumns() {
		if !slices.ContainsFunc(panels(), func(p panel) bool { return p.column == column }) {
			continue
		}
		v, err := strconv.ParseFloat(row[i], 64)
		if err != nil {
			return fmt.Errorf("%s: %w", column, err)
		}
		s.values[column] = append(s.values[column], v)
	}
	return nil
}

// draw returns the picture.
func (r *recording) draw(title string) string {
	var b strings.Builder
	height := topMargin + len(panels())*(panelHeight+panelGap)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" `+
		`font-family="sans-serif" font-size="12">`+"\n", plotWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", plotWidth, height)
	fmt.Fprintf(&b, `<text x="%d" y="20" font-size="15">%s</text>`+"\n", leftMargin,
		html.EscapeString(title))
	for i, p := range panels() {
		r.drawPanel(&b, p, float64(topMargin+i*(panelHeight+panelGap)))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (r *recording) drawPanel(b *strings.Builder, p panel, top float64) {
	const right, bottomOf = plotWidth - rightMargin, panelHeight
	most := 1.0
	for _, s := range r.nodes { // any order: a maximum
		for _, v := range s.values[p.column] {
			most = max(most, v/p.unit)
		}
	}
	most = roundUp(most)
	x := func(at float64) float64 {
		return leftMargin + (right-leftMargin)*at/max(r.length, 1)
	}
	y := func(v float64) float64 { return top + bottomOf*(1-v/p.unit/most) }
	fmt.Fprintf(b, `<text x="%d" y="%.1f">%s</text>`+"\n", leftMargin, top-6, html.EscapeString(p.title))
	for i := range gridLines + 1 {
		v := most * float64(i) / gridLines
		at := y(v * p.unit)
		fmt.Fprintf(b, `<path d="M%d %.1fH%d" stroke="#ddd"/>`+
			`<text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n",
			leftMargin, at, right, leftMargin-6, at+4, v)
	}
	for i := range gridLines + 1 {
		at := r.length * float64(i) / gridLines
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle">%.0f s</text>`+"\n",
			x(at), top+bottomOf+16, at)
	}
	for _, m := range r.marks {
		fmt.Fprintf(b, `<path d="M%.1f %.1fv%d" stroke="#666" stroke-dasharray="3 3"/>`+
			`<text x="%.1f" y="%.1f" fill="#666" font-size="10">%s</text>`+"\n",
			x(m.at), top, panelHeight, x(m.at)+3, top+10, html.EscapeString(m.name))
	}
	for i, name := range slices.Sorted(maps.Keys(r.nodes)) {
		s, colour := r.nodes[name], plotColours()[i%len(plotColours())]
		var line strings.Builder
		values := s.values[p.column]
		for j, v := range values {
			// What stays the same between two looks adds nothing to a line.
			if j > 0 && j+1 < len(values) && v == values[j-1] && v == values[j+1] {
				continue
			}
			fmt.Fprintf(&line, "%.1f,%.1f ", x(s.at[j]), y(v))
		}
		fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="1.5" points="%s"/>`+"\n",
			colour, strings.TrimSpace(line.String()))
		fmt.Fprintf(b, `<text x="%d" y="%.1f" fill="%s">%s</text>`+"\n",
			right+8, top+14+float64(i)*15, colour, html.EscapeString(name))
	}
}

// roundUp returns the next number with one or two digits that matter.
func roundUp(v float64) float64 {
	step := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 4, 5, 8, 10} {
		if v <= m*step {
			return m * step
		}
	}
	return v
}
