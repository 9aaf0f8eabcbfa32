package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/cockroachkvs"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/internal/invariant"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// tester is what helpers need of a *testing.T, *testing.B or *rapid.T.
type tester interface {
	Helper()
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// counting is a source of "random" numbers that can be told apart.
func counting(start uint64) func() uint64 {
	return func() uint64 { start++; return start }
}

func testOptions(fs vfs.FS) Options {
	return Options{
		Dir: "data", FS: fs, Create: true, CacheBytes: 4 << 20, MemTableBytes: 1 << 20,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Random: counting(100),
		Fatal: func(msg string) { panic(msg) },
	}
}

func mustOpen(t tester, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	must(t, err)
	return s
}

// openTest opens a store in memory and closes it with the test.
func openTest(t testing.TB) *Store {
	t.Helper()
	s := mustOpen(t, testOptions(vfs.NewMem()))
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func must(t tester, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t tester, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got error %v, want %v", err, kind)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error has several lines: %q", err)
	}
}

// wantViolation runs f, which must break an invariant.
func wantViolation(t tester, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if _, ok := recover().(invariant.Violation); !ok {
			t.Error("no invariant was violated")
		}
	}()
	f()
}

// with stages something and commits it.
func (s *Store) with(t tester, sync bool, f func(b *Batch)) {
	t.Helper()
	b := s.NewBatch()
	defer b.Close()
	f(b)
	if !sync {
		must(t, s.CommitNoSync(b))
		return
	}
	p, err := s.CommitSync(b)
	must(t, err)
	must(t, p.Wait())
}

// put writes a named record.
func (s *Store) put(t tester, sync bool, name string, value string) {
	t.Helper()
	s.with(t, sync, func(b *Batch) { must(t, s.State().PutLocal(b, name, []byte(value))) })
}

func (s *Store) local(t tester, name string) string {
	t.Helper()
	v, err := s.State().GetLocal(name)
	must(t, err)
	return string(v)
}

func entry(index, term uint64, data string) *raftpb.Entry {
	e := &raftpb.Entry{Index: new(index), Term: new(term), Type: raftpb.EntryNormal.Enum()}
	if data != "" {
		e.Data = []byte(data)
	}
	return e
}

func entries(first, last, term uint64) (es []*raftpb.Entry) {
	for i := first; i <= last; i++ {
		es = append(es, entry(i, term, fmt.Sprintf("entry %d of term %d", i, term)))
	}
	return es
}

func hardStateProto(term, vote, commit uint64) *raftpb.HardState {
	return hardState{term, vote, commit}.proto()
}

func mustGroup(t tester, s *Store, r ids.RangeID) *GroupLog {
	t.Helper()
	g, err := s.Log().Group(r)
	must(t, err)
	return g
}

// versionKey is the engine key of a version.
func versionKey(key string, version uint64) []byte {
	if version == 0 {
		return cockroachkvs.EncodeKey(nil, []byte(key), nil)
	}
	return cockroachkvs.EncodeKey(nil, []byte(key), binary.BigEndian.AppendUint64(nil, version))
}

func descriptor(r ids.RangeID, start, end string) *metapb.RangeDescriptor {
	return &metapb.RangeDescriptor{RangeId: uint64(r), Start: []byte(start), End: []byte(end),
		Generation: 1, NextReplicaId: 9,
		Replicas: []*metapb.Replica{{NodeId: 1, ReplicaId: 1}}}
}

// content is everything in a store above the node-local keys, as text.
func content(t tester, s *Store) string {
	t.Helper()
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: engineKey(prefixRange)})
	must(t, err)
	defer func() { must(t, it.Close()) }()
	var out strings.Builder
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		must(t, err)
		fmt.Fprintf(&out, "%x = %.40q %d\n", it.Key(), v, len(v))
	}
	must(t, it.Error())
	return out.String()
}
