package store

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

const stallLimit = 1500 * time.Millisecond

// hangingDisk is a disk whose syncs block while it hangs, and a clock beside it.
type hangingDisk struct {
	mu    sync.Mutex
	freed sync.Cond
	hangs bool
	held  int // syncs that are blocked
	now   atomic.Int64
}

func (d *hangingDisk) options() Options {
	d.freed.L = &d.mu
	o := testOptions(errorfs.Wrap(vfs.NewMem(), d))
	o.Monotonic = func() time.Duration { return time.Duration(d.now.Load()) }
	return o
}

// MaybeError blocks what makes data durable.
func (d *hangingDisk) MaybeError(op errorfs.Op) error {
	switch op.Kind {
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
	default:
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held++
	d.freed.Broadcast()
	for d.hangs {
		d.freed.Wait()
	}
	d.held--
	return nil
}

func (d *hangingDisk) String() string { return "hanging disk" }

func (d *hangingDisk) hang(yes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hangs = yes
	d.freed.Broadcast()
}

// awaitHeld waits until a sync is blocked.
func (d *hangingDisk) awaitHeld() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.held == 0 {
		d.freed.Wait()
	}
}

func (d *hangingDisk) pass(t time.Duration) { d.now.Add(int64(t)) }

// Every way in which somebody waits for the disk is noticed, ends with its sync,
// and holds up nobody who only reads or is known already.
func TestADiskThatHangsIsNoticedOnEverySyncPath(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(s *Store) error{
		"raft log": func(s *Store) error {
			b := s.NewBatch()
			defer b.Close()
			if err := s.State().PutLocal(b, "k", []byte("v")); err != nil {
				return err
			}
			p, err := s.CommitSync(b)
			if err != nil {
				return err
			}
			return p.Wait()
		},
		"clock bound of an idle node": func(s *Store) error { return s.Identity().ExtendBound(77) },
		"end of the clock":            func(s *Store) error { return s.Identity().EndBound(1) },
		"a peer's new life":           func(s *Store) error { return s.Identity().MetPeer(3, 9, 9) },
		"barrier":                     func(s *Store) error { return s.Sync() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &hangingDisk{}
			s := mustOpen(t, d.options())
			must(t, s.Identity().ExtendBound(50))
			must(t, s.Identity().MetPeer(2, 5, 6))
			d.pass(time.Hour)
			if s.SyncStalled(0) {
				t.Fatalf("stalled by %v although nobody waits", s.SyncAge())
			}
			d.hang(true)
			done := make(chan error, 1)
			go func() { done <- write(s) }()
			d.awaitHeld()
			d.pass(stallLimit)
			if s.SyncStalled(stallLimit) {
				t.Error("stalled at the limit, not beyond it")
			}
			d.pass(time.Millisecond)
			if !s.SyncStalled(stallLimit) || s.Metrics().SyncAge != stallLimit+time.Millisecond {
				t.Errorf("not stalled; age %v", s.SyncAge())
			}
			// Hello and status need these while the disk hangs.
			if r := s.Identity().Record(); r.Life != 1 || r.Bound != 50 {
				t.Errorf("record %+v while the disk hangs", r)
			}
			must(t, s.Identity().MetPeer(2, 5, 6))
			wantError(t, s.Identity().MetPeer(2, 4, 6), ErrEarlierLife)
			wantError(t, s.Identity().MetPeer(2, 5, 7), ErrCopiedStore)
			d.hang(false)
			must(t, <-done)
			if s.SyncStalled(0) {
				t.Errorf("still stalled by %v after the sync", s.SyncAge())
			}
			must(t, s.Close())
		})
	}
}

func TestAStoreWithoutAClockIsNeverStalled(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	b := s.NewBatch()
	must(t, s.State().PutLocal(b, "k", []byte("v")))
	p, err := s.CommitSync(b)
	must(t, err)
	if s.SyncStalled(0) || s.SyncAge() != 0 {
		t.Error("stalled")
	}
	must(t, p.Wait())
	b.Close()
}

// The oldest sync counts, in whatever order they end: compared with a list that
// is searched.
func TestTheOldestSyncUnderWayCounts(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var now time.Duration
	s := &Store{}
	s.progress.clock = func() time.Duration { return now }
	var marks []*syncMark
	var began []time.Duration
	for range 5000 {
		now += time.Duration(random.IntN(3))
		if i := random.IntN(8); i < len(marks) {
			s.progress.end(marks[i])
			s.progress.end(marks[i]) // a second end changes nothing
			marks = append(marks[:i], marks[i+1:]...)
			began = append(began[:i], began[i+1:]...)
		} else {
			m := &syncMark{}
			s.progress.begin(m)
			marks, began = append(marks, m), append(began, now)
		}
		want := time.Duration(0)
		for _, b := range began {
			want = max(want, now-b)
		}
		if got := s.SyncAge(); got != want {
			t.Fatalf("%d under way: age %v, want %v", len(marks), got, want)
		}
	}
}

func TestConcurrentSyncsLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	var now atomic.Int64
	s := &Store{}
	s.progress.clock = func() time.Duration { return time.Duration(now.Add(1)) }
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				must(t, s.progress.during(func() error { _ = s.SyncAge(); return nil }))
			}
		})
	}
	wg.Wait()
	if s.SyncAge() != 0 || s.progress.head != nil || s.progress.tail != nil {
		t.Errorf("age %v after all ended", s.SyncAge())
	}
}

// The bound falls at a clean stop and then never moves again in this life.
func TestACleanStopRecordsWhereTheClockEnded(t *testing.T) {
	t.Parallel()
	o := testOptions(vfs.NewMem())
	s := mustOpen(t, o)
	must(t, s.Identity().ExtendBound(hlc.New(5000, 0)))
	must(t, s.Identity().EndBound(hlc.New(9000, 0)))
	if b := s.Identity().Record().Bound; b != hlc.New(5000, 0) {
		t.Fatalf("the end raised the bound to %d", b)
	}
	must(t, s.Identity().EndBound(hlc.New(3000, 4)))
	err := s.Identity().ExtendBound(hlc.New(6000, 0))
	if !errors.Is(err, ErrBoundEnded) {
		t.Fatalf("the bound was extended after its end: %v", err)
	}
	counter := s.Identity().Record().Counter
	must(t, s.Close())
	s = mustOpen(t, o)
	if r := s.Identity().Record(); r.Bound != hlc.New(3000, 4) || r.Counter != counter+1 {
		t.Errorf("after the restart %+v, counter before it %d", r, counter)
	}
	must(t, s.Identity().ExtendBound(hlc.New(6000, 0)))
	must(t, s.Close())
}
