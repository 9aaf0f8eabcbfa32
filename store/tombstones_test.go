package store

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

func (s *Store) bury(t tester, r ids.RangeID, next ids.ReplicaID) {
	t.Helper()
	s.with(t, false, func(b *Batch) { must(t, s.Log().PutTombstone(b, r, next)) })
}

func (s *Store) wantTombstone(t tester, r ids.RangeID, want ids.ReplicaID) {
	t.Helper()
	next, err := s.Log().Tombstone(r)
	must(t, err)
	read, err := s.Log().readTombstone(r)
	must(t, err)
	if next != want || read != want {
		t.Fatalf("tombstone of %v: %d, the engine says %d, want %d", r, next, read, want)
	}
}

func TestATombstoneThatWasAskedForBeforeItWasWrittenIsSeenAfterwards(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	const collides = 7 + tombstoneSlots
	for next := range ids.ReplicaID(4) {
		s.wantTombstone(t, 7, next)
		s.wantTombstone(t, collides, 0)
		s.wantTombstone(t, 7, next)
		b := s.NewBatch()
		must(t, s.Log().PutTombstone(b, 7, next+1))
		s.wantTombstone(t, 7, next) // staged only
		must(t, s.CommitNoSync(b))
		b.Close()
	}
	s.wantTombstone(t, 7, 4)

	b := s.NewBatch()
	must(t, s.Log().PutTombstone(b, 7, 9))
	b.Reset() // never committed
	b.Close()
	s.wantTombstone(t, 7, 4)
}

// Who has read the engine before a commit must not keep that after it.
func TestAnAnswerThatACommitOvertookIsNotKept(t *testing.T) {
	t.Parallel()
	var c tombstones
	known := func() bool { _, k, _ := c.get(7); return k }
	_, _, before := c.get(7)
	c.begin([]ids.RangeID{7})
	_, _, during := c.get(7)
	if c.put(7, 0, before); known() {
		t.Fatal("kept while the commit was under way")
	}
	c.end()
	if c.put(7, 0, before); known() {
		t.Fatal("kept what was read before the commit")
	}
	if c.put(7, 0, during); known() {
		t.Fatal("kept what was read during the commit")
	}
	_, _, after := c.get(7)
	if c.put(7, 3, after); !known() {
		t.Fatal("what is read afterwards is not kept")
	}
	if c.begin([]ids.RangeID{7}); known() {
		t.Fatal("an old answer while a commit is under way")
	}
	c.end()
}

func TestATombstoneThatACrashTookIsNotRemembered(t *testing.T) {
	t.Parallel()
	fs := vfs.NewCrashableMem()
	o := testOptions(fs)
	o.Simulated = true
	s := mustOpen(t, o)
	must(t, s.Sync())
	s.bury(t, 7, 4)
	s.wantTombstone(t, 7, 4)
	o.FS = fs.CrashClone(vfs.CrashCloneCfg{})
	must(t, s.Close())
	s = mustOpen(t, o)
	s.wantTombstone(t, 7, 0)
	must(t, s.Close())
}

// Readers never see a tombstone sink, nor one that is lower than the last one whose
// commit had returned when they asked.
func TestTombstonesOnlyRiseForReadersBesideWriters(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	const ranges, last = 3, 300
	var committed [ranges]atomic.Uint64
	var writers, readers sync.WaitGroup
	var over atomic.Bool
	for r := range uint64(ranges) {
		writers.Go(func() {
			for next := uint64(1); next <= last; next++ {
				s.bury(t, ids.RangeID(1+r*tombstoneSlots), ids.ReplicaID(next)) // one slot
				committed[r].Store(next)
			}
		})
		readers.Go(func() {
			for seen := uint64(0); !over.Load(); {
				least := max(seen, committed[r].Load())
				next, err := s.Log().Tombstone(ids.RangeID(1 + r*tombstoneSlots))
				if err != nil || uint64(next) < least {
					t.Errorf("tombstone %d (%v) after %d", next, err, least)
					return
				}
				seen = uint64(next)
			}
		})
	}
	writers.Wait()
	over.Store(true)
	readers.Wait()
}

// BenchmarkTombstone is what a message costs to a range that is not here: of a range
// that has none (a right half not born yet), of one that was absorbed, and of as many
// that not all of them are kept.
func BenchmarkTombstone(b *testing.B) {
	s := openTest(b)
	for r := range ids.RangeID(20_000) {
		if r%2 == 1 {
			s.bury(b, r, ids.EveryReplica)
		}
	}
	must(b, s.Flush())
	l := s.Log()
	for _, c := range []struct {
		name   string
		spread ids.RangeID
		ask    func(ids.RangeID) (ids.ReplicaID, error)
	}{
		{"kept", 100, l.Tombstone},
		{"too-many", 20_000, l.Tombstone},
		{"engine", 100, l.readTombstone},
	} {
		for _, gone := range []ids.RangeID{0, 1} {
			b.Run(fmt.Sprintf("%s/gone=%d", c.name, gone), func(b *testing.B) {
				r := ids.RangeID(0)
				for b.Loop() {
					r = (r + 2) % c.spread
					if next, err := c.ask(r + gone); err != nil || (next != 0) != (gone == 1) {
						b.Fatal(next, err)
					}
				}
			})
		}
	}
}
