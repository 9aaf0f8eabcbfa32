package store

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Names in the store's directory.
const (
	engineDir   = "engine"
	snapshotDir = "snapshots"
	lockFile    = "LOCK"
	// creatingFile stands while a store is being made. Whatever is found beside
	// it was never promised to anyone, so a creation that a crash cut short is
	// begun anew instead of being taken for a store that has lost something.
	creatingFile = "CREATING"
)

// Open opens or creates a store. Errors name the directory and the remedy:
// ErrNoStore, ErrLocked (another process), ErrRolledBack, ErrUnreadable. The
// store's life is raised and durable when Open returns.
func Open(o Options) (*Store, error) {
	s := &Store{o: o.withDefaults(), fs: o.FS}
	if s.fs == nil {
		s.fs, s.fsCloser = vfs.WithDiskHealthChecks(vfs.Default, diskSlowAfter, nil, s.onDiskSlow)
	}
	s.identity.s = s
	s.progress.clock = s.o.Monotonic
	s.cache.init(s.o.EntryCacheBytes)
	if err := s.open(); err != nil {
		// The reason why it did not open is worth more than how closing went.
		_ = s.release()
		return nil, err
	}
	return s, nil
}

func (s *Store) open() error {
	if err := s.lockDirectory(); err != nil {
		return err
	}
	found, err := s.examine()
	if err != nil {
		return err
	}
	switch {
	case found.store && found.creating, !found.store && !found.records:
		if f := found.foreign; f != "" && s.o.Create && !found.creating {
			return openError(s.o.Dir, ErrNoStore, fmt.Sprintf("the directory holds other things, "+
				"such as %q", f), "give a new or an empty directory")
		}
		if !s.o.Create {
			return s.noStore("nothing, or a creation that was cut short, is there")
		}
		err = s.create()
	case !found.store:
		return openError(s.o.Dir, ErrRolledBack, "there are identity records but no "+engineDir+
			" directory with a database", remedyRebuild)
	case !found.records:
		return openError(s.o.Dir, ErrRolledBack, "there is a database but neither "+
			identityFile(0)+" nor "+identityFile(1), remedyRebuild)
	default:
		err = s.openExisting()
	}
	if err != nil {
		return err
	}
	if err := s.emptySnapshotDir(); err != nil {
		return openError(s.o.Dir, ErrUnreadable, err.Error(), "check the directory's permissions")
	}
	return nil
}

func (s *Store) noStore(detail string) error {
	return openError(s.o.Dir, ErrNoStore, detail, "check the path, or make a new store "+
		"(start the node with --init for a new cluster, --join for an existing one)")
}

func (s *Store) path(elem ...string) string {
	return s.fs.PathJoin(append([]string{s.o.Dir}, elem...)...)
}

// lockDirectory makes sure that the directory is there and that nobody else
// uses it. It comes before anything is looked at.
func (s *Store) lockDirectory() error {
	_, err := s.fs.Stat(s.o.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !s.o.Create:
		return s.noStore("the directory does not exist")
	case errors.Is(err, fs.ErrNotExist):
		err = makeDirs(s.fs, s.o.Dir)
	case err == nil && !s.o.Create:
		// Do not leave a lock file in a directory that is no store's.
		found, err := s.examine()
		if err != nil {
			return err
		}
		if !found.store && !found.records {
			return s.noStore("the directory holds no store")
		}
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return openError(s.o.Dir, ErrUnreadable, "it is not a directory", "give the path of one")
	}
	if err != nil {
		return openError(s.o.Dir, ErrUnreadable, err.Error(), "check the directory's permissions")
	}
	s.lock, err = s.fs.Lock(s.path(lockFile))
	if err == nil {
		return nil
	}
	// A lock file that cannot be opened is an error with a path; a lock that is
	// held is a bare one.
	var pathErr *fs.PathError
	if errors.Is(err, syscall.ENOTDIR) {
		return openError(s.o.Dir, ErrUnreadable, "it is not a directory", "give the path of one")
	}
	if errors.As(err, &pathErr) {
		return openError(s.o.Dir, ErrUnreadable, err.Error(), "check the directory's permissions")
	}
	return openError(s.o.Dir, ErrLocked, err.Error(),
		"stop the other process, or give this one its own directory")
}

// found is what lies in the directory.
type found struct {
	creating bool
	foreign  string // something that is no store's; empty: there is nothing such
	records  bool
	store    bool // an engine directory with a database, or half of one
}

func (s *Store) examine() (found, error) {
	var f found
	names, err := s.fs.List(s.o.Dir)
	if err == nil && slices.Contains(names, engineDir) {
		var desc *pebble.DBDesc
		if desc, err = pebble.Peek(s.path(engineDir), s.fs); err == nil {
			f.store = desc.Exists
		}
	}
	if err != nil {
		return f, openError(s.o.Dir, ErrUnreadable, err.Error(),
			"check the directory's permissions; if the disk is damaged, "+remedyRebuild)
	}
	f.creating = slices.Contains(names, creatingFile)
	f.records = slices.Contains(names, identityFile(0)) || slices.Contains(names, identityFile(1))
	if f.creating {
		f.store, f.records = true, false
	}
	ours := []string{
		engineDir, snapshotDir, lockFile, creatingFile, identityFile(0), identityFile(1),
	}
	for _, name := range names {
		// The root of a file system has a lost+found.
		if !slices.Contains(ours, name) && name != "lost+found" && !strings.HasPrefix(name, ".") {
			f.foreign = name
			break
		}
	}
	return f, nil
}

// create makes a new store. creatingFile is durable before anything else is
// written and goes last.
func (s *Store) create() error {
	err := s.makeFiles()
	if err == nil {
		return nil
	}
	if errors.Is(err, ErrUnreadable) {
		return err
	}
	return openError(s.o.Dir, ErrUnreadable, "create: "+err.Error(),
		"check permissions and free space")
}

func (s *Store) makeFiles() error {
	if err := writeFile(s.fs, s.path(creatingFile), nil); err != nil {
		return err
	}
	if err := syncDir(s.fs, s.o.Dir); err != nil {
		return err
	}
	for _, name := range []string{engineDir, identityFile(0), identityFile(1)} {
		if err := s.fs.RemoveAll(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := s.openEngine(); err != nil {
		return err
	}
	// The first log of a new database was written before its format was raised:
	// a damaged byte in it goes unnoticed (measured). A key and a flush end it.
	if err := s.db.Set(nodeKey(nodeFiller), nil, pebble.Sync); err != nil {
		return err
	}
	if err := s.db.Flush(); err != nil {
		return err
	}
	if err := s.settle(); err != nil {
		return err
	}
	if err := s.identity.start(IdentityRecord{StoreID: s.nonZeroRandom()}); err != nil {
		return err
	}
	if err := s.fs.Remove(s.path(creatingFile)); err != nil {
		return err
	}
	return syncDir(s.fs, s.o.Dir)
}

// openExisting opens a store and refuses it if it is not what it was.
func (s *Store) openExisting() error {
	outside, err := s.readIdentityFiles()
	if err != nil {
		return err
	}
	if err := s.openEngine(); err != nil {
		return err
	}
	record, err := s.checkIdentity(outside)
	if err != nil {
		return err
	}
	if err := s.loadMarks(); err != nil {
		return err
	}
	if err := s.settle(); err != nil {
		return openError(s.o.Dir, ErrUnreadable, err.Error(), "check the disk")
	}
	if err := s.identity.start(record); err != nil {
		return openError(s.o.Dir, ErrUnreadable, err.Error(), "check the disk and its free space")
	}
	return nil
}

// openEngine opens Pebble.
func (s *Store) openEngine() (err error) {
	dir := s.path(engineDir)
	// Pebble reports most damage as an error, and panics on some. Either way the
	// store does not open, and nothing of it has been used yet.
	defer func() {
		if r := recover(); r != nil {
			err = openError(s.o.Dir, ErrUnreadable, fmt.Sprintf("%s: %v", dir, r), remedyRebuild)
		}
	}()
	s.options = s.pebbleOptions()
	db, err := pebble.Open(dir, s.options)
	if err != nil {
		remedy := "check permissions and free space"
		if pebble.IsCorruptionError(err) {
			remedy = remedyRebuild
		}
		return openError(s.o.Dir, ErrUnreadable, fmt.Sprintf("%s: %v", dir, err), remedy)
	}
	s.db = db
	return nil
}

// settle brings a simulated store's memtable to its full size. Pebble begins
// with a small one and doubles at each rotation; where a rotation falls depends
// on heights drawn at random, and it syncs the log, so that one in the middle of
// a simulation would make a crash's outcome differ from run to run.
func (s *Store) settle() error {
	if !s.o.Simulated {
		return nil
	}
	// Just below half a memtable: more would become a memtable of its own.
	const slack = 64 << 10
	if s.o.MemTableBytes < 4*slack {
		return nil
	}
	filler := make([]byte, s.o.MemTableBytes/2-slack)
	if err := s.db.Set(nodeKey(nodeFiller), filler, pebble.NoSync); err != nil {
		return err
	}
	if err := s.db.Flush(); err != nil {
		return err
	}
	return s.db.Set(nodeKey(nodeFiller), nil, pebble.NoSync)
}

// emptySnapshotDir removes what received snapshots left behind.
func (s *Store) emptySnapshotDir() error {
	dir := s.path(snapshotDir)
	if err := s.fs.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return makeDirs(s.fs, dir)
}

func (s *Store) nonZeroRandom() uint64 {
	for {
		if v := s.o.Random(); v != 0 {
			return v
		}
	}
}
