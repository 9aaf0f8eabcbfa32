package server

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// How the open files of the process are divided: the store's tables, then what
// the node itself needs (logs, identity records, snapshots, streams to peers),
// then HTTP; connections to the gRPC port have the rest. Without the bounds
// idle connections of clients would take the files that the store needs, and a
// store that cannot write its records ends the node.
const (
	storeFiles      = 1000 // Pebble's cache of open tables
	ownFiles        = 512
	httpConnections = 128
	minConnections  = 256
	maxConnections  = 1 << 16
	minFiles        = storeFiles + ownFiles + httpConnections + minConnections
)

// connectionLimit returns how many connections the gRPC port may have, or why
// the process cannot work. The Go runtime has raised the soft limit to the hard
// one already.
func connectionLimit() (int, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return maxConnections, nil // a system without the limit
	}
	return connectionsOf(uint64(l.Cur))
}

func connectionsOf(files uint64) (int, error) {
	if files < minFiles {
		return 0, fmt.Errorf("the process may open %d files, a node needs %d at least: raise the "+
			"limit (ulimit -n 65536, or LimitNOFILE of its service)", files, minFiles)
	}
	return int(min(files-minFiles+minConnections, maxConnections)), nil
}

// boundedListener closes connections beyond a limit as soon as they come: who
// has one keeps it.
type boundedListener struct {
	net.Listener
	limit   int64
	open    atomic.Int64
	refused func() // called for each that was closed
}

// Accept returns the next connection within the limit.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.limit {
			return &boundedConn{Conn: conn, l: l}, nil
		}
		l.open.Add(-1)
		_ = conn.Close() // nothing was said on it
		l.refused()
	}
}

// boundedConn gives its place back once.
type boundedConn struct {
	net.Conn
	l    *boundedListener
	once sync.Once
}

// Close closes the connection.
func (c *boundedConn) Close() error {
	c.once.Do(func() { c.l.open.Add(-1) })
	return c.Conn.Close()
}

// bounded wraps a listener of the node; the first refusal of each burst is logged.
func (s *Server) bounded(ln net.Listener, limit int) net.Listener {
	l := &boundedListener{Listener: ln, limit: int64(limit)}
	var last atomic.Int64
	l.refused = func() {
		now, seen := int64(s.clock.Monotonic()), last.Load()
		if seen != 0 && now-seen < int64(noticeEvery) || !last.CompareAndSwap(seen, now) {
			return
		}
		s.cfg.Logger.Warn("too many connections, refusing new ones",
			"address", ln.Addr().String(), "limit", limit)
	}
	return l
}
