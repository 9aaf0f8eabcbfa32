package lint

import (
	"go/ast"
	"slices"
	"strings"
)

// leaves are what every package may import.
const leaves = "proto/kv proto/metapb proto/adminpb proto/framecodec " +
	"internal/hlc internal/ids internal/invariant internal/canary"

// everything stands for all packages but the ones on top.
const everything = "*"

// layers returns what each package may import of this module, separated by
// blanks. Facts go up and orders go down: an import that is missing here is
// missing on purpose, and ranges and placement never know one another.
func layers() map[string]string {
	return map[string]string{
		// leaves: they import one another only
		"proto/kv":             "internal/hlc internal/ids",
		"proto/metapb":         "",
		"proto/adminpb":        "proto/metapb",
		"proto/framecodec":     "",
		"internal/hlc":         "internal/canary",
		"internal/hlc/osclock": "internal/hlc",
		"internal/ids":         "",
		"internal/invariant":   "",
		"internal/canary":      "internal/invariant",
		"internal/lint":        "",

		"support":         leaves,
		"store/mvcc":      leaves,
		"store/rowcache":  leaves,
		"store":           leaves + " store/mvcc",
		"multiraft":       leaves + " store support",
		"ranges":          leaves + " store store/mvcc store/rowcache multiraft support",
		"rpc":             leaves + " store multiraft ranges support", // ranges: only for its Admission
		"placement":       leaves + " placement/rules",
		"placement/sim":   leaves + " placement",
		"placement/rules": leaves,
		"console":         leaves,
		"server":          everything,

		// the client is embedded by others: few packages, few dependencies
		"client/core": "proto/kv proto/metapb proto/adminpb internal/hlc internal/ids",
		"client": "client/core proto/kv proto/metapb proto/adminpb proto/framecodec " +
			"internal/hlc internal/ids",
		"client/internal/model": "proto/kv proto/metapb proto/adminpb internal/hlc internal/ids",
		"client/clienttest": "client/internal/model proto/kv proto/metapb proto/adminpb " +
			"proto/framecodec internal/hlc internal/ids",
		"loadtest": "client internal/hlc internal/ids",

		"cmd/node":             everything,
		"cmd/flotilla":         leaves + " client",
		"cmd/loadtest":         leaves + " client loadtest",
		"internal/sim":         everything,
		"internal/testcluster": everything,
		"internal/process":     "client", // real processes, reached as users reach them
		"scripts":              "",
	}
}

// onTop says whether nobody imports a package.
func onTop(dir string) bool {
	return strings.HasPrefix(dir, "cmd/") || dir == "loadtest" || dir == "internal/sim" ||
		dir == "internal/lint"
}

func checkLayers(s *source) {
	if s.test || strings.HasPrefix(s.dir, "tools/") {
		return
	}
	allowed, known := layers()[s.dir]
	if !known {
		s.report("layers", s.line(s.ast.Package),
			"package %s is not in the table of layers: decide where it stands", s.dir)
		return
	}
	for _, i := range s.ast.Imports {
		target, ours := strings.CutPrefix(strings.Trim(i.Path.Value, `"`), modulePath+"/")
		if !ours {
			continue
		}
		if allowed == everything && !onTop(target) ||
			slices.Contains(strings.Fields(allowed), target) {
			continue
		}
		s.report("layers", s.line(i.Pos()), "%s must not import %s", s.dir, target)
	}
}

// readsTime says whether a package may use the clock of the operating system.
// Everything else asks hlc.Clock, so that the simulator can run it.
func readsTime(dir string) bool {
	return dir == "server" || dir == "client" || dir == "loadtest" || dir == "console" ||
		dir == "internal/testcluster" || dir == "client/clienttest" || strings.HasPrefix(dir, "cmd/") ||
		strings.HasPrefix(dir, "tools/")
}

// hasHostRun says whether this is the one file of multiraft that may use
// timers: the one in which Host.Run starts the ticker.
func (s *source) hasHostRun() bool {
	return s.dir == "multiraft" && slices.ContainsFunc(s.ast.Decls, func(d ast.Decl) bool {
		f, ok := d.(*ast.FuncDecl)
		return ok && f.Name.Name == "Run" && receiver(f) == "Host"
	})
}

func checkClock(s *source) {
	if s.test || readsTime(s.dir) {
		return
	}
	timers := []string{"After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}
	s.eachUse("time", func(name string, line int) {
		switch {
		case name == "Now" || name == "Since" || name == "Until" || name == "Sleep":
		case slices.Contains(timers, name) && !s.hasHostRun():
		default:
			return
		}
		s.report("clock", line, "time.%s cannot be simulated; use hlc.Clock or be told by a step", name)
	})
}

// checkRandom forbids the generators that nobody seeded. Constructors and
// types are what an injected generator is made of.
func checkRandom(s *source) {
	if s.test || readsTime(s.dir) {
		return
	}
	fine := []string{
		"New", "NewPCG", "NewChaCha8", "NewZipf", "NewSource",
		"Rand", "Source", "PCG", "ChaCha8", "Zipf",
	}
	for _, library := range []string{"math/rand", "math/rand/v2"} {
		s.eachUse(library, func(name string, line int) {
			if !slices.Contains(fine, name) {
				s.report("random", line, "rand.%s is not seeded; take a generator as an argument", name)
			}
		})
	}
}

// checkSleep leaves out tests of real processes, in which time has to pass.
func checkSleep(s *source) {
	if !s.test || s.dir == "internal/process" {
		return
	}
	s.eachUse("time", func(name string, line int) {
		if name == "Sleep" {
			s.report("sleep", line, "wait for the event instead")
		}
	})
}

// eachUse calls f for every use of a package's exported name.
func (s *source) eachUse(importPath string, f func(name string, line int)) {
	local := s.importName(importPath)
	if local == "" {
		return
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && x.Name == local {
			f(sel.Sel.Name, s.line(sel.Pos()))
		}
		return true
	})
}
