package server

import (
	"context"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/ranges"
	"github.com/flotilla-kv/flotilla/rpc"
	"github.com/flotilla-kv/flotilla/store"
)

func testConfig(t *testing.T) Config {
	return Config{
		Data: t.TempDir() + "/d", Listen: "127.0.0.1:0", HTTP: "127.0.0.1:0",
		CacheBytes: 8 << 20, Init: true,
	}
}

func TestHalfFoundedClusterIsFinishedByInitAndByNothingElse(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	// The process died after the ranges were on disk, before the identity was.
	st, err := store.Open(store.Options{Dir: cfg.Data, Create: true, CacheBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := ranges.Bootstrap(st, founder); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	joining := cfg
	joining.Init, joining.Join = false, []string{"127.0.0.1:1"}
	_, err = New(joining)
	if err == nil || !strings.Contains(err.Error(), "start with --init to finish it") {
		t.Fatalf("joining with half a cluster: %v", err)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m, err := s.boot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m.node != founder || m.cluster == 0 || m.origin != originInitialised {
		t.Fatalf("booted as %+v", m)
	}
	again, err := s.boot(t.Context())
	if err != nil || again.cluster != m.cluster || again.origin != originRestarted {
		t.Fatalf("the second start with --init gave %+v, %v; want cluster %x", again, err, m.cluster)
	}
}

func TestMistypedDirectoryDoesNotBecomeANode(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Init = false
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "no store here") {
		t.Fatalf("an empty directory without --init or --join: %v", err)
	}
	cfg.Join = []string{"127.0.0.1:1"}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Join = nil
	_, err = New(cfg)
	if err == nil || !strings.Contains(err.Error(), "belongs to no cluster yet") {
		t.Fatalf("a store without identity, started without flags: %v", err)
	}
}

// talker is a node as seen by one that asks to join.
type talker struct {
	adminpb.UnimplementedControlServer
	reply *adminpb.JoinReply
	err   error
}

func (k talker) Join(context.Context, *adminpb.JoinRequest) (*adminpb.JoinReply, error) {
	return k.reply, k.err
}

func serveTalker(t *testing.T, k talker) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := rpc.NewServer()
	adminpb.RegisterControlServer(srv, k)
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(srv.Stop)
	return ln.Addr().String()
}

func TestInitFoundsNoClusterBesideOneThatMayLive(t *testing.T) {
	t.Parallel()
	refusing := serveTalker(t, talker{err: status.Error(codes.Internal, "something")})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := ln.Addr().String()
	ln.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	for name, c := range map[string]struct {
		join  string
		found bool
	}{
		"nobody listens there": {nobody, true},
		"a node waits there itself": {serveTalker(t, talker{
			err: status.Error(codes.NotFound, "waits itself"),
		}), true},
		"a member that knows no leader yet": {serveTalker(t, talker{
			reply: &adminpb.JoinReply{ClusterId: 7},
		}), false},
		"a silent port":        {silent.Addr().String(), false},
		"something else there": {refusing, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cfg.Join = []string{c.join}
			cfg.Notice = func(string) { cancel() } // it waits: that is all we want to know
			s, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			m, err := s.boot(ctx)
			if founded := err == nil && m.origin == originInitialised; founded != c.found {
				t.Fatalf("booted as %+v, %v; want founded %v", m, err, c.found)
			}
		})
	}
}
