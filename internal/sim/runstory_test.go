package sim

import (
	"runtime/debug"
	"testing"
	"testing/cryptotest"
)

// runStory runs a cluster with its workload and lets act break it instead of
// the random nemesis; then the usual end: heal, rest, checks.
func runStory(t *testing.T, o Options, act func(s *Sim)) (result Result) {
	t.Helper()
	cryptotest.SetGlobalRandom(t, o.Seed)
	s := newSim(o)
	defer func() {
		if p := recover(); p != nil {
			s.fail("panic at %s: %v\n%s", s.loop.now, p, debug.Stack())
		}
		s.closeStores()
		result = Result{Seed: o.Seed, Err: s.err, Hash: s.loop.hash, Counters: s.counters}
	}()
	if !s.assemble() {
		return result
	}
	for _, w := range s.workers {
		w.next()
	}
	s.people.begin()
	s.watch()
	act(s)
	if s.err != nil {
		return result
	}
	s.quiet = true
	s.heal()
	s.conclude()
	return result
}
