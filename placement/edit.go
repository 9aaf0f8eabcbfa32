package placement

import (
	"errors"
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

// ErrAskAgain says that a request was not answered because this node does not
// drive placement (any more), or cannot reach range 1 now. Nothing is wrong
// with the request: find the leader of range 1 and ask again. Joining twice is
// harmless; a block of ids that was lost is never handed out again.
var ErrAskAgain = errors.New("not answered: ask the leader of range 1 again")

const (
	// maxEdits bounds the requests that wait for range 1; further ones are
	// refused with ErrAskAgain.
	maxEdits = 256
	// maxEditAttempts bounds the rounds of one request: a conflict is tried
	// again at once, an error at the next Step.
	maxEditAttempts = 32
)

// An edit is one read, decide, compare-and-swap loop on one key.
type edit struct {
	key []byte
	// decide looks at the newest value (version 0: absent) and says what to
	// write; write false ends the edit with the value as it stands.
	decide func(old []byte, version hlc.Timestamp) (next []byte, write bool, err error)
	// once ends the edit with the first swap that succeeded. Otherwise it is
	// read again until decide has nothing to write, which also settles a swap
	// whose outcome was lost, and yields the version.
	once bool
	done func(value []byte, version hlc.Timestamp, err error)

	attempts int
	finished bool
}

// editor runs the edits of one tenure of the driver. When the tenure ends every
// open edit fails, and callbacks that come later are ignored: what they would
// say is in range 1 for the next driver.
type editor struct {
	kv     KV
	open   []*edit // in the order of their start
	failed []*edit // to be tried again at the next Step
	closed bool
}

// start begins an edit. Its done is called once, possibly before start returns.
func (ed *editor) start(e *edit) {
	if ed.closed {
		e.done(nil, 0, fmt.Errorf("%w: this node stopped driving", ErrAskAgain))
		return
	}
	if len(ed.open) >= maxEdits {
		e.done(nil, 0, fmt.Errorf("%w: %d requests wait for range 1", ErrAskAgain, maxEdits))
		return
	}
	ed.open = append(ed.open, e)
	ed.attempt(e)
}

func (ed *editor) attempt(e *edit) {
	if e.attempts++; e.attempts > maxEditAttempts {
		ed.finish(e, nil, 0, fmt.Errorf("%w: %q in range 1 cannot be changed after %d attempts",
			ErrAskAgain, e.key, maxEditAttempts))
		return
	}
	ed.kv.Get(e.key, func(value []byte, version hlc.Timestamp, err error) {
		switch {
		case e.finished:
		case err != nil:
			ed.failed = append(ed.failed, e)
		default:
			ed.swap(e, value, version)
		}
	})
}

func (ed *editor) swap(e *edit, value []byte, version hlc.Timestamp) {
	next, write, err := e.decide(value, version)
	if err != nil || !write {
		ed.finish(e, value, version, err)
		return
	}
	ed.kv.CompareAndSwap(e.key, next, version, func(swapped bool, err error) {
		switch {
		case e.finished:
		case err != nil:
			ed.failed = append(ed.failed, e)
		case swapped && e.once:
			ed.finish(e, next, 0, nil)
		default: // lost against another writer, or won and to be confirmed
			ed.attempt(e)
		}
	})
}

func (ed *editor) finish(e *edit, value []byte, version hlc.Timestamp, err error) {
	if e.finished {
		return
	}
	e.finished = true
	if i := slices.Index(ed.open, e); i >= 0 {
		ed.open = slices.Delete(ed.open, i, i+1)
	}
	e.done(value, version, err)
}

// retry tries again what failed since the last Step.
func (ed *editor) retry() {
	again := ed.failed
	ed.failed = nil
	for _, e := range again {
		if !e.finished {
			ed.attempt(e)
		}
	}
}

// close fails everything that is open.
func (ed *editor) close() {
	ed.closed = true
	for _, e := range slices.Clone(ed.open) {
		ed.finish(e, nil, 0, fmt.Errorf("%w: this node stopped driving", ErrAskAgain))
	}
}
