package multiraft

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store"
)

// An itemKind says what an inbox item holds.
type itemKind uint8

const (
	itemMessage    itemKind = iota // from, msg
	itemTask                       // group, task
	itemCompletion                 // responses of a finished log sync
	itemControl                    // control: anything rare
)

// An item is one thing for a shard to do. It is a union by value, so that an
// inbox of thousands is one allocation.
type item struct {
	kind      itemKind
	from      ids.NodeID
	bytes     int // counted against the inbox budget until handled
	msg       Message
	group     *Group
	task      Task
	responses []response
	control   func(*shard)
}

// A response waits for a sync: to be stepped here or sent.
type response struct {
	group *Group
	msg   *raftpb.Message
}

// A flight is a log commit whose sync runs, and what waits for it. The tail's
// responses may grow while it flies.
type flight struct {
	sync      *store.PendingSync
	batch     *store.Batch
	responses []response
}

// An inbox is how other goroutines reach a shard: a double buffer under a
// mutex that is held for a few instructions. The queue of syncs in flight is
// under the same mutex, because moving a completion from one to the other must
// be one step for what comes behind it.
type inbox struct {
	notify     chan struct{} // a token: look at the inbox
	syncNotify chan struct{} // a token: a sync was started

	mu          sync.Mutex
	items       []item
	ticks       int      // pending, at most maxPendingTicks
	flights     []flight // oldest first
	completions int      // completion items not handled yet
}

func (in *inbox) init() {
	in.notify = make(chan struct{}, wakeTokens)
	in.syncNotify = make(chan struct{}, wakeTokens)
}

// wake puts a token into a notify channel unless one is there.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// push queues an item. Any goroutine.
func (in *inbox) push(it item) {
	in.mu.Lock()
	in.items = append(in.items, it)
	in.mu.Unlock()
	wake(in.notify)
}

// addTick counts a tick; more than maxPendingTicks are forgotten.
func (in *inbox) addTick() {
	in.mu.Lock()
	in.ticks = min(in.ticks+1, maxPendingTicks)
	in.mu.Unlock()
	wake(in.notify)
}

// take swaps the buffers and takes at most one tick: a group is never ticked
// twice in a pass.
func (in *inbox) take(empty []item) (items []item, tick bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	items, in.items = in.items, empty
	if in.ticks > 0 {
		in.ticks--
		tick = true
	}
	return items, tick
}

// pending says whether something waits for a pass, and how many syncs fly.
func (in *inbox) pending() (work bool, syncs int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.items) > 0 || in.ticks > 0, len(in.flights)
}

// launch queues a started sync.
func (in *inbox) launch(f flight) {
	in.mu.Lock()
	in.flights = append(in.flights, f)
	in.mu.Unlock()
	wake(in.syncNotify)
}

// inFlight is the number of syncs in flight.
func (in *inbox) inFlight() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.flights)
}

// oldest returns the sync that will complete first. The flight stays in the
// queue, so that responses can still join it.
func (in *inbox) oldest() (flight, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.flights) == 0 {
		return flight{}, false
	}
	return in.flights[0], true
}

// land moves the oldest flight's responses into the inbox; with deliver false
// (the sync failed) they are forgotten and never delivered.
func (in *inbox) land(deliver bool) {
	in.mu.Lock()
	responses := in.flights[0].responses
	n := copy(in.flights, in.flights[1:])
	in.flights[n] = flight{}
	in.flights = in.flights[:n]
	if deliver {
		in.items = append(in.items, item{kind: itemCompletion, responses: responses})
		in.completions++
	}
	in.mu.Unlock()
	wake(in.notify)
}

// handled says that a completion item was delivered.
func (in *inbox) handled() {
	in.mu.Lock()
	in.completions--
	in.mu.Unlock()
}

// queueBehind puts responses behind everything that is not delivered yet: the
// youngest sync in flight, or the completions that wait in the inbox. False:
// there is nothing to wait for.
func (in *inbox) queueBehind(responses []response) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if n := len(in.flights); n > 0 {
		tail := &in.flights[n-1]
		tail.responses = append(tail.responses, responses...)
		return true
	}
	if in.completions == 0 {
		return false
	}
	// The slice is the caller's scratch; the item outlives the pass.
	own := append([]response(nil), responses...)
	in.items = append(in.items, item{kind: itemCompletion, responses: own})
	in.completions++
	return true
}
