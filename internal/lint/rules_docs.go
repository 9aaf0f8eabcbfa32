package lint

import (
	"go/ast"
	"go/token"
	"path"
	"regexp"
)

// minDesignNote is how many lines a layer's package comment has at least: it
// is the design note (purpose, invariants, goroutines, what was rejected).
const minDesignNote = 12

// checkPackageDoc demands a package comment everywhere, and in the layers one
// that deserves the name, in doc.go.
func checkPackageDoc(p *pkg) {
	var first, holder *source
	var lines int
	for _, s := range p.files {
		if s.test || s.generated {
			continue
		}
		if first == nil {
			first = s
		}
		if s.ast.Doc != nil && holder == nil {
			holder = s
			lines = s.line(s.ast.Doc.End()) - s.line(s.ast.Doc.Pos()) + 1
		}
	}
	switch {
	case first == nil: // tests only, or generated code only
	case holder == nil:
		first.report("package-doc", first.line(first.ast.Package),
			"package %s has no comment", first.ast.Name.Name)
	case !isLayer(p.dir):
	case path.Base(holder.path) != "doc.go":
		holder.report("package-doc", holder.line(holder.ast.Package),
			"the comment of a layer stands in doc.go")
	case lines < minDesignNote:
		holder.report("package-doc", holder.line(holder.ast.Package),
			"the comment of a layer is its design note: purpose, invariants, goroutines, "+
				"what was rejected (%d lines, at least %d)", lines, minDesignNote)
	}
}

// isLayer says whether a package is one of the layers of the architecture.
func isLayer(dir string) bool {
	switch dir {
	case "store", "store/mvcc", "multiraft", "ranges", "placement", "rpc", "server",
		"client", "client/core", "loadtest":
		return true
	}
	return false
}

// checkDocs demands a comment on everything exported, but not on fields and
// not in commands.
func checkDocs(s *source) {
	if s.test || s.ast.Name.Name == "main" {
		return
	}
	for _, d := range s.ast.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && d.Doc.Text() == "" && exportedReceiver(d) {
				s.report("doc", s.line(d.Type.Func), "%s has no comment", d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				s.checkSpecDoc(d, spec)
			}
		}
	}
}

// checkSpecDoc accepts a comment on the group for constants and variables; a
// type needs its own unless it stands alone.
func (s *source) checkSpecDoc(d *ast.GenDecl, spec ast.Spec) {
	group := d.Doc.Text() != ""
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		own := spec.Doc.Text() != "" || spec.Comment.Text() != ""
		if spec.Name.IsExported() && !own && !(group && len(d.Specs) == 1) {
			s.report("doc", s.line(spec.Pos()), "%s has no comment", spec.Name.Name)
		}
	case *ast.ValueSpec:
		if group || spec.Doc.Text() != "" || spec.Comment.Text() != "" {
			return
		}
		for _, name := range spec.Names {
			if name.IsExported() {
				s.report("doc", s.line(name.Pos()), "%s has no comment", name.Name)
			}
		}
	}
}

// exportedReceiver says whether a function is one, or a method of an exported
// type.
func exportedReceiver(f *ast.FuncDecl) bool {
	return f.Recv == nil || ast.IsExported(receiver(f))
}

// receiver returns the name of a method's type, "" for a function.
func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil || len(f.Recv.List) == 0 {
		return ""
	}
	typ := f.Recv.List[0].Type
	for {
		switch t := typ.(type) {
		case *ast.StarExpr:
			typ = t.X
		case *ast.IndexExpr:
			typ = t.X
		case *ast.IndexListExpr:
			typ = t.X
		case *ast.Ident:
			return t.Name
		default:
			return ""
		}
	}
}

// idName matches parameters that name a node, a range and so on.
var idName = regexp.MustCompile(
	`^(?i)(from|to|next|self)?(node|range|replica|leader|term|generation|life)(id)?$|^(?i)(log|raft|applied|commit|first|last)?index$`)

// checkBareIDs looks at the signatures of what is exported.
func checkBareIDs(s *source) {
	if s.test {
		return
	}
	bare := func(fields *ast.FieldList) {
		if fields == nil {
			return
		}
		for _, field := range fields.List {
			if exprName(field.Type) != "uint64" {
				continue
			}
			for _, name := range field.Names {
				if idName.MatchString(name.Name) {
					s.report("bare-id", s.line(name.Pos()),
						"%s is a bare uint64; package ids has a type for it", name.Name)
				}
			}
		}
	}
	for _, d := range s.ast.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && exportedReceiver(d) {
				bare(d.Type.Params)
				bare(d.Type.Results)
			}
		case *ast.GenDecl:
			if d.Tok == token.TYPE {
				checkInterfaceIDs(d, bare)
			}
		}
	}
}

// checkInterfaceIDs applies bare to the methods of exported interfaces and to
// exported function types.
func checkInterfaceIDs(d *ast.GenDecl, bare func(*ast.FieldList)) {
	for _, spec := range d.Specs {
		t := spec.(*ast.TypeSpec)
		if !t.Name.IsExported() {
			continue
		}
		ast.Inspect(t.Type, func(n ast.Node) bool {
			if f, ok := n.(*ast.FuncType); ok {
				bare(f.Params)
				bare(f.Results)
			}
			return true
		})
	}
}
