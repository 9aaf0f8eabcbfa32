package sim

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// The verbs that let time pass, look, and demand.

// mark: mark [tenant=eu label=region=eu]; counts begin anew. With a label the least
// work is what has to come to nodes with it, else what evens out bytes.
func mark(w *World, c *command) (string, error) {
	w.mark()
	label, pinned := c.take("label")
	if pinned {
		w.least = w.pinnedWork(c.text("tenant", w.keys.tenants[0]), label)
	}
	return fmt.Sprintf("%s least: %d copies, %s, %d leaders to move", clock(w.now), w.least.moves,
		size(w.least.bytes), w.least.transfers), nil
}

// of says whether a range holds keys of a tenant, "" meaning any.
func (r *simRange) of(tenant string) bool {
	return tenant == "" || bytes.HasPrefix(r.desc.GetStart(), kv.UserKey(nil, []byte(tenant+"/")))
}

// pinnedWork is what has to be moved so that the ranges of a tenant have copies on
// nodes with a label only.
func (w *World) pinnedWork(tenant, label string) least {
	var l least
	w.byStart.Scan(func(_ string, r *simRange) bool {
		if !r.of(tenant) {
			return true
		}
		_, voters := halves(r.desc)
		for _, id := range voters {
			if !w.node(id).has(label) {
				l.moves++
				l.bytes += r.bytes
			}
		}
		if leader := w.node(r.leader); leader != nil && !leader.has(label) {
			l.transfers++
		}
		return true
	})
	return l
}

// run: run 10s
func run(w *World, c *command) (string, error) {
	d, err := onlyTime(c)
	if err != nil {
		return "", err
	}
	w.Run(d)
	return w.trace(), nil
}

func onlyTime(c *command) (time.Duration, error) {
	d, err := time.ParseDuration(strings.Join(c.words, " "))
	if err != nil {
		return 0, fmt.Errorf("%s: how long? 10s, 5m, 1h: %w", c.verb, err)
	}
	return d, nil
}

// converge: converge within=10m leaders=10% bytes=15%; runs until the world is at
// rest, and as even as demanded
func converge(w *World, c *command) (string, error) {
	limit := w.now + c.time("within", 10*time.Minute)
	b := bounds{leaders: c.number("leaders", 0), bytes: c.number("bytes", 0)}
	began := w.now
	calm, why := time.Duration(-1), ""
	for ; ; w.Run(driverEvery) {
		if why = w.unrest(b); why != "" {
			calm = -1
		} else if calm < 0 {
			calm = w.now
		}
		if calm >= 0 && w.now-calm >= calmFor {
			break
		}
		if w.now >= limit {
			return w.trace() + w.summary(), fmt.Errorf("not at rest after %s: %s\n%s", w.now-began, why,
				w.symptoms())
		}
	}
	if differs := w.compare(); differs != "" {
		return w.trace(), fmt.Errorf("%s", differs)
	}
	return fmt.Sprintf("%s%s at rest after %s\n%s", w.trace(), clock(calm),
		(calm - began).Truncate(time.Second), w.summary()), nil
}

// symptoms is what helps to see why a world does not come to rest.
func (w *World) symptoms() string {
	var out strings.Builder
	w.table(&out)
	if d := w.driving(); d != nil {
		for _, p := range d.Status(w.now).GetProblems() {
			fmt.Fprintln(&out, p)
		}
	}
	fmt.Fprintln(&out, w.compare())
	return out.String()
}

// quiet: quiet 1h; no copy and no leader moves in that time, nothing is ordered
func quiet(w *World, c *command) (string, error) {
	d, err := onlyTime(c)
	if err != nil {
		return "", err
	}
	orders, moves, transfers := w.tally.orders, w.tally.moves, w.tally.transfers()
	w.Run(d)
	if w.tally.orders != orders {
		return w.trace(), fmt.Errorf("%d orders in a world at rest: %d copies and %d leaders moved",
			w.tally.orders-orders, w.tally.moves-moves, w.tally.transfers()-transfers)
	}
	return w.trace() + clock(w.now), nil
}

// expect: one demand a line: a quantity, <= or >= or =, and a number, perhaps times
// a least quantity: moves <= 1.2 x least
func expect(w *World, c *command) (string, error) {
	lines := slices.Clone(c.body)
	if c.raw != "" {
		lines = append(lines, c.raw)
		clear(c.named) // = stands between two words here
	}
	var out strings.Builder
	for _, line := range lines {
		text, err := w.demand(line)
		if err != nil {
			return out.String() + text, err
		}
		fmt.Fprintln(&out, text)
	}
	return out.String(), nil
}

// demand checks one line of expect.
func (w *World) demand(line string) (string, error) {
	f := strings.Fields(line)
	if len(f) != 3 && !(len(f) == 5 && f[3] == "x" && f[4] == "least") {
		return "", fmt.Errorf("expect %q: want QUANTITY <=|>=|= NUMBER [x least]", line)
	}
	is, unit, err := w.quantity(f[0])
	if err != nil {
		return "", err
	}
	bound, err := parseNumber(f[2])
	if err != nil {
		return "", err
	}
	if len(f) == 5 {
		base, ok := map[string]float64{"moves": float64(w.least.moves),
			"bytes": float64(w.least.bytes), "transfers": float64(w.least.transfers)}[f[0]]
		if !ok {
			return "", fmt.Errorf("expect %q: no least is known of %s", line, f[0])
		}
		bound *= base
	}
	holds := map[string]bool{"<=": is <= bound, ">=": is >= bound, "=": is == bound}[f[1]]
	text := fmt.Sprintf("%s %s, demanded %s %s", f[0], unit(is), f[1], unit(bound))
	if !holds {
		return text, fmt.Errorf("expect %q: %s", line, text)
	}
	return text, nil
}

func asNumber(n float64) string { return strings.TrimSuffix(fmt.Sprintf("%.1f", n), ".0") }
func asBytes(n float64) string  { return size(int64(n)) }
func asShare(n float64) string  { return fmt.Sprintf("%.0f %%", 100*n) }
func asTime(n float64) string   { return time.Duration(n * float64(time.Second)).String() }

// quantity returns something that can be demanded, and how to show it.
func (w *World) quantity(name string) (float64, func(float64) string, error) {
	t := &w.tally
	what, of, _ := strings.Cut(name, ":")
	switch what {
	case "moves":
		return float64(t.moves), asNumber, nil
	case "moved-twice":
		return float64(t.twice), asNumber, nil
	case "bytes":
		return float64(t.bytes), asBytes, nil
	case "transfers":
		return float64(t.transfers()), asNumber, nil
	case "splits":
		return float64(t.splits), asNumber, nil
	case "load-splits":
		return float64(t.loadSplits), asNumber, nil
	case "merges":
		return float64(t.merges), asNumber, nil
	case "ranges":
		return float64(len(w.ranges)), asNumber, nil
	case "receiving": // most snapshots on their way to one node at a time
		return float64(t.receiving), asNumber, nil
	case "receive-rate": // most bytes that a node received in a second
		return float64(t.receiveRate), asBytes, nil
	case "leaderless": // longest time without a leader, of any range; seconds
		return t.leaderless.Seconds(), asTime, nil
	case "leaderless-now":
		return float64(w.vacant.Len()), asNumber, nil
	case "operators": // of a kind, begun
		return float64(w.watch.kind(of).begun), asNumber, nil
	case "failed": // operators of a kind
		return float64(w.watch.kind(of).failed), asNumber, nil
	case "jumped": // repairs that began before more urgent ones
		return float64(w.watch.jumped), asNumber, nil
	case "served": // share of a workload that is served
		for _, l := range w.workloads {
			if l.name == of && l.wanted > 0 {
				return l.served / l.wanted, asShare, nil
			}
		}
	case "busiest": // cores that the busiest node is asked for, to those of the mean
		return w.busiest(), asNumber, nil
	case "leaders", "copies": // on nodes with a label: leaders:region=eu, or in all
		return w.countOn(what, of), asNumber, nil
	}
	return 0, nil, fmt.Errorf("expect: %q is nothing that can be counted", name)
}

func (w *World) busiest() float64 {
	var most, sum, count float64
	for _, n := range w.nodes {
		if _, leads := w.usable(n); leads {
			most, sum, count = max(most, n.cpu), sum+n.cpu, count+1
		}
	}
	return most * count / max(1, sum)
}

// countOn counts leaders or copies on nodes that have a label, or on one node; with
// @tenant behind it only those of a tenant.
func (w *World) countOn(what, where string) float64 {
	where, tenant, _ := strings.Cut(where, "@")
	total := 0
	count := func(n *node) {
		if where == "" || n.has(where) || n.id.String() == where {
			total++
		}
	}
	w.byStart.Scan(func(_ string, r *simRange) bool {
		switch {
		case !r.of(tenant):
		case what == "leaders":
			if n := w.node(r.leader); n != nil {
				count(n)
			}
		default:
			_, voters := halves(r.desc)
			for _, id := range voters {
				count(w.node(id))
			}
		}
		return true
	})
	return float64(total)
}

// nodes: nodes; shows a table
func nodes(w *World, _ *command) (string, error) {
	var out strings.Builder
	fmt.Fprintln(&out, clock(w.now))
	w.table(&out)
	return out.String(), nil
}

// progress: progress; shows what nodes have to give, as placement tells people
func progress(w *World, _ *command) (string, error) {
	d := w.driving()
	if d == nil {
		return "nobody drives placement", nil
	}
	var out strings.Builder
	for _, p := range d.Nodes(w.now).GetNodes() {
		s := p.GetStatus()
		if s.GetStanding() == metapb.NodeStanding_NODE_STANDING_ACTIVE {
			continue
		}
		fmt.Fprintf(&out, "n%d %s: %d leaders, %d copies, %s left", s.GetNode().GetNodeId(),
			strings.ToLower(strings.TrimPrefix(s.GetStanding().String(), "NODE_STANDING_")),
			p.GetLeadersLeft(), p.GetReplicasLeft(), size(int64(p.GetBytesLeft())))
		for _, why := range p.GetStuck() {
			fmt.Fprintf(&out, "; %s", why)
		}
		fmt.Fprintln(&out)
	}
	return out.String(), nil
}
