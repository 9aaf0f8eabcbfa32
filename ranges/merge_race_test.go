package ranges

import (
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// mergeSteps is more than a merge takes, in turns of the whole cluster.
const mergeSteps = 22

// thorough says that more was asked for than a run of all tests has time for.
func thorough() bool { return os.Getenv("FLOTILLA_SEEDS") != "" }

// bothServe writes to and reads from both halves, whoever has them now.
func (w *world) bothServe() {
	w.t.Helper()
	for _, k := range []string{"a1", "x1"} {
		served := false
		for range 60 {
			r := w.rangeOf(k)
			n := w.leader(r)
			resp := n.do(n.putRequest(k, "served"))
			if served = resp.Code == kv.CodeOK; served {
				if v := n.get(k); v != "served" {
					w.t.Fatalf("%s is %q", k, v)
				}
				break
			}
			w.tick(2)
			w.maintain(1)
		}
		if !served {
			w.dump()
			w.t.Fatalf("nobody takes a write of %s", k)
		}
	}
}

// intact makes sure that what halves wrote is still there.
func (w *world) intact() {
	w.t.Helper()
	for i := range 10 {
		for k, v := range map[string]string{"a": "left", "x": "right"} {
			k = fmt.Sprint(k, i)
			if i == 1 {
				continue // bothServe wrote it
			}
			if got := w.leader(w.rangeOf(k)).get(k); got != v {
				w.t.Errorf("%s is %q", k, got)
			}
		}
	}
}

// The leader of one half, or of both, loses it after every number of steps.
func TestLeadershipIsLostAtAnyStepOfAMerge(t *testing.T) {
	t.Parallel()
	for steps := range mergeSteps {
		for _, which := range []int{1, 2, 3} {
			if !thorough() && which != steps%3+1 {
				continue
			}
			w, l, right := halves(t, nil)
			o := l.startMerge(2, right)
			for range steps {
				w.once()
			}
			next := w.nodes[l.id%3+1]
			for i, id := range []ids.RangeID{2, right} {
				x := l.table.replica(id)
				if which&(i+1) == 0 || x == nil {
					continue
				}
				to := ids.ReplicaID(replicaOn(x.descriptor(), next.id).GetReplicaId())
				must(t, x.enqueue(multiraft.TaskFunc(func() { x.handTo(to) }), 0))
			}
			w.tick(12)
			w.clean()
			if o.count != 1 {
				t.Fatalf("%d steps, %d: the order was answered %d times", steps, which, o.count)
			}
			if done := w.merged(right); o.err == nil && !done {
				t.Fatalf("%d steps, %d: merged, they say", steps, which)
			}
			w.bothServe()
			w.tiles()
			w.intact()
			w.check()
		}
	}
}

// A node, or all of them, is cut from power after every number of steps and
// loses what was not synced. Bug classes 7 and 9.
func TestPowerCutAtAnyStepOfAMerge(t *testing.T) {
	t.Parallel()
	for steps := range mergeSteps {
		for victim := range 5 {
			if !thorough() && victim != steps%5 {
				continue
			}
			w, l, right := halves(t, nil)
			req := l.putRequest("x9", "right")
			wantCode(t, l.do(req), kv.CodeOK)
			l.startMerge(2, right)
			for range steps {
				w.once()
			}
			var down []*node
			for i, n := range w.nodes[1:] {
				if victim == 0 || victim == 4 && n != l || victim == i+1 {
					down = append(down, n)
				}
			}
			for _, n := range down {
				n.crash()
			}
			if victim == 4 {
				w.tick(30) // the leader learns that it is alone
			}
			for _, n := range down {
				n.restart()
			}
			w.clean()
			w.merged(right)
			w.bothServe()
			w.tiles()
			w.intact()
			w.check()
			n := w.leader(w.rangeOf("x9"))
			again := n.do(req)
			wantCode(t, again, kv.CodeOK)
		}
	}
}

// The two groups of a node apply in any order: the left half's absorb waits until
// the right half has applied its freeze.
func TestAbsorbWaitsForTheLocalFreeze(t *testing.T) {
	t.Parallel()
	w, l, right := halves(t, nil)
	slow := w.nodes[l.id%3+1]
	// The right half's followers learn that the freeze is committed from the next
	// append only, which brings the seal. This one gets nothing after it, so it has
	// both, durably, and has yet to apply: as after a start.
	x := slow.table.replica(right)
	must(t, x.enqueue(multiraft.TaskFunc(func() { x.yields = true }), 0))
	w.merge(2, right)
	w.tick(3)
	if s := slow.table.replica(2).state.Load(); s.desc.GetMerge() == nil {
		t.Fatal("it absorbed what is not frozen")
	}
	if slow.table.replica(right) != x || w.nodes[l.id].table.replica(right) != nil {
		t.Fatal("the right half is not where it should be")
	}
	l.put("x1", "new") // the others go on
	w.tick(20)         // it hears that its range is gone, and stays
	if slow.table.replica(right) != x {
		t.Fatal("the right half went with data that the left half needs")
	}
	must(t, x.enqueue(multiraft.TaskFunc(func() {
		x.yields = false
		x.group().ResumeApply()
	}), 0))
	w.clean()
	w.tiles()
	w.merged(right)
}

// misses has a node miss a merge: it has the left half as it was, and the right
// half, frozen.
func misses(t testing.TB) (w *world, l, behind *node, right ids.RangeID) {
	w, l, right = halves(t, nil)
	behind = w.nodes[l.id%3+1]
	w.drop = cutEntries(behind.id, 2)
	w.merge(2, right)
	x := behind.table.replica(right)
	if x == nil || phaseOf(x.descriptor()) != phaseFrozen {
		t.Fatalf("the right half is not frozen: %v", x)
	}
	return w, l, behind, right
}

// jumps has a node miss a merge and then be away until the log is cut, so that it
// will get the left half by snapshot.
func jumps(t testing.TB) (w *world, l, behind *node, right ids.RangeID) {
	w, l, behind, right = misses(t)
	behind.down = true
	w.tick(40)
	for i := range 150 {
		l.put(fmt.Sprint("b", i%50), "push the log out")
	}
	w.drop = nil
	return w, l, behind, right
}

// Bug class 3: a replica that missed the merge gets the merged range by snapshot,
// which subsumes its frozen right half.
func TestSnapshotOfTheMergedRangeSubsumesTheFrozenRightHalf(t *testing.T) {
	t.Parallel()
	w, l, behind, right := jumps(t)
	l.do(&kv.Request{Verb: kv.VerbDelete, Key: key("x4"), Identity: l.identity()})
	before := w.snaps
	behind.down = false
	w.tick(40)
	w.clean()
	w.tiles()
	if w.snaps == before {
		t.Fatal("no snapshot was sent: the story is not told")
	}
	if behind.table.replica(right) != nil {
		t.Fatal("the right half is still there")
	}
	behind.crash()
	behind.restart()
	w.clean()
	w.tiles()
	w.merged(right)
}

// The merged range was split again, inside the old right half, before the node
// hears of the merge. Its snapshots come in any order.
func TestSnapshotsOfAMergedRangeThatWasSplitAgain(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"m", "x5", "f"} {
		w, _, behind, right := jumps(t)
		w.split(2, at)
		w.tick(3)
		behind.down = false
		w.tick(60)
		w.clean()
		w.tiles()
		w.merged(right)
	}
}

// A snapshot that is to subsume the right half is on its way while the log brings
// the absorb. The absorb waits for the end of that; then raft does not want the
// snapshot any more, or it never came, and the log goes on.
func TestAbsorbWaitsForASnapshotThatWouldSubsume(t *testing.T) {
	t.Parallel()
	for _, arrives := range []bool{true, false} {
		w, l, behind, right := misses(t)
		o, err := l.store.NewSnapshot(2)
		must(t, err)
		d := o.State().Descriptor
		a, err := behind.table.AdmitSnapshot(&metapb.SnapshotHeader{
			RangeId: 2, FromNode: uint64(l.id), RaftTerm: uint64(o.State().Applied.GetTerm()),
			FromReplica: replicaOn(d, l.id).GetReplicaId(),
			ToReplica:   replicaOn(d, behind.id).GetReplicaId(),
			Descriptor_: d, Applied: o.State().Applied,
		})
		must(t, err)
		w.drop = nil
		w.tick(20)
		if behind.table.replica(right) == nil {
			t.Fatal("it absorbed what a snapshot is to subsume")
		}
		if arrives {
			for {
				chunk, err := o.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				must(t, err)
				must(t, a.Incoming.Add(chunk))
			}
			must(t, a.Incoming.Finish())
			a.Deliver(func(err error) {
				if !errors.Is(err, ErrSnapshotUnused) {
					t.Errorf("delivered: %v", err)
				}
			})
		} else {
			a.Abandon()
		}
		o.Close()
		w.tick(10)
		w.clean()
		w.tiles()
		if !w.merged(right) {
			t.Fatal("the log did not go on")
		}
	}
}

// The installation that subsumes is one step: whatever of the node's commits is
// the last before it is killed, its keys are covered, by the old ranges or by the
// new one.
func TestKillWhileASnapshotSubsumes(t *testing.T) {
	t.Parallel()
	for after := 1; ; after++ {
		w, _, behind, right := jumps(t)
		killed, hole := w.killedInInstall(behind, after)
		if hole != "" {
			t.Fatalf("killed after %d commits: %s", after, hole)
		}
		w.tick(20)
		w.clean()
		w.tiles()
		w.merged(right)
		if !killed {
			if after < 3 {
				t.Fatal("it never commits: the story is not told")
			}
			return
		}
	}
}

// killedInInstall brings a node back to get its snapshot and kills it right after
// that many commits. It says whether it came to that, and what the node does not
// cover when it starts again.
func (w *world) killedInInstall(n *node, after int) (killed bool, hole string) {
	var disk *vfs.MemFS
	commits := 0
	n.committed = func() {
		if commits++; commits == after {
			must(w.t, n.store.Sync()) // the process dies, not the power
			disk = n.fs.CrashClone(vfs.CrashCloneCfg{})
		}
	}
	n.down = false
	w.drop = func(from, _ ids.NodeID, _ *multiraft.Message) bool {
		return from == n.id && disk != nil // it is dead
	}
	w.tick(30)
	n.committed, w.drop = nil, nil
	if disk == nil {
		return false, ""
	}
	n.close()
	n.fs, n.jobs = disk, nil
	n.restart()
	return true, n.hole()
}

// hole says which of the users' keys no replica of a node covers.
func (n *node) hole() string {
	at := []byte{kv.UserPrefix}
	for _, r := range n.table.byKey() {
		if r.id == 1 {
			continue
		}
		d := r.descriptor()
		if string(d.GetStart()) != string(at) {
			return fmt.Sprintf("%v begins at %q, not at %q", r.id, d.GetStart(), at)
		}
		at = d.GetEnd()
	}
	if string(at) != string([]byte{kv.EndPrefix}) {
		return fmt.Sprintf("the last range ends at %q", at)
	}
	return ""
}

// A follower has the freeze and the seal on disk and has not applied the freeze
// when the power goes. The group of the right half is gone when it comes back: it
// must know by itself that the freeze is committed.
func TestPowerCutBeforeTheFreezeIsApplied(t *testing.T) {
	t.Parallel()
	w, right := halves2(t)
	if !w.knowsAfterAPowerCut(right) {
		w.dump()
		t.Fatal("it does not know that its range is frozen")
	}
	w.clean()
	w.tiles()
	w.merged(right)
}

func halves2(t testing.TB) (*world, ids.RangeID) {
	w, _, right := halves(t, nil)
	return w, right
}

func (w *world) knowsAfterAPowerCut(right ids.RangeID) bool {
	l := w.leader(2)
	slow := w.nodes[l.id%3+1]
	x := slow.table.replica(right)
	must(w.t, x.enqueue(multiraft.TaskFunc(func() { x.yields = true }), 0))
	w.merge(2, right)
	slow.crash()
	w.tick(5)
	slow.restart()
	w.tick(20)
	return slow.table.replica(right) == nil
}

// What others say of a range that is gone is not obeyed while the left half here
// has still to absorb it.
func TestRightHalfStaysUntilTheLeftHalfHereHasAbsorbedIt(t *testing.T) {
	t.Parallel()
	w, _, behind, right := misses(t)
	w.tick(60) // it campaigns, and is told
	if behind.table.replica(right) == nil {
		t.Fatal("the right half went, and the left half has not absorbed it")
	}
	w.drop = nil
	w.clean()
	w.tiles()
	w.merged(right)
}

// A thawed right half is split; a snapshot of its right part must not take the
// place of a replica that still shows the freeze.
func TestSnapshotOfAThawedRangesRightPartSubsumesNothing(t *testing.T) {
	t.Parallel()
	w, l, right := halves(t, nil)
	behind := w.nodes[l.id%3+1]
	// It gets the freeze, and nobody hears of that.
	w.drop = func(from, to ids.NodeID, m *multiraft.Message) bool {
		x := behind.table.replica(right)
		return (to == behind.id || from == behind.id) && m.Range == right && x != nil &&
			phaseOf(x.descriptor()) == phaseFrozen
	}
	o := l.startMerge(2, right)
	w.settle()
	for range 10 {
		w.maintain(1)
		w.tick(1)
		if w.leader(right).table.replica(right).mergeMark() == nil {
			break
		}
	}
	if o.err == nil || phaseOf(behind.table.replica(right).descriptor()) != phaseFrozen {
		t.Fatalf("merge: %v, right half there %v", o.err, behind.table.replica(right).descriptor())
	}
	_, part := w.split(right, "x5")
	id := ids.RangeID(part.GetRangeId())
	w.tick(3)
	rs, err := w.leader(id).store.State().Replica(id)
	must(t, err)
	_, err = behind.table.AdmitSnapshot(&metapb.SnapshotHeader{
		RangeId: uint64(id), FromNode: uint64(l.id), RaftTerm: 9,
		ToReplica:   replicaOn(part, behind.id).GetReplicaId(),
		Descriptor_: rs.Descriptor, Applied: rs.Applied,
	})
	if !errors.Is(err, ErrSnapshotRefused) {
		t.Fatalf("got %v", err)
	}
	w.drop = nil
	w.clean()
	w.tiles()
}

// A replica of an absorbed range whose left neighbour was removed from its node
// while that was away is collected when it comes back.
func TestStragglerOfAnAbsorbedRangeGoesWhenNobodyNeedsIt(t *testing.T) {
	t.Parallel()
	w, _, behind, right := misses(t)
	behind.down = true
	w.drop = nil
	id := replicaOn(w.descriptor(2), behind.id).GetReplicaId()
	w.removeReplica(2, ids.ReplicaID(id))
	behind.down = false
	w.tick(80)
	if behind.table.replica(2) != nil || behind.table.replica(right) != nil {
		w.dump()
		t.Fatal("replicas that were removed are still there")
	}
	if next, err := behind.store.Log().Tombstone(right); err != nil ||
		next != ids.EveryReplica {
		t.Fatalf("tombstone %d, %v", next, err)
	}
	w.addVoter(2, behind.id)
	w.clean()
	w.tiles()
}

// A replica that was removed before its range was absorbed, while its node was
// away, never froze. Nobody is left who has the range's descriptor.
func TestReplicaRemovedBeforeItsRangeWasAbsorbedGoesToo(t *testing.T) {
	t.Parallel()
	w, l, right := halves(t, nil)
	behind := w.nodes[l.id%3+1]
	behind.down = true
	for _, r := range []ids.RangeID{2, right} {
		w.removeReplica(r, ids.ReplicaID(replicaOn(w.descriptor(r), behind.id).GetReplicaId()))
	}
	w.merge(2, right)
	behind.down = false
	w.tick(80)
	if behind.table.replica(2) != nil || behind.table.replica(right) != nil {
		w.dump()
		t.Fatal("replicas that were removed are still there")
	}
	w.addVoter(2, behind.id)
	w.clean()
	w.tiles()
}
