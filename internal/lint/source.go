package lint

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// modulePath is the import path of the module that is checked.
const modulePath = "github.com/flotilla-kv/flotilla"

// Violation is one broken rule.
type Violation struct {
	File    string // path from the module's root, with forward slashes
	Line    int
	Rule    string
	Message string
}

// String returns the violation as compilers print one.
func (v Violation) String() string {
	return fmt.Sprintf("%s:%d: %s: %s", v.File, v.Line, v.Rule, v.Message)
}

// source is one parsed Go file.
type source struct {
	path      string // from the module's root, with forward slashes
	dir       string // its directory: the package's path in the module
	test      bool
	generated bool
	fset      *token.FileSet
	ast       *ast.File
	lines     []string
	allows    []*allow
	pkg       *pkg
	found     *[]Violation
}

// pkg is the Go files of one directory.
type pkg struct {
	dir    string
	files  []*source
	consts map[string]bool // names declared by const anywhere in it
}

// module is everything that is checked.
type module struct {
	root     string
	packages []*pkg            // sorted by directory
	byDir    map[string]*pkg   // the same
	texts    map[string]string // every text file, by path
}

// allow is one exception.
type allow struct {
	line int // the line that it stands in
	to   int // the last line that it excuses
	rule string
	why  string
	used bool
}

// skipped are directories that hold nothing of ours, by name.
func skipped(name string) bool {
	return name != "." && strings.HasPrefix(name, ".") && name != ".ci" ||
		name == "bin" || name == "testdata" || name == "vendor"
}

// load reads the module at root.
func load(root string) (*module, error) {
	m := &module{root: root, byDir: map[string]*pkg{}, texts: map[string]string{}}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed while we walk
		}
		if err != nil {
			return err
		}
		if d.IsDir() {
			if skipped(d.Name()) && file != root {
				return filepath.SkipDir
			}
			return nil
		}
		relative, err := filepath.Rel(root, file)
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		return m.read(file, filepath.ToSlash(relative))
	})
	if err != nil {
		return nil, err
	}
	for _, p := range m.byDir {
		m.packages = append(m.packages, p)
	}
	slices.SortFunc(m.packages, func(a, b *pkg) int { return strings.Compare(a.dir, b.dir) })
	return m, nil
}

// read adds one file.
func (m *module) read(file, relative string) error {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if bytes.IndexByte(text, 0) >= 0 {
		return nil // not a text
	}
	m.texts[relative] = string(text)
	if path.Ext(relative) != ".go" {
		return nil
	}
	return m.add(relative, string(text))
}

// add parses one Go file and puts it into its package.
func (m *module) add(relative, text string) error {
	s := &source{
		path:  relative,
		dir:   path.Dir(relative),
		test:  strings.HasSuffix(relative, "_test.go"),
		fset:  token.NewFileSet(),
		lines: strings.Split(strings.TrimSuffix(text, "\n"), "\n"),
	}
	var err error
	s.ast, err = parser.ParseFile(s.fset, relative, text, parser.ParseComments)
	if err != nil {
		return err
	}
	s.generated = ast.IsGenerated(s.ast)
	if m.byDir[s.dir] == nil {
		m.byDir[s.dir] = &pkg{dir: s.dir, consts: map[string]bool{}}
	}
	s.pkg = m.byDir[s.dir]
	s.pkg.files = append(s.pkg.files, s)
	s.collectConsts()
	s.collectAllows()
	return nil
}

// collectConsts notes what the file declares by const, local ones included.
func (s *source) collectConsts() {
	ast.Inspect(s.ast, func(n ast.Node) bool {
		if d, ok := n.(*ast.GenDecl); ok && d.Tok == token.CONST {
			for _, spec := range d.Specs {
				for _, name := range spec.(*ast.ValueSpec).Names {
					s.pkg.consts[name.Name] = true
				}
			}
		}
		return true
	})
}

// collectAllows reads the exceptions. One that follows code excuses its line;
// one on a line of its own excuses the first line after its comment group.
func (s *source) collectAllows() {
	for _, group := range s.ast.Comments {
		for _, c := range group.List {
			rest, ok := strings.CutPrefix(c.Text, "//lint:allow ")
			if !ok {
				continue
			}
			rule, why, _ := strings.Cut(strings.TrimSpace(rest), " ")
			at := s.fset.Position(c.Pos())
			to := at.Line
			if strings.TrimSpace(s.lines[at.Line-1][:at.Column-1]) == "" {
				to = s.fset.Position(group.End()).Line + 1
			}
			s.allows = append(s.allows, &allow{line: at.Line, to: to, rule: rule, why: why})
		}
	}
}

// line returns the line of a position.
func (s *source) line(pos token.Pos) int { return s.fset.Position(pos).Line }

// report notes a violation unless an exception excuses it.
func (s *source) report(rule string, line int, format string, args ...any) {
	for _, a := range s.allows {
		if a.rule == rule && a.to == line {
			a.used = true
			return
		}
	}
	*s.found = append(*s.found, Violation{s.path, line, rule, fmt.Sprintf(format, args...)})
}

// importName returns the name under which the file knows the package that it
// imports by this path, or "".
func (s *source) importName(importPath string) string {
	for _, i := range s.ast.Imports {
		if strings.Trim(i.Path.Value, `"`) != importPath {
			continue
		}
		if i.Name != nil {
			return i.Name.Name
		}
		base := path.Base(importPath)
		if len(base) > 1 && base[0] == 'v' && strings.Trim(base[1:], "0123456789") == "" {
			base = path.Base(path.Dir(importPath))
		}
		return base
	}
	return ""
}
