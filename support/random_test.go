package support

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// sharedClock is a clock that many goroutines read and move.
type sharedClock struct{ now atomic.Int64 }

func (c *sharedClock) Wall() int64              { return noon + c.now.Load()/int64(ms) }
func (c *sharedClock) Monotonic() time.Duration { return time.Duration(c.now.Load()) }

// Drifting lease clocks, wall clocks apart, loss, delay, reordering, pauses and
// crashes. The check of each millisecond: no promise is counted that its maker is
// free of, and whoever is free has a clock above all that was read under it.
func TestRandomFaultsNeverFreeANodeThatIsCounted(t *testing.T) {
	t.Parallel()
	seeds, reads, votes := uint64(40), 0, 0
	if testing.Short() {
		seeds = 8
	}
	for seed := range seeds {
		w := newWorld(t, 4)
		r, v := chaos(w, seed, 4*time.Second)
		reads, votes = reads+r, votes+v
		if w.violation != "" {
			t.Fatalf("seed %d: %s", seed, w.violation)
		}
	}
	if reads < 25*int(seeds) || votes < 25*int(seeds) {
		t.Fatalf("only %d reads and %d changes of leader: nothing was tried", reads, votes)
	}
}

// chaos plays a random story. It returns how many reads were served, and how often
// a replica went over to another leader.
func chaos(w *world, seed uint64, d time.Duration) (reads, votes int) {
	rng := newRand(seed)
	any := func() *node { return w.nodes[rng.IntN(len(w.nodes))] }
	loss := rng.Float64() * 0.3
	slow := rng.Float64() * 0.3
	cut := map[[2]ids.NodeID]time.Duration{}
	w.block = func(p packet) bool {
		return rng.Float64() < loss || w.now < cut[[2]ids.NodeID{p.from, p.to}]
	}
	w.travel = func() time.Duration {
		if rng.Float64() < slow {
			return time.Duration(rng.IntN(300)) * ms
		}
		return time.Duration(1+rng.IntN(3)) * ms
	}
	for end := w.now + d; w.now < end && w.violation == ""; {
		w.run(time.Duration(1+rng.IntN(5)) * ms)
		switch n := any(); rng.IntN(60) {
		case 0:
			n.setRate(1 + (rng.Float64()*2-1)/driftPart)
		case 1:
			n.skew = int64(rng.IntN(401)) - 200
		case 2:
			n.paused = w.now + time.Duration(rng.IntN(600))*ms
		case 3:
			w.restart(n.id)
		case 4, 5, 6:
			m := any()
			cut[[2]ids.NodeID{n.id, m.id}] = w.now + time.Duration(rng.IntN(700))*ms
			if rng.IntN(2) == 0 {
				cut[[2]ids.NodeID{m.id, n.id}] = w.now + time.Duration(rng.IntN(700))*ms
			}
		case 7:
			if len(w.held) > 0 { // it was not lost but very late
				w.arrive(w.held[rng.IntN(len(w.held))])
			}
		default:
			if w.now >= n.paused {
				r, v := w.use(n, any(), int64(rng.IntN(200)))
				reads, votes = reads+r, votes+v
			}
		}
		w.check()
	}
	return reads, votes
}

// use lets the replica on b follow the leader on a, or a read.
func (w *world) use(a, b *node, ahead int64) (reads, votes int) {
	if a == b || w.now < b.paused {
		return 0, 0
	}
	if ahead < 100 {
		if before := b.follows; w.follow(b.id, a.id) && before != a.id {
			return 0, 1
		}
		return 0, 0
	}
	ts, err := a.clock.Now()
	if err == nil && w.read(a.id, b.id, ts) {
		reads++
	}
	if w.read(a.id, b.id, max(ts, hlc.New(a.Wall()+ahead, 0))) {
		reads++
	}
	return reads, 0
}
