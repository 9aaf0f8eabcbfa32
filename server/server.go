package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/internal/hlc/osclock"
	"github.com/flotilla-kv/flotilla/rpc"
	"github.com/flotilla-kv/flotilla/store"
)

// Server is a node from its ports and store on; its identity comes in Run.
type Server struct {
	cfg         Config
	began       time.Time
	store       *store.Store
	connections int // connections that the gRPC port may have
	grpcLn      net.Listener
	supportConn *net.UDPConn // same port as grpcLn
	httpLn      net.Listener
	advertise   string
	clock       *osclock.Clock
	clocks      *clockKeeper
	notice      *notices
	node        atomic.Pointer[node] // nil until booted

	stopStarting func() // ends serveStarting; nil if that was not called
}

// New validates the configuration, opens the ports and then the store, and
// refuses with one line what cannot work. Nothing runs before Run, which must be
// called, or Close.
func New(cfg Config) (*Server, error) {
	s := &Server{began: time.Now(), cfg: cfg.WithDefaults()}
	if err := s.cfg.Validate(); err != nil {
		return nil, fmt.Errorf("invalid configuration: %w", err)
	}
	s.clock = osclock.New()
	s.clocks = newClockKeeper(s, s.clock)
	s.notice = &notices{out: s.cfg.Notice}
	var err error
	if s.connections, err = connectionLimit(); err != nil {
		return nil, err
	}
	if s.grpcLn, err = listen("--listen", s.cfg.Listen); err != nil {
		return nil, err
	}
	if s.supportConn, err = listenSupport(s.grpcLn.Addr()); err != nil {
		s.closePorts()
		return nil, err
	}
	if s.httpLn, err = listen("--http", s.cfg.HTTP); err != nil {
		s.closePorts()
		return nil, err
	}
	monotonic := func() time.Duration { return time.Since(s.began) }
	if s.store, err = openStore(s.cfg, monotonic); err != nil {
		s.closePorts()
		return nil, err
	}
	if s.advertise = s.cfg.Advertise; s.advertise == "" {
		s.advertise = s.grpcLn.Addr().String() // port 0 has become a number
	}
	return s, nil
}

// listen opens a port; the error names the flag and the remedy.
func listen(flag, addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s %s: the port is in use: stop the process that has it, "+
			"or choose another with %s", flag, addr, flag)
	case err != nil:
		return nil, fmt.Errorf("%s %s: cannot listen: %w", flag, addr, err)
	}
	return ln, nil
}

// listenSupport opens the UDP port with the number of the TCP one.
func listenSupport(addr net.Addr) (*net.UDPConn, error) {
	tcp := addr.(*net.TCPAddr)
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: tcp.IP, Port: tcp.Port, Zone: tcp.Zone})
	if err != nil {
		return nil, fmt.Errorf("--listen %s: cannot open the port for UDP too, which support "+
			"between nodes uses: %w", addr, err)
	}
	return conn, nil
}

func (s *Server) closePorts() {
	if s.supportConn != nil {
		_ = s.supportConn.Close()
	}
	for _, ln := range []net.Listener{s.grpcLn, s.httpLn} {
		if ln != nil {
			_ = ln.Close() // nothing was served on it
		}
	}
}

// Close gives back what New took, for a server whose Run is not called.
func (s *Server) Close() error {
	s.closePorts()
	return s.store.Close()
}

// Addr is where gRPC is served, host:port.
func (s *Server) Addr() string { return s.grpcLn.Addr().String() }

// HTTPAddr is where HTTP is served, host:port.
func (s *Server) HTTPAddr() string { return s.httpLn.Addr().String() }

// Run boots and serves until ctx ends or a part fails. When ctx ends, the node
// first hands its leaders over, for DrainTimeout at most. The store is closed
// when Run returns. nil: stopped as asked.
func (s *Server) Run(ctx context.Context) error {
	web := &http.Server{
		Handler: s.mux(), ReadHeaderTimeout: httpHeaderTimeout, IdleTimeout: httpIdleTimeout,
	}
	// HTTP outlives the drain: health must be seen until the end.
	outer, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(outer)
	g.Go(func() error {
		err := web.Serve(s.bounded(s.httpLn, httpConnections))
		if !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve http: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		return web.Close()
	})
	g.Go(func() error {
		defer stop()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(gctx, cancel)()
		return s.runNode(ctx)
	})
	err := g.Wait()
	_ = s.grpcLn.Close() // closed already if it was served
	_ = s.supportConn.Close()
	if cerr := s.store.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("close the store: %w", cerr))
	}
	return err
}

func (s *Server) runNode(ctx context.Context) error {
	m, err := s.boot(ctx)
	defer func() {
		if s.stopStarting != nil {
			s.stopStarting()
		}
	}()
	if err != nil {
		if ctx.Err() != nil {
			return nil // stopped while it waited
		}
		return err
	}
	n, err := newNode(s, m)
	if err != nil {
		return err
	}
	s.node.Store(n)
	s.stopStarting()
	if err := n.run(ctx); err != nil {
		return err
	}
	if err := n.endBound(); err != nil {
		return err
	}
	return n.farewell()
}

// waitsItself is what a node without an identity answers to everything.
const waitsItself = "waits to join a cluster itself"

// serveWaiting answers on the port while the node has no identity, so that
// whoever calls learns at once that it waits.
func (s *Server) serveWaiting() (stop func(), err error) {
	srv := rpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		return status.Error(codes.NotFound, waitsItself)
	}))
	return s.serveMeanwhile(srv)
}
