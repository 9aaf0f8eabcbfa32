package canary

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"testing"
)

// declared returns the names that a file of this package declares with decls
// of the given kind, exported ones only.
func declared(t *testing.T, file string) (functions, bugs []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			functions = append(functions, d.Name.Name)
		case *ast.GenDecl:
			for _, s := range d.Specs {
				v, ok := s.(*ast.ValueSpec)
				if !ok {
					continue
				}
				if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "Bug" {
					bugs = append(bugs, v.Names[0].Name)
				}
			}
		}
	}
	return functions, bugs
}

func TestBothBuildsAskTheSameWay(t *testing.T) {
	t.Parallel()
	off, bugsOff := declared(t, "canary.go")
	on, bugsOn := declared(t, "planted.go")
	if !slices.Equal(off, []string{"On"}) || !slices.Contains(on, "On") {
		t.Fatalf("the ordinary build declares %v, the canary build %v", off, on)
	}
	if len(bugsOff)+len(bugsOn) != 0 {
		t.Fatalf("bugs belong into bugs.go, which both builds share: %v %v", bugsOff, bugsOn)
	}
}

func TestEveryBugIsListedOnce(t *testing.T) {
	t.Parallel()
	_, names := declared(t, "bugs.go")
	list := Bugs()
	if len(list) != len(names) {
		t.Fatalf("bugs.go declares %d bugs, Bugs lists %d", len(names), len(list))
	}
	for i, b := range list {
		if b == "" || slices.Contains(list[:i], b) {
			t.Fatalf("%q is empty or listed twice", b)
		}
	}
}
