package loadtest

import (
	"bytes"
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// fakeEtcd speaks the wire format of etcd's KV service, decoded field by field.
type fakeEtcd struct {
	mu   sync.Mutex
	data map[string][]byte
}

// serve handles one unary call of any method.
func (f *fakeEtcd) serve(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	var request []byte
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	fields, numbers := map[protowire.Number][]byte{}, map[protowire.Number]uint64{}
	for len(request) > 0 {
		number, kind, n := protowire.ConsumeTag(request)
		request = request[n:]
		if kind == protowire.BytesType {
			fields[number], n = protowire.ConsumeBytes(request)
		} else {
			numbers[number], n = protowire.ConsumeVarint(request)
		}
		if n < 0 {
			return status.Error(codes.InvalidArgument, "malformed")
		}
		request = request[n:]
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := appendField(nil, 1, []byte{8, 1}) // a header
	switch method {
	case etcdPut:
		f.data[string(fields[putKey])] = bytes.Clone(fields[putValue])
	case etcdRange:
		answer = f.scan(answer, fields, numbers)
	default:
		return status.Error(codes.Unimplemented, method)
	}
	return stream.SendMsg(&answer)
}

func (f *fakeEtcd) scan(
	answer []byte, fields map[protowire.Number][]byte, numbers map[protowire.Number]uint64,
) []byte {
	start, end := string(fields[rangeKey]), fields[rangeEnd]
	rows := uint64(0)
	for _, k := range slices.Sorted(maps.Keys(f.data)) {
		in := k == start || (len(end) == 1 && end[0] == 0 && k >= start)
		if !in || (numbers[rangeLimit] > 0 && rows == numbers[rangeLimit]) {
			continue
		}
		rows++
		pair := appendField(nil, 1, []byte(k))
		answer = appendField(answer, rangeAnswerPairs, appendField(pair, 5, f.data[k]))
	}
	answer = protowire.AppendTag(answer, 4, protowire.VarintType)
	return protowire.AppendVarint(answer, rows)
}

func TestEtcdIsSpokenToInItsOwnWords(t *testing.T) {
	t.Parallel()
	fake := &fakeEtcd{data: map[string][]byte{}}
	server := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}),
		grpc.UnknownServiceHandler(fake.serve))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	defer running.Wait()
	defer server.Stop()

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	e, err := OpenEtcd(ctx, []string{listener.Addr().String()}, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	if found, err := e.Get(ctx, []byte("a")); found || err != nil {
		t.Errorf("get of nothing: %v, %v", found, err)
	}
	for _, k := range []string{"a", "b", "c"} {
		if err := e.Put(ctx, []byte(k), []byte("value of "+k)); err != nil {
			t.Fatal(err)
		}
	}
	if string(fake.data["b"]) != "value of b" {
		t.Errorf("stored: %q", fake.data)
	}
	if found, err := e.ReadModifyWrite(ctx, []byte("a"), nil); !found || err != nil {
		t.Errorf("read-modify-write: %v, %v", found, err)
	}
	for limit, want := range map[int]int{1: 1, 2: 2, 9: 2} {
		if rows, err := e.Scan(ctx, []byte("b"), limit); rows != want || err != nil {
			t.Errorf("scan of %d: %d rows, %v", limit, rows, err)
		}
	}
	late, cancelLate := context.WithDeadline(ctx, time.Unix(0, 0))
	defer cancelLate()
	if _, err := e.Get(late, []byte("a")); e.ErrorKind(err) != "timeout" {
		t.Errorf("kind of %v is %q", err, e.ErrorKind(err))
	}
}
