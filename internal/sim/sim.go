package sim

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sort"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/store"
)

// provisional is added to a machine's number to name it until it has joined and
// has an id: ids may skip numbers when joins are repeated.
const provisional = 1000

// Result is what a run came to.
type Result struct {
	Seed     uint64
	Err      error
	Hash     uint64 // of the trace: equal for equal seeds
	Counters map[string]int
	Steps    uint64
}

// Sim is one run.
type Sim struct {
	options  Options
	loop     *loop
	net      *network
	machines []*node // in order of id
	nodes    map[ids.NodeID]*node
	clients  []*client
	workers  []*worker
	checker  *checker
	history  *history
	counters map[string]int
	counted  [counters]struct{ sure, unknown int }
	quiet    bool // no new operations, no new faults
	splits   int
	restAt   time.Duration // next look at whether all is at rest
	tiledAt  time.Duration // all replicas agreed when that was looked at last
	err      error

	clientLoss float64
	// pauseAt says how long a read pauses before a step, for stories: instead of chance.
	pauseAt func(n *node, step string) time.Duration

	people      *people
	nemesisRand *rand.Rand
	clockRand   *rand.Rand
	clientRand  *rand.Rand
	readRand    *rand.Rand
	workload    *rand.Rand
}

// Run runs one seed to its end. The caller pins crypto/rand.
func Run(o Options) (result Result) {
	s := newSim(o)
	defer func() {
		if p := recover(); p != nil {
			s.fail("panic at %s: %v\n%s", s.loop.now, p, debug.Stack())
		}
		s.closeStores()
		result = Result{
			Seed: o.Seed, Err: s.err, Hash: s.loop.hash, Counters: s.counters, Steps: s.loop.steps,
		}
	}()
	s.run()
	return result
}

func newSim(o Options) *Sim {
	s := &Sim{
		options: o, loop: &loop{trace: o.Trace}, nodes: map[ids.NodeID]*node{},
		history: newHistory(), counters: map[string]int{},
		nemesisRand: stream(o.Seed, concernNemesis), clockRand: stream(o.Seed, concernClock),
		clientRand: stream(o.Seed, concernClient), workload: stream(o.Seed, concernWorkload),
		readRand: stream(o.Seed, concernRead),
	}
	s.checker = newChecker(s)
	s.people = newPeople(s)
	r := stream(o.Seed, concernNetwork)
	s.net = newNetwork(s, r)
	s.clientLoss = r.Float64() * 0.03
	for range o.Nodes {
		s.newMachine()
	}
	for i := range o.Clients {
		c := newClient(s, i)
		s.clients = append(s.clients, c)
		s.workers = append(s.workers, &worker{c: c, s: s, insertsDone: map[int]bool{}})
	}
	return s
}

// newMachine puts up one more machine, with an empty disk and without power. They
// stand in the zones in turn.
func (s *Sim) newMachine() *node {
	i := len(s.machines) + 1
	n := &node{
		sim: s, id: provisional + ids.NodeID(i),
		physical: newClock(s.loop, s.clockRand, s.options.Drift),
		fs:       newDisk(), rand: stream(s.options.Seed, concernDisk+uint64(i)<<8),
		disk: s.options.Disk,
	}
	if i == 1 {
		n.id = 1
	}
	if zones := s.options.Placement.Zones; zones > 0 {
		n.locality = []string{"region=here", fmt.Sprintf("zone=z%d", i%zones)}
	}
	s.machines = append(s.machines, n)
	s.nodes[n.id] = n
	return n
}

// run is the story of a run: boot, safety phase, heal, progress, final checks.
func (s *Sim) run() {
	if !s.assemble() {
		return
	}
	for _, w := range s.workers {
		w.next()
	}
	s.splitSome()
	s.nemesis()
	s.people.begin()
	s.watch()
	end := s.loop.now + s.options.Duration
	s.until(end, func() bool { return false })
	if s.err != nil {
		return
	}
	s.quiet = true
	s.heal()
	s.conclude()
}

// conclude waits for rest after healing, and then checks everything.
func (s *Sim) conclude() {
	healed := s.loop.now
	s.tiledAt = healed
	done := false
	s.until(healed+restWithin, func() bool {
		done = s.rested()
		return done || s.loop.now-s.tiledAt > agreeWithin
	})
	if s.err != nil {
		return
	}
	if !done {
		s.fail("no rest %s after healing: %v\n%s%s", s.loop.now-healed, s.unsettled(), s.describe(),
			s.explain())
		return
	}
	s.finish()
}

// assemble boots the machines one after the other and waits until the ranges
// have their copies.
func (s *Sim) assemble() bool {
	for _, n := range s.machines {
		if err := n.boot(); err != nil {
			s.fail("boot: %v", err)
			return false
		}
		if !s.until(s.loop.now+30*time.Second, func() bool { return n.table != nil }) {
			s.fail("%s did not join within 30 s", n.id)
			return false
		}
	}
	voters := min(len(s.machines)-1+len(s.machines)%2, s.options.Placement.Replicas)
	return s.until(s.loop.now+60*time.Second, func() bool { return s.replicated(voters) }) ||
		s.failed("ranges did not reach %d voters within a minute:\n%s", voters, s.describe())
}

func (s *Sim) replicated(voters int) bool {
	seen := 0
	for _, n := range s.machines {
		for _, f := range n.table.Facts() {
			seen++
			if len(f.Descriptor_.Replicas) < voters {
				return false
			}
			for _, r := range f.Descriptor_.Replicas {
				if r.Role != 0 {
					return false
				}
			}
		}
	}
	return seen >= 2
}

// until runs events until the condition holds; false at the limit or on failure.
func (s *Sim) until(limit time.Duration, done func() bool) bool {
	for s.err == nil {
		for range 64 {
			if !s.loop.step(limit) {
				return s.err == nil && done()
			}
			if s.err != nil {
				return false
			}
		}
		if done() {
			return true
		}
	}
	return false
}

// watch checks the stores' states now and then.
func (s *Sim) watch() {
	s.loop.after(400*time.Millisecond, func() {
		s.checker.states()
		s.watch()
	})
}

func (s *Sim) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("at %s: "+format, append([]any{s.loop.now}, args...)...)
	}
}

func (s *Sim) failed(format string, args ...any) bool {
	s.fail(format, args...)
	return false
}

func (s *Sim) count(name string) { s.counters[name]++ }

func (s *Sim) closeStores() {
	for _, n := range s.machines {
		n.closeTable()
		if n.store != nil {
			closeStore(n.store)
		}
	}
}

func (s *Sim) logger(n ids.NodeID) *slog.Logger {
	if !s.options.Logs || s.options.Trace == nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(s.options.Trace, nil)).With("node", uint64(n))
}

// describe tells the state of the cluster in words, for failures.
func (s *Sim) describe() string {
	var b strings.Builder
	for _, n := range s.machines {
		fmt.Fprintf(&b, "%s alive=%v paused=%v clock=%s\n", n.id, n.alive, n.paused, stamp(n.clock))
		if !n.alive || n.store == nil {
			continue
		}
		replicas, _ := n.store.State().Replicas()
		for _, r := range replicas {
			_, leader, _ := pick(n, r.Descriptor.Start)
			fmt.Fprintf(&b, "  r%d replica %d index %d leader %d %s%s\n", r.Descriptor.RangeId,
				r.Replica, r.Applied.Index, leader, describe(r.Descriptor), n.raftState(r))
		}
		for _, line := range n.operators() {
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	for _, w := range s.workers {
		fmt.Fprintf(&b, "client %d open=%v\n", w.c.id, w.open)
	}
	return b.String()
}

func pick(n *node, key []byte) (ids.RangeID, ids.NodeID, bool) {
	if n.table == nil {
		return 0, 0, false
	}
	d, leader, ok := n.table.Route(key)
	if !ok {
		return 0, 0, false
	}
	return ids.RangeID(d.RangeId), leader, true
}

func stamp(c *hlc.Hybrid) string {
	if c == nil {
		return "-"
	}
	return fmt.Sprint(c.Peek().Wall() - epoch)
}

// raftState says what raft makes of a replica that nobody leads.
func (n *node) raftState(r *store.ReplicaState) (words string) {
	if n.table == nil {
		return ""
	}
	n.table.Describe(ids.RangeID(r.Descriptor.RangeId),
		func(i *adminpb.ReplicaInfo, leads *adminpb.RangeInfo, ok bool) {
			if ok && leads.LeaderNode == 0 {
				words = fmt.Sprintf(" %s in term %d, log %d to %d, commit %d, applied %d",
					i.RaftState, i.Term, i.FirstIndex, i.LastIndex, i.Commit, i.Applied)
			}
		})
	n.run(func() {})
	n.sim.until(n.sim.loop.now+2*time.Millisecond, func() bool { return words != "" })
	return words
}

// Summary prints counters in order.
func Summary(counters map[string]int) string {
	names := make([]string, 0, len(counters))
	for n := range counters {
		names = append(names, n)
	}
	sort.Strings(names)
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "  %-32s %d\n", n, counters[n])
	}
	return b.String()
}

// userEnd is the end of users' keys.
func userEnd() []byte { return []byte{kv.EndPrefix} }
