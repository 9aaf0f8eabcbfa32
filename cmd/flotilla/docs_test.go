package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/flotilla-kv/flotilla/placement/rules"
)

// blocks returns the fenced blocks of a document in one language ("": none).
func blocks(text, language string) (all []string) {
	var block []string
	fence := ""
	for line := range strings.SplitSeq(text, "\n") {
		switch mark := strings.HasPrefix(line, "```"); {
		case mark && fence == "":
			fence, block = line, nil
		case mark:
			if fence == "```"+language {
				all = append(all, strings.Join(block, "\n"))
			}
			fence = ""
		default:
			block = append(block, line)
		}
	}
	return all
}

func documents(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(names) < 5 {
		t.Fatalf("only %d documents found: %v", len(names), err)
	}
	all := map[string]string{}
	for _, name := range append(names, "../../README.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(text)
	}
	return all
}

func TestCommandLinesOfTheDocumentsAreUnderstood(t *testing.T) {
	t.Parallel()
	seen, quoted := 0, regexp.MustCompile(`"[^"]*"`)
	for name, text := range documents(t) {
		for line := range strings.SplitSeq(strings.Join(blocks(text, ""), "\n"), "\n") {
			line, _, _ = strings.Cut(strings.TrimPrefix(line, "$ "), " > ")
			line, _, _ = strings.Cut(line, " #")
			line = quoted.ReplaceAllString(strings.TrimPrefix(line, "bin/"), "quoted")
			words := strings.Fields(line)
			if len(words) < 2 || words[0] != "flotilla" {
				continue
			}
			seen++
			root := (&app{}).rootCommand()
			cmd, args, err := root.Find(words[1:])
			if err == nil {
				err = cmd.ParseFlags(args)
			}
			if err == nil && cmd.HasSubCommands() {
				t.Errorf("%s: %q is not a command", name, line)
			} else if err == nil && cmd.Args != nil {
				err = cmd.Args(cmd, cmd.Flags().Args())
			}
			if err != nil {
				t.Errorf("%s: %q: %v", name, line, err)
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d command lines found", seen)
	}
}

func TestRulesOfTheDocumentAreRules(t *testing.T) {
	t.Parallel()
	all := blocks(documents(t)["../../docs/PLACEMENT.md"], "json")
	if len(all) < 3 {
		t.Fatalf("only %d examples found", len(all))
	}
	_, example, _ := strings.Cut(rulesHelp, "A file of rules:\n\n")
	for _, text := range append(all, example) {
		set, err := parseRules(strings.NewReader(text))
		if err != nil {
			t.Errorf("%v:\n%s", err, text)
			continue
		}
		if _, faults := rules.New(set); len(faults) > 0 {
			t.Errorf("%q:\n%s", faults, text)
		}
	}
}
