package framecodec

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func TestRawFramesPassUnchangedAndBelongToTheReceiver(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 1000, 5000, 100_000} {
		sent := bytes.Repeat([]byte{7}, size)
		wire, err := Codec{}.Marshal(&Raw{Data: sent})
		if err != nil {
			t.Fatal(err)
		}
		var got Raw
		if err := (Codec{}).Unmarshal(wire, &got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Data, sent) {
			t.Fatalf("size %d: received %d bytes that differ", size, len(got.Data))
		}
		if size > 0 {
			sent[0] = 9
			if got.Data[0] != 7 {
				t.Fatalf("size %d: received frame aliases the sender's buffer", size)
			}
		}
	}
}

func TestSentFrameReturnsToItsPoolWhenGrpcFreesIt(t *testing.T) {
	t.Parallel()
	pool := &countingPool{}
	buf := make([]byte, 8192)
	wire, err := Codec{}.Marshal(&Raw{Data: buf, Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	if pool.put != 0 {
		t.Fatal("returned to the pool before it was sent")
	}
	wire.Free()
	if pool.put != 1 {
		t.Fatalf("returned to the pool %d times, want once", pool.put)
	}
}

func TestEverythingElseIsProtobuf(t *testing.T) {
	t.Parallel()
	for _, n := range []int{3, 5000} {
		in := &metapb.RangeDescriptor{RangeId: 7, Start: bytes.Repeat([]byte{1}, n)}
		wire, err := Codec{}.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		out := &metapb.RangeDescriptor{}
		if err := (Codec{}).Unmarshal(wire, out); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(in, out) {
			t.Fatalf("got %v, want %v", out, in)
		}
	}
	if _, err := (Codec{}).Marshal("text"); err == nil {
		t.Fatal("a string was encoded")
	}
	if err := (Codec{}).Unmarshal(nil, new(int)); err == nil {
		t.Fatal("decoded into an int")
	}
}

type countingPool struct{ put int }

func (p *countingPool) Get(n int) *[]byte { b := make([]byte, n); return &b }
func (p *countingPool) Put(*[]byte)       { p.put++ }

var _ mem.BufferPool = (*countingPool)(nil)
