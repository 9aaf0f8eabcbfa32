package kv

import "github.com/flotilla-kv/flotilla/internal/hlc"

// FrameKind says what a frame carries.
type FrameKind uint8

// The kinds of frames.
const (
	FrameHello     FrameKind = 1 // Hello: marshalled metapb.Hello
	FrameRequests  FrameKind = 2
	FrameResponses FrameKind = 3
	FrameStamp     FrameKind = 4 // only a stamp: keeps a client's floor fresh
)

// Frame is one message of a batch stream. Format (little endian, uvarint = u):
// kind(1) stamp(8) count(u), then each item. EncodeX/DecodeX in codec.go are the
// only users of the format.
type Frame struct {
	Kind      FrameKind
	Stamp     hlc.Timestamp
	Hello     []byte
	Requests  []Request
	Responses []Response
}
