package lint

import (
	"fmt"
	"go/ast"
	"go/format"
	"go/token"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Sizes. Tests may be longer: a story is told in one piece.
const (
	maxFuncLines     = 70
	maxTestFuncLines = 100
	maxFileLines     = 500
	maxTestFileLines = 700
	maxColumns       = 100
	maxTestColumns   = 110
	tabColumns       = 4
)

func checkFuncLength(s *source) {
	limit := maxFuncLines
	if s.test {
		limit = maxTestFuncLines
	}
	for _, d := range s.ast.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Body == nil {
			continue
		}
		lines := s.line(f.Body.Rbrace) - s.line(f.Type.Func) + 1
		if lines > limit {
			s.report("func-length", s.line(f.Type.Func), "%s has %d lines, at most %d",
				f.Name.Name, lines, limit)
		}
	}
}

func checkFileLength(s *source) {
	limit := maxFileLines
	if s.test {
		limit = maxTestFileLines
	}
	if len(s.lines) > limit {
		s.report("file-length", 1, "%d lines, at most %d", len(s.lines), limit)
	}
}

// checkLineLength tolerates imports, links, and what is long only by one
// string literal, because these cannot be wrapped.
func checkLineLength(s *source) {
	literals := map[int]int{} // by line, columns of its longest string literal
	ast.Inspect(s.ast, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			from, to := s.line(l.Pos()), s.line(l.End())
			for line := from; line <= to; line++ {
				part := columns(l.Value)
				if from != to {
					part = columns(s.lines[line-1])
				}
				literals[line] = max(literals[line], part)
			}
		}
		return true
	})
	limit := maxColumns
	if s.test {
		limit = maxTestColumns
	}
	for i, text := range s.lines {
		width := columns(text)
		if width <= limit || width-literals[i+1] <= limit && literals[i+1] > 0 ||
			strings.Contains(text, "://") || strings.Contains(text, "//go:") {
			continue
		}
		s.report("line-length", i+1, "%d columns, at most %d", width, limit)
	}
}

func checkFormat(s *source) {
	text := strings.Join(s.lines, "\n") + "\n"
	if formatted, err := format.Source([]byte(text)); err != nil || string(formatted) != text {
		s.report("gofmt", 1, "not formatted: run gofmt -w on it")
	}
}

// columns returns the width of a line.
func columns(text string) int {
	return utf8.RuneCountInString(text) + (tabColumns-1)*strings.Count(text, "\t")
}

// machinePath matches paths that only one machine has.
var machinePath = regexp.MustCompile(`(^|[^\w./-])/(home|root|Users|work|mnt)/[\w.-]`)

// checkTexts applies the rule machine to what is not Go.
func (m *module) checkTexts() []Violation {
	var found []Violation
	for _, name := range slices.Sorted(maps.Keys(m.texts)) {
		if strings.HasSuffix(name, ".go") {
			continue
		}
		for i, text := range strings.Split(m.texts[name], "\n") {
			if path := machinePath.FindString(text); path != "" {
				found = append(found, Violation{name, i + 1, "machine",
					fmt.Sprintf("%q is a path of one particular machine", path)})
			}
		}
	}
	return found
}

func checkMachine(s *source) {
	for i, text := range s.lines {
		if found := machinePath.FindString(text); found != "" {
			s.report("machine", i+1, "%q is a path of one particular machine", found)
		}
	}
}
