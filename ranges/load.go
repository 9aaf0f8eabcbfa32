package ranges

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// meter counts what a replica serves. Counting is one atomic addition; rates
// are worked out when somebody asks, so an idle range costs nothing.
type meter struct {
	reads, writes atomic.Uint64
	told          atomic.Pointer[told] // nil: nothing yet

	mu struct {
		sync.Mutex
		at                time.Duration // of the sample
		reads, writes     uint64        // counts at the sample
		readRate, wrtRate float64       // per second, before the sample
	}
}

// told is what a leader remembers of the last fact that placement was told: as
// much as it takes to see that there is something new. Immutable.
type told struct {
	term             ids.Term
	generation       uint64
	stats            mvcc.Stats
	caughtUp, silent []uint64
}

func (t *told) size() int64 { return t.stats.KeyBytes + t.stats.ValueBytes }

// rateWindow is the shortest time over which a rate is taken.
const rateWindow = time.Second

func (m *meter) read()       { m.reads.Add(1) }
func (m *meter) wrote(n int) { m.writes.Add(uint64(n)) }

// rates returns operations per second, over the time since the last sample
// if that is at least rateWindow, else as they were then.
func (m *meter) rates(now time.Duration) (reads, writes float64) {
	r, w := m.reads.Load(), m.writes.Load()
	m.mu.Lock()
	defer m.mu.Unlock()
	if passed := now - m.mu.at; passed >= rateWindow {
		m.mu.readRate = float64(r-m.mu.reads) / passed.Seconds()
		m.mu.wrtRate = float64(w-m.mu.writes) / passed.Seconds()
		m.mu.at, m.mu.reads, m.mu.writes = now, r, w
	}
	return m.mu.readRate, m.mu.wrtRate
}
