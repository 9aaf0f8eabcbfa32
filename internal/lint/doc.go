// Package lint keeps the house rules: it reads the whole module with go/parser
// and its tests fail where a rule is broken. There is nothing to run but
//
//	go test ./internal/lint
//
// The rules are the ones of docs/TESTING.md, "House rules". They are syntactic
// on purpose: no types are resolved, so the test takes a second and a broken
// package does not keep the others from being checked.
//
// # Exceptions
//
// A rule is switched off for one line by a comment on it, or on a line of its
// own directly above it, or (for a declaration) as the last line of its doc
// comment:
//
//	//lint:allow <rule> <why, in words>
//
// An exception without a reason, for a rule that does not exist, or that
// excuses nothing, is itself a violation. A table that nobody changes is
// excused by "//lint:allow package-var table: ...".
//
// # Tests of the tests
//
// A rule that cannot fail is worth nothing. So each rule has a file under
// testdata with planted violations, each marked by "// want", and the test
// demands exactly these, in the lines where they stand. A rule without such a
// file fails the test as well.
//
// # Rejected
//
// golangci-lint and friends know hundreds of rules, of which these few are the
// ones that this code rests on; they would be one more thing to install before
// "make test" says anything.
package lint
