package server

import (
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	httpHeaderTimeout = 10 * time.Second
	httpIdleTimeout   = 2 * time.Minute
)

// mux serves metrics, health and profiles from the first moment on: a node that
// waits to join can be looked at too.
func (s *Server) mux() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&nodeCollector{s: s},
	)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", s.readyz)
	for path, h := range map[string]http.HandlerFunc{
		"/debug/pprof/":        pprof.Index,
		"/debug/pprof/cmdline": pprof.Cmdline,
		"/debug/pprof/profile": pprof.Profile,
		"/debug/pprof/symbol":  pprof.Symbol,
		"/debug/pprof/trace":   pprof.Trace,
	} {
		mux.HandleFunc(path, loopbackOnly(h))
	}
	return mux
}

// readyz says whether this node serves. It stays so when placement is away: the
// data does not need it.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	n := s.node.Load()
	switch {
	case n == nil:
		http.Error(w, "waiting: this node has no identity yet", http.StatusServiceUnavailable)
	case n.draining.Load():
		http.Error(w, "stopping: leaders are handed over", http.StatusServiceUnavailable)
	case !n.ready.Load():
		http.Error(w, "waiting: nobody who leads the system range has answered",
			http.StatusServiceUnavailable)
	default:
		fmt.Fprintln(w, "ok")
	}
}

// loopbackOnly keeps profiles, which show memory, to this machine.
func loopbackOnly(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			http.Error(w, "profiles are served to this machine only", http.StatusForbidden)
			return
		}
		h(w, r)
	}
}
