package sim

import (
	"time"

	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/ranges"
)

// submit hands a client's request to the node's replicas, as a frame of one or
// by itself, and watches the answer.
func (n *node) submit(r *kv.Request, done func(*kv.Response)) {
	done = n.sim.checker.acks.watched(n, r, done)
	if r.ID%2 == 0 {
		n.table.Submit(r, done)
		return
	}
	n.table.SubmitBatch([]ranges.Call{{Request: r, Done: done}})
}

// pauseRead is called before each step of a read. Now and then the goroutine
// that serves it is not scheduled for a while, and everything else goes on; it
// is lost with its process.
func (n *node) pauseRead(step string, resume func()) {
	s := n.sim
	if n.table != nil {
		n.table.SettleRowCache() // hits must not depend on the library's goroutine
	}
	length := time.Duration(0)
	switch {
	case s.pauseAt != nil:
		length = s.pauseAt(n, step)
	case chance(s.readRand, s.options.ReadPauses):
		length = s.readPause()
	}
	if length == 0 {
		resume()
		return
	}
	s.count("reads_paused_before_" + step)
	n.after(length, resume)
}

// readPause draws how long a read is suspended.
func (s *Sim) readPause() time.Duration {
	switch p := s.readRand.IntN(10); {
	case p < 5:
		return between(s.readRand, time.Microsecond, 3*time.Millisecond)
	case p < 9:
		return between(s.readRand, time.Millisecond, 2*s.options.Promise)
	default:
		return between(s.readRand, s.options.Promise, 3*time.Second)
	}
}
