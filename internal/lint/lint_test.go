package lint

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// moduleRoot is where go.mod stands, seen from this package.
const moduleRoot = "../.."

func loadModule(t *testing.T) *module {
	t.Helper()
	m, err := load(moduleRoot)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTheModuleKeepsTheHouseRules(t *testing.T) {
	t.Parallel()
	m := loadModule(t)
	if len(m.packages) < 10 {
		t.Fatalf("only %d packages found: this test looks in the wrong place", len(m.packages))
	}
	for _, v := range append(m.check(), m.checkTexts()...) {
		t.Error(v)
	}
}

// TestEveryRuleCatchesWhatIsPlanted reads testdata/<rule>.txt: Go files, each
// after a line "-- path --". A line that ends in "// want" is a violation of
// the rule, all others are none. The mark is cut off before the file is parsed;
// "// repeat N text" stands for N lines of text.
func TestEveryRuleCatchesWhatIsPlanted(t *testing.T) {
	t.Parallel()
	for _, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			m, want := planted(t, r.name)
			var got []string
			for _, v := range m.check() {
				if v.Rule == r.name {
					got = append(got, fmt.Sprintf("%s:%d", v.File, v.Line))
				}
			}
			if len(want) == 0 {
				t.Fatal("nothing is planted: the rule has not been seen to fail")
			}
			if !slices.Equal(got, want) {
				t.Errorf("found   %v\nplanted %v", got, want)
			}
		})
	}
}

// planted loads the module of one file of testdata and returns the places of
// the violations in it, in order.
func planted(t *testing.T, rule string) (*module, []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", rule+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	m := &module{byDir: map[string]*pkg{}, texts: map[string]string{}}
	var want []string
	sections := strings.Split("\n"+string(text), "\n-- ")
	for _, section := range sections[1:] {
		name, body, ok := strings.Cut(section, " --\n")
		if !ok {
			t.Fatalf("no file name in %q", section)
		}
		var lines []string
		for line := range strings.SplitSeq(body, "\n") {
			if count, repeated, ok := repeat(line); ok {
				lines = append(lines, slices.Repeat([]string{repeated}, count)...)
				continue
			}
			line, marked := strings.CutSuffix(line, " // want")
			lines = append(lines, line)
			if marked {
				want = append(want, fmt.Sprintf("%s:%d", name, len(lines)))
			}
		}
		if err := m.add(name, strings.Join(lines, "\n")); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range m.byDir {
		m.packages = append(m.packages, p)
	}
	slices.SortFunc(want, comparePlaces)
	return m, want
}

// repeat reads "// repeat N text".
func repeat(line string) (count int, text string, ok bool) {
	rest, ok := strings.CutPrefix(line, "// repeat ")
	if !ok {
		return 0, "", false
	}
	number, text, _ := strings.Cut(rest, " ")
	count, err := strconv.Atoi(number)
	return count, text, err == nil
}

func comparePlaces(a, b string) int {
	fileA, lineA, _ := strings.Cut(a, ":")
	fileB, lineB, _ := strings.Cut(b, ":")
	if c := strings.Compare(fileA, fileB); c != 0 {
		return c
	}
	numberA, _ := strconv.Atoi(lineA)
	numberB, _ := strconv.Atoi(lineB)
	return numberA - numberB
}

func TestEveryPlantedFileBelongsToARule(t *testing.T) {
	t.Parallel()
	files, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(f.Name(), ".txt")
		if !slices.ContainsFunc(rules(), func(r rule) bool { return r.name == name }) {
			t.Errorf("testdata/%s belongs to no rule", f.Name())
		}
	}
}

func TestTheMachineRuleReadsTextsToo(t *testing.T) {
	t.Parallel()
	//lint:allow machine planted
	m := &module{texts: map[string]string{"docs/a.md": "fine\nsee /home/me/notes", "b.md": "x/home/"}}
	if got := m.checkTexts(); len(got) != 1 || got[0].File != "docs/a.md" || got[0].Line != 2 {
		t.Fatalf("found %v", got)
	}
}

func TestTheTableOfLayersHasNoCycle(t *testing.T) {
	t.Parallel()
	table := layers()
	var visit func(dir string, path []string)
	visit = func(dir string, path []string) {
		if slices.Contains(path, dir) {
			t.Fatalf("cycle: %v", append(path, dir))
		}
		for target := range strings.FieldsSeq(table[dir]) {
			if target == everything {
				continue
			}
			if _, known := table[target]; !known {
				t.Errorf("%s may import %s, which the table does not know", dir, target)
			}
			visit(target, append(path, dir))
		}
	}
	for dir := range table {
		visit(dir, nil)
	}
}

// What the documents say is kept true by the tests below.

// quoted matches `code` in a document.
var quoted = regexp.MustCompile("`([^`\n]+)`")

func documents(t *testing.T, m *module) []string {
	t.Helper()
	var list []string
	for name := range m.texts {
		if strings.HasSuffix(name, ".md") {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	if len(list) < 5 {
		t.Fatalf("only %v found", list)
	}
	return list
}

func TestEveryNameInTheDocumentsExists(t *testing.T) {
	t.Parallel()
	m := loadModule(t)
	names := m.symbols()
	for _, doc := range documents(t, m) {
		for i, line := range strings.Split(m.texts[doc], "\n") {
			for _, match := range quoted.FindAllStringSubmatch(line, -1) {
				if problem := names.missing(match[1], doc == lifeOfAPut); problem != "" {
					t.Errorf("%s:%d: %s", doc, i+1, problem)
				}
			}
		}
	}
}

func TestANameThatVanishedIsNoticed(t *testing.T) {
	t.Parallel()
	m, _ := planted(t, "doc")
	names := m.symbols()
	for text, found := range map[string]bool{
		"store.Documented":           true,
		"store.Kind.Method":          true,
		"store.Kind.Method(x)":       true,
		"store.Kind.unexported":      true,
		"store.Gone":                 false,
		"store.Kind.Gone":            false,
		"store.Documented.Method":    false,
		"nowhere.Documented":         false,
		"--flag":                     true,
		"store/planted.go":           true,
		"make test":                  true,
		"errors.Is(err, ErrPlanted)": false,
	} {
		if problem := names.missing(text, true); (problem == "") != found {
			t.Errorf("%q: found should be %v: %s", text, found, problem)
		}
	}
	if problem := names.missing("errors.Is", false); problem != "" {
		t.Errorf("elsewhere other packages may be named: %s", problem)
	}
}

func TestEveryFileInTheDocumentsExists(t *testing.T) {
	t.Parallel()
	m := loadModule(t)
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for _, doc := range documents(t, m) {
		text := m.texts[doc]
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			target := filepath.Join(moduleRoot, filepath.Dir(doc), match[1])
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", doc, match[1], err)
			}
		}
		for _, match := range quoted.FindAllStringSubmatch(text, -1) {
			path := match[1]
			if strings.Contains(path, "/") && filePattern.MatchString(path) &&
				!strings.ContainsAny(path, " *<") {
				if _, err := os.Stat(filepath.Join(moduleRoot, path)); err != nil {
					t.Errorf("%s names the file %s: %v", doc, path, err)
				}
			}
		}
	}
}

func TestEveryMakeTargetInTheDocumentsExists(t *testing.T) {
	t.Parallel()
	m := loadModule(t)
	targets := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^([a-z-]+):`).FindAllStringSubmatch(
		m.texts["Makefile"], -1) {
		targets[match[1]] = true
	}
	if !targets["test"] || !targets["help"] {
		t.Fatalf("targets read from the Makefile: %v", targets)
	}
	use := regexp.MustCompile("(?m)(?:`|^\\$ )make ([a-z-]+)")
	for _, doc := range documents(t, m) {
		for _, match := range use.FindAllStringSubmatch(m.texts[doc], -1) {
			if !targets[match[1]] {
				t.Errorf("%s: there is no make %s", doc, match[1])
			}
		}
	}
}

func TestEveryDependencyIsExplained(t *testing.T) {
	t.Parallel()
	m := loadModule(t)
	require, _, _ := strings.Cut(m.texts["go.mod"], "\n)\n")
	found := 0
	for _, match := range regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(require, -1) {
		found++
		if !strings.Contains(m.texts["docs/ARCHITECTURE.md"], "`"+match[1]+"`") {
			t.Errorf("docs/ARCHITECTURE.md does not say what %s is for", match[1])
		}
	}
	if found < 5 {
		t.Fatalf("only %d dependencies read from go.mod", found)
	}
}

func TestEveryRuleIsInTheDocuments(t *testing.T) {
	t.Parallel()
	m := loadModule(t)
	for _, r := range rules() {
		if !strings.Contains(m.texts["docs/TESTING.md"], "| `"+r.name+"` |") {
			t.Errorf("docs/TESTING.md does not list the rule %s: %s", r.name, r.what)
		}
	}
}
