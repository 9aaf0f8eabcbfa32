package store

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// besideFrozen makes a store with the old replica of range 2 and, to its right, a
// replica of another range that a snapshot of range 2 is to subsume.
func besideFrozen(t tester, o Options, r int) *Store {
	t.Helper()
	s := oldReplica(t, o)
	d := descriptor(3, "\x20e", "\x20f")
	d.RangeId = uint64(r)
	fill(t, s, d, 30, "frozen")
	return s
}

func installSubsuming(t tester, from, s *Store, r int) {
	t.Helper()
	in := transfer(t, from, s, 2)
	in.Subsume(besideID(r), []byte("\x20e"), []byte("\x20f"))
	must(t, installNew(in))
}

// A snapshot takes in the replica to its right, whose span it covers in part: of
// that nothing is left but its highest tombstone, and the records that its own
// shard will remove.
func TestSnapshotSubsumesItsRightNeighbour(t *testing.T) {
	t.Parallel()
	for name, threshold := range modes() {
		for _, r := range []int{3, 300} { // before and after the neighbours' records
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				from := openTest(t)
				fill(t, from, descriptor(2, "\x20c", "\x20ee"), 400, strings.Repeat("n", 300))
				o := testOptions(vfs.NewMem())
				o.SnapshotInMemoryBytes = threshold
				s := besideFrozen(t, o, r)
				left, right := replicaContent(t, s, 1), replicaContent(t, s, 9)
				s.wantTombstone(t, besideID(r), 0) // and is remembered
				installSubsuming(t, from, s, r)
				_, want, _ := strings.Cut(replicaContent(t, from, 2), "\n")
				if _, got, _ := strings.Cut(replicaContent(t, s, 2), "\n"); got != want {
					t.Error("the replica is not what was sent")
				}
				if replicaContent(t, s, 1) != left || replicaContent(t, s, 9) != right {
					t.Error("a neighbour changed")
				}
				// At its end fill put one key into each of the three spaces.
				if n := strings.Count(content(t, s), "\"frozen\""); n != 3 {
					t.Errorf("%d keys of the subsumed replica are left, want 3", n)
				}
				if next, _ := s.Log().Tombstone(besideID(r)); next != ids.EveryReplica {
					t.Errorf("tombstone %d", next)
				}
				if got := replicaContent(t, s, besideID(r)); got != "none" {
					t.Errorf("the subsumed range can still be sent: %s", got)
				}
				if next, _ := s.Log().Tombstone(2); next != 4 {
					t.Errorf("tombstone of the range itself %d", next)
				}
				must(t, s.Close())
			})
		}
	}
}

// Bug row 3: a crash at any step leaves both replicas as they were, or the one.
func TestCrashWhileASnapshotSubsumesLeavesOldOrNew(t *testing.T) {
	t.Parallel()
	for name, threshold := range modes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := openTest(t)
			fill(t, from, descriptor(2, "\x20c", "\x20ee"), 300, strings.Repeat("n", 300))
			mem := vfs.NewCrashableMem()
			var clones []*vfs.MemFS
			inject := cloneAt(mem, &clones, 1)
			var recording atomic.Bool
			o := testOptions(errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if !recording.Load() {
					return nil
				}
				return inject.MaybeError(op)
			})))
			o.SnapshotInMemoryBytes = threshold
			s := besideFrozen(t, o, 3)
			must(t, s.Flush())
			before := content(t, s)
			recording.Store(true)
			installSubsuming(t, from, s, 3)
			recording.Store(false)
			after := content(t, s)
			clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{}))
			must(t, s.Close())
			old, fresh := 0, 0
			for i, clone := range clones {
				o := testOptions(clone)
				o.Create = false
				s := mustOpen(t, o)
				switch content(t, s) {
				case before:
					old++
				case after:
					fresh++
				default:
					t.Errorf("crash %d of %d leaves a mixture", i, len(clones))
				}
				must(t, s.Close())
			}
			if fresh == 0 || old == 0 && threshold < 0 {
				t.Errorf("%d old, %d new", old, fresh)
			}
		})
	}
}

func besideID(r int) ids.RangeID { return ids.RangeID(r) }
