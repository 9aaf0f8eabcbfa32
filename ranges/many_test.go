package ranges

import (
	"encoding/binary"
	"flag"
	"io"
	"log/slog"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/support"
)

// manyReplicas is how many replicas the tests and benchmarks of this file put
// on a node: -many 50000 is what a node must be able to carry.
var manyReplicas = flag.Int("many", 2_000, "replicas on the node that starts with many")

// fixedTime is a clock that stands still.
type fixedTime struct{}

func (fixedTime) Wall() int64              { return 1_000_000 }
func (fixedTime) Monotonic() time.Duration { return time.Second }

// deafTransport takes every message and delivers none.
type deafTransport struct{ sent int }

func (d *deafTransport) Send(_ ids.NodeID, m []multiraft.Message) bool {
	d.sent += len(m)
	return true
}

func (*deafTransport) SendSnapshot(_ ids.NodeID, _ *metapb.SnapshotHeader,
	o *store.OutgoingSnapshot, _ func(error)) {
	o.Close()
}

// manyDescriptor is the i-th of count ranges that tile the users' keys, with
// three voters.
func manyDescriptor(i, count int) *metapb.RangeDescriptor {
	bound := func(i int) []byte {
		switch i {
		case 0:
			return []byte{kv.UserPrefix}
		case count:
			return []byte{kv.EndPrefix}
		}
		return binary.BigEndian.AppendUint64([]byte{kv.UserPrefix, 'u', 's', 'e', 'r'}, uint64(i))
	}
	return &metapb.RangeDescriptor{
		RangeId: uint64(i + 2), Start: bound(i), End: bound(i + 1), Generation: 7,
		Replicas: []*metapb.Replica{
			{NodeId: 1, ReplicaId: 1}, {NodeId: 2, ReplicaId: 2}, {NodeId: 3, ReplicaId: 3},
		},
		NextReplicaId: 4,
	}
}

func manyStoreOptions(fs vfs.FS) store.Options {
	return store.Options{
		Dir: "data", FS: fs, Create: true, ReserveBytes: 1, CacheBytes: 8 << 20,
		MemTableBytes: 4 << 20, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Fatal: func(msg string) { panic(msg) },
	}
}

// storeWithMany makes a store that holds count replicas and closes it.
func storeWithMany(t testing.TB, fs vfs.FS, count int) {
	t.Helper()
	s, err := store.Open(manyStoreOptions(fs))
	must(t, err)
	b := s.NewBatch()
	for i := range count {
		must(t, stageFirst(s, b, manyDescriptor(i, count)))
		if i%1000 == 999 || i == count-1 {
			must(t, s.CommitNoSync(b))
			b.Close()
			b = s.NewBatch()
		}
	}
	b.Close()
	must(t, s.Flush())
	must(t, s.Close())
}

// manyNode is a node with many idle replicas.
type manyNode struct {
	store *store.Store
	host  *multiraft.Host
	table *Table
}

func openMany(t testing.TB, fs vfs.FS) *manyNode {
	t.Helper()
	s, err := store.Open(manyStoreOptions(fs))
	must(t, err)
	n := &manyNode{store: s}
	clock := hlc.NewHybrid(fixedTime{}, 0, time.Hour)
	clock.SetBound(hlc.MaxTimestamp)
	n.table, err = New(Config{
		Node: 1, Store: s, Clock: clock, Physical: fixedTime{},
		Logger:      slog.New(slog.DiscardHandler),
		Execute:     func(job func()) { job() },
		NextRangeID: func() (ids.RangeID, bool) { return 0, false },
		OnFact:      func(*metapb.RangeFact) {},
	})
	must(t, err)
	n.host, err = multiraft.NewHost(multiraft.Config{
		Node: 1, Store: s, Clock: clock, Transport: &deafTransport{}, Shards: 1,
		Logger: slog.New(slog.DiscardHandler), Gone: n.table.Gone, OnGone: n.table.OnGone,
		Support: support.New(support.Config{
			Self: 1, Life: 1, Clock: clock, Physical: fixedTime{},
		}),
	})
	must(t, err)
	return n
}

func (n *manyNode) start(t testing.TB) {
	t.Helper()
	must(t, n.table.Start(n.host))
	for n.host.Poll(0) {
	}
}

func heapInUse() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// blockReads is how many blocks of tables a store has looked at.
func blockReads(s *store.Store) int64 {
	m := s.Metrics()
	return m.BlockCacheHits + m.BlockCacheMisses
}

// A start reads the store once, from one end of the ranges' records to the
// other, and after that nothing: not when groups are made, nor when raft is.
func TestStartOfManyReplicasReadsTheStoreOnceAndNothingForEachReplica(t *testing.T) {
	t.Parallel()
	count := *manyReplicas
	fs := vfs.NewMem()
	storeWithMany(t, fs, count)
	n := openMany(t, fs)
	defer func() { must(t, n.store.Close()) }()
	before := blockReads(n.store)
	must(t, n.table.Start(n.host))
	scan := blockReads(n.store) - before
	// 32 KiB are a block; the records of a replica have about 250 bytes.
	if limit := int64(count/50 + 50); scan > limit {
		t.Errorf("loading %d replicas looked at %d blocks, want at most %d", count, scan, limit)
	}
	before = blockReads(n.store)
	for n.host.Poll(0) {
	}
	if reads := blockReads(n.store) - before; reads != 0 {
		t.Errorf("starting %d groups looked at %d blocks", count, reads)
	}
	m := n.host.Metrics()
	if m.Groups != int64(count) || m.HaltedReplicas != 0 {
		t.Errorf("%d groups, %d halted; want %d", m.Groups, m.HaltedReplicas, count)
	}
	if replicas, _ := n.table.Counts(); replicas != count {
		t.Errorf("%d replicas, want %d", replicas, count)
	}
}

// Replicas on the same nodes share what says so, whichever way they came to be.
func TestReplicasShareWhatIsTheSame(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	storeWithMany(t, fs, 3)
	n := openMany(t, fs)
	defer func() { must(t, n.store.Close()) }()
	n.start(t)
	first, second := n.table.replica(2).state.Load(), n.table.replica(4).state.Load()
	if &first.desc.Replicas[0] != &second.desc.Replicas[0] || first.conf != second.conf {
		t.Error("two ranges with the same replicas do not share them")
	}
	var s sharing
	for i := range uint64(maxShared + 10) { // bounded, and right beyond the bound
		d := &metapb.RangeDescriptor{Replicas: []*metapb.Replica{{NodeId: i + 1, ReplicaId: 1}}}
		s.share(d)
		if d.Replicas[0].NodeId != i+1 || s.peersOf(d)[1] != ids.NodeID(i+1) {
			t.Fatalf("set %d is that of another", i)
		}
		c := &metapb.ConfState{Voters: []uint64{1}, Learners: []uint64{i}}
		if got := s.conf(c); got.stored.Learners[0] != i || got.raft.Learners[0] != i {
			t.Fatalf("configuration %d is that of another", i)
		}
	}
	if len(s.replicas.sets) > maxShared || len(s.confs.sets) > maxShared {
		t.Errorf("%d sets and %d configurations are remembered", len(s.replicas.sets),
			len(s.confs.sets))
	}
}

// cpuTime is what this process has used of all cores: other than the time that
// passes it says the same on a busy machine.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	must(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkIdleReplica tells what an idle replica costs in memory, and what its
// start takes.
func BenchmarkIdleReplica(b *testing.B) {
	count := max(*manyReplicas, 10_000)
	fs := vfs.NewMem()
	storeWithMany(b, fs, count)
	n := openMany(b, fs)
	before := heapInUse()
	began := cpuTime(b)
	n.start(b)
	took := cpuTime(b) - began
	each := float64(heapInUse()-before) / float64(count)
	replicas, _ := n.table.Counts()
	if replicas != count {
		b.Fatal(replicas)
	}
	runtime.KeepAlive(n)
	must(b, n.store.Close())
	for b.Loop() { // what is measured is not done twice
	}
	b.ReportMetric(each, "bytes/replica")
	b.ReportMetric(took.Seconds(), "start-cpu-s")
}
