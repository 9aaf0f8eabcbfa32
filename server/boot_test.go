package server

import (
	"strings"
	"testing"

	"github.com/flotilla-kv/flotilla/ranges"
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
