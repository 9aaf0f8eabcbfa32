package core

import (
	"testing"
	"time"
)

// A node is stopped for a while and goes on; later it falls silent for good. The
// second silence is found out as fast as the first: what a ping waited in the stop
// says nothing about the distance.
func TestASilenceAfterAPauseIsFoundOutAsFastAsTheFirst(t *testing.T) {
	t.Parallel()
	for _, stopped := range []time.Duration{0, 300, 900, 1800} {
		stopped *= time.Millisecond
		w := newWorld(t, 1, 3)
		u := w.many(9)
		if stopped > 0 {
			w.pause(1)
			all := u.load(9, 5)
			w.run(stopped, nil)
			w.resume(1)
			w.run(5*time.Second, func() bool { return len(*all) == 45 })
			if len(*all) != 45 {
				t.Fatalf("after a stop of %v %d of 45 writes are answered", stopped, len(*all))
			}
		}
		for range 1000 { // ten seconds of load without a silence
			u.load(9, 1)
			w.run(10*time.Millisecond, nil)
		}
		w.pause(1)
		for _, r := range w.cluster.Ranges {
			r.Leader = 2 // the others know already
		}
		began := w.now
		all := u.load(9, 5)
		w.run(20*time.Second, func() bool { return len(*all) == 45 })
		if took := w.now - began; took > 2*DefaultPingAfter+notice {
			t.Errorf("after a stop of %v: %d of 45 writes within %v", stopped, len(*all), took)
		}
	}
}
