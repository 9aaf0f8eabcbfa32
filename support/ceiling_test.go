package support

import (
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

// R9d, R9g: a node that stops in the middle of its promises must begin its next
// life above what the others may read under them.
func TestTheHighestCeilingInForceIsWhereTheNextLifeBegins(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	b := w.node(2)
	if c := b.table.Ceiling(); c != 0 {
		t.Fatalf("ceiling %d before any promise", c)
	}
	w.node(3).skew = 400 // asks for more than n1
	w.run(200 * ms)
	counted := hlc.Timestamp(0)
	for _, a := range []*node{w.node(1), w.node(3)} {
		counted = max(counted, a.table.Peer(2).View().Ceiling)
	}
	if c := b.table.Ceiling(); c < counted || counted <= b.clock.Peek() {
		t.Fatalf("ceiling %d, the others may read up to %d, the clock is at %d",
			c, counted, b.clock.Peek())
	}
	w.block = func(packet) bool { return true }
	w.run(time.Second)
	if c := b.table.Ceiling(); c != 0 || b.clock.Peek() < counted {
		t.Fatalf("ceiling %d after all promises ended, the clock at %d, read up to %d",
			c, b.clock.Peek(), counted)
	}
	var none *Table
	if none.Ceiling() != 0 {
		t.Fatal("a nil table has promised something")
	}
}
