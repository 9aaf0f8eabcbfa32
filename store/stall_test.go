package store

import (
	"encoding/binary"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A young store has many small memtables, which Pebble leaves unflushed until
// they have half the size of a full one. A store that took their number for a
// stall refused writes from its second megabyte on, for ever: a cluster under
// its first load stopped acknowledging.
func TestAYoungStoreWithManySmallMemtablesTakesWrites(t *testing.T) {
	t.Parallel()
	o := testOptions(vfs.NewMem())
	o.MemTableBytes = 64 << 20
	s := mustOpen(t, o)
	defer func() { must(t, s.Close()) }()
	value := make([]byte, 32<<10)
	for i := range 400 {
		b := s.NewBatch()
		key := append([]byte{prefixData}, binary.BigEndian.AppendUint32(nil, uint32(i))...)
		must(t, b.Pebble().Set(append(key, sentinel), value, nil))
		must(t, s.CommitNoSync(b))
		b.Close()
		if s.WriteStalled() {
			t.Fatalf("refuses writes after %d KiB: %d memtables of %d bytes",
				32*(i+1), s.db.Metrics().MemTable.Count, s.db.Metrics().MemTable.Size)
		}
	}
	if n := s.db.Metrics().MemTable.Count; n < memTableStopWrites {
		t.Fatalf("only %d memtables: the story did not happen", n)
	}
}
