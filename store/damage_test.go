package store

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Bug rows 36 and 38: damage is refused, never taken for a smaller store.

const damageKeys = 400

// filledStore returns the disk of a store that was cut off after damageKeys
// synced commits, flushes among them, and a move of the counter.
func filledStore(t *testing.T, flushEvery int) *vfs.MemFS {
	t.Helper()
	mem := vfs.NewCrashableMem()
	s := mustOpen(t, testOptions(mem))
	for i := range damageKeys {
		s.put(t, true, fmt.Sprintf("k%d", i), strings.Repeat("v", 50))
		if flushEvery > 0 && i%flushEvery == flushEvery-1 {
			must(t, s.Flush())
		}
	}
	must(t, s.Identity().ExtendBound(1<<40))
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	must(t, s.Close())
	return clone
}

// wantWholeOrRefused opens a store, which must have all or be refused, with a
// line that names the directory; a second attempt must be refused as well.
func wantWholeOrRefused(t *testing.T, fs vfs.FS, what string) (refused bool) {
	t.Helper()
	o := testOptions(fs)
	o.Create = true // even so
	var line string
	for range 2 {
		s, err := Open(o)
		if err == nil {
			if line != "" {
				t.Fatalf("%s: refused first (%s), then opened", what, line)
			}
			for i := range damageKeys {
				if s.local(t, fmt.Sprintf("k%d", i)) == "" {
					t.Errorf("%s: opened without key %d", what, i)
					break
				}
			}
			must(t, s.Close())
			return false
		}
		line = err.Error()
		if !strings.Contains(line, `"data"`) || strings.Contains(line, "\n") {
			t.Errorf("%s: error is not one line that names the directory: %q", what, line)
		}
	}
	return true
}

func newestFile(t *testing.T, fs vfs.FS, prefix, suffix string) string {
	t.Helper()
	names, err := fs.List("data/engine")
	must(t, err)
	slices.Sort(names)
	slices.Reverse(names)
	for _, n := range names {
		if strings.HasPrefix(n, prefix) && strings.HasSuffix(n, suffix) {
			return "data/engine/" + n
		}
	}
	t.Fatalf("no %s…%s among %v", prefix, suffix, names)
	return ""
}

func readFile(t *testing.T, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	must(t, err)
	data, err := io.ReadAll(f)
	must(t, err)
	must(t, f.Close())
	return data
}

func flip(t *testing.T, fs vfs.FS, path string, percent int) {
	t.Helper()
	data := readFile(t, fs, path)
	data[len(data)*percent/100] ^= 0x40
	must(t, writeFile(fs, path, data))
}

// dropOldLogs removes logs whose tables are written; Pebble does it in its own
// time.
func dropOldLogs(t *testing.T, fs vfs.FS) {
	t.Helper()
	newest := newestFile(t, fs, "", ".log")
	names, err := fs.List("data/engine")
	must(t, err)
	for _, n := range names {
		if path := "data/engine/" + n; strings.HasSuffix(n, ".log") && path != newest {
			must(t, fs.Remove(path))
		}
	}
}

func TestFlippedLogByteIsRefused(t *testing.T) {
	t.Parallel()
	disk := filledStore(t, 0)
	for percent := 0; percent < 100; percent += 9 {
		fs := disk.CrashClone(vfs.CrashCloneCfg{})
		flip(t, fs, newestFile(t, fs, "", ".log"), percent)
		refused := wantWholeOrRefused(t, fs, fmt.Sprintf("log flipped at %d %%", percent))
		if !refused && percent < 90 {
			t.Errorf("a flip at %d %% of the log went unnoticed", percent)
		}
	}
}

func TestLostLogTailIsRefused(t *testing.T) {
	t.Parallel()
	disk := filledStore(t, 0)
	for _, percent := range []int{0, 30, 60, 90, 98} {
		fs := disk.CrashClone(vfs.CrashCloneCfg{})
		path := newestFile(t, fs, "", ".log")
		data := readFile(t, fs, path)
		must(t, writeFile(fs, path, data[:len(data)*percent/100]))
		if !wantWholeOrRefused(t, fs, fmt.Sprintf("log cut at %d %%", percent)) {
			t.Errorf("a log cut at %d %% went unnoticed", percent)
		}
	}
}

func TestFlippedManifestByteIsRefused(t *testing.T) {
	t.Parallel()
	disk := filledStore(t, damageKeys/20)
	refused := 0
	for percent := 1; percent < 100; percent += 7 {
		fs := disk.CrashClone(vfs.CrashCloneCfg{})
		dropOldLogs(t, fs)
		flip(t, fs, newestFile(t, fs, "MANIFEST-", ""), percent)
		if wantWholeOrRefused(t, fs, fmt.Sprintf("MANIFEST flipped at %d %%", percent)) {
			refused++
		}
	}
	if refused < 13 {
		t.Errorf("only %d of 15 flips were refused", refused)
	}
}

// The newest log survives a damaged MANIFEST, and the counter with it: only the
// marks can tell.
func TestLostTableUnderAnIntactLogIsRefused(t *testing.T) {
	t.Parallel()
	mem := vfs.NewCrashableMem()
	s := mustOpen(t, testOptions(mem))
	before := readFile(t, mem, newestFile(t, mem, "MANIFEST-", ""))
	for i := range damageKeys {
		s.put(t, false, fmt.Sprintf("k%d", i), "v")
	}
	must(t, s.Flush())
	must(t, s.Identity().ExtendBound(5))
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	must(t, s.Close())
	must(t, writeFile(clone, newestFile(t, clone, "MANIFEST-", ""), before))
	dropOldLogs(t, clone)
	_, err := Open(testOptions(clone))
	wantError(t, err, ErrRolledBack)
	if !strings.Contains(err.Error(), "mark") {
		t.Errorf("it was not the marks that told: %v", err)
	}
}

func TestOldCopyOfTheDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	mem := vfs.NewCrashableMem()
	s := mustOpen(t, testOptions(mem))
	old := mem.CrashClone(vfs.CrashCloneCfg{})
	must(t, s.Identity().ExtendBound(7))
	must(t, s.Close())
	for i := range uint64(2) { // today's records beside the old database
		must(t, writeFile(old, "data/"+identityFile(i), readFile(t, mem, "data/"+identityFile(i))))
	}
	_, err := Open(testOptions(old))
	wantError(t, err, ErrRolledBack)
}

// Bug row 28: an emptied directory under an old name is no new store.
func TestRecordsWithoutDatabaseAndDatabaseWithoutRecordsAreRefused(t *testing.T) {
	t.Parallel()
	disk := filledStore(t, 100)
	fs := disk.CrashClone(vfs.CrashCloneCfg{})
	must(t, fs.RemoveAll("data/engine"))
	_, err := Open(testOptions(fs))
	wantError(t, err, ErrRolledBack)

	fs = disk.CrashClone(vfs.CrashCloneCfg{})
	must(t, fs.Remove("data/IDENTITY-A"))
	must(t, fs.Remove("data/IDENTITY-B"))
	_, err = Open(testOptions(fs))
	wantError(t, err, ErrRolledBack)

	fs = disk.CrashClone(vfs.CrashCloneCfg{})
	other := mustOpen(t, func() Options {
		o := testOptions(fs)
		o.Dir, o.Random = "other", counting(5000)
		return o
	}())
	must(t, other.Close())
	must(t, fs.Remove("data/IDENTITY-A"))
	must(t, writeFile(fs, "data/IDENTITY-B", readFile(t, fs, "other/IDENTITY-B")))
	_, err = Open(testOptions(fs))
	wantError(t, err, ErrRolledBack)
}

// One torn identity file is what a crash leaves; the other one will do. Two are
// damage.
func TestOneDamagedIdentityFileIsSurvived(t *testing.T) {
	t.Parallel()
	disk := filledStore(t, 0)
	for i := range uint64(2) {
		fs := disk.CrashClone(vfs.CrashCloneCfg{})
		must(t, writeFile(fs, "data/"+identityFile(i), []byte("flotilla ident")))
		s := mustOpen(t, testOptions(fs))
		if r := s.Identity().Record(); r.Bound != 1<<40 || r.Life != 2 {
			t.Errorf("without %s: %+v", identityFile(i), r)
		}
		must(t, s.Close())
		s = mustOpen(t, testOptions(fs))
		must(t, s.Close())
	}
	for i := range uint64(2) {
		must(t, writeFile(disk, "data/"+identityFile(i), []byte("flotilla ident")))
	}
	_, err := Open(testOptions(disk))
	wantError(t, err, ErrUnreadable)
}

// A damaged block is never served: the node stops.
func TestFlippedTableByteIsFatalOrHarmless(t *testing.T) {
	t.Parallel()
	mem := vfs.NewMem()
	o := testOptions(mem)
	o.Simulated = true // no background reads: whoever reads the block finds it
	s := mustOpen(t, o)
	for i := range damageKeys {
		s.put(t, true, fmt.Sprintf("k%d", i), strings.Repeat("v", 50))
	}
	must(t, s.Flush())
	must(t, s.Close())
	path, stopped := newestFile(t, mem, "", ".sst"), 0
	whole := readFile(t, mem, path)
	for percent := 2; percent < 100; percent += 8 {
		must(t, writeFile(mem, path, whole))
		flip(t, mem, path, percent)
		func() {
			var s *Store
			defer func() {
				if recover() != nil {
					stopped++
				}
				if s != nil {
					must(t, s.Close())
				}
			}()
			var err error
			if s, err = Open(o); err != nil {
				stopped++
				return
			}
			for i := range damageKeys {
				v, err := s.State().GetLocal(fmt.Sprintf("k%d", i))
				if err != nil {
					stopped++
					return
				}
				if string(v) != strings.Repeat("v", 50) {
					t.Errorf("flip at %d %%: key %d reads %q", percent, i, v)
				}
			}
		}()
	}
	if stopped == 0 {
		t.Error("no flip was found")
	}
}
