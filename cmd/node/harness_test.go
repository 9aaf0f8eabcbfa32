package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/framecodec"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/rpc"
)

// asNode makes the test binary behave as flotilla-node: real processes without
// a second build.
const asNode = "FLOTILLA_TEST_AS_NODE"

func TestMain(m *testing.M) {
	if os.Getenv(asNode) != "" {
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// patience bounds every wait of these stories; nothing asserts how long one took.
const patience = 60 * time.Second

// cluster is some node processes on loopback.
type cluster struct {
	t     testing.TB
	dir   string
	nodes []*process // by number less one
}

type process struct {
	grpc, http string
	args       []string
	cmd        *exec.Cmd
	log        *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// freePort finds a port that is free now.
func freePort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func newCluster(t testing.TB, n int) *cluster {
	c := &cluster{t: t, dir: t.TempDir()}
	for i := range n {
		p := &process{grpc: freePort(t), http: freePort(t), log: &lockedBuffer{}}
		p.args = []string{"start", "--data", filepath.Join(c.dir, fmt.Sprint(i+1)),
			"--listen", p.grpc, "--http", p.http, "--cache-size", "8MiB"}
		if i == 0 {
			p.args = append(p.args, "--init")
		} else {
			p.args = append(p.args, "--join", c.nodes[0].grpc)
		}
		c.nodes = append(c.nodes, p)
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.kill(i + 1)
		}
		if t.Failed() {
			for i, p := range c.nodes {
				t.Logf("node %d:\n%s", i+1, p.log)
			}
		}
	})
	return c
}

func (c *cluster) start(i int) {
	c.t.Helper()
	p := c.nodes[i-1]
	p.cmd = exec.Command(testBinary(), p.args...)
	p.cmd.Env = append(os.Environ(), asNode+"=1")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = dieWithTest()
	if err := p.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
}

// kill is kill -9.
func (c *cluster) kill(i int) {
	p := c.nodes[i-1]
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.cmd = nil
}

// stop is SIGTERM; it returns the exit code.
func (c *cluster) stop(i int) int {
	p := c.nodes[i-1]
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	return c.wait(i)
}

// wait waits until a process ends by itself; it returns the exit code.
func (c *cluster) wait(i int) int {
	p := c.nodes[i-1]
	err := p.cmd.Wait()
	p.cmd = nil
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// eventually repeats f until it succeeds.
func eventually(t testing.TB, what string, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		try, done := context.WithTimeout(ctx, 3*time.Second)
		err := f(try)
		done()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: never; last: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *cluster) status(ctx context.Context, i int) (*adminpb.StatusReply, error) {
	conn, err := rpc.Dial(c.nodes[i-1].grpc)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return adminpb.NewAdminClient(conn).Status(ctx, &adminpb.StatusRequest{})
}

// healthy waits until every range has its replicas on n live nodes.
func (c *cluster) healthy(at, n int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("healthy with %d nodes", n), func(ctx context.Context) error {
		s, err := c.status(ctx, at)
		if err != nil {
			return err
		}
		live := 0
		for _, node := range s.GetNodes() {
			if node.GetLive() {
				live++
			}
		}
		if live < n || s.GetRanges() < 2 || s.GetUnderReplicated() > 0 || s.GetLeaderless() > 0 ||
			len(s.GetProblems()) > 0 {
			return fmt.Errorf("status %v", s)
		}
		return nil
	})
}

// do carries out one request, asking the nodes in turn until one leads. A write
// keeps its identity over all attempts.
func (c *cluster) do(req *kv.Request, from int) *kv.Response {
	c.t.Helper()
	var got *kv.Response
	at := from - 1
	eventually(c.t, "request", func(ctx context.Context) error {
		at++
		i := at % len(c.nodes)
		if c.nodes[i].cmd == nil {
			return errors.New("that node is down")
		}
		r, err := call(ctx, c.nodes[i].grpc, req)
		if err != nil {
			return err
		}
		switch r.Code {
		case kv.CodeOK, kv.CodeNotFound, kv.CodeConflict, kv.CodeInvalid, kv.CodeTooLarge:
			got = r
			return nil
		}
		return fmt.Errorf("node %d: %v %s", i+1, r.Code, r.Message)
	})
	return got
}

// call sends one request on a fresh stream: the protocol by hand, so that these
// stories do not rest on the client package.
func call(ctx context.Context, addr string, req *kv.Request) (*kv.Response, error) {
	conn, err := rpc.Dial(addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/flotilla.KV/Stream")
	if err != nil {
		return nil, err
	}
	hello, err := proto.Marshal(&metapb.Hello{
		ProtocolMin: rpc.ProtocolMin, ProtocolMax: rpc.ProtocolMax,
	})
	if err != nil {
		return nil, err
	}
	_ = s.SendMsg(&framecodec.Raw{Data: kv.AppendHello(nil, 0, hello)})
	answer, err := receive(s)
	if err != nil {
		return nil, err
	}
	if req.Identity.Client != 0 && req.Identity.Floor == 0 {
		req.Identity.Floor = answer.Stamp
	}
	frame := kv.AppendRequests(nil, answer.Stamp, []kv.Request{*req})
	_ = s.SendMsg(&framecodec.Raw{Data: frame})
	for {
		f, err := receive(s)
		if err != nil {
			return nil, err
		}
		for i := range f.Responses {
			if f.Responses[i].ID == req.ID {
				return &f.Responses[i], nil
			}
		}
	}
}

func receive(s grpc.ClientStream) (*kv.Frame, error) {
	var raw framecodec.Raw
	if err := s.RecvMsg(&raw); err != nil {
		return nil, err
	}
	f := &kv.Frame{}
	return f, kv.DecodeFrame(raw.Data, f)
}

func userKey(k string) []byte { return append([]byte{kv.UserPrefix}, k...) }

func put(k, v string, sequence uint64) *kv.Request {
	return &kv.Request{
		ID: 1, Verb: kv.VerbPut, Key: userKey(k), Value: []byte(v),
		Identity: kv.Identity{Client: 77, Sequence: sequence},
	}
}

func get(k string) *kv.Request { return &kv.Request{ID: 2, Verb: kv.VerbGet, Key: userKey(k)} }

func testBinary() string { return os.Args[0] }
