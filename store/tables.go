package store

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// tableBytes is the size at which a received snapshot goes on in a new table.
const tableBytes = 16 << 20

// tables writes sstables into the snapshot directory, one after the other.
type tables struct {
	s     *Store
	r     ids.RangeID
	paths []string // of all tables, the open one included
	w     *sstable.Writer
	bytes int
}

// begin opens a new table; finish must have ended the last one.
func (t *tables) begin() error {
	name := fmt.Sprintf("range-%d-%d.sst", t.r, t.s.snapshotID.Add(1))
	path := t.s.path(snapshotDir, name)
	f, err := t.s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	t.paths = append(t.paths, path)
	t.w = sstable.NewWriter(objstorageprovider.NewFileWritable(f),
		t.s.options.MakeWriterOptions(0, t.s.db.TableFormat()))
	t.bytes = 0
	return nil
}

func (t *tables) set(key, value []byte) error {
	t.bytes += len(key) + len(value)
	return t.w.Set(key, value)
}

// finish completes and syncs the open table, if there is one.
func (t *tables) finish() error {
	if t.w == nil {
		return nil
	}
	w := t.w
	t.w = nil
	return w.Close()
}

// clearing writes a table of its own that clears a span, if something is in it.
func (t *tables) clearing(sp span) error {
	found, err := t.s.hasKeys(sp)
	if err != nil || !found {
		return err
	}
	if err := t.begin(); err != nil {
		return err
	}
	return errors.Join(t.w.DeleteRange(sp.lo, sp.hi), t.finish())
}

// remove deletes all tables. Whatever cannot be deleted now goes at Open.
func (t *tables) remove() {
	_ = t.finish()
	for _, p := range t.paths {
		_ = t.s.fs.Remove(p)
	}
	t.paths = nil
}
