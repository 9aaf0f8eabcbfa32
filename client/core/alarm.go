package core

import (
	"container/heap"
	"time"
)

// alarm is a place in the heap of timers: that of a leg or of a link.
type alarm struct {
	due   time.Duration
	order uint64 // of creation, orders equal times
	index int    // in the heap; -1: not armed
	leg   *leg   // exactly one of these two
	link  *link
}

// arm sets or moves an alarm.
func (c *Core) arm(a *alarm, due time.Duration) {
	a.due = due
	if a.index < 0 {
		heap.Push(&c.timers, a)
		return
	}
	heap.Fix(&c.timers, a.index)
}

// disarm stops an alarm.
func (c *Core) disarm(a *alarm) {
	if a.index >= 0 {
		heap.Remove(&c.timers, a.index)
	}
}

// setTimer arms a leg's timer, no later than the call's deadline. 0: only the
// deadline.
func (c *Core) setTimer(l *leg, due time.Duration) {
	if d := l.op.call.Deadline; d != 0 && (due == 0 || d < due) {
		due = d
	}
	if due == 0 {
		c.disarm(&l.alarm)
		return
	}
	c.arm(&l.alarm, due)
}

// timerHeap orders unfinished legs, and links that owe answers, by when they
// are due. It holds nothing else, so its size is that of what is in flight.
type timerHeap []*alarm

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (h timerHeap) Len() int { return len(h) }

// Less orders by time, then by creation, so that ties are deterministic.
func (h timerHeap) Less(i, j int) bool {
	if h[i].due != h[j].due {
		return h[i].due < h[j].due
	}
	return h[i].order < h[j].order
}

// Swap keeps the alarms' own indexes true.
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push adds an alarm.
func (h *timerHeap) Push(x any) {
	a := x.(*alarm)
	a.index = len(*h)
	*h = append(*h, a)
}

// Pop removes the last alarm.
func (h *timerHeap) Pop() any {
	old := *h
	a := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	a.index = -1
	return a
}
