package loadtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// Etcd is an etcd v3 cluster, spoken to in the few fields of its KV service
// that a load test needs, so that its client library is no dependency. Reads
// are linearizable. Peers are measured by the same tool as Flotilla.
type Etcd struct {
	conns []*grpc.ClientConn // immutable
	next  atomic.Uint64
}

const (
	etcdPut   = "/etcdserverpb.KV/Put"
	etcdRange = "/etcdserverpb.KV/Range"

	etcdMaxMessage = 64 << 20
)

// Field numbers of etcd's requests and answers.
const (
	putKey, putValue               = 1, 2
	rangeKey, rangeEnd, rangeLimit = 1, 2, 3
	rangeAnswerPairs               = 2
)

// OpenEtcd opens count connections (at least one per endpoint), spread over
// the endpoints, and waits until one of them answers.
func OpenEtcd(ctx context.Context, endpoints []string, count int) (*Etcd, error) {
	if len(endpoints) == 0 {
		return nil, errors.New("open etcd: no endpoint given")
	}
	e := &Etcd{}
	for i := range max(count, len(endpoints)) {
		address := strings.TrimPrefix(endpoints[i%len(endpoints)], "http://")
		c, err := grpc.NewClient("passthrough:///"+address,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDisableRetry(),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{}),
				grpc.MaxCallRecvMsgSize(etcdMaxMessage), grpc.MaxCallSendMsgSize(etcdMaxMessage)))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open etcd at %s: %w", address, err), e.Close())
		}
		e.conns = append(e.conns, c)
	}
	if _, err := e.Get(ctx, []byte("probe")); err != nil {
		return nil, errors.Join(fmt.Errorf("open etcd at %s: %w",
			strings.Join(endpoints, ","), err), e.Close())
	}
	return e, nil
}

func (e *Etcd) call(ctx context.Context, method string, request []byte) ([]byte, error) {
	var answer []byte
	conn := e.conns[e.next.Add(1)%uint64(len(e.conns))]
	err := conn.Invoke(ctx, method, &request, &answer)
	return answer, err
}

// Get reads a key, linearizably.
func (e *Etcd) Get(ctx context.Context, key []byte) (bool, error) {
	rows, err := e.read(ctx, appendField(nil, rangeKey, key))
	return rows > 0, err
}

// Put writes a key.
func (e *Etcd) Put(ctx context.Context, key, value []byte) error {
	request := make([]byte, 0, len(key)+len(value)+16)
	request = appendField(request, putKey, key)
	request = appendField(request, putValue, value)
	_, err := e.call(ctx, etcdPut, request)
	return err
}

// ReadModifyWrite reads a key, then writes it.
func (e *Etcd) ReadModifyWrite(ctx context.Context, key, value []byte) (bool, error) {
	found, err := e.Get(ctx, key)
	if err != nil {
		return false, err
	}
	return found, e.Put(ctx, key, value)
}

// Scan reads up to limit rows.
func (e *Etcd) Scan(ctx context.Context, start []byte, limit int) (int, error) {
	request := appendField(nil, rangeKey, start)
	request = appendField(request, rangeEnd, []byte{0}) // to the end of the keys
	request = protowire.AppendTag(request, rangeLimit, protowire.VarintType)
	request = protowire.AppendVarint(request, uint64(limit))
	return e.read(ctx, request)
}

// read sends a range request and counts the pairs in the answer.
func (e *Etcd) read(ctx context.Context, request []byte) (rows int, err error) {
	answer, err := e.call(ctx, etcdRange, request)
	if err != nil {
		return 0, err
	}
	for len(answer) > 0 {
		number, _, n := protowire.ConsumeField(answer)
		if n < 0 {
			return rows, fmt.Errorf("range: answer of etcd: %w", protowire.ParseError(n))
		}
		if number == rangeAnswerPairs {
			rows++
		}
		answer = answer[n:]
	}
	return rows, nil
}

// ErrorKind is the name of the status code.
func (e *Etcd) ErrorKind(err error) string {
	switch code := status.Code(err); code {
	case codes.DeadlineExceeded:
		return "timeout"
	case codes.Unavailable:
		return "unavailable"
	default:
		return strings.ToLower(code.String())
	}
}

// Close closes the connections.
func (e *Etcd) Close() error {
	var errs []error
	for _, c := range e.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func appendField(dst []byte, number protowire.Number, b []byte) []byte {
	dst = protowire.AppendTag(dst, number, protowire.BytesType)
	return protowire.AppendBytes(dst, b)
}

// rawCodec passes bytes through: messages are *[]byte.
type rawCodec struct{}

// Marshal sends the bytes as they are: every call has made its own, so grpc may
// keep them as long as it likes.
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("encode: %T is not a message", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
}

// Unmarshal copies the bytes.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("decode: %T is not a message", v)
	}
	*b = data.Materialize()
	return nil
}

// Name is part of the content type: etcd knows only this one.
func (rawCodec) Name() string { return "proto" }

var _ Store = (*Etcd)(nil)
