package lint

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

func checkBareGo(s *source) {
	if s.test {
		return
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		if g, ok := n.(*ast.GoStmt); ok {
			s.report("bare-go", s.line(g.Go),
				"start goroutines by errgroup.Group.Go or sync.WaitGroup.Go in a Run(ctx)")
		}
		return true
	})
}

func checkInit(s *source) {
	for _, d := range s.ast.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			s.report("init", s.line(f.Type.Func), "call it from where it is needed")
		}
	}
}

// checkPackageVars allows errors, compiled patterns, pools, embedded files and
// interface assertions.
func checkPackageVars(s *source) {
	if s.test {
		return
	}
	for _, d := range s.ast.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.VAR {
			continue
		}
		for _, spec := range g.Specs {
			v := spec.(*ast.ValueSpec)
			for i, name := range v.Names {
				var value ast.Expr
				if i < len(v.Values) {
					value = v.Values[i]
				}
				if name.Name != "_" && !constantLike(v.Type, value) {
					s.report("package-var", s.line(name.Pos()),
						"%s is a variable of the whole package; make it a field, "+
							"or say why it is a table that nobody changes", name.Name)
				}
			}
		}
	}
}

// constantLike says whether a package variable is one in name only.
func constantLike(typ, value ast.Expr) bool {
	allowed := []string{
		"errors.New", "fmt.Errorf", "regexp.MustCompile", "sync.Pool", "embed.FS",
	}
	if slices.Contains(allowed, exprName(typ)) {
		return true
	}
	if unary, ok := value.(*ast.UnaryExpr); ok && unary.Op == token.AND {
		value = unary.X
	}
	switch v := value.(type) {
	case *ast.CallExpr:
		return slices.Contains(allowed, exprName(v.Fun))
	case *ast.CompositeLit:
		return slices.Contains(allowed, exprName(v.Type))
	}
	return false
}

// exprName returns "name" or "package.name" of an identifier or selector.
func exprName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		if x := exprName(e.X); x != "" {
			return x + "." + e.Sel.Name
		}
	}
	return ""
}

func checkChannels(s *source) {
	if s.test {
		return
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || exprName(call.Fun) != "make" || len(call.Args) != 2 {
			return true
		}
		if _, ok := call.Args[0].(*ast.ChanType); ok && !s.namedConst(call.Args[1]) {
			s.report("channel", s.line(call.Pos()),
				"give the capacity a name, as a constant with a comment on what happens when full")
		}
		return true
	})
}

// namedConst says whether e is a constant of this package, or an exported name
// of another one (whose kind is not known here).
func (s *source) namedConst(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Ident:
		return s.pkg.consts[e.Name]
	case *ast.SelectorExpr:
		x, ok := e.X.(*ast.Ident)
		return ok && slices.ContainsFunc(s.ast.Imports, func(i *ast.ImportSpec) bool {
			return s.importName(strings.Trim(i.Path.Value, `"`)) == x.Name
		})
	}
	return false
}

func checkPanic(s *source) {
	if s.test || s.dir == "internal/invariant" {
		return
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && exprName(call.Fun) == "panic" {
			s.report("panic", s.line(call.Pos()),
				"return an error, or use invariant.Failf if going on could corrupt data")
		}
		return true
	})
}
