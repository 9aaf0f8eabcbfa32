package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// rulesFile is all rules, as JSON: what rules get -o json prints, and set reads.
type rulesFile struct {
	// Version is of the set that this one was made from; set refuses if the cluster
	// has another one by now. 0: whichever it has.
	Version uint64       `json:"version,omitempty"`
	Rules   []ruleReport `json:"rules"`
}

// ruleReport is a rule as JSON. The prefix is of users' keys.
type ruleReport struct {
	Name      string   `json:"name"`
	Prefix    *string  `json:"prefix,omitempty"`
	PrefixB64 *string  `json:"prefix_b64,omitempty"`
	Replicas  uint32   `json:"replicas"`
	Require   []string `json:"require,omitempty"`
	Forbid    []string `json:"forbid,omitempty"`
	Spread    string   `json:"spread,omitempty"`
	Isolation string   `json:"isolation,omitempty"`
	Leaders   []string `json:"leaders,omitempty"`
}

func newRulesFile(s *metapb.RuleSet) *rulesFile {
	f := &rulesFile{Version: s.GetVersion(), Rules: []ruleReport{}}
	for _, r := range s.GetRules() {
		report := ruleReport{
			Name: r.GetName(), Replicas: r.GetReplicas(), Require: r.GetRequire(),
			Forbid: r.GetForbid(), Spread: r.GetSpread(), Isolation: r.GetIsolation(),
			Leaders: r.GetLeaders(),
		}
		report.Prefix, report.PrefixB64 = textOrBase64(r.GetPrefix())
		f.Rules = append(f.Rules, report)
	}
	return f
}

// maxRulesBytes bounds a file of rules: more than a thousand of the longest ones.
const maxRulesBytes = 16 << 20

// parseRules reads a file of rules. What the rules say is judged by the cluster.
func parseRules(in io.Reader) (*metapb.RuleSet, error) {
	data, err := io.ReadAll(io.LimitReader(in, maxRulesBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the rules: %w", err)
	}
	if len(data) > maxRulesBytes {
		return nil, fmt.Errorf("the rules have more than %d bytes", maxRulesBytes)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("the rules are malformed, line 1: there is nothing in the file")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var f rulesFile
	if err := d.Decode(&f); err != nil {
		at := d.InputOffset()
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			at = syntax.Offset
		} else if typed, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			at = typed.Offset
		}
		line := 1 + bytes.Count(data[:min(at, int64(len(data)))], []byte{'\n'})
		return nil, fmt.Errorf("the rules are malformed, line %d: %s (flotilla placement rules get "+
			"-o json shows the form)", line, jsonFault(err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the rules are malformed: something follows the JSON object")
	}
	set := &metapb.RuleSet{Version: f.Version}
	for i, r := range f.Rules {
		p := &metapb.Rule{
			Name: r.Name, Replicas: r.Replicas, Require: r.Require, Forbid: r.Forbid,
			Spread: r.Spread, Isolation: r.Isolation, Leaders: r.Leaders,
		}
		if p.Prefix, err = bytesOf("prefix", r.Prefix, r.PrefixB64, data); err != nil {
			return nil, fmt.Errorf("rule %d (%s): %w; the prefix \"\" is for all keys", i+1, r.Name,
				err)
		}
		set.Rules = append(set.Rules, p)
	}
	return set, nil
}

// readRules reads a file, or stdin for "-".
func (a *app) readRules(path string) (*metapb.RuleSet, error) {
	if path == "-" {
		return parseRules(a.stdin)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	return parseRules(f)
}

const rulesHelp = `A rule says for a prefix of keys how many copies there are (replicas: 1, 3, 5 or
7), on which nodes (require, forbid: labels of the nodes' --locality), apart by
what (spread: the key of a label, such as zone), and where leaders are wanted
(leaders: labels, the best first). When a zone is lost its copies are made anew
in the others; with isolation (the key of a label, instead of spread) rather
none is than that one zone gets a majority. The longest prefix decides; the rule
with the prefix "" is for all other keys and must be there. A file of rules:

  {"rules": [
    {"name": "default", "prefix": "", "replicas": 3, "spread": "zone"},
    {"name": "eu", "prefix": "eu/", "replicas": 3, "require": ["region=eu"],
     "leaders": ["zone=eu-1"]}
  ]}`

func (a *app) rulesCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "rules",
		Short: "The rules by which ranges are placed",
		Long:  rulesHelp,
		Example: `  flotilla placement rules get -o json > rules.json
  flotilla placement rules check rules.json
  flotilla placement rules set rules.json`,
	})
	cmd.AddCommand(a.rulesGetCommand(), a.rulesCheckCommand(), a.rulesSetCommand())
	return cmd
}

func (a *app) rulesGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "get",
		Short: "Print the rules; with -o json as a file that set reads",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				rules, err := fetchRules(ctx, c)
				if err != nil {
					return err
				}
				return a.printRules(rules)
			})
		},
	}
}

func fetchRules(ctx context.Context, c *client.Client) (*metapb.RuleSet, error) {
	r, err := ask(ctx, c, func(
		ctx context.Context, admin adminpb.AdminClient,
	) (*adminpb.GetRulesReply, error) {
		return admin.GetRules(ctx, &adminpb.GetRulesRequest{})
	})
	return r.GetRules(), err
}

// printRules prints a table, or JSON that is fit to be edited.
func (a *app) printRules(set *metapb.RuleSet) error {
	f := newRulesFile(set)
	if a.isJSON() {
		e := json.NewEncoder(a.stdout)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(f)
	}
	fmt.Fprintf(a.stdout, "version %d\n", f.Version)
	return a.table("RULE\tPREFIX\tREPLICAS\tREQUIRE\tFORBID\tSPREAD\tLEADERS",
		func(add func(string, ...any)) {
			for i, r := range f.Rules {
				add("%s\t%q\t%d\t%s\t%s\t%s\t%s", r.Name, set.GetRules()[i].GetPrefix(), r.Replicas,
					list(r.Require), list(r.Forbid), r.apart(), list(r.Leaders))
			}
		})
}

// apart says by which label copies stand apart, and whether they always do.
func (r ruleReport) apart() string {
	if r.Isolation != "" {
		return r.Isolation + ", isolated"
	}
	return orDash(r.Spread)
}

func list(labels []string) string { return orDash(strings.Join(labels, ", ")) }

// previewReport is what a change of rules would do, or did, as JSON.
type previewReport struct {
	Version        uint64   `json:"version"`
	Stored         bool     `json:"stored"`
	RangesAffected uint64   `json:"ranges_affected"`
	ReplicasToMove uint64   `json:"replicas_to_move"`
	BytesToMove    uint64   `json:"bytes_to_move"`
	LeadersToMove  uint64   `json:"leaders_to_move"`
	RangesToSplit  uint64   `json:"ranges_to_split"`
	Warnings       []string `json:"warnings"`
	Examples       []string `json:"examples"`
	Faults         []string `json:"faults"`
}

func newPreviewReport(r *adminpb.SetRulesReply, stored bool) *previewReport {
	return &previewReport{
		Version: r.GetRules().GetVersion(), Stored: stored,
		RangesAffected: r.GetRangesAffected(), ReplicasToMove: r.GetReplicasToMove(),
		BytesToMove: r.GetBytesToMove(), LeadersToMove: r.GetLeadersToMove(),
		RangesToSplit: r.GetRangesToSplit(),
		Warnings:      append([]string{}, r.GetWarnings()...),
		Examples:      append([]string{}, r.GetExamples()...),
		Faults:        append([]string{}, r.GetFaults()...),
	}
}

// moves says whether data or leaders would move.
func (p *previewReport) moves() bool {
	return p.RangesAffected+p.ReplicasToMove+p.LeadersToMove > 0
}

// print says in words what would move.
func (p *previewReport) print(w io.Writer) {
	for _, warning := range p.Warnings {
		fmt.Fprintf(w, "warning   %s\n", warning)
	}
	if !p.moves() {
		fmt.Fprintln(w, "moves     nothing: every range is placed as these rules ask")
		return
	}
	fmt.Fprintf(w, "moves     %s (%s) and %s of %s\n", plural(p.ReplicasToMove, "replica"),
		bytesText(int64(p.BytesToMove)), plural(p.LeadersToMove, "leader"),
		plural(p.RangesAffected, "range"))
	if p.RangesToSplit > 0 {
		fmt.Fprintf(w, "splits    %s: another rule begins inside\n", plural(p.RangesToSplit, "range"))
	}
	for _, example := range p.Examples {
		fmt.Fprintf(w, "for one   %s\n", example)
	}
}

// refused is an error for rules that the cluster does not take.
func (p *previewReport) refused() error {
	if len(p.Faults) == 0 {
		return nil
	}
	return fmt.Errorf("the rules are refused, nothing is changed: %s", strings.Join(p.Faults, "; "))
}

func sendRules(
	ctx context.Context, c *client.Client, set *metapb.RuleSet, dry bool,
) (*previewReport, error) {
	r, err := ask(ctx, c, func(
		ctx context.Context, admin adminpb.AdminClient,
	) (*adminpb.SetRulesReply, error) {
		return admin.SetRules(ctx, &adminpb.SetRulesRequest{Rules: set, DryRun: dry})
	})
	if err != nil {
		return nil, err
	}
	return newPreviewReport(r, !dry && len(r.GetFaults()) == 0), nil
}

// tryRules lets the cluster judge rules; those without a version replace whichever
// there are now.
func tryRules(
	ctx context.Context, c *client.Client, set *metapb.RuleSet,
) (*previewReport, error) {
	if set.GetVersion() == 0 {
		now, err := fetchRules(ctx, c)
		if err != nil {
			return nil, err
		}
		set.Version = now.GetVersion()
	}
	return sendRules(ctx, c, set, true)
}

func (a *app) rulesCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Say what rules would move, and change nothing",
		Long: `Say whether the cluster would take the rules of a file (- is stdin), and what they
would move, and change nothing. The exit code is 1 if they are refused.`,
		Example: `  flotilla placement rules check rules.json`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := a.readRules(args[0])
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				p, err := tryRules(ctx, c, set)
				if err != nil {
					return err
				}
				if a.isJSON() {
					return errors.Join(a.json(p), p.refused())
				}
				if err := p.refused(); err != nil {
					return err
				}
				p.print(a.stdout)
				return nil
			})
		},
	}
}

func (a *app) rulesSetCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "set FILE",
		Short: "Replace all rules; says before what moves, and asks for --yes then",
		Long: `Replace all rules by those of a file (- is stdin). If data or leaders would move, the
command says how much, changes nothing and asks for --yes. A file with a version
replaces that version only: so an edit of rules get -o json cannot undo what
somebody else has changed meanwhile.

` + rulesHelp,
		Example: `  flotilla placement rules set rules.json
  flotilla placement rules set - --yes < rules.json`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := a.readRules(args[0])
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.setRules(ctx, c, set, yes)
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it although data or leaders move")
	return cmd
}

func (a *app) setRules(
	ctx context.Context, c *client.Client, set *metapb.RuleSet, yes bool,
) error {
	p, err := tryRules(ctx, c, set)
	if err != nil {
		return err
	}
	if err := p.refused(); err != nil {
		return err
	}
	p.print(a.stderr)
	if p.moves() && !yes {
		return usageError{"nothing is changed: say --yes if that may move"}
	}
	if p, err = sendRules(ctx, c, set, false); err != nil {
		return err
	}
	if err := p.refused(); err != nil {
		return err
	}
	if a.isJSON() {
		return a.json(p)
	}
	a.talk("OK  version %d is in force", p.Version)
	return nil
}
