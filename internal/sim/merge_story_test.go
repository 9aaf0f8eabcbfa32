package sim

import (
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// operated has placement do something, which it may refuse for a while.
func (s *Sim) operated(d time.Duration, r *adminpb.OperateRequest) {
	began, last := s.loop.now, ""
	for s.err == nil {
		done := false
		if n := s.people.driver(); n != nil {
			n.run(func() {
				_, err := n.driver.Operate(r)
				if done = err == nil; !done {
					last = err.Error()
				}
			})
		}
		if done {
			return
		}
		if s.loop.now-began > d {
			s.fail("%v was refused for %s: %s\n%s", r, d, last, s.describe())
		}
		s.wait(100 * time.Millisecond)
	}
}

// tileOf is the newest descriptor that holds a key.
func (s *Sim) tileOf(key string) *metapb.RangeDescriptor {
	at := &metapb.RangeDescriptor{Start: userKey("%s", key), End: userKey("%s\x00", key)}
	for _, d := range s.checker.tiles.list {
		if overlapping(d, at) {
			return d
		}
	}
	s.fail("nobody holds %s", key)
	return nil
}

// relocated has a range moved to some nodes, and waits until it has no other copy.
func (s *Sim) relocated(key string, to []uint64) {
	s.operated(20*time.Second, &adminpb.OperateRequest{
		RangeId: s.tileOf(key).RangeId,
		What:    &adminpb.OperateRequest_Relocate{Relocate: &adminpb.Relocate{Nodes: to}},
	})
	s.within(20*time.Second, "a relocation", func() bool {
		d := s.tileOf(key)
		here := 0
		for _, r := range d.Replicas {
			for _, id := range to {
				if r.NodeId == id && r.Role == 0 {
					here++
				}
			}
		}
		return here == len(to) && len(d.Replicas) == len(to)
	})
}

// merged has the range of a key merged with its right neighbour.
func (s *Sim) merged(key string) {
	left := s.tileOf(key)
	right := s.tileOf(string(left.End[1:]))
	s.operated(20*time.Second, &adminpb.OperateRequest{
		RangeId: left.RangeId, What: &adminpb.OperateRequest_Merge{Merge: &adminpb.MergeWith{}},
	})
	s.within(30*time.Second, "a merge", func() bool {
		return s.checker.tiles.over[rangeOf(right)] != nil
	})
}

// TestARemovedReplicaLearnsThatItsRangeIsGone: it is out of reach when it is removed,
// and until its range has been absorbed. Those who could tell it that it was removed
// are not there any more; those who know that the range is gone must do.
func TestARemovedReplicaLearnsThatItsRangeIsGone(t *testing.T) {
	tell(t, 4, func(s *Sim) {
		s.splitUp()
		d := s.tileOf("k/5")
		var away *node
		for _, r := range d.Replicas {
			if n := s.nodeOf(r.NodeId); !n.table.Leads(1) && !n.table.Leads(rangeOf(d)) {
				away = n
			}
		}
		var others []uint64
		for _, n := range s.machines {
			if n != away {
				others = append(others, uint64(n.id))
			}
		}
		s.cut(away, true)
		s.wait(time.Second)
		s.relocated("k/5", others)
		s.relocated("k/0", others)
		s.merged("k/0")
		s.cut(away, false)
		s.within(20*time.Second, "the end of the last replica", func() bool {
			r, err := away.store.State().Replica(rangeOf(d))
			return err == nil && r == nil
		})
	})
}

// together brings the leaders of two ranges to one node, n if it leads the left one
// still. It asks again: who has just lost its power follows too far behind to take over.
func (s *Sim) together(n *node, left, right *metapb.RangeDescriptor) *node {
	ask := s.loop.now
	s.within(15*time.Second, "a transfer", func() bool {
		if now := s.leads(left.Start); now != nil {
			n = now
		}
		if n.table != nil && n.table.Leads(rangeOf(left)) && n.table.Leads(rangeOf(right)) {
			return true
		}
		if s.loop.now >= ask {
			ask = s.loop.now + time.Second
			s.bring(n, right)
		}
		return false
	})
	return n
}

// TestPowerIsCutWhileRangesMerge: of the leader of both halves or of a follower, soon
// after the order. The merge comes about or is undone; all is served again.
func TestPowerIsCutWhileRangesMerge(t *testing.T) {
	total := map[string]int{}
	tellInto(t, 3, total, func(s *Sim) {
		s.splitUp()
		for i, key := range []string{"k/0", "k/4", "k/8", "n/", "p/", "p/3"} {
			left := s.tileOf(key)
			right := s.tileOf(string(left.End[1:]))
			n := s.leads(left.Start)
			if n == nil {
				s.fail("nobody leads %s", key)
				return
			}
			n = s.together(n, left, right)
			s.orderMerge(n, left.Start, right.Start)
			victim := s.machines[s.nemesisRand.IntN(3)]
			victim.doom = 1 + s.nemesisRand.IntN(12)
			s.wait(time.Duration(i+1) * time.Millisecond)
			if victim.alive && victim.doom > 0 {
				victim.crash()
				s.wait(200 * time.Millisecond)
				s.restart(victim)
			}
			s.within(20*time.Second, "the end of a merge", func() bool {
				return s.checker.tiles.over[rangeOf(right)] != nil ||
					s.tileOf(key).Merge == nil && s.tileOf(string(right.Start[1:])).Merge == nil
			})
			s.within(20*time.Second, "the return of a machine", func() bool {
				return victim.alive && victim.table != nil
			})
			s.leased(5*time.Second, nil)
		}
	})
	for _, name := range []string{"merges", "merges_aborted"} {
		if total[name] == 0 {
			t.Errorf("%s: 0; the story did not happen", name)
		}
	}
}

// TestAllMachinesLosePowerAsRangesMerge: the absorb is applied somewhere, and every
// machine falls back to what its disk has. Both halves' logs are played again, in
// whatever order: where the left half comes first it waits for the right one.
func TestAllMachinesLosePowerAsRangesMerge(t *testing.T) {
	tell(t, 3, func(s *Sim) {
		s.splitUp()
		for _, key := range []string{"k/0", "n/", "p/", "s/"} {
			left := s.tileOf(key)
			right := s.tileOf(string(left.End[1:]))
			s.within(30*time.Second, "a merge", func() bool {
				if n := s.leads(left.Start); n != nil && s.tileOf(key).Merge == nil {
					if n.table.Leads(rangeOf(right)) {
						s.orderMerge(n, left.Start, right.Start)
					} else if s.leads(right.Start) != nil {
						s.bring(n, right)
					}
				}
				for i := 0; i < 100 && s.checker.tiles.over[rangeOf(right)] == nil; i++ {
					s.wait(time.Millisecond)
				}
				return s.checker.tiles.over[rangeOf(right)] != nil
			})
			s.wait(between(s.nemesisRand, 0, 100*time.Millisecond))
			for _, n := range s.machines {
				n.crash()
			}
			s.wait(50 * time.Millisecond)
			for _, n := range s.machines {
				s.restart(n)
			}
			s.leased(5*time.Second, nil)
			s.within(20*time.Second, "one range on each machine", func() bool {
				for _, n := range s.machines {
					if n.table == nil || len(n.known) != len(s.checker.tiles.list) {
						return false
					}
				}
				return true
			})
		}
	})
}

// tellInto plays a story for more seeds, and adds up what happened.
func tellInto(t *testing.T, nodes int, total map[string]int, act func(s *Sim)) {
	t.Helper()
	for seed := uint64(201); seed <= 208; seed++ {
		r := runStory(t, undisturbed(seed, nodes), func(s *Sim) {
			s.net.good()
			act(s)
		})
		if r.Err != nil {
			t.Fatalf("seed %d: %v", seed, r.Err)
		}
		for k, v := range r.Counters {
			total[k] += v
		}
	}
}

// TestAZoneDies: five machines in three zones, and the rule spreads by zone. Every
// range has a lease again without the zone, within the limit of a failover.
func TestAZoneDies(t *testing.T) {
	for seed := uint64(201); seed <= 203; seed++ {
		o := undisturbed(seed, 5)
		o.Placement.Zones, o.Placement.Spread = 3, true
		r := runStory(t, o, func(s *Sim) {
			s.net.good()
			s.splitUp()
			s.within(3*time.Minute, "spread by zone", func() bool {
				return s.people.open() == "" && s.unplaced() == nil
			})
			for _, zone := range []string{"zone=z0", "zone=z1", "zone=z2"} {
				var dead []*node
				for _, n := range s.machines {
					if n.locality[1] == zone {
						dead = append(dead, n)
						n.crash()
					}
				}
				s.within(2*time.Second, "a lease for every range without "+zone, s.allLeased)
				for _, n := range dead {
					s.restart(n)
				}
				s.within(20*time.Second, "return of "+zone, func() bool {
					return s.restAt < s.loop.now && s.rejoined()
				})
			}
		})
		if r.Err != nil {
			t.Fatalf("seed %d: %v", seed, r.Err)
		}
	}
}

// allLeased says whether some live node holds the lease of every range.
func (s *Sim) allLeased() bool {
	for _, d := range s.checker.tiles.list {
		held := false
		for _, n := range s.machines {
			if _, ok := n.holds(rangeOf(d)); ok {
				held = true
			}
		}
		if !held {
			return false
		}
	}
	return true
}

// rejoined says whether all machines serve and their replicas have caught up.
func (s *Sim) rejoined() bool {
	s.restAt = s.loop.now + 500*time.Millisecond
	for _, n := range s.machines {
		if n.table == nil {
			return false
		}
	}
	for _, d := range s.checker.tiles.list {
		var low, high ids.Index
		for i, r := range d.Replicas {
			state, err := s.nodeOf(r.NodeId).store.State().Replica(rangeOf(d))
			if err != nil || state == nil {
				return false
			}
			at := ids.Index(state.Applied.Index)
			if i == 0 {
				low, high = at, at
			}
			low, high = min(low, at), max(high, at)
		}
		if high-low > 64 {
			return false
		}
	}
	return true
}

// TestANodeIsReplaced: a new machine joins, one of the old ones is decommissioned,
// whichever it is, while clients go on. It stops being part of anything.
func TestANodeIsReplaced(t *testing.T) {
	tell(t, 3, func(s *Sim) {
		s.splitUp()
		s.people.replaceOne()
		s.within(3*time.Minute, "the end of a node", func() bool {
			return s.people.leaving.standing == decommissioned
		})
		if left := s.people.leaving.replicas(); len(left) > 0 {
			s.fail("%s holds %d replicas", s.people.leaving, len(left))
		}
	})
}
