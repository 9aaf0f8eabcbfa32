package store

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// putReplica stages an initialised replica whose log begins after index 10.
func putReplica(t tester, s *Store, b *Batch, r ids.RangeID) {
	t.Helper()
	start, end := fmt.Sprintf("\x20%06d", r), fmt.Sprintf("\x20%06d", r+1)
	must(t, s.State().PutDescriptor(b, r, ids.ReplicaID(r%5+1), descriptor(r, start, end)))
	must(t, s.State().PutApplied(b, r, &metapb.AppliedState{
		Index: 10, Term: 5, Conf: &metapb.ConfState{Voters: []uint64{1, 2, uint64(r)}},
	}))
	must(t, s.Log().InitialGroup(b, r, 10, 5))
}

// variedStore has ranges in every condition in which a start can meet them.
func variedStore(t testing.TB, s *Store) {
	t.Helper()
	const count = 40
	s.with(t, false, func(b *Batch) {
		for r := ids.RangeID(1); r <= count; r++ {
			if r%4 != 1 { // else nothing, or raft state of a replica without data
				putReplica(t, s, b, r)
			}
			if r%3 == 0 {
				must(t, s.Log().PutTombstone(b, r, ids.ReplicaID(r)))
			}
		}
	})
	for r := ids.RangeID(1); r <= count; r++ {
		if r%8 == 1 {
			continue
		}
		g := mustGroup(t, s, r)
		s.with(t, false, func(b *Batch) {
			last, _ := g.LastIndex()
			if last == 0 { // voted, and waits for its snapshot
				must(t, g.SetHardState(b, hardStateProto(3, 2, 0)))
				return
			}
			must(t, g.Append(b, entries(last+1, last+uint64(r), 6)))
			must(t, g.Append(b, entries(last+uint64(r)+1, last+uint64(r)+3, 7)))
			must(t, g.SetHardState(b, hardStateProto(8, 1, last+uint64(r))))
		})
		if r%5 == 0 && r%4 != 1 {
			s.with(t, false, func(b *Batch) { must(t, g.Truncate(b, ids.Index(8+r))) })
		}
	}
}

func TestPreloadTellsWhatReadingEachRangeAloneTells(t *testing.T) {
	t.Parallel()
	for _, flushed := range []bool{false, true} {
		s := openTest(t)
		variedStore(t, s)
		if flushed {
			must(t, s.Flush())
		}
		replicas, err := s.State().Replicas()
		must(t, err)
		logs := make(map[ids.RangeID]*GroupLog)
		for _, rs := range replicas {
			r := ids.RangeID(rs.Descriptor.GetRangeId())
			logs[r] = mustGroup(t, s, r)
		}
		seen, last := 0, ids.RangeID(0)
		must(t, s.Preload(func(st Stored) error {
			if st.Range <= last {
				t.Errorf("%v after %v", st.Range, last)
			}
			last = st.Range
			if next, err := s.Log().Tombstone(st.Range); err != nil || next != st.Tombstone {
				t.Errorf("%v: tombstone %d, want %d, %v", st.Range, st.Tombstone, next, err)
			}
			if st.Replica == nil {
				if logs[st.Range] != nil {
					t.Errorf("%v: its replica is missing", st.Range)
				}
				return nil
			}
			want := replicas[seen]
			seen++
			if !proto.Equal(want.Descriptor, st.Replica.Descriptor) ||
				!proto.Equal(want.Applied, st.Replica.Applied) ||
				want.Replica != st.Replica.Replica {
				t.Errorf("%v: %v, want %v", st.Range, st.Replica, want)
			}
			return nil
		}))
		if seen != len(replicas) {
			t.Errorf("%d replicas, want %d", seen, len(replicas))
		}
		before := s.Metrics()
		for _, rs := range replicas {
			r := ids.RangeID(rs.Descriptor.GetRangeId())
			got, want := mustGroup(t, s, r), logs[r]
			if !proto.Equal(got.conf, want.conf) {
				t.Errorf("%v: configuration %v, want %v", r, got.conf, want.conf)
			}
			got.conf, want.conf = nil, nil
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%v: log %+v, want %+v", r, got, want)
			}
		}
		after := s.Metrics()
		if n := blockReads(after) - blockReads(before); n != 0 {
			t.Errorf("taking %d preloaded logs read %d blocks", len(replicas), n)
		}
		if s.preloaded.logs != nil {
			t.Errorf("%d logs are kept for nobody", len(s.preloaded.logs))
		}
	}
}

// blockReads is how many blocks of tables were looked at, in memory or on disk.
func blockReads(m Metrics) int64 { return m.BlockCacheHits + m.BlockCacheMisses }

func TestPreloadReadsTheStoreOnceHoweverManyReplicasThereAre(t *testing.T) {
	t.Parallel()
	const count = 2000
	fs := vfs.NewMem()
	s := mustOpen(t, testOptions(fs))
	s.with(t, false, func(b *Batch) {
		for r := ids.RangeID(1); r <= count; r++ {
			putReplica(t, s, b, r)
		}
	})
	must(t, s.Flush())
	must(t, s.Compact())
	must(t, s.Close())
	s = mustOpen(t, testOptions(fs))
	defer func() { must(t, s.Close()) }()
	before, seen := blockReads(s.Metrics()), 0
	must(t, s.Preload(func(st Stored) error {
		if st.Replica != nil {
			seen++
		}
		return nil
	}))
	reads := blockReads(s.Metrics()) - before
	// Each block once, and some tens for opening tables. The ranges take about
	// 200 bytes each before compression.
	if limit := int64(count*200/blockBytes + 40); seen != count || reads > limit {
		t.Errorf("loading %d of %d replicas looked at %d blocks, at most %d are there",
			seen, count, reads, limit)
	}
}

func TestWhatChangesAPreloadedLogHasItReadAnew(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	s.with(t, false, func(b *Batch) { putReplica(t, s, b, 3) })
	nothing := func(Stored) error { return nil }
	must(t, s.Preload(nothing))
	s.with(t, false, func(b *Batch) {
		must(t, s.State().DestroyReplica(b, 3, []byte("\x20a"), []byte("\x20b")))
	})
	if last, _ := mustGroup(t, s, 3).LastIndex(); last != 0 {
		t.Errorf("a destroyed replica's log ends at %d", last)
	}
	must(t, s.Preload(nothing))
	s.with(t, false, func(b *Batch) { putReplica(t, s, b, 3) })
	if last, _ := mustGroup(t, s, 3).LastIndex(); last != 10 {
		t.Errorf("a new replica's log ends at %d, want 10", last)
	}
}

// One damaged log takes its own group, and nobody else.
func TestDamagedLogStopsItsGroupAndNotTheStart(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	s.with(t, false, func(b *Batch) {
		for r := ids.RangeID(1); r <= 3; r++ {
			putReplica(t, s, b, r)
		}
		must(t, b.b.Set(logKey(2, 11), []byte("\xffno entry"), nil))
		must(t, b.b.Set(logKey(2, 12), []byte("\xffno entry"), nil))
	})
	var found []ids.RangeID
	must(t, s.Preload(func(st Stored) error {
		if st.Replica != nil {
			found = append(found, st.Range)
		}
		return nil
	}))
	if fmt.Sprint(found) != "[r1 r2 r3]" {
		t.Errorf("found replicas of %v", found)
	}
	for r := ids.RangeID(1); r <= 3; r++ {
		if _, err := s.Log().Group(r); (err != nil) != (r == 2) {
			t.Errorf("log of %v: %v", r, err)
		}
	}
}

func TestPreloadStopsWhereItIsTold(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	s.with(t, false, func(b *Batch) {
		putReplica(t, s, b, 1)
		putReplica(t, s, b, 2)
	})
	enough, calls := errors.New("enough"), 0
	err := s.Preload(func(Stored) error { calls++; return enough })
	wantError(t, err, enough)
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
}
