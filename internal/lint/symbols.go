package lint

import (
	"go/ast"
	"path"
	"regexp"
)

// lifeOfAPut is the document in which every name must exist.
const lifeOfAPut = "docs/life-of-a-put.md"

// symbols are the names that the module declares, by package name: "Name",
// "Type.Method" and "Type.field".
type symbols map[string]map[string]bool

// symbols returns what the packages declare outside tests.
func (m *module) symbols() symbols {
	all := symbols{}
	for _, p := range m.packages {
		for _, s := range p.files {
			if s.test {
				continue
			}
			name := path.Base(p.dir)
			if all[name] == nil {
				all[name] = map[string]bool{}
			}
			for _, d := range s.ast.Decls {
				addSymbols(all[name], d)
			}
		}
	}
	return all
}

// addSymbols adds what one declaration declares.
func addSymbols(to map[string]bool, d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if r := receiver(d); r != "" {
			to[r+"."+d.Name.Name] = true
		} else {
			to[d.Name.Name] = true
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					to[name.Name] = true
				}
			case *ast.TypeSpec:
				to[spec.Name.Name] = true
				addMembers(to, spec)
			}
		}
	}
}

// addMembers adds the fields of a struct and the methods of an interface.
func addMembers(to map[string]bool, spec *ast.TypeSpec) {
	var fields *ast.FieldList
	switch t := spec.Type.(type) {
	case *ast.StructType:
		fields = t.Fields
	case *ast.InterfaceType:
		fields = t.Methods
	default:
		return
	}
	for _, f := range fields.List {
		for _, name := range f.Names {
			to[spec.Name.Name+"."+name.Name] = true
		}
	}
}

// symbolPattern matches package.Name, package.Type.Method and a call of one.
var symbolPattern = regexp.MustCompile(
	`^([a-z][a-z0-9]*)\.([A-Za-z]\w*)(?:\.([A-Za-z]\w*))?(?:\(.*\))?$`)

// filePattern matches what is a file and not a symbol.
var filePattern = regexp.MustCompile(`\.(go|md|mod|sum|proto|txt|json|yml)$`)

// missing says what is wrong with a quoted name, "" if nothing. strict: the
// package must be one of ours.
func (all symbols) missing(text string, strict bool) string {
	match := symbolPattern.FindStringSubmatch(text)
	if match == nil || filePattern.MatchString(text) {
		return ""
	}
	names, known := all[match[1]]
	if !known {
		if strict {
			return "there is no package " + match[1] + " (in " + text + ")"
		}
		return ""
	}
	name := match[2]
	if match[3] != "" {
		name += "." + match[3]
	}
	if !names[name] {
		return match[1] + " declares no " + name
	}
	return ""
}
