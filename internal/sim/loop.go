package sim

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"time"
)

// event is something that happens at a virtual time.
type event struct {
	at  time.Duration
	seq uint64
	run func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	if h[i].at != h[j].at {
		return h[i].at < h[j].at
	}
	return h[i].seq < h[j].seq
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*h = old[:len(old)-1]
	return e
}

// loop is the virtual time line: a heap of events and a trace.
type loop struct {
	now    time.Duration
	seq    uint64
	events eventHeap
	hash   uint64
	trace  io.Writer // nil: only hashed
	steps  uint64
}

// after schedules run d from now. Events of one instant run in the order in
// which they were scheduled.
func (l *loop) after(d time.Duration, run func()) {
	l.seq++
	heap.Push(&l.events, event{at: l.now + max(d, 0), seq: l.seq, run: run})
}

// step runs the next event at or before limit; false: there is none.
func (l *loop) step(limit time.Duration) bool {
	if len(l.events) == 0 || l.events[0].at > limit {
		l.now = limit
		return false
	}
	e := heap.Pop(&l.events).(event)
	l.now = e.at
	l.steps++
	e.run()
	return true
}

// tracef notes what happened: into the hash always, in words if asked for.
func (l *loop) tracef(format string, args ...any) {
	line := fmt.Sprintf("%12s ", l.now) + fmt.Sprintf(format, args...) + "\n"
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%d", l.hash)
	_, _ = io.WriteString(h, line)
	l.hash = h.Sum64()
	if l.trace != nil {
		_, _ = io.WriteString(l.trace, line)
	}
}

// Concerns, each with a random stream of its own.
const (
	concernNetwork = iota + 1
	concernDisk
	concernClock
	concernWorkload
	concernNemesis
	concernClient
	concernNode
	concernSupport
	concernRead
	concernPlacing
	concernPerson
)

func stream(seed uint64, concern uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, concern*0x9e3779b97f4a7c15))
}

// between draws a duration in [lo, hi).
func between(r *rand.Rand, lo, hi time.Duration) time.Duration {
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(r.Int64N(int64(hi-lo)))
}

// chance is true with probability p.
func chance(r *rand.Rand, p float64) bool { return r.Float64() < p }
