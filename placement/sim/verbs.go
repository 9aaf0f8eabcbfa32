package sim

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// calmFor is how long a world must be at rest to count as converged: longer than
// the pauses after which schedulers look again.
const calmFor = 40 * time.Second

// player runs the commands of one script.
type player struct{ w *World }

// verb is what a command does. It returns its output, and an error if something is
// not as the script demands.
type verb func(w *World, c *command) (string, error)

// verbs returns all verbs but the one that makes the world.
func verbs() map[string]verb {
	return map[string]verb{
		"add": addNodes, "kill": kill, "start": start, "flap": startFlap,
		"stand": stand, "load": load, "rules": setRules, "placement": reach, "pause": pause,
		"operate": operate, "explain": explain, "mark": mark, "run": run,
		"converge": converge, "quiet": quiet, "expect": expect, "nodes": nodes, "progress": progress,
	}
}

// do runs one command.
func (p *player) do(c *command) (string, error) {
	if c.verb == "world" {
		w, err := makeWorld(c)
		if err != nil {
			return "", err
		}
		p.w = w
		return w.describe(), w.broken()
	}
	if p.w == nil {
		return "", errNoWorld
	}
	act := verbs()[c.verb]
	if act == nil {
		return "", fmt.Errorf("no such command: %s", c.verb)
	}
	text, err := act(p.w, c)
	if err == nil {
		err = c.check()
	}
	if err == nil {
		err = p.w.broken()
	}
	return text, err
}

// broken reports what must never happen.
func (w *World) broken() error {
	if len(w.violations) == 0 {
		return nil
	}
	return fmt.Errorf("%d violations:\n%s", len(w.violations), strings.Join(w.violations, "\n"))
}

// makeWorld reads
//
//	world nodes=N zones=a,b,c regions=x,y disks=1T,2T in= out= cores= tenants=a,b
//	      ranges= bytes= skew= size= factor= dead-after= merge-below= merge-after= seed=
//
// Zones, regions and disks are dealt out to the nodes in turn.
func makeWorld(c *command) (*World, error) {
	cfg := Config{
		Seed: uint64(c.count("seed", 1)), Tenants: c.list("tenants"), Ranges: c.count("ranges", 0),
		RangeBytes: c.size("bytes", 0), Skew: c.number("skew", 0), RangeSize: c.size("size", 0),
		Factor: c.count("factor", 0), DeadAfter: c.time("dead-after", 0),
		MergeBelow: c.size("merge-below", 0), MergeAfter: c.time("merge-after", 0),
	}
	specs, err := readSpecs(c, c.count("nodes", 3))
	if err != nil {
		return nil, err
	}
	cfg.Nodes = specs
	if err := c.check(); err != nil {
		return nil, err
	}
	w, err := New(cfg)
	if err != nil {
		return nil, err
	}
	w.Run(20 * time.Second) // the driver hears everything, nodes settle
	w.mark()
	return w, nil
}

func readSpecs(c *command, count int) ([]NodeSpec, error) {
	zones, regions, disks := c.list("zones"), c.list("regions"), c.list("disks")
	in, out, cores := c.size("in", 0), c.size("out", 0), c.number("cores", 0)
	specs := make([]NodeSpec, count)
	for i := range specs {
		s := &specs[i]
		s.In, s.Out, s.Cores = in, out, cores
		if len(zones) > 0 {
			s.Zone = zones[i%len(zones)]
		}
		if len(regions) > 0 {
			s.Region = regions[i%len(regions)]
		}
		if len(disks) > 0 {
			n, err := parseNumber(disks[i%len(disks)])
			if err != nil {
				return nil, fmt.Errorf("disks: %w", err)
			}
			s.Disk = int64(n)
		}
	}
	return specs, nil
}

func (w *World) describe() string {
	var copies int
	var bytes int64
	for _, n := range w.nodes {
		copies += len(n.holds)
		bytes += n.bytes
	}
	return fmt.Sprintf("%s %d nodes, %d ranges, %d copies, %s\n%s", clock(w.now), len(w.nodes),
		len(w.ranges), copies, size(bytes), w.trace())
}

// addNodes: add nodes=N zones= regions= disks= in= out= cores=
func addNodes(w *World, c *command) (string, error) {
	specs, err := readSpecs(c, c.count("nodes", 1))
	if err != nil {
		return "", err
	}
	text := clock(w.now)
	for _, s := range specs {
		n, err := w.add(s)
		if err != nil {
			return "", err
		}
		text += fmt.Sprintf(" %v joins", n.id)
	}
	return text, nil
}

// chosen returns the nodes that the bare words name: n3, or zone=a, region=x.
func (w *World) chosen(c *command) ([]*node, error) {
	var all []*node
	for _, name := range c.words {
		id, err := strconv.Atoi(strings.TrimPrefix(name, "n"))
		if err != nil || w.node(ids.NodeID(id)) == nil {
			return nil, fmt.Errorf("no node %q", name)
		}
		all = append(all, w.node(ids.NodeID(id)))
	}
	for _, key := range []string{"zone", "region"} {
		value, ok := c.take(key)
		for _, n := range w.nodes {
			if ok && n.has(key+"="+value) {
				all = append(all, n)
			}
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: which nodes? n1, zone=a, region=x", c.verb)
	}
	return all, nil
}

// kill: kill n1 n2, kill zone=a
func kill(w *World, c *command) (string, error) {
	all, err := w.chosen(c)
	for _, n := range all {
		w.kill(n)
	}
	return "", err
}

// start: start n1, start zone=a
func start(w *World, c *command) (string, error) {
	all, err := w.chosen(c)
	for _, n := range all {
		w.start(n)
	}
	return "", err
}

// startFlap: flap n1 down=5s up=7s for=5m
func startFlap(w *World, c *command) (string, error) {
	down, up := c.time("down", 5*time.Second), c.time("up", 7*time.Second)
	until := w.now + c.time("for", time.Minute)
	all, err := w.chosen(c)
	for _, n := range all {
		w.flaps = append(w.flaps, &flap{n: n, up: up, down: down, next: w.now, until: until})
	}
	return "", err
}

// stand: stand draining|active|decommissioning n1
func stand(w *World, c *command) (string, error) {
	if len(c.words) < 2 {
		return "", fmt.Errorf("stand draining|active|decommissioning n1")
	}
	want, known := metapb.NodeStanding_value["NODE_STANDING_"+strings.ToUpper(c.words[0])]
	if !known {
		return "", fmt.Errorf("no such standing: %s", c.words[0])
	}
	c.words = c.words[1:]
	all, err := w.chosen(c)
	if err != nil {
		return "", err
	}
	d := w.driving()
	if d == nil {
		return "nobody drives placement", nil
	}
	text := ""
	for _, n := range all {
		d.SetStanding(n.id, metapb.NodeStanding(want), func(_ *adminpb.NodeProgress, err error) {
			if err != nil {
				text += fmt.Sprintf("%v: %v\n", n.id, err)
				return
			}
			w.standing[n.id] = metapb.NodeStanding(want)
		})
	}
	return text, nil
}

// load: load NAME tenant=a from=0 to=1 reads= writes= cpu= (microseconds of one
// operation) bytes= (of one operation) inserts=10% noise=20%; load NAME off
func load(w *World, c *command) (string, error) {
	if len(c.words) == 0 {
		return "", fmt.Errorf("load NAME ...")
	}
	l := &workload{name: c.words[0]}
	from, to, err := w.keys.tenant(c.text("tenant", w.keys.tenants[0]))
	if err != nil {
		return "", err
	}
	part := func(f float64) position { return from + position(f*float64(to-from)) }
	l.from, l.to = part(c.number("from", 0)), part(c.number("to", 1))
	if key, ok := c.take("key"); ok { // one key gets it all
		f, err := parseNumber(key)
		if err != nil {
			return "", err
		}
		l.from, l.to = part(f), part(f)+1
	}
	l.reads, l.writes = c.number("reads", 0), c.number("writes", 0)
	each := c.number("bytes", 256)
	l.cpu = (l.reads + l.writes) * c.number("cpu", 40)
	l.readBytes, l.writeBytes = l.reads*each, l.writes*each
	l.inserts, l.noise = c.number("inserts", 0), c.number("noise", 0)
	w.setLoad(l)
	return "", nil
}

// setRules: rules [dry], with one rule a line:
// name=eu prefix=eu/ replicas=3 require=region=eu forbid= spread=zone isolation= leaders=zone=a
func setRules(w *World, c *command) (string, error) {
	d := w.driving()
	if d == nil {
		return "nobody drives placement", nil
	}
	request := &adminpb.SetRulesRequest{
		Rules:  &metapb.RuleSet{Version: d.Rules().GetVersion()},
		DryRun: slices.Contains(c.words, "dry"),
	}
	for _, line := range c.body {
		r := parseCommand("rule "+line, nil)
		rule := &metapb.Rule{
			Name: r.text("name", ""), Prefix: []byte(r.text("prefix", "")),
			Replicas: uint32(r.count("replicas", w.cfg.Factor)), Require: r.list("require"),
			Forbid: r.list("forbid"), Spread: r.text("spread", ""), Leaders: r.list("leaders"),
			Isolation: r.text("isolation", ""),
		}
		if err := r.check(); err != nil {
			return "", err
		}
		request.Rules.Rules = append(request.Rules.Rules, rule)
	}
	text := "no answer\n"
	d.SetRules(request, func(r *adminpb.SetRulesReply, err error) {
		text = ruled(r, err)
		if err == nil && len(r.GetFaults()) == 0 && !request.DryRun {
			w.rules = r.GetRules().GetRules()
		}
	})
	return text, nil
}

// ruled shows the answer to new rules.
func ruled(r *adminpb.SetRulesReply, err error) string {
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for _, f := range r.GetFaults() {
		fmt.Fprintf(&out, "fault: %s\n", f)
	}
	for _, f := range r.GetWarnings() {
		fmt.Fprintf(&out, "warning: %s\n", f)
	}
	if len(r.GetFaults()) == 0 {
		fmt.Fprintf(&out, "%d ranges affected, %d copies, %s and %d leaders to move\n",
			r.GetRangesAffected(), r.GetReplicasToMove(), size(int64(r.GetBytesToMove())),
			r.GetLeadersToMove())
	}
	for _, e := range r.GetExamples() {
		fmt.Fprintf(&out, "  %s\n", e)
	}
	return out.String()
}

// reach: placement off|on; off: nobody reaches range 1
func reach(w *World, c *command) (string, error) {
	switch strings.Join(c.words, " ") {
	case "off":
		w.cutOff = true
	case "on":
		w.cutOff = false
	default:
		return "", fmt.Errorf("placement off|on")
	}
	w.follow()
	return "", nil
}

// pause: pause on|off
func pause(w *World, c *command) (string, error) {
	text := ""
	if d := w.driving(); d != nil {
		d.Pause(slices.Contains(c.words, "on"), "the script",
			func(s *metapb.PlacementSettings, err error) {
				text = fmt.Sprintf("paused: %v", s.GetPaused())
				if err != nil {
					text = err.Error()
				}
			})
	}
	return text, nil
}

// operate: operate merge|relocate|transfer|scatter range=5 nodes=1,2,3 tenant=a
func operate(w *World, c *command) (string, error) {
	d := w.driving()
	if len(c.words) == 0 {
		return "", fmt.Errorf("operate merge|relocate|transfer|scatter range=5 nodes=1,2,3 tenant=a")
	}
	request := &adminpb.OperateRequest{RangeId: uint64(c.count("range", 0))}
	var targets []uint64
	for _, text := range c.list("nodes") {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return "", fmt.Errorf("operate: no node %q", text)
		}
		targets = append(targets, n)
	}
	switch c.words[0] {
	case "merge":
		request.What = &adminpb.OperateRequest_Merge{Merge: &adminpb.MergeWith{}}
	case "relocate":
		request.What = &adminpb.OperateRequest_Relocate{Relocate: &adminpb.Relocate{Nodes: targets}}
	case "transfer":
		request.What = &adminpb.OperateRequest_Transfer{
			Transfer: &adminpb.TransferTo{NodeId: slices.Concat(targets, []uint64{0})[0]}}
	case "scatter":
		prefix := kv.UserKey(nil, []byte(c.text("tenant", "")+"/"))
		end := slices.Clone(prefix)
		end[len(end)-1]++
		request.What = &adminpb.OperateRequest_Scatter{
			Scatter: &adminpb.Scatter{Start: prefix, End: end}}
	}
	if d == nil {
		return "nobody drives placement", nil
	}
	reply, err := d.Operate(request)
	if err != nil {
		return err.Error(), nil // a refusal is an answer
	}
	return fmt.Sprintf("%d operators %s", len(reply.GetOperators()), reply.GetNote()), nil
}

// explain: explain range=5
func explain(w *World, c *command) (string, error) {
	d := w.driving()
	if d == nil {
		return "nobody drives placement", nil
	}
	reply, err := d.Explain(&adminpb.ExplainRequest{RangeId: uint64(c.count("range", 2))})
	if err != nil {
		return err.Error(), nil
	}
	return strings.Join(reply.GetLines(), "\n"), nil
}
