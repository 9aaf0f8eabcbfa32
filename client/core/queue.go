package core

// legQueue is the legs that wait for one thing, in the order in which they came.
// It is linked through the legs, so that one whose call ends leaves at once,
// however many wait: tens of thousands do when a client asks for all ranges of a
// large cluster at the same time. A leg is in one queue at most.
type legQueue struct{ first, last *leg }

// push lets a leg wait at the end.
func (q *legQueue) push(l *leg) {
	l.queue, l.prev, l.next = q, q.last, nil
	if q.last == nil {
		q.first = l
	} else {
		q.last.next = l
	}
	q.last = l
}

// pop takes out who has waited longest; nil if nobody waits.
func (q *legQueue) pop() *leg {
	l := q.first
	if l != nil {
		l.unqueue()
	}
	return l
}

// unqueue takes a leg out of the queue in which it is, if it is in one.
func (l *leg) unqueue() {
	q := l.queue
	if q == nil {
		return
	}
	if l.prev == nil {
		q.first = l.next
	} else {
		l.prev.next = l.next
	}
	if l.next == nil {
		q.last = l.prev
	} else {
		l.next.prev = l.prev
	}
	l.queue, l.prev, l.next = nil, nil, nil
}
