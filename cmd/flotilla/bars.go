package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

const (
	barWidth     = 24  // of the bar itself, in characters
	narrowBar    = 10  // on a terminal of less than wideTerminal
	wideTerminal = 110 // columns
	standingRoom = 15  // for the longest standing
)

// bars shows how far nodes are: on a terminal lines that are drawn over, elsewhere a
// line now and then.
type bars struct {
	out      io.Writer
	terminal bool
	width    int // of the terminal, 0: not known
	drawn    int // lines on the terminal
	shown    time.Time
	last     map[uint64]string // standing and done, when last told
}

func newBars(a *app) *bars {
	b := &bars{out: a.stderr, last: map[uint64]string{}}
	if f, ok := a.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		b.terminal = true
		b.width, _, _ = term.GetSize(int(f.Fd())) // 0 if it does not tell
	}
	return b
}

// draw shows what there is now.
func (b *bars) draw(all []progressReport) {
	if b.terminal {
		var text strings.Builder
		if b.drawn > 0 {
			fmt.Fprintf(&text, "\x1b[%dA", b.drawn) // up to the first line
		}
		for _, p := range all {
			line := []rune(b.bar(&p))
			if b.width > 0 { // a line that wraps could not be drawn over
				line = line[:min(len(line), b.width-1)]
			}
			fmt.Fprintf(&text, "\r\x1b[K%s\n", string(line))
		}
		b.drawn = len(all)
		_, _ = io.WriteString(b.out, text.String()) // talk: nobody to tell
		return
	}
	now := time.Now()
	due := now.Sub(b.shown) >= progressRarely
	for _, p := range all {
		state := fmt.Sprint(p.Standing, p.done())
		if due && !p.done() || b.last[p.Node] != state {
			b.last[p.Node] = state
			fmt.Fprintf(b.out, "n%d %s: %s\n", p.Node, p.Standing, p.left())
		}
	}
	if due {
		b.shown = now
	}
}

// bar is one node's line.
func (b *bars) bar(p *progressReport) string {
	width := barWidth
	if b.width > 0 && b.width < wideTerminal {
		width = narrowBar
	}
	full := int(p.share() * float64(width))
	return fmt.Sprintf("n%-3d %-*s [%s%s] %3.0f %%  %s", p.Node, standingRoom, p.Standing,
		strings.Repeat("=", full), strings.Repeat(" ", width-full), p.share()*100, p.left())
}
