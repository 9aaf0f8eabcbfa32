package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

func TestMissingStoreIsMadeOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	o := testOptions(vfs.NewMem())
	o.Create = false
	_, err := Open(o)
	wantError(t, err, ErrNoStore)
	if _, err := o.FS.Stat("data"); err == nil {
		t.Error("a refused open made the directory")
	}
	must(t, o.FS.MkdirAll("data", 0o755))
	_, err = Open(o)
	wantError(t, err, ErrNoStore)
	if names, _ := o.FS.List("data"); len(names) != 0 {
		t.Errorf("a refused open left %v", names)
	}
	o.Create = true
	must(t, mustOpen(t, o).Close())
	o.Create = false
	must(t, mustOpen(t, o).Close())
}

func TestSecondProcessIsLockedOut(t *testing.T) {
	t.Parallel()
	for name, fs := range map[string]vfs.FS{"memory": vfs.NewMem(), "disk": nil} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(fs)
			if fs == nil {
				o.Dir = t.TempDir()
			}
			s := mustOpen(t, o)
			_, err := Open(o)
			wantError(t, err, ErrLocked)
			must(t, s.Close())
			must(t, mustOpen(t, o).Close())
		})
	}
}

func TestStoreOnDiskSurvivesRestart(t *testing.T) {
	t.Parallel()
	o := testOptions(nil)
	o.Dir = filepath.Join(t.TempDir(), "a", "b")
	s := mustOpen(t, o)
	s.put(t, true, "k", "v")
	before := s.Identity().Record()
	if total, free, err := s.CheckDisk(); err != nil || total == 0 || free == 0 {
		t.Errorf("disk of %d bytes, %d free: %v", total, free, err)
	}
	must(t, s.Close())
	s = mustOpen(t, o)
	after := s.Identity().Record()
	if s.local(t, "k") != "v" || after.Life != before.Life+1 || after.StoreID != before.StoreID ||
		after.Mark == before.Mark {
		t.Errorf("after restart %+v, before %+v, value %q", after, before, s.local(t, "k"))
	}
	must(t, s.Close())
}

func TestUnreadableDirectoryIsNamed(t *testing.T) {
	t.Parallel()
	o := testOptions(nil)
	o.Dir = filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(o.Dir, nil, 0o644))
	_, err := Open(o)
	wantError(t, err, ErrUnreadable)
}

// A crash at any step of a creation leaves either a store that opens, or
// something that Create makes anew and that is refused without it.
func TestCreationCutShortIsBegunAnew(t *testing.T) {
	t.Parallel()
	mem := vfs.NewCrashableMem()
	clones := []*vfs.MemFS{}
	o := testOptions(errorfs.Wrap(mem, cloneAt(mem, &clones, 7)))
	must(t, mustOpen(t, o).Close())
	if len(clones) < 10 {
		t.Fatalf("only %d crashes", len(clones))
	}
	for i, clone := range clones {
		o := testOptions(clone)
		o.Create = false
		s, err := Open(o)
		if err != nil {
			wantError(t, err, ErrNoStore)
			o.Create = true
			s = mustOpen(t, o)
		}
		if life := s.Identity().Record().Life; life == 0 || life > 2 {
			t.Errorf("crash %d: life %d", i, life)
		}
		must(t, s.Close())
	}
}

// cloneAt takes the disk as a power cut would leave it before every n-th
// operation that writes.
func cloneAt(mem *vfs.MemFS, clones *[]*vfs.MemFS, n int) errorfs.Injector {
	ops := 0
	var mu sync.Mutex
	return errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if ops++; ops%n == 0 {
			*clones = append(*clones, mem.CrashClone(vfs.CrashCloneCfg{}))
		}
		return nil
	})
}

// Bug rows 9 and 25: whatever was waited for is there after a power cut, and so
// is everything committed before it, whatever part of the rest survives.
func TestPowerCutKeepsEveryWaitedForCommit(t *testing.T) {
	t.Parallel()
	for _, simulated := range []bool{false, true} {
		for seed := range uint64(6) {
			t.Run(fmt.Sprintf("simulated=%v/seed=%d", simulated, seed), func(t *testing.T) {
				t.Parallel()
				rng := rand.New(rand.NewPCG(seed, 1))
				mem := vfs.NewCrashableMem()
				o := testOptions(mem)
				o.Simulated = simulated
				s := mustOpen(t, o)
				var pending []*PendingSync
				var batches []*Batch
				promised, written := 0, 0
				for range 200 {
					b := s.NewBatch()
					written++
					name := fmt.Sprintf("k%d", written)
					must(t, s.State().PutLocal(b, name, make([]byte, rng.IntN(5000)+1)))
					switch rng.IntN(4) {
					case 0:
						p, err := s.CommitSync(b)
						must(t, err)
						pending, batches = append(pending, p), append(batches, b)
						if rng.IntN(3) == 0 {
							must(t, p.Wait())
							promised = written
						}
					default:
						must(t, s.CommitNoSync(b))
						b.Close()
					}
				}
				unsynced := rng.IntN(2) * 50
				if simulated {
					unsynced = 0
				}
				clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rng})
				for i, p := range pending {
					must(t, p.Wait())
					batches[i].Close()
				}
				must(t, s.Close())
				o.FS = clone
				s = mustOpen(t, o)
				defer func() { must(t, s.Close()) }()
				found := 0
				for i := 1; i <= written; i++ {
					v, err := s.State().GetLocal(fmt.Sprintf("k%d", i))
					must(t, err)
					if v == nil {
						break
					}
					found = i
				}
				if found < promised {
					t.Errorf("%d of %d promised commits survive", found, promised)
				}
				for i := found + 1; i <= written; i++ {
					if v, _ := s.State().GetLocal(fmt.Sprintf("k%d", i)); v != nil {
						t.Errorf("commit %d survives although %d does not", i, found+1)
					}
				}
			})
		}
	}
}

func TestSimulatedCrashLosesExactlyWhatWasNotWaitedFor(t *testing.T) {
	t.Parallel()
	mem := vfs.NewCrashableMem()
	o := testOptions(mem)
	o.Simulated, o.MemTableBytes = true, 0
	s := mustOpen(t, o)
	b := s.NewBatch()
	must(t, s.State().PutLocal(b, "waited", []byte("x")))
	p, err := s.CommitSync(b)
	must(t, err)
	must(t, p.Wait())
	b.Reset()
	must(t, s.State().PutLocal(b, "not waited", make([]byte, 3<<20)))
	if _, err = s.CommitSync(b); err != nil {
		t.Fatal(err)
	}
	if s.local(t, "not waited") == "" {
		t.Error("commit is not visible")
	}
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	b.Close()
	must(t, s.Close())
	o.FS = clone
	s = mustOpen(t, o)
	if s.local(t, "waited") != "x" || s.local(t, "not waited") != "" {
		t.Error("the crash lost too much or too little")
	}
	must(t, s.Close())
}

func TestReadOnlyBeginsBeforeTheReserveAndEndsWithRoom(t *testing.T) {
	t.Parallel()
	mem := vfs.NewMem()
	o := testOptions(mem)
	o.ReserveBytes = 1000
	s := mustOpen(t, o)
	defer func() { must(t, s.Close()) }()
	if total, _, err := s.CheckDisk(); err != nil || total != 0 || s.ReadOnly() {
		t.Fatalf("file system without usage: total %d, read-only %v, %v", total, s.ReadOnly(), err)
	}
	for _, step := range []struct {
		free uint64
		want bool
	}{{5000, false}, {1260, false}, {1249, true}, {1260, true}, {1500, true}, {1501, false}} {
		mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: step.free, TotalBytes: 9000})
		if _, _, err := s.CheckDisk(); err != nil || s.ReadOnly() != step.want {
			t.Errorf("%d free: read-only %v, %v", step.free, s.ReadOnly(), err)
		}
	}
}

func TestFailedFsyncIsFatal(t *testing.T) {
	t.Parallel()
	mem := vfs.NewMem()
	var broken atomic.Bool
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData) {
			return errors.New("disk says no")
		}
		return nil
	})
	o := testOptions(errorfs.Wrap(mem, inject))
	var said string
	o.Simulated = true // the sync then runs on this goroutine's account
	o.Fatal = func(msg string) { said = msg }
	s := mustOpen(t, o)
	b := s.NewBatch()
	must(t, s.State().PutLocal(b, "k", []byte("v")))
	p, err := s.CommitSync(b)
	must(t, err)
	broken.Store(true)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("Wait returned")
			}
		}()
		_ = p.Wait()
	}()
	if said == "" {
		t.Error("Fatal was not called")
	}
}
