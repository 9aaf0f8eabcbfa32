package sim

import (
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// ackChecker holds answers of single keys against one another, at the node that
// gives them: earlier, and more of them, than clients see.
type ackChecker struct {
	sim     *Sim
	acked   map[string][]hlc.Timestamp // of acknowledged puts of a key
	newest  map[string]hlc.Timestamp   // of these
	deleted map[string]bool            // a delete of the key was tried
	seen    map[string][]sight         // by reads whose timestamp is known
}

// sight is what a read at a timestamp saw of a key.
type sight struct {
	at      hlc.Timestamp
	version hlc.Timestamp // 0: nothing was there
}

func newAckChecker(s *Sim) *ackChecker {
	return &ackChecker{
		sim: s, acked: map[string][]hlc.Timestamp{}, newest: map[string]hlc.Timestamp{},
		deleted: map[string]bool{}, seen: map[string][]sight{},
	}
}

// watched wraps a request at the node that serves it.
func (c *ackChecker) watched(
	n *node, r *kv.Request, done func(*kv.Response),
) func(*kv.Response) {
	key := string(r.Key)
	switch r.Verb {
	case kv.VerbPut, kv.VerbCompareAndSwap:
		return func(out *kv.Response) {
			if out.Code == kv.CodeOK {
				c.wrote(n, key, out.Timestamp)
			}
			done(out)
		}
	case kv.VerbDelete:
		c.deleted[key] = true
	case kv.VerbGet:
		at, known := r.Timestamp, c.newest[key]
		if at != 0 && at < known {
			known = 0 // the client asks for the past
		}
		return func(out *kv.Response) {
			c.read(n, key, at, known, out)
			done(out)
		}
	}
	return done
}

// read checks the answer of a get: it sees what was acknowledged when it came
// (known), by whichever node, and all that lies at or below its timestamp (at,
// 0 if only the node knows it).
func (c *ackChecker) read(n *node, key string, at, known hlc.Timestamp, out *kv.Response) {
	var s sight
	switch out.Code {
	case kv.CodeOK:
		s = sight{at, out.Timestamp}
	case kv.CodeNotFound:
		s = sight{out.Timestamp, 0}
		if c.deleted[key] {
			return
		}
	default:
		return
	}
	if s.version < known {
		c.sim.fail("%s answers a get of %q with the version of %d, but the write at %d had "+
			"been acknowledged when it came", n, key, s.version, known)
	}
	if s.at == 0 {
		return
	}
	for _, w := range c.acked[key] {
		if s.version < w && w <= s.at {
			c.sim.fail("%s answers a get of %q at %d with the version of %d, not of %d",
				n, key, s.at, s.version, w)
		}
	}
	c.seen[key] = append(c.seen[key], s)
}

// wrote checks the timestamp of a put that is acknowledged: nobody has read the
// key at or above it without seeing it.
func (c *ackChecker) wrote(n *node, key string, ts hlc.Timestamp) {
	for _, s := range c.seen[key] {
		if s.version < ts && ts <= s.at {
			c.sim.fail("%s acknowledges a put of %q at %d, but a get at %d has seen the "+
				"version of %d", n, key, ts, s.at, s.version)
		}
	}
	c.acked[key] = append(c.acked[key], ts)
	c.newest[key] = max(c.newest[key], ts)
}
