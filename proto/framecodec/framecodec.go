// Package framecodec is the grpc codec of every connection of Flotilla: values
// of type *Raw pass as they are, everything else as protobuf.
//
// It exists because the paths that carry load (raft frames between nodes, the
// batch stream of clients) have hand-written formats: protobuf would cost an
// allocation per field there. A codec is chosen per connection, not per method,
// so the one codec must pass both. It is given to grpc explicitly, with
// ForceServerCodecV2 and ForceCodecV2, and never registered: registration is a
// process-wide side effect, and programs that embed the client may have their own.
//
// The codec has no state; its methods are safe on any goroutine.
package framecodec

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Raw is one message of a raw stream.
type Raw struct {
	// Data is sent as it is; after SendMsg it must not change any more, since
	// grpc writes it to the socket later. When receiving, Data is a fresh slice
	// that belongs to the receiver.
	Data []byte
	// Pool, if set when sending, gets Data back once it is on the wire; the
	// sender must not touch Data after SendMsg then. Receiving ignores it.
	Pool mem.BufferPool
}

// Codec implements encoding.CodecV2.
type Codec struct{}

var _ encoding.CodecV2 = Codec{}

// Name returns "proto": the content type stays the usual one, so that common
// grpc tools can call the protobuf services of a node.
func (Codec) Name() string { return "proto" }

// Marshal returns the bytes of a *Raw by reference, or the protobuf encoding of
// a proto.Message. Any other type is an error.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *Raw:
		data := m.Data
		return mem.BufferSlice{mem.NewBuffer(&data, m.Pool)}, nil
	case proto.Message:
		return marshalProto(m)
	}
	return nil, fmt.Errorf("encode grpc message: %T is neither a raw frame nor protobuf", v)
}

func marshalProto(m proto.Message) (mem.BufferSlice, error) {
	// Size caches the sizes of nested messages, which UseCachedSize then reads:
	// the message must not change in between, and nobody shares it here.
	size := proto.Size(m)
	opts := proto.MarshalOptions{UseCachedSize: true}
	if mem.IsBelowBufferPoolingThreshold(size) {
		data, err := opts.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("encode %T: %w", m, err)
		}
		return mem.BufferSlice{mem.SliceBuffer(data)}, nil
	}
	pool := mem.DefaultBufferPool()
	buf := pool.Get(size)
	data, err := opts.MarshalAppend((*buf)[:0], m)
	if err != nil {
		pool.Put(buf)
		return nil, fmt.Errorf("encode %T: %w", m, err)
	}
	*buf = data
	return mem.BufferSlice{mem.NewBuffer(buf, pool)}, nil
}

// Unmarshal fills a *Raw with a copy of the message, or decodes protobuf into a
// proto.Message. The copy is needed: grpc takes its buffers back on return.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *Raw:
		m.Data = data.Materialize()
		return nil
	case proto.Message:
		buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer buf.Free()
		if err := proto.Unmarshal(buf.ReadOnlyData(), m); err != nil {
			return fmt.Errorf("decode %T: %w", m, err)
		}
		return nil
	}
	return fmt.Errorf("decode grpc message: %T is neither a raw frame nor protobuf", v)
}
