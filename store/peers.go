package store

import (
	"encoding/binary"
	"fmt"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// peer is what this node remembers of another: its latest life and that life's
// mark. A directory restored from a copy, identity files and all, looks whole
// from within; only others can tell that they have met a later life of it.
type peer struct {
	life ids.Life
	mark uint64
}

// MetPeer durably remembers a peer's life and mark; it returns ErrEarlierLife
// for a life before the remembered one and ErrCopiedStore for a second mark of
// the same life. A later life blocks for one fsync; any other costs a lookup and
// does not wait for a later one that is being written, of whatever peer: while
// the disk hangs, those who are known come and go.
func (id *Identity) MetPeer(n ids.NodeID, life ids.Life, mark uint64) error {
	known, err := id.peer(n)
	if err != nil {
		return err
	}
	if life <= known.life {
		return known.recognise(n, life, mark)
	}
	id.peersMu.Lock()
	defer id.peersMu.Unlock()
	// It may have been met while this goroutine waited.
	if known, err = id.peer(n); err != nil {
		return err
	}
	if life <= known.life {
		return known.recognise(n, life, mark)
	}
	v := binary.BigEndian.AppendUint64(nil, uint64(life))
	v = binary.BigEndian.AppendUint64(v, mark)
	b := id.s.NewBatch()
	defer b.Close()
	err = b.b.Set(peerKey(n), v, nil)
	if err == nil {
		err = id.s.progress.during(func() error { return id.s.commitAndSync(b) })
	}
	if err != nil {
		return fmt.Errorf("remember %v in store %q: %w", n, id.s.o.Dir, err)
	}
	id.peers.Store(n, peer{life, mark})
	return nil
}

// recognise judges a life that is not later than the known one.
func (known peer) recognise(n ids.NodeID, life ids.Life, mark uint64) error {
	switch {
	case life < known.life:
		return fmt.Errorf("meet %v: %w: life %d after %d: its store was rolled back or replaced; "+
			"%s", n, ErrEarlierLife, life, known.life, remedyRebuild)
	case life == known.life && mark != known.mark:
		return fmt.Errorf("meet %v: %w: life %d with marks %016x and %016x: stop one of the two "+
			"processes and remove its directory", n, ErrCopiedStore, life, known.mark, mark)
	}
	return nil
}

// peer returns what is remembered of a node; the zero value: nothing. The cache
// has one entry per node ever met.
func (id *Identity) peer(n ids.NodeID) (peer, error) {
	if p, ok := id.peers.Load(n); ok {
		return p.(peer), nil
	}
	v, err := id.s.get(peerKey(n))
	if err != nil {
		return peer{}, err
	}
	var p peer
	if v != nil {
		if len(v) != 16 {
			return peer{}, fmt.Errorf("store %q: record of %v has %d bytes", id.s.o.Dir, n, len(v))
		}
		p = peer{ids.Life(binary.BigEndian.Uint64(v)), binary.BigEndian.Uint64(v[8:])}
	}
	// Another goroutine may have met the peer since the record was read.
	newest, _ := id.peers.LoadOrStore(n, p)
	return newest.(peer), nil
}
