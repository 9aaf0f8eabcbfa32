package multiraft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// counter is a StateMachine for hosts that run on goroutines: it counts what is
// applied and answers each payload's proposer.
type counter struct {
	st      *store.State
	r       ids.RangeID
	g       *Group
	led     chan struct{}
	pending []*call
	waiting []*call
	done    []*call // staged, to be answered in Applied
	conf    *metapb.ConfState
}

type call struct {
	payload []byte
	result  chan error
}

func (m *counter) Flush() {
	if len(m.pending) == 0 {
		return
	}
	payloads := make([][]byte, len(m.pending))
	for i, c := range m.pending {
		payloads[i] = c.payload
	}
	if err := m.g.Propose(payloads); err != nil {
		for _, c := range m.pending {
			c.result <- err
		}
	} else {
		m.waiting = append(m.waiting, m.pending...)
	}
	m.pending = m.pending[:0]
}

func (m *counter) Apply(b *store.Batch, entries []*raftpb.Entry) (int, error) {
	for _, e := range entries {
		if len(e.GetData()) > 0 && len(m.waiting) > 0 {
			m.done = append(m.done, m.waiting[0])
			m.waiting = m.waiting[1:]
		}
	}
	last := entries[len(entries)-1]
	return len(entries), m.st.PutApplied(b, m.r, &metapb.AppliedState{
		Index: last.GetIndex(), Term: last.GetTerm(), Conf: m.conf})
}

func (m *counter) Applied() {
	for _, c := range m.done {
		c.result <- nil
	}
	m.done = m.done[:0]
}

func (m *counter) Changed(s Status) {
	if s.IsLeader {
		close(m.led)
	}
}

func (m *counter) Restored() error { return nil }

// Run makes a counter's call a Task.
type callTask struct {
	m *counter
	c *call
}

func (t *callTask) Run() { t.m.pending = append(t.m.pending, t.c) }

// loopback is a Transport without peers.
type loopback struct{}

func (loopback) Send(ids.NodeID, []Message) bool { return false }
func (loopback) SendSnapshot(ids.NodeID, *metapb.SnapshotHeader, *store.OutgoingSnapshot,
	func(error)) {
}

// runLone starts a host with lone replicas of some ranges and waits until it
// leads all of them.
func runLone(t testing.TB, fs vfs.FS, dir string, ranges int) (machines []*counter, stop func()) {
	s, err := store.Open(store.Options{
		Dir: dir, FS: fs, Create: true, ReserveBytes: 1, CacheBytes: 8 << 20,
		Logger: slog.New(slog.DiscardHandler),
		Fatal:  func(msg string) { panic(msg) },
	})
	if err != nil {
		t.Fatal(err)
	}
	h, err := NewHost(Config{Node: 1, Store: s, Transport: loopback{}, Shards: 2,
		TickInterval: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for r := range ids.RangeID(ranges) {
		m := &counter{st: s.State(), r: r + 1, led: make(chan struct{}),
			conf: &metapb.ConfState{Voters: []uint64{1}}}
		machines = append(machines, m)
		n := &node{c: &cluster{t: t}, store: s}
		n.stage(m.r, 1, 1)
		if _, err := h.AddGroup(GroupConfig{
			Range: m.r, Replica: 1, Applied: startIndex, Machine: m, Campaign: true,
			Conf: &raftpb.ConfState{Voters: []uint64{1}}, Born: func(g *Group) { m.g = g },
		}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- h.Run(ctx) }()
	for _, m := range machines {
		<-m.led
	}
	return machines, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestAHostServesManyCallersAndStopsCleanly(t *testing.T) {
	t.Parallel()
	machines, stop := runLone(t, vfs.NewMem(), "data", 6)
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			m := machines[i%len(machines)]
			result := make(chan error, 1)
			for j := range 40 {
				c := &call{payload: fmt.Append(nil, i, j), result: result}
				if err := m.g.Enqueue(&callTask{m, c}, len(c.payload)); err != nil {
					t.Error(err)
					return
				}
				if err := <-result; err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	// Reads that are outstanding when the host ends are answered, one way or the
	// other.
	answered := make(chan error, len(machines))
	for _, m := range machines {
		if err := m.g.Enqueue(TaskFunc(func() {
			m.g.Read(readFunc(func(err error) {
				answered <- err
			}))
		}), 0); err != nil {
			t.Error(err)
		}
	}
	stop()
	for range machines {
		if err := <-answered; err != nil && !errors.Is(err, ErrStopped) {
			t.Error(err)
		}
	}
	if err := machines[0].g.Enqueue(TaskFunc(func() {}), 0); !errors.Is(err, ErrStopped) {
		t.Errorf("task after the end: %v", err)
	}
}

type readFunc func(error)

func (f readFunc) ReadReady(err error) { f(err) }

// BenchmarkProposeApply measures one node on a real disk: callers with one
// proposal each, 256 bytes, from task to apply.
func BenchmarkProposeApply(b *testing.B) {
	for _, callers := range []int{1, 64, 512} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			machines, stop := runLone(b, nil, b.TempDir(), 16)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			var refused atomic.Int64 // the store had no room; tried again
			for i := range callers {
				wg.Go(func() {
					m := machines[i%len(machines)]
					c := &call{result: make(chan error, 1)}
					for range b.N / callers {
						c.payload = make([]byte, 256)
						for done := false; !done; {
							if err := m.g.Enqueue(&callTask{m, c}, 256); err != nil {
								b.Error(err)
								return
							}
							err := <-c.result
							if done = err == nil; !done {
								refused.Add(1)
								runtime.Gosched()
							}
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(refused.Load())/float64(b.N), "refused/op")
			syncs := machines[0].g.host.Metrics().Syncs
			b.ReportMetric(float64(syncs)/float64(b.N), "syncs/op")
			stop()
		})
	}
}

// BenchmarkIdleTick measures what a tick of an idle group costs.
func BenchmarkIdleTick(b *testing.B) {
	c := newCluster(b, 1, func(cfg *Config) { cfg.Shards = 1 })
	const groups = 1000
	for r := range ids.RangeID(groups) {
		c.bootstrap(r+1, 1)
		c.nodes[1].machines[r+1].do(c.nodes[1].machines[r+1].g.Campaign)
	}
	c.settle()
	h := c.nodes[1].host
	b.ReportAllocs()
	for b.Loop() {
		h.Tick()
		for h.Poll(0) {
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/groups, "ns/group")
}
