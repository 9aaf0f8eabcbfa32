package server

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestConnectionsBeyondTheLimitAreClosedAndOthersStay(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan struct{}, 10)
	l := &boundedListener{Listener: ln, limit: 2, refused: func() { refused <- struct{}{} }}
	defer l.Close()
	accepted := make(chan net.Conn, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		return conn
	}
	first := dial()
	served := <-accepted
	dial()
	second := <-accepted
	third := dial()
	<-refused
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Fatal("the connection beyond the limit was not closed")
	}
	if _, err := first.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(served, make([]byte, 1)); err != nil {
		t.Fatalf("a connection within the limit broke: %v", err)
	}
	_ = second.Close()
	_ = second.Close() // gives its place back once
	dial()
	<-accepted
	dial()
	<-refused
}

func TestTooFewOpenFilesAreRefusedWithTheRemedy(t *testing.T) {
	t.Parallel()
	if _, err := connectionsOf(64); err == nil || !strings.Contains(err.Error(), "ulimit -n") {
		t.Fatalf("64 files: %v", err)
	}
	if n, err := connectionsOf(minFiles); err != nil || n != minConnections {
		t.Fatalf("%d files: %d connections, %v", minFiles, n, err)
	}
	if n, err := connectionsOf(1 << 63); err != nil || n != maxConnections {
		t.Fatalf("no limit: %d connections, %v", n, err)
	}
}
