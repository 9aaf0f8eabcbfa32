package store

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// modes makes every snapshot test run both ways.
func modes() map[string]int64 { return map[string]int64{"batch": 1 << 30, "tables": -1} }

// fill writes a replica of range 2 with keys in its span, in the spaces by key,
// and around all of them.
func fill(t tester, s *Store, d *metapb.RangeDescriptor, keys int, value string) {
	t.Helper()
	s.with(t, true, func(b *Batch) {
		p := b.Pebble()
		for i := range keys {
			for v := range uint64(3) {
				must(t, p.Set(versionKey(fmt.Sprintf("%s-%06d", d.GetStart(), i), v+1),
					[]byte(value), nil))
			}
		}
		for _, k := range []string{string(d.GetStart()), string(d.GetEnd())} {
			for _, prefix := range []string{"\x03", "\x04", ""} {
				must(t, p.Set(versionKey(prefix+k, 7), []byte(value), nil))
			}
		}
		must(t, s.State().PutDescriptor(b, ids.RangeID(d.GetRangeId()), 1, d))
		must(t, s.State().PutApplied(b, ids.RangeID(d.GetRangeId()),
			&metapb.AppliedState{Index: 50, Term: 4, Fingerprint: uint64(keys)}))
		must(t, s.Log().InitialGroup(b, ids.RangeID(d.GetRangeId()), 50, 4))
	})
}

// transfer receives a replica of range r of one store in another.
func transfer(t tester, from, to *Store, r ids.RangeID) *IncomingSnapshot {
	t.Helper()
	o, err := from.NewSnapshot(r)
	must(t, err)
	defer o.Close()
	in, err := to.ReceiveSnapshot(&metapb.SnapshotHeader{RangeId: uint64(r),
		Descriptor_: o.State().Descriptor, Applied: o.State().Applied})
	must(t, err)
	for {
		chunk, err := o.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		must(t, in.Add(chunk))
		clear(chunk) // the receiver has copied it
	}
	must(t, in.Finish())
	return in
}

// replicaContent is what a snapshot of a replica carries, as text.
func replicaContent(t tester, s *Store, r ids.RangeID) string {
	t.Helper()
	o, err := s.NewSnapshot(r)
	if errors.Is(err, ErrNoReplica) {
		return "none"
	}
	must(t, err)
	defer o.Close()
	var out strings.Builder
	fmt.Fprintf(&out, "%v %v %v\n", o.State().Descriptor, o.State().Replica, o.State().Applied)
	for {
		chunk, err := o.Next()
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		must(t, err)
		out.Write(chunk)
	}
}

// oldReplica makes a store with an old and wider replica of range 2, with a log,
// between neighbours.
func oldReplica(t tester, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	must(t, err)
	fill(t, s, descriptor(1, "\x20a", "\x20b"), 3, "left neighbour")
	fill(t, s, descriptor(9, "\x20f", "\x20g"), 3, "right neighbour")
	fill(t, s, descriptor(2, "\x20c", "\x20e"), 20, "old")
	s.with(t, true, func(b *Batch) {
		must(t, s.State().PutApplied(b, 2, &metapb.AppliedState{Index: 8, Term: 2}))
		g, err := s.Log().Group(9)
		must(t, err)
		must(t, g.Append(b, entries(51, 90, 5)))
		must(t, g.SetHardState(b, hardStateProto(5, 0, 60)))
	})
	s.with(t, true, func(b *Batch) {
		// fill left a log that begins at 50; this one begins at 1, so it comes by hand.
		for _, e := range entries(1, 12, 3) {
			v := make([]byte, entryValueLen(e))
			putEntryValue(v, e)
			must(t, b.Pebble().Set(logKey(2, e.GetIndex()), v, nil))
		}
		must(t, b.Pebble().Delete(rangeKey(2, rangeTruncated), nil))
		must(t, b.Pebble().Set(rangeKey(2, rangeHardState), hardState{3, 7, 8}.encode(), nil))
		must(t, s.Log().PutTombstone(b, 2, 4))
		// Only the old replica has this one.
		must(t, b.Pebble().Set(versionKey("\x20dd", 3), []byte("old"), nil))
		must(t, b.Pebble().Set(versionKey("\x03\x20dd", 3), []byte("old"), nil))
	})
	return s
}

// wantOldGone makes sure that of the old replica only what fill put just behind
// its end is left, one key in each of the three spaces.
func wantOldGone(t tester, s *Store) {
	t.Helper()
	if n := strings.Count(content(t, s), "\"old\""); n != 3 {
		t.Errorf("%d old keys are left, want 3", n)
	}
}

func installNew(in *IncomingSnapshot) error {
	return in.Install(hardStateProto(4, 0, 50), 6, []byte("\x20c"), []byte("\x20e"))
}

func TestSnapshotReplacesAReplicaAndNothingElse(t *testing.T) {
	t.Parallel()
	for name, threshold := range modes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := openTest(t)
			fill(t, from, descriptor(2, "\x20c", "\x20d"), 4000, strings.Repeat("new", 40))
			must(t, from.Flush())
			o := testOptions(vfs.NewMem())
			o.SnapshotInMemoryBytes = threshold
			s := oldReplica(t, o)
			g := mustGroup(t, s, 2)
			left, right := replicaContent(t, s, 1), replicaContent(t, s, 9)
			in := transfer(t, from, s, 2)
			must(t, installNew(in))
			in.Discard()

			// The first line has the replica id, which differs.
			_, want, _ := strings.Cut(replicaContent(t, from, 2), "\n")
			if _, got, _ := strings.Cut(replicaContent(t, s, 2), "\n"); got != want {
				t.Error("the replica is not what was sent")
			}
			if replicaContent(t, s, 1) != left || replicaContent(t, s, 9) != right {
				t.Error("a neighbour changed")
			}
			wantOldGone(t, s)
			rs, err := s.State().Replica(2)
			must(t, err)
			if rs.Replica != 6 || rs.Applied.GetIndex() != 50 ||
				rs.Applied.GetFingerprint() != 4000 {
				t.Errorf("replica %+v", rs)
			}
			if next, _ := s.Log().Tombstone(2); next != 4 {
				t.Errorf("tombstone %d", next)
			}
			must(t, g.Reset(nil, 50, 4, hardStateProto(4, 0, 50)))
			loaded := mustGroup(t, s, 2)
			hs, _, _ := loaded.InitialState()
			if !proto.Equal(hs, hardStateProto(4, 0, 50)) || loaded.trunc != g.trunc ||
				loaded.last() != 50 || g.last() != 50 || loaded.hs != g.hs {
				t.Errorf("log %+v, loaded %+v", g, loaded)
			}
			if names, _ := s.fs.List("data/snapshots"); len(names) != 0 {
				t.Errorf("left in the snapshot directory: %v", names)
			}
			must(t, s.Close())
			must(t, mustOpen(t, o).Close())
		})
	}
}

// Bug rows 3, 4 and 15: a crash at any step of receiving and installing leaves
// the old replica or the new one, and a store that opens.
func TestCrashDuringInstallLeavesOldOrNew(t *testing.T) {
	t.Parallel()
	for name, threshold := range modes() {
		for _, flush := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/flushed=%v", name, flush), func(t *testing.T) {
				t.Parallel()
				from := openTest(t)
				fill(t, from, descriptor(2, "\x20c", "\x20d"), 300, strings.Repeat("n", 300))
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
				s := oldReplica(t, o)
				if flush {
					must(t, s.Flush())
				}
				before := content(t, s)
				recording.Store(true)
				must(t, installNew(transfer(t, from, s, 2)))
				recording.Store(false)
				after := content(t, s)
				clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{}))
				must(t, s.Close())
				var old, fresh int
				for i, clone := range clones {
					o := testOptions(clone)
					o.Create = false
					s := mustOpen(t, o)
					switch got := content(t, s); got {
					case before:
						old++
						if fresh > 0 {
							t.Errorf("crash %d of %d brings the old replica back", i, len(clones))
						}
					case after:
						fresh++
					default:
						t.Errorf("crash %d of %d leaves a mixture", i, len(clones))
					}
					if names, _ := clone.List("data/snapshots"); len(names) != 0 {
						t.Errorf("crash %d leaves %v", i, names)
					}
					if _, err := s.State().Replicas(); err != nil {
						t.Error(err)
					}
					must(t, s.Close())
				}
				if fresh == 0 || (old == 0 && threshold < 0) {
					t.Errorf("crashes that leave the old: %d, the new: %d", old, fresh)
				}
			})
		}
	}
}

// An install that is lost with the end of the MANIFEST is noticed.
func TestLostIngestIsRefused(t *testing.T) {
	t.Parallel()
	from := openTest(t)
	fill(t, from, descriptor(2, "\x20c", "\x20d"), 30, strings.Repeat("n", 300))
	mem := vfs.NewCrashableMem()
	o := testOptions(mem)
	o.SnapshotInMemoryBytes = -1
	s := oldReplica(t, o)
	must(t, s.Flush())
	before := readFile(t, mem, newestFile(t, mem, "MANIFEST-", ""))
	must(t, installNew(transfer(t, from, s, 2)))
	must(t, s.Flush())
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	must(t, s.Close())
	dropOldLogs(t, clone)
	must(t, writeFile(clone, newestFile(t, clone, "MANIFEST-", ""), before))
	_, err := Open(testOptions(clone))
	wantError(t, err, ErrRolledBack)
}

func TestInstallFailsCleanlyWhenTheDiskRefuses(t *testing.T) {
	t.Parallel()
	from := openTest(t)
	fill(t, from, descriptor(2, "\x20c", "\x20d"), 300, strings.Repeat("n", 300))
	var broken atomic.Bool
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		table := strings.Contains(op.Path, "engine") && strings.HasSuffix(op.Path, ".sst")
		if broken.Load() && (op.Kind == errorfs.OpLink || op.Kind == errorfs.OpCreate && table) {
			return errors.New("no more files")
		}
		return nil
	})
	o := testOptions(errorfs.Wrap(vfs.NewMem(), inject))
	o.SnapshotInMemoryBytes = -1
	s := oldReplica(t, o)
	before := content(t, s)
	broken.Store(true)
	err := installNew(transfer(t, from, s, 2))
	broken.Store(false)
	if err == nil || content(t, s) != before {
		t.Errorf("a failed install changed the replica: %v", err)
	}
	if names, _ := s.fs.List("data/snapshots"); len(names) != 0 {
		t.Errorf("a failed install left %v", names)
	}
	must(t, installNew(transfer(t, from, s, 2)))
	must(t, s.Close())
	must(t, mustOpen(t, o).Close())
}

// A node may receive a snapshot of the range whose old copy it is sending.
func TestOutgoingSnapshotOutlivesAnIngestOverIt(t *testing.T) {
	t.Parallel()
	from := openTest(t)
	fill(t, from, descriptor(2, "\x20c", "\x20d"), 300, strings.Repeat("n", 300))
	o := testOptions(vfs.NewMem())
	o.SnapshotInMemoryBytes = -1
	s := oldReplica(t, o)
	must(t, s.Flush())
	want := replicaContent(t, s, 2)
	out, err := s.NewSnapshot(2)
	must(t, err)
	must(t, installNew(transfer(t, from, s, 2)))
	must(t, s.Flush())
	must(t, s.Compact())
	var got strings.Builder
	rs := out.State()
	fmt.Fprintf(&got, "%v %v %v\n", rs.Descriptor, rs.Replica, rs.Applied)
	for {
		chunk, err := out.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		got.Write(chunk)
	}
	out.Close()
	if got.String() != want {
		t.Error("the snapshot changed under its reader")
	}
	must(t, s.Close())
}

func TestDamagedOrForeignChunksAreRefused(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	fill(t, s, descriptor(2, "\x20c", "\x20d"), 30, "v")
	out, err := s.NewSnapshot(2)
	must(t, err)
	defer out.Close()
	good, err := out.Next()
	must(t, err)
	h := &metapb.SnapshotHeader{RangeId: 2, Descriptor_: out.State().Descriptor,
		Applied: out.State().Applied}
	receive := func(threshold int64, chunks ...[]byte) (err error) {
		s.o.SnapshotInMemoryBytes = threshold
		in, err := s.ReceiveSnapshot(h)
		must(t, err)
		defer in.Discard()
		for _, c := range chunks {
			if err := in.Add(c); err != nil {
				return err
			}
		}
		return nil
	}
	pack := func(keys ...[]byte) []byte {
		var w chunkWriter
		for _, k := range keys {
			w.add(k, []byte("v"))
		}
		return w.take()
	}
	lied := func() []byte { // a count that is wrong under a right checksum
		var w chunkWriter
		w.add(versionKey("\x20c", 1), nil)
		w.n = 2
		return w.take()
	}()
	rng := rand.New(rand.NewPCG(1, 2))
	for _, threshold := range modes() {
		must(t, receive(threshold, good))
		for range 100 {
			bad := append([]byte(nil), good...)
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
			wantError(t, receive(threshold, bad), ErrBadSnapshot)
			wantError(t, receive(threshold, good[:rng.IntN(len(good))]), ErrBadSnapshot)
		}
		for _, bad := range [][]byte{
			pack(versionKey("\x20b", 1)), pack(versionKey("\x20d", 0)),
			pack(versionKey("\x20d", 1)), pack(versionKey("\x03\x20d", 1)),
			pack(versionKey("\x03\x20b", 1)), pack(rangeKey(2, rangeHardState)),
			pack(nodeKey(nodeIdentity)), pack([]byte("\x20c!")),
			pack(versionKey("\x20cc", 1), versionKey("\x20cb", 1)),
			pack(versionKey("\x20cc", 1), versionKey("\x20cc", 1)),
			pack(versionKey("\x20cc", 1), versionKey("\x03\x20c", 1)), lied,
		} {
			wantError(t, receive(threshold, bad), ErrBadSnapshot)
		}
		wantError(t, receive(threshold, good, good), ErrBadSnapshot) // a chunk twice
	}
	for _, bad := range []*metapb.SnapshotHeader{{}, {RangeId: 2}, {RangeId: 3,
		Descriptor_: h.Descriptor_, Applied: h.Applied}, {RangeId: 2, Descriptor_: h.Descriptor_}} {
		_, err := s.ReceiveSnapshot(bad)
		wantError(t, err, ErrBadSnapshot)
	}
}

func TestRemovedReplicaIsNotInstalledAgain(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	fill(t, s, descriptor(2, "\x20c", "\x20d"), 3, "v")
	s.with(t, true, func(b *Batch) { must(t, s.Log().PutTombstone(b, 2, 7)) })
	before := content(t, s)
	in := transfer(t, s, s, 2)
	wantError(t, installNew(in), ErrTombstone)
	in = transfer(t, s, s, 2)
	err := in.Install(hardStateProto(4, 0, 50), 7, []byte("\x20x"), []byte("\x20z"))
	if err == nil || content(t, s) != before {
		t.Errorf("spans that do not touch: %v", err)
	}
	in = transfer(t, s, s, 2)
	must(t, in.Install(hardStateProto(4, 0, 0), 7, nil, nil))
	wantViolation(t, func() { // an older term
		_ = transfer(t, s, s, 2).Install(hardStateProto(3, 0, 50), 7, nil, nil)
	})
}

func TestSnapshotOfAnEmptyRangeClearsTheOldOne(t *testing.T) {
	t.Parallel()
	from := openTest(t)
	from.with(t, true, func(b *Batch) {
		must(t, from.State().PutDescriptor(b, 2, 1, descriptor(2, "\x20c", "\x20d")))
		must(t, from.State().PutApplied(b, 2, &metapb.AppliedState{Index: 50, Term: 4}))
	})
	s := oldReplica(t, testOptions(vfs.NewMem()))
	must(t, installNew(transfer(t, from, s, 2)))
	wantOldGone(t, s)
	must(t, s.Close())
}

func TestOutgoingSnapshotOfNothing(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	_, err := s.NewSnapshot(4)
	wantError(t, err, ErrNoReplica)
	if s.WriteStalled() || s.ReadOnly() {
		t.Error("a fresh store refuses writes")
	}
}
