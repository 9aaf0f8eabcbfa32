package lint

import (
	"cmp"
	"slices"
)

// rule is one house rule. Exactly one of the functions is set.
type rule struct {
	name  string
	what  string // what it demands, in words
	file  func(*source)
	whole func(*pkg)
}

// rules returns the house rules.
func rules() []rule {
	return []rule{
		{name: "func-length", what: "a function fits one screen", file: checkFuncLength},
		{name: "file-length", what: "a file has one subject", file: checkFileLength},
		{name: "line-length", what: "a line fits beside another one", file: checkLineLength},
		{name: "gofmt", what: "one layout", file: checkFormat},
		{name: "bare-go", what: "goroutines start in a Run, in a group that waits for them",
			file: checkBareGo},
		{name: "init", what: "nothing happens before main", file: checkInit},
		{name: "package-var", what: "no mutable state in packages", file: checkPackageVars},
		{name: "channel", what: "a channel's capacity has a name", file: checkChannels},
		{name: "doc", what: "what is exported is explained", file: checkDocs},
		{name: "package-doc", what: "a package says what it is for", whole: checkPackageDoc},
		{name: "layers", what: "imports go downwards only", file: checkLayers},
		{name: "clock", what: "time comes from hlc.Clock below server", file: checkClock},
		{name: "random", what: "randomness is injected below server", file: checkRandom},
		{name: "sleep", what: "tests wait for an event, not for a time", file: checkSleep},
		{name: "panic", what: "only a broken invariant panics", file: checkPanic},
		{name: "machine", what: "no path of one particular machine", file: checkMachine},
		{name: "bare-id", what: "ids have types", file: checkBareIDs},
		{name: ruleAllow, what: "an exception has a reason and an effect", file: nil},
	}
}

// ruleAllow is the rule about exceptions. It runs after all others.
const ruleAllow = "allow"

// check applies all rules and returns what they found, in order.
func (m *module) check() []Violation {
	var found []Violation
	for _, p := range m.packages {
		for _, s := range p.files {
			s.found = &found
		}
		for _, r := range rules() {
			if r.whole != nil {
				r.whole(p)
			}
			for _, s := range p.files {
				if r.file != nil && !s.generated {
					r.file(s)
				}
			}
		}
		for _, s := range p.files {
			checkAllows(s)
		}
	}
	slices.SortFunc(found, func(a, b Violation) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Rule, b.Rule))
	})
	return found
}

// checkAllows finds exceptions that are none.
func checkAllows(s *source) {
	known := func(name string) bool {
		return slices.ContainsFunc(rules(), func(r rule) bool { return r.name == name })
	}
	for _, a := range s.allows {
		switch {
		case !known(a.rule):
			s.report(ruleAllow, a.line, "there is no rule %q", a.rule)
		case a.why == "":
			s.report(ruleAllow, a.line, "say why %s does not apply here", a.rule)
		case !a.used:
			s.report(ruleAllow, a.line, "nothing here breaks %s: remove the exception", a.rule)
		}
	}
}
