package store

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// raft.MemoryStorage is the slow, obviously right twin of a GroupLog.
type twin struct {
	t   *rapid.T
	s   *Store
	g   *GroupLog
	mem *raft.MemoryStorage
	hs  *raftpb.HardState
}

func (w *twin) commit(f func(b *Batch)) { w.s.with(w.t, false, f) }

func (w *twin) appendAt(first, n, term uint64, size int) {
	var es []*raftpb.Entry
	for i := first; i < first+n; i++ {
		e := entry(i, term, string(make([]byte, size)))
		if i%7 == 3 {
			e.Type = raftpb.EntryConfChangeV2.Enum()
		}
		es = append(es, e)
	}
	if w.hs.GetTerm() < term {
		w.hs = hardStateProto(term, 0, w.hs.GetCommit())
	}
	w.commit(func(b *Batch) {
		must(w.t, w.g.Append(b, es))
		must(w.t, w.g.SetHardState(b, w.hs))
	})
	must(w.t, w.mem.Append(slices.Clone(es)))
}

func (w *twin) compare() {
	first, _ := w.mem.FirstIndex()
	last, _ := w.mem.LastIndex()
	gf, _ := w.g.FirstIndex()
	gl, _ := w.g.LastIndex()
	if gf != first || gl != last {
		w.t.Fatalf("log [%d, %d], want [%d, %d]", gf, gl, first, last)
	}
	for i := max(first, 3) - 3; i <= last+2; i++ {
		want, wantErr := w.mem.Term(i)
		got, err := w.g.Term(i)
		if got != want || !errors.Is(err, wantErr) {
			w.t.Fatalf("term of %d: %d, %v; want %d, %v", i, got, err, want, wantErr)
		}
	}
	lo := rapid.Uint64Range(max(first, 2)-2, last+1).Draw(w.t, "lo")
	hi := rapid.Uint64Range(lo, last+1).Draw(w.t, "hi")
	limit := rapid.SampledFrom([]uint64{0, 50, 400, 3000, math.MaxUint64}).Draw(w.t, "limit")
	got, err := w.g.Entries(lo, hi, limit)
	if lo == hi && lo >= first {
		if len(got) > 0 || err != nil {
			w.t.Fatalf("no entries wanted, got %d, %v", len(got), err)
		}
		return
	}
	want, wantErr := w.mem.Entries(lo, hi, limit)
	if !errors.Is(err, wantErr) || len(got) != len(want) {
		w.t.Fatalf("[%d, %d) within %d: %d entries, %v; want %d, %v", lo, hi, limit, len(got), err,
			len(want), wantErr)
	}
	for i := range got {
		if !sameEntry(got[i], want[i]) {
			w.t.Fatalf("entry %v, want %v", got[i], want[i])
		}
	}
}

func sameEntry(a, b *raftpb.Entry) bool {
	return a.GetIndex() == b.GetIndex() && a.GetTerm() == b.GetTerm() &&
		a.GetType() == b.GetType() && string(a.GetData()) == string(b.GetData())
}

func (w *twin) grow(t *rapid.T) {
	last, _ := w.mem.LastIndex()
	lastTerm, _ := w.mem.Term(last)
	w.appendAt(last+1, rapid.Uint64Range(1, 20).Draw(t, "n"),
		max(lastTerm, 1)+rapid.Uint64Range(0, 1).Draw(t, "term"),
		rapid.IntRange(0, 200).Draw(t, "size"))
}

func (w *twin) conflict(t *rapid.T) {
	last, _ := w.mem.LastIndex()
	low := max(w.hs.GetCommit(), w.g.trunc.index) + 1
	if low > last {
		t.Skip("nothing uncommitted")
	}
	w.appendAt(rapid.Uint64Range(low, last).Draw(t, "at"),
		rapid.Uint64Range(1, 5).Draw(t, "n"), w.hs.GetTerm()+1, 10)
}

func (w *twin) raiseCommit(t *rapid.T) {
	last, _ := w.mem.LastIndex()
	c := rapid.Uint64Range(w.hs.GetCommit(), last).Draw(t, "commit")
	w.hs = hardStateProto(w.hs.GetTerm(), 0, c)
	w.commit(func(b *Batch) { must(t, w.g.SetHardState(b, w.hs)) })
}

func (w *twin) truncate(t *rapid.T) {
	to := rapid.Uint64Range(0, w.hs.GetCommit()).Draw(t, "to")
	w.commit(func(b *Batch) { must(t, w.g.Truncate(b, ids.Index(to))) })
	if err := w.mem.Compact(to); err != nil && !errors.Is(err, raft.ErrCompacted) {
		t.Fatal(err)
	}
}

func (w *twin) reload(t *rapid.T) {
	bytes := w.g.Bytes()
	w.g.Close()
	w.g = mustGroup(t, w.s, w.g.id)
	if w.g.Bytes() != bytes {
		t.Fatalf("%d bytes after reload, %d before", w.g.Bytes(), bytes)
	}
	hs, _, _ := w.g.InitialState()
	if len(w.g.sizes) > 0 && !proto.Equal(hs, w.hs) {
		t.Fatalf("hard state %v after reload, %v before", hs, w.hs)
	}
}

func (w *twin) reset(t *rapid.T) {
	last, _ := w.mem.LastIndex()
	if rapid.IntRange(0, 9).Draw(t, "rarely") > 0 {
		t.Skip("this time not")
	}
	at, term := last+5, w.hs.GetTerm()
	w.hs = hardStateProto(term, 0, at)
	w.commit(func(b *Batch) {
		must(t, w.g.Reset(b, ids.Index(at), ids.Term(term), w.hs))
	})
	must(t, w.mem.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(at), Term: new(term), ConfState: &raftpb.ConfState{}}}))
}

// With a cache that holds everything, little or nothing, loaded anew or not,
// the log is the same.
func TestLogEqualsItsTwin(t *testing.T) {
	t.Parallel()
	stores := map[int64]*Store{}
	for _, budget := range []int64{1, 3000, 1 << 20} {
		o := testOptions(vfs.NewMem())
		o.EntryCacheBytes = budget
		stores[budget] = mustOpen(t, o)
		defer func() { must(t, stores[budget].Close()) }()
	}
	next := ids.RangeID(0)
	rapid.Check(t, func(t *rapid.T) {
		budget := rapid.SampledFrom([]int64{1, 3000, 1 << 20}).Draw(t, "budget")
		next++
		w := &twin{t: t, s: stores[budget], mem: raft.NewMemoryStorage()}
		w.hs = hardStateProto(1, 0, 0)
		w.g = mustGroup(t, w.s, next)
		other := mustGroup(t, w.s, next+1<<40) // competes for the cache
		t.Repeat(map[string]func(*rapid.T){
			"":         func(*rapid.T) { w.compare() },
			"append":   w.grow,
			"conflict": w.conflict,
			"commit":   w.raiseCommit,
			"truncate": w.truncate,
			"reload":   w.reload,
			"reset":    w.reset,
			"another group": func(t *rapid.T) {
				last, _ := other.LastIndex()
				w.commit(func(b *Batch) { must(t, other.Append(b, entries(last+1, last+5, 1))) })
			},
		})
		w.g.Close()
		other.Close()
	})
	for budget, s := range stores {
		if m := s.Metrics(); m.EntryCacheBytes != 0 {
			t.Errorf("budget %d: %d bytes in the cache of closed groups", budget, m.EntryCacheBytes)
		}
	}
}

func TestEncodedSizeIsWhatRaftCounts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		e := entry(rapid.Uint64().Draw(t, "index"), rapid.Uint64().Draw(t, "term"), "")
		if rapid.Bool().Draw(t, "data") {
			e.Data = rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "bytes")
		}
		if rapid.Bool().Draw(t, "no type") {
			e.Type = nil
		}
		if got, want := encodedSize(e), uint64(proto.Size(e)); got != want {
			t.Fatalf("%d, want %d", got, want)
		}
	})
}

// Raft issue class 13: a log that begins with a hole acknowledges entries that
// it never had.
func TestAppendToAnEmptyLogMustBeContiguousToo(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	b := s.NewBatch()
	defer b.Close()
	for _, at := range []uint64{2, 8} {
		wantViolation(t, func() { _ = mustGroup(t, s, 1).Append(b, entries(at, at, 1)) })
	}
	wantViolation(t, func() {
		_ = mustGroup(t, s, 1).Append(b, append(entries(1, 2, 1), entries(4, 4, 1)...))
	})
	wantViolation(t, func() {
		_ = mustGroup(t, s, 1).Append(b, append(entries(1, 2, 3), entries(3, 3, 2)...))
	})
}

func TestConflictingTailIsGoneAfterRestart(t *testing.T) {
	t.Parallel()
	mem := vfs.NewCrashableMem()
	s := mustOpen(t, testOptions(mem))
	g := mustGroup(t, s, 7)
	s.with(t, true, func(b *Batch) {
		must(t, g.Append(b, entries(1, 20, 1)))
		must(t, g.SetHardState(b, hardStateProto(1, 2, 4)))
	})
	s.with(t, true, func(b *Batch) {
		must(t, g.Append(b, entries(6, 8, 3)))
		must(t, g.SetHardState(b, hardStateProto(3, 0, 4)))
	})
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	must(t, s.Close())
	s = mustOpen(t, testOptions(clone))
	defer func() { must(t, s.Close()) }()
	g = mustGroup(t, s, 7)
	if last, _ := g.LastIndex(); last != 8 {
		t.Errorf("log ends at %d", last)
	}
	es, err := g.Entries(1, 9, math.MaxUint64)
	must(t, err)
	want := append(entries(1, 5, 1), entries(6, 8, 3)...)
	if !slices.EqualFunc(es, want, sameEntry) {
		t.Errorf("entries %v", es)
	}
	wantViolation(t, func() { // committed entries are never overwritten
		b := s.NewBatch()
		defer b.Close()
		_ = g.Append(b, entries(4, 4, 5))
	})
}

func TestHardStateNeverGoesBack(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	b := s.NewBatch()
	defer b.Close()
	g := mustGroup(t, s, 1)
	must(t, g.Append(b, entries(1, 5, 2)))
	must(t, g.SetHardState(b, hardStateProto(2, 3, 4)))
	for _, bad := range []*raftpb.HardState{hardStateProto(1, 3, 4), hardStateProto(2, 4, 4),
		hardStateProto(2, 0, 4), hardStateProto(2, 3, 3), hardStateProto(3, 3, 6)} {
		wantViolation(t, func() { _ = g.SetHardState(b, bad) })
	}
	must(t, g.SetHardState(b, hardStateProto(3, 4, 5)))
}

// Bug row 24: applied index and data are one batch; and a commit index that was
// not written is raised to what was applied.
func TestCommitIndexIsRaisedToTheAppliedIndexAtLoad(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	s.with(t, true, func(b *Batch) {
		g := mustGroup(t, s, 3)
		must(t, g.Append(b, entries(1, 9, 2)))
		must(t, g.SetHardState(b, hardStateProto(2, 1, 1)))
		must(t, s.State().PutDescriptor(b, 3, 4, descriptor(3, "\x20a", "\x20b")))
		must(t, s.State().PutApplied(b, 3, &metapb.AppliedState{Index: 7, Term: 2,
			Conf: &metapb.ConfState{Voters: []uint64{4, 5}, Learners: []uint64{6}}}))
	})
	hs, cs, err := mustGroup(t, s, 3).InitialState()
	must(t, err)
	if !proto.Equal(hs, hardStateProto(2, 1, 7)) {
		t.Errorf("hard state %v", hs)
	}
	if fmt.Sprint(cs.GetVoters(), cs.GetLearners()) != "[4 5] [6]" {
		t.Errorf("configuration %v", cs)
	}
	s.with(t, true, func(b *Batch) { // what row 15 died of: applied beyond the log
		must(t, s.State().PutApplied(b, 3, &metapb.AppliedState{Index: 11, Term: 2}))
	})
	if _, err := s.Log().Group(3); err == nil {
		t.Error("a log that ends below the applied index was loaded")
	}
}

// Bug rows 20 and 21.
func TestInitialGroupKeepsHardStateOfANewerReplica(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ old, want *raftpb.HardState }{
		{nil, hardStateProto(5, 0, 10)},
		{hardStateProto(3, 2, 0), hardStateProto(5, 0, 10)},
		{hardStateProto(5, 2, 0), hardStateProto(5, 2, 10)},
		{hardStateProto(8, 3, 0), hardStateProto(8, 3, 10)},
	} {
		s := openTest(t)
		if c.old != nil {
			g := mustGroup(t, s, 2)
			s.with(t, true, func(b *Batch) { must(t, g.SetHardState(b, c.old)) })
		}
		s.with(t, true, func(b *Batch) { must(t, s.Log().InitialGroup(b, 2, 10, 5)) })
		g := mustGroup(t, s, 2)
		hs, _, _ := g.InitialState()
		first, _ := g.FirstIndex()
		term, err := g.Term(10)
		if !proto.Equal(hs, c.want) || first != 11 || term != 5 || err != nil {
			t.Errorf("over %v: hard state %v, first %d, term %d, %v", c.old, hs, first, term, err)
		}
	}
}

func TestInitialGroupNeverReplacesALogThatIsAhead(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	s.with(t, true, func(b *Batch) { must(t, s.Log().InitialGroup(b, 2, 10, 5)) })
	s.with(t, true, func(b *Batch) { must(t, s.Log().InitialGroup(b, 2, 10, 5)) }) // idempotent
	g := mustGroup(t, s, 2)
	s.with(t, true, func(b *Batch) { must(t, g.Append(b, entries(11, 12, 5))) })
	b := s.NewBatch()
	defer b.Close()
	wantError(t, s.Log().InitialGroup(b, 2, 10, 5), ErrInitialized)
	s.with(t, true, func(b *Batch) { // a snapshot came first
		must(t, mustGroup(t, s, 2).Reset(b, 30, 6, hardStateProto(6, 0, 30)))
	})
	wantError(t, s.Log().InitialGroup(b, 2, 10, 5), ErrInitialized)
	if !b.Empty() {
		t.Error("something was staged")
	}
}

func TestLongLogIsTruncatedByOneTombstone(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	g := mustGroup(t, s, 2)
	const n = rangeDeleteEntries + 50
	s.with(t, false, func(b *Batch) {
		must(t, g.Append(b, entries(1, n, 1)))
		must(t, g.SetHardState(b, hardStateProto(1, 0, n)))
	})
	b := s.NewBatch()
	must(t, g.Truncate(b, n-20))
	if count := b.Pebble().Count(); count != 2 {
		t.Errorf("%d records for one truncation", count)
	}
	must(t, s.CommitNoSync(b))
	b.Close()
	b = s.NewBatch()
	must(t, g.Truncate(b, n-10))
	if count := b.Pebble().Count(); count != 11 {
		t.Errorf("%d records for ten deletions", count)
	}
	must(t, s.CommitNoSync(b))
	b.Close()
	g = mustGroup(t, s, 2)
	if first, _ := g.FirstIndex(); first != n-9 || len(g.sizes) != 10 {
		t.Errorf("log begins at %d with %d entries", first, len(g.sizes))
	}
}

func TestResetRefusesAnOlderSnapshotAndCanLeaveTheDiskAlone(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	g := mustGroup(t, s, 2)
	s.with(t, true, func(b *Batch) { must(t, g.Append(b, entries(1, 9, 1))) })
	before := content(t, s)
	must(t, g.Reset(nil, 20, 2, hardStateProto(3, 1, 20)))
	if content(t, s) != before {
		t.Error("a reset without batch wrote")
	}
	if err := g.Reset(nil, 19, 2, nil); !errors.Is(err, raft.ErrSnapOutOfDate) {
		t.Errorf("older reset: %v", err)
	}
	if _, err := g.Snapshot(); !errors.Is(err, raft.ErrSnapshotTemporarilyUnavailable) {
		t.Errorf("snapshot without source: %v", err)
	}
}

func TestWholeRingsAreEvictedLeastRecentlyUsedFirst(t *testing.T) {
	t.Parallel()
	var c entryCache
	c.init(4 * (entryOverhead + 100))
	rings := make([]ring, 3)
	data := string(make([]byte, 100))
	for i := range rings {
		c.add(&rings[i], []*raftpb.Entry{entry(1, 1, data)})
	}
	limit := sizeLimit{left: math.MaxUint64}
	c.read(&rings[0], 1, 2, &limit)
	c.add(&rings[2], []*raftpb.Entry{entry(2, 1, data), entry(3, 1, data)})
	got := fmt.Sprint(rings[0].n, rings[1].n, rings[2].n, c.evictions, c.bytes <= c.budget)
	if got != "1 0 3 1 true" {
		t.Errorf("rings and evictions: %s", got)
	}
}
