package placement

import (
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// unrest is what may happen at any time.
type unrest struct {
	*world
	down    *simNode // at most one at a time
	gone    map[ids.NodeID]bool
	wide    bool // five copies instead of three
	drained map[ids.NodeID]bool
}

// strike lets one thing happen.
func (u *unrest) strike() {
	w := u.world
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	switch w.rng.IntN(9) {
	case 0:
		if u.down == nil && !u.gone[n.id] {
			u.down, n.up = n, false
		}
	case 1:
		u.revive()
	case 2:
		all := w.ids()
		w.split(all[w.rng.IntN(len(all))], w.newID())
	case 3:
		if w.rng.IntN(2) == 0 {
			_, err := w.want(n.id, standingDraining)
			u.drained[n.id] = u.drained[n.id] || err == nil
		} else if u.drained[n.id] {
			_, err := w.want(n.id, standingActive)
			u.drained[n.id] = err != nil
		}
	case 4:
		if len(w.nodes)-len(u.gone) > 5 {
			if _, err := w.want(n.id, standingDecommissioning); err == nil {
				u.gone[n.id] = true
			}
		}
	case 5:
		if len(w.nodes) < 12 && w.node(w.driver).d.Active() {
			w.join("zone=" + string('a'+rune(len(w.nodes)%3)))
		}
	case 6:
		u.resize()
	case 7:
		for _, id := range w.ids() {
			if r := w.ranges[id]; w.rng.IntN(3) == 0 {
				r.bytes = int64(w.rng.IntN(14)) << 20
				w.tell(r)
			}
		}
	case 8:
		all := w.ids()
		id := uint64(all[w.rng.IntN(len(all))])
		_, _ = w.operate(mergeOf(id))
		_, _ = w.operate(relocate(id, 1, 2, 3))
		_, _ = w.operate(&adminpb.OperateRequest{What: &adminpb.OperateRequest_Scatter{
			Scatter: &adminpb.Scatter{Start: []byte{0x20}, End: []byte{0x21}}}})
	}
	if to := w.nodes[w.rng.IntN(len(w.nodes))]; to.up && !u.gone[to.id] &&
		(!w.node(w.driver).up || w.rng.IntN(5) == 0) {
		w.moveDriver(to.id)
	}
}

func (u *unrest) revive() {
	if u.down != nil {
		u.down.up, u.down.full, u.down.started, u.down = true, true, u.world.now, nil
	}
}

// resize asks for more or for fewer copies.
func (u *unrest) resize() {
	d := u.node(u.driver).d
	copies := uint32(3)
	if !u.wide {
		copies = 5
	}
	d.SetRules(&adminpb.SetRulesRequest{Rules: &metapb.RuleSet{Version: d.Rules().GetVersion(),
		Rules: []*metapb.Rule{{Name: "all", Replicas: copies, Spread: "zone"}},
	}}, func(r *adminpb.SetRulesReply, err error) {
		if err == nil && len(r.GetFaults()) == 0 {
			u.wide = copies == 5
		}
	})
}

// serving fails if placement has brought a range to where the failure of the node that
// is down stops it.
func (u *unrest) serving(seed uint64) {
	u.t.Helper()
	for _, id := range u.ids() {
		voters, up := u.ranges[id].voters(), 0
		for _, v := range voters {
			if u.isUp(v) {
				up++
			}
		}
		if up <= len(voters)/2 {
			u.dump()
			u.t.Fatalf("seed %d: %v has %d of %d voters, one node is down", seed, id, up,
				len(voters))
		}
	}
}

// Nodes die and return, drain, are decommissioned and join; ranges split, merge and
// are moved on request; copies are wanted more or fewer; reports are lost and the
// driver moves: all at once. No range ever stops for it, and in the end everything
// finds its place and rests.
func TestTurmoilOfEverythingEndsInRest(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		w := newWorld(t, 200+seed, 12)
		w.config = Config{MergeBelow: DefaultMergeBelow, MergeAfter: time.Minute}
		w.nodes = nil
		w.start(1).desc.Locality = []string{"zone=a"}
		w.node(1).d.SetActive(true, 0)
		w.run(2 * time.Second)
		for i := range 5 {
			w.join("zone=" + string("bcabc"[i]))
		}
		w.runUntil(20*time.Minute, "three copies everywhere", w.allHave(3))
		w.loss = 0.1
		u := &unrest{world: w, gone: map[ids.NodeID]bool{}, drained: map[ids.NodeID]bool{}}
		for range 60 {
			u.strike()
			for range 1 + w.rng.IntN(15) {
				w.run(time.Second)
				u.serving(seed)
			}
		}
		w.loss = 0
		u.revive()
		if !w.node(w.driver).up || u.gone[w.driver] {
			w.moveDriver(w.alive(u))
		}
		w.run(time.Minute)
		for id := range u.drained {
			if !u.gone[id] {
				w.must(id, standingActive)
			}
		}
		if u.wide {
			u.resize()
		}
		w.runUntil(2*time.Hour, "at rest", func() bool {
			s := w.status()
			return w.allHave(3)() && len(s.GetProblems()) == 0 && s.GetOperators() == 0 &&
				int(s.GetRanges()) == len(w.ranges)
		})
		for id := range u.gone {
			w.runUntil(2*time.Hour, "decommissioned", func() bool {
				return w.progress(id).GetStatus().GetStanding() == standingDecommissioned
			})
		}
		w.run(30 * time.Minute) // merges take their time
		w.quiet(10 * time.Minute)
		t.Logf("executed %v, %d swaps, %d nodes of %d gone, %d refusals", w.executed, w.swaps,
			len(u.gone), len(w.nodes), w.refused)
		verify(t, w.node(w.driver).d.cluster)
	}
}

// alive returns a node that may drive.
func (w *world) alive(u *unrest) ids.NodeID {
	for _, n := range w.nodes {
		if n.up && !u.gone[n.id] {
			return n.id
		}
	}
	return 0
}
