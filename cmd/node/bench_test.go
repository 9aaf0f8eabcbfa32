package main

import (
	"context"
	"fmt"
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

// BenchmarkThreeProcesses puts and gets through three processes on one range,
// over one stream with so many requests in flight. All of them and the client
// share the machine.
func BenchmarkThreeProcesses(b *testing.B) {
	c := newCluster(b, 3)
	for i := range c.nodes {
		c.start(i + 1)
	}
	c.healthy(1, 3)
	addr := c.leader()
	for _, verb := range []kv.Verb{kv.VerbPut, kv.VerbGet} {
		for _, inFlight := range []int{1, 64, 512} {
			b.Run(fmt.Sprintf("%v/%d", verb, inFlight), func(b *testing.B) {
				drive(b, addr, verb, inFlight)
			})
		}
	}
}

// leader returns the address of the node that leads the first user range.
func (c *cluster) leader() (addr string) {
	eventually(c.t, "leader", func(ctx context.Context) error {
		conn, err := rpc.Dial(c.nodes[0].grpc)
		if err != nil {
			return err
		}
		defer conn.Close()
		r, err := adminpb.NewAdminClient(conn).Lookup(ctx, &adminpb.LookupRequest{
			Start: []byte{kv.UserPrefix},
		})
		if err != nil || len(r.GetRanges()) == 0 || r.Ranges[0].LeaderNode == 0 {
			return fmt.Errorf("lookup: %v %v", r, err)
		}
		for _, n := range r.GetNodes() {
			if n.GetNodeId() == r.Ranges[0].LeaderNode {
				addr = n.GetAddress()
				return nil
			}
		}
		return fmt.Errorf("leader n%d is not among the nodes", r.Ranges[0].LeaderNode)
	})
	return addr
}

func drive(b *testing.B, addr string, verb kv.Verb, inFlight int) {
	conn, err := rpc.Dial(addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	s, err := conn.NewStream(context.Background(),
		&grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/flotilla.KV/Stream")
	if err != nil {
		b.Fatal(err)
	}
	hello, _ := proto.Marshal(&metapb.Hello{
		ProtocolMin: rpc.ProtocolMin, ProtocolMax: rpc.ProtocolMax,
	})
	_ = s.SendMsg(&framecodec.Raw{Data: kv.AppendHello(nil, 0, hello)})
	f, err := receive(s)
	if err != nil {
		b.Fatal(err)
	}
	floor, client := f.Stamp, uint64(time.Now().UnixNano())
	sent, done, failed := 0, 0, 0
	fill := func(n int) {
		reqs := make([]kv.Request, n)
		for i := range reqs {
			sent++
			reqs[i] = kv.Request{
				ID: uint64(sent), Verb: verb, Key: userKey(fmt.Sprintf("key%012d", sent*7919%100_000)),
			}
			if verb == kv.VerbPut {
				reqs[i].Value = make([]byte, 256)
				reqs[i].Identity = kv.Identity{Client: client, Sequence: uint64(sent), Floor: floor}
			}
		}
		_ = s.SendMsg(&framecodec.Raw{Data: kv.AppendRequests(nil, floor, reqs)})
	}
	b.ResetTimer()
	fill(min(inFlight, b.N))
	for done < b.N {
		f, err := receive(s)
		if err != nil {
			b.Fatal(err)
		}
		done += len(f.Responses)
		for i := range f.Responses {
			if c := f.Responses[i].Code; c != kv.CodeOK && c != kv.CodeNotFound {
				failed++
				if failed == 1 {
					b.Logf("%v %s", c, f.Responses[i].Message)
				}
			}
		}
		if n := min(len(f.Responses), b.N-sent); n > 0 {
			fill(n)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(float64(failed), "failed")
}
